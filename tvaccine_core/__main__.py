"""`python -m tvaccine_core`: the lab without a browser. Each command imports what it needs when it runs."""

import io
import sys
from collections.abc import Callable, Sequence

import typer

from tvaccine_core import __version__
from tvaccine_core.cli import plan, runs, stages, tools
from tvaccine_core.cli.options import DataDir, err, out
from tvaccine_core.errors import ConfigError, RunNotFoundError, TVaccineError
from tvaccine_core.workers.multi_process import run_together, started_together

app = typer.Typer(
    help="T-Vaccine Lab: align a small language model, attack it, see what holds.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)


@app.callback()
def everywhere(data_dir: DataDir = None) -> None:
    """`--data-dir` may stand before the command, too: the option itself remembers it."""


for command in (stages.demo, stages.align, stages.attack, stages.evaluate, stages.generate):
    app.command()(command)
app.add_typer(runs.app, name="runs")
app.command()(tools.worker)
app.add_typer(tools.sandbox, name="sandbox")
app.command()(plan.plan)
app.command()(tools.conformance)
app.add_typer(tools.bench, name="bench")


@app.command()
def version() -> None:
    """Print the version."""
    out.print(__version__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code: 2 for a wrong wish, 1 for what went wrong, 130 after Ctrl-C.

    Of several processes that a launcher started, the first runs it; the others do their share of its jobs.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may be no text; standard error does so itself
    if not started_together():
        return _run(lambda: app(arguments))
    return _run(lambda: run_together(lambda: _run(lambda: app(arguments))))


def _run(action: Callable[[], None]) -> int:
    try:
        action()
    except TVaccineError as error:
        err.print(str(error), style="bold red", soft_wrap=True)
        if error.remedy:
            err.print(error.remedy, soft_wrap=True)
        return 2 if isinstance(error, ConfigError | RunNotFoundError) else 1
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
