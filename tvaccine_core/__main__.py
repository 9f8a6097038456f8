"""`python -m tvaccine_core`: the lab without a browser. Each command imports what it needs when it runs."""

import io
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer
from typer.exceptions import TyperException

from tvaccine_core import __version__
from tvaccine_core.cli import plan, record, runs, stages, sweeps, tools
from tvaccine_core.cli.options import DataDir, err, out
from tvaccine_core.errors import SHOWN, ConfigError, RunNotFoundError, TVaccineError, cut
from tvaccine_core.workers.multi_process import run_together, started_together

MAX_WORDS = 400
"""Characters of a message about a command line that cannot be read."""

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


for command in (stages.demo, stages.align, stages.attack, stages.evaluate, stages.judge, stages.generate):
    app.command()(command)
app.add_typer(runs.app, name="runs")
app.command()(sweeps.sweep)
app.command()(record.record)
app.command()(sweeps.sweep_tables)
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
    """Run a command line; returns the exit code: 2 for a wrong request, 1 for a failure, 130 after Ctrl-C.

    If a launcher started several processes, the first runs the command; the others do their share of its jobs.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may not be text; stderr escapes by itself

    def command() -> Any:
        return app(arguments, standalone_mode=False)  # then `_run` prints errors of the command line

    def begin() -> Any:
        return run_together(lambda: _run(command)) if started_together() else command()

    return _run(begin)


def _run(action: Callable[[], Any]) -> int:
    try:
        code = action()
    except TyperException as error:  # an argument may be as long as a file
        words = re.sub(rf"\S{{{SHOWN},}}", lambda word: cut(word[0], SHOWN), getattr(error, "message", ""))
        error.message = cut(words, MAX_WORDS)
        error.show()  # pyright: ignore[reportAttributeAccessIssue] - typer raises subclasses, which have it
        return error.exit_code
    except typer.Abort:
        err.print("Aborted!")
        return 1
    except TVaccineError as error:
        err.print(str(error), style="bold red", soft_wrap=True)
        if error.remedy:
            err.print(error.remedy, soft_wrap=True)
        return 2 if isinstance(error, ConfigError | RunNotFoundError) else 1
    except SystemExit as exit_:
        return exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    return code if isinstance(code, int) else 0  # what `typer.Exit` was given


if __name__ == "__main__":
    sys.exit(main())
