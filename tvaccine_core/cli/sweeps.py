"""The command `sweep`: every combination of some settings, resumable, as one table."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from tvaccine_core.cli.follow import CANCEL_MARGIN_S, HOPELESS_AFTER, cancel
from tvaccine_core.cli.options import DataDir, Workers, err, open_store, out
from tvaccine_core.errors import ConfigError, DataError, StoreError, cut, shown
from tvaccine_core.store import Store
from tvaccine_core.sweeps import drive
from tvaccine_core.sweeps.cluster import results_in, run_on_cluster
from tvaccine_core.sweeps.figures import draw_curves, draw_heat, draw_map, draw_outcomes, draw_scatter
from tvaccine_core.sweeps.measured import CellResult, read_results, results_of, write_results
from tvaccine_core.sweeps.plan import Sweep, by_run, cells_of
from tvaccine_core.sweeps.report import check_setting, tables, to_html, to_latex, to_markdown
from tvaccine_core.sweeps.spots import spots
from tvaccine_core.whole_folders import write_whole
from tvaccine_core.workers.multi_process import started_together
from tvaccine_core.workers.supervisor import Supervisor

COLUMNS_HELP = (
    "Setting whose values become the columns. Default: attack.harmful_ratio if varied, else the first varied "
    "setting that is not a seed."
)
FORMS = {"tables.md": to_markdown, "tables.html": to_html, "tables.tex": to_latex}


def sweep(
    file: Annotated[Path, typer.Argument(help="The sweep: a YAML file; see docs/SWEEPS.md.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the results. Default: beside FILE.")] = None,
    columns: Annotated[str | None, typer.Option(help=COLUMNS_HELP)] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would be made.")] = False,
    workers: Workers = None,
    gpus: Annotated[
        str | None, typer.Option(help="One worker for each of these GPUs, as CUDA numbers them: 0,1.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="Run the cells as cluster jobs: slurm, or local for processes on this machine.")
    ] = None,
    cluster_set: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A job's setting, as submitit names it: timeout_min=600."),
    ] = None,
    data_dir: DataDir = None,
) -> None:
    """Make every cell of a sweep that no run has yet, then write its results and tables.

    Stop it, or kill it, whenever you like: the same command goes on.
    """
    if started_together():
        raise ConfigError(
            "This command cannot run under torchrun or another launcher.",
            remedy="Run it directly, and set the number of processes with --workers.",
        )
    asked = Sweep.load(file)
    cells, numbers = cells_of(asked), _gpus(gpus)
    folder = output or file.with_name(f"{file.stem}-results")
    check_setting(asked.vary, columns)
    if not plan:
        _make_folder(folder)
    settings = _job_settings(cluster, cluster_set or [])
    earlier = _earlier(folder)
    store = open_store(data_dir)
    ready = {*drive.places(store), *(result.key for result in earlier)}
    made = sum(cell.key in ready for cell in cells)
    out.print(
        f"Sweep {asked.name}: {len(cells):,} cells in {len(by_run(cells)):,} runs; {made:,} are there already.",
        soft_wrap=True,
    )
    if plan:
        return
    if cluster is not None:
        progress, earlier = _submit(asked, folder, cluster, settings, results_of(store, cells, earlier))
    else:
        progress = _make(store, asked, earlier, workers or (len(numbers) if numbers else None), numbers)
    results = results_of(store, cells, earlier)
    write_results(results, folder)
    _write_tables(folder, columns)
    for words in dict.fromkeys(progress.failed.values()):
        err.print(words, style="bold", soft_wrap=True)
    if progress.failed:
        err.print(f"{len(progress.failed)} cells failed. The same command tries them again.")
    out.print(f"{len(results):,} of {len(cells):,} cells, in {folder}", soft_wrap=True)
    raise typer.Exit(1 if progress.failed else 0)


def sweep_tables(
    folder: Annotated[Path, typer.Argument(help="A folder that `sweep` wrote.")],
    columns: Annotated[str | None, typer.Option(help=COLUMNS_HELP)] = None,
    heat: Annotated[
        str | None, typer.Option(metavar="A,B", help="Also draw heat.svg: HS by two varied settings.")
    ] = None,
) -> None:
    """Write the tables and figures of a sweep's results again, and print the tables."""
    _write_tables(folder, columns)
    if heat is not None:
        across, comma, down = (part.strip() for part in heat.partition(","))
        if not (comma and across and down):
            raise ConfigError(f"--heat takes two settings, not {heat!r}.", remedy="For example --heat seed,attack.seed")
        draw_heat(read_results(folder / "cells.json"), (across, down), folder / "heat.svg")
    out.print((folder / "tables.md").read_text(encoding="utf-8"), soft_wrap=True)


