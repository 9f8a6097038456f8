"""Makes a sweep's cells as jobs of a cluster, through submitit: one job for each run.

Machines of a cluster share folders, but an SQLite file that several of them open is not safe. So every job has a store
of its own, in `FOLDER/cluster/RUN/`, which one machine at a time opens, under a lock. It leaves its results in one file
there. The command goes on like any sweep: what has results is not made again, and a job that was killed resumes from
its store's checkpoints. A job for work at which an earlier job still is waits for that job.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tvaccine_core.config import parse_config
from tvaccine_core.errors import ConfigError, StoreError, cut
from tvaccine_core.store import Store
from tvaccine_core.sweeps.drive import POLL_EVERY_S, Progress, check_cells, run_sweep
from tvaccine_core.sweeps.measured import CellResult, read_results, results_of, write_results
from tvaccine_core.sweeps.plan import Cell, Sweep, by_run, cells_of, run_key
from tvaccine_core.workers.supervisor import Supervisor, try_lock

LOOK_EVERY_S = 2.0
DEATHS = 3
"""Deaths of a job's worker in a row after which the job gives up."""
DEFAULTS: Mapping[str, Any] = {"timeout_min": 24 * 60}
"""Settings of a job that nobody gave; submitit's own limit is five minutes."""


def results_in(folder: Path) -> list[CellResult]:
    """What the jobs of earlier starts left."""
    return [result for path in sorted(folder.glob("cluster/*/cells.json")) for result in read_results(path)]


def run_on_cluster(
    sweep: Sweep,
    folder: Path,
    cluster: str,
    settings: Mapping[str, Any],
    *,
    known: Sequence[CellResult],
    look: Callable[[Progress], None] = lambda progress: None,
    pause: Callable[[], None] = lambda: time.sleep(LOOK_EVERY_S),
) -> tuple[Progress, list[CellResult]]:
    """Submit a job for each run that lacks cells, and wait for all. Returns the progress and all results.

    Args:
        folder: of the results, on a disk that the cluster's machines share.
        cluster: what submitit calls it: `slurm`, or `local` for processes of this machine.
        settings: of each job, as submitit names them: `timeout_min`, `gpus_per_node`, `slurm_partition`.
        known: results that are in hand.
        look: called after every look at the jobs.
        pause: waits for the next look; what it raises ends the wait, and the jobs go on.

    Raises:
        ConfigError: a cell's settings cannot work, or submitit does not know the cluster or a setting.
    """
    cells = cells_of(sweep)
    check_cells(cells)
    wanted = {cell.key for cell in cells}
    found = {result.key: result for result in known if result.key in wanted}
    progress = Progress(len(wanted), done=len(found), done_at_start=len(found))
    executor = _executor(folder / "cluster" / "log", cluster, {**DEFAULTS, "name": "tvaccine-sweep", **settings})
    threads = 1 if cluster == "local" else None  # jobs of one machine share its cores
    jobs: dict[str, Any] = {}
    groups: dict[str, list[Cell]] = {}
    for group in by_run(cells):
        missing = [cell for cell in group if cell.key not in found]
        if missing:
            name = run_key(group[0].config)
            groups[name] = missing
            place = folder / "cluster" / name
            keys = [cell.key for cell in missing]
            jobs[name] = executor.submit(make_cells, sweep.model_dump(mode="json"), keys, str(place), threads)
    while jobs:
        for name, job in list(jobs.items()):
            if job.done():
                del jobs[name]
                problem = _problem(job)
                results = folder / "cluster" / name / "cells.json"
                made = {result.key: result for result in read_results(results)} if results.exists() else {}
                found |= {cell.key: made[cell.key] for cell in groups[name] if cell.key in made}
                progress.failed |= {cell.key: problem for cell in groups[name] if cell.key not in made}
        progress.done = len(found)
        progress.active = tuple(str(job.job_id) for job in jobs.values())
        look(progress)
        if jobs:
            pause()
    return progress, list(found.values())


def make_cells(spec: dict[str, Any], keys: Sequence[str], place: str, num_threads: int | None = None) -> list[str]:
    """A job: make these cells of a sweep in the store `place`, and write `place/cells.json`. Returns what went wrong.

    Should an earlier job for the same cells still run, this one waits for it, and finds them made.

    Args:
        num_threads: torch threads; None takes all cores that the job has.
    """
    home = Path(place)
    home.mkdir(parents=True, exist_ok=True)
    while (lock := try_lock(home / "job.lock")) is None:
        time.sleep(LOOK_EVERY_S)
    with lock:
        sweep = parse_config(Sweep, spec)
        cells = cells_of(sweep)
        others = {cell.key for cell in cells} - set(keys)
        store = Store(home)
        with Supervisor(home, 1, num_threads=num_threads) as worker:

            def pause() -> None:
                if worker.deaths_in_a_row() >= DEATHS:
                    raise StoreError(" ".join(worker.last_deaths()), remedy=f"Look at {home / 'log'}.")
                time.sleep(POLL_EVERY_S)

            problems: list[str] = []
            try:
                progress = run_sweep(store, sweep, at_once=1, known=others, pause=pause)
                problems += dict.fromkeys(progress.failed.values())
            finally:
                write_results(results_of(store, cells), home)
        return problems


def _executor(log: Path, cluster: str, settings: Mapping[str, Any]) -> Any:
    """Submitit's executor. Raises `ConfigError`."""
    import submitit

    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))  # a job starts elsewhere
    try:
        executor = submitit.AutoExecutor(folder=log, cluster=cluster)
        executor.update_parameters(**settings)
    except (NameError, TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"submitit rejected the cluster {cut(cluster, 40)!r} or its settings: {cut(str(error), 300)}",
            remedy="Use --cluster slurm or local, and --cluster-set with submitit's names, such as timeout_min=600.",
        ) from error
    return executor


def _problem(job: Any) -> str:
    """Why a job has not made a cell."""
    from submitit.core.utils import FailedJobError, UncompletedJobError

    try:
        problems = job.result()
    except FailedJobError as error:  # it raised something
        why = str(error).strip().splitlines()[-1]
        return f"Job {job.job_id} failed: {why} Read {job.paths.stderr}, then run the same command again."
    except UncompletedJobError:  # it was killed
        return f"Job {job.job_id} ended without a result. Read {job.paths.stderr}, then run the same command again."
    if problems:
        return problems[0]
    said = f"Job {job.job_id} ended, but this cell has no result."
    return f"{said} Read {job.paths.stderr}, then run the same command again."