class _Bar:
    """A sweep's progress: a bar on a terminal, else a line for each change."""

    def __init__(self) -> None:
        self.seen = drive.Progress(0)
        self._told = -1
        self.bar = Progress(
            TextColumn("cells"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=err,
            disable=not err.is_terminal,
        )
        self._task = self.bar.add_task("", total=None, left="")

    def look(self, progress: drive.Progress) -> None:
        """Show how far the sweep is."""
        self.seen = progress
        left = progress.seconds_left
        words = "" if left is None else f"{left / 60:.0f} min left"
        self.bar.update(self._task, total=progress.total, completed=progress.done, left=words)
        if not err.is_terminal and progress.done != self._told:
            err.print(f"{progress.done} of {progress.total} cells. {words}", soft_wrap=True)
            self._told = progress.done


def _make(
    store: Store, asked: Sweep, earlier: Sequence[CellResult], num_workers: int | None, gpus: list[int] | None
) -> drive.Progress:
    supervisor = Supervisor(store.home, num_workers, gpus=gpus)
    progress, known = _Bar(), {result.key for result in earlier}

    def pause() -> None:
        if not supervisor.standing_by and supervisor.deaths_in_a_row() >= HOPELESS_AFTER:
            raise StoreError(" ".join(supervisor.last_deaths()), remedy="Look at the worker's log.")
        time.sleep(drive.POLL_EVERY_S)

    with supervisor, progress.bar:
        if supervisor.standing_by:
            err.print("Another program's workers serve this folder; they do the work.")
        try:
            at_once = 2 * supervisor.num_workers
            return drive.run_sweep(store, asked, at_once=at_once, known=known, look=progress.look, pause=pause)
        except KeyboardInterrupt:
            err.print("Stopping after the current steps, with checkpoints. The same command goes on.")
            jobs = [job.id for run_id in progress.seen.active for job in store.jobs(run_id) if job.active]
            cancel(store, jobs, supervisor.cancel_within_s + CANCEL_MARGIN_S)
            raise typer.Exit(130) from None


def _submit(
    asked: Sweep, folder: Path, cluster: str, settings: dict[str, Any], earlier: Sequence[CellResult]
) -> tuple[drive.Progress, list[CellResult]]:
    progress = _Bar()
    known = [*earlier, *results_in(folder)]
    with progress.bar:
        try:
            return run_on_cluster(asked, folder, cluster, settings, known=known, look=progress.look)
        except KeyboardInterrupt:
            jobs = ", ".join(progress.seen.active)
            err.print(f"The cluster's jobs go on: {jobs}. The same command waits for them.", soft_wrap=True)
            raise typer.Exit(130) from None


def _job_settings(cluster: str | None, assignments: Sequence[str]) -> dict[str, Any]:
    """`timeout_min=600` -> a number, else text. Raises `ConfigError`."""
    found: dict[str, Any] = {}
    for assignment in assignments:
        name, is_setting, value = assignment.partition("=")
        example = "For example --cluster slurm --cluster-set timeout_min=600"
        if cluster is None:
            raise ConfigError("--cluster-set needs --cluster.", remedy=example)
        if not (name and is_setting):
            raise ConfigError(f"--cluster-set takes NAME=VALUE, not {shown(assignment)}.", remedy=example)
        found[name] = int(value) if value.isdecimal() else value
    return found


def _earlier(folder: Path) -> list[CellResult]:
    """Results that are in the folder already: their cells are not made again, whatever the store has."""
    path = folder / "cells.json"
    try:
        return read_results(path) if path.exists() else []
    except DataError as error:
        raise DataError(str(error), remedy="Move that file away, or give another --output.") from error


def _make_folder(folder: Path) -> None:
    """Raise `ConfigError` before the work, not after it, if the results cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"{cut(str(folder), 200)} cannot be written: {error.strerror or error}.", remedy="Give another --output."
        ) from error


def _write_tables(folder: Path, columns: str | None) -> None:
    results = read_results(folder / "cells.json")
    made = tables(results, columns)
    for name, write in FORMS.items():
        write_whole(folder / name, write(made))
    if not results:
        return
    draw_curves(results, folder / "curves.svg")
    draw_scatter(results, folder / "scatter.svg")
    if any(point.outcomes for result in results for point in result.curve):
        draw_outcomes(results, folder / "outcomes.svg")
    if any(spots(results, where) for where in results[0].harmful_sets):
        draw_map(results, folder / "map.svg")


def _gpus(text: str | None) -> list[int] | None:
    if text is None:
        return None
    numbers = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in numbers):
        raise ConfigError(f"--gpus takes numbers separated by commas, not {text!r}.", remedy="For example --gpus 0,1")
    return [int(part) for part in numbers]
