"""Run queued jobs in worker processes and show their progress."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import typer
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tvaccine_core.cli.options import err
from tvaccine_core.errors import StoreError
from tvaccine_core.records import MessageRecord
from tvaccine_core.store import JobRow, Store
from tvaccine_core.workers.multi_process import lead, started_together
from tvaccine_core.workers.supervisor import Supervisor

POLL_EVERY_S = 0.4
CANCEL_MARGIN_S = 5.0
"""Time for the supervisor to notice, beyond the time that it gives a worker."""
HOPELESS_AFTER = 3
"""Deaths of a worker in a row after which waiting ends."""


def follow(
    store: Store,
    job_ids: Sequence[str],
    *,
    num_workers: int | None = None,
    on_poll: Callable[[], None] | None = None,
    quiet: bool = False,
) -> list[JobRow]:
    """Start workers, wait until the jobs have ended, and return them. Ctrl-C cancels them and exits with 130.

    If another program (the page) already has workers on the folder, they do the work. If a launcher started several
    processes, these are the workers, and the first failure ends all; then Ctrl-C, or SIGTERM to any of them, interrupts
    the running job after its step and cancels the others.

    Args:
        job_ids: the jobs to wait for.
        on_poll: called between two looks.
        quiet: no bars.

    Raises:
        StoreError: the workers die again and again.
    """
    if started_together():
        return _work_together(store, job_ids, on_poll, quiet)
    supervisor = Supervisor(store.home, num_workers)
    with supervisor:
        if supervisor.standing_by and not quiet:
            err.print("Another program's workers serve this folder; they do the work.")
        try:
            return _wait(store, job_ids, supervisor, on_poll, quiet)
        except KeyboardInterrupt:
            within_s = supervisor.cancel_within_s
            err.print(
                "Stopping after the current step, with a checkpoint. "
                f"A worker that has not stopped after {within_s:g} s is ended. Press Ctrl-C again to leave at once.",
                soft_wrap=True,
            )
            cancel(store, job_ids, within_s + CANCEL_MARGIN_S)
            raise typer.Exit(130) from None


def explain(jobs: Sequence[JobRow]) -> bool:
    """Print the jobs that failed or stopped, and what to do; True if all jobs are done."""
    fine = True
    for job in jobs:
        if job.state == "done":
            continue
        fine = False
        err.print(f"{job.title} of run {job.run_id}: {job.state}. {job.error or ''}", style="bold", soft_wrap=True)
        if job.remedy:
            err.print(f"  {job.remedy}", soft_wrap=True)
    if any(job.state in ("interrupted", "cancelled", "failed") for job in jobs):
        err.print(f"Go on with: python -m tvaccine_core runs resume {jobs[0].run_id}", soft_wrap=True)
    return fine


def _wait(
    store: Store, job_ids: Sequence[str], supervisor: Supervisor, on_poll: Callable[[], None] | None, quiet: bool
) -> list[JobRow]:
    wanted, run_ids = set(job_ids), sorted({store.job(job_id).run_id for job_id in job_ids})
    bars, said = _Bars() if err.is_terminal and not quiet else _Lines(quiet), _Said(store, quiet)
    with bars:
        while True:
            jobs = [job for run_id in run_ids for job in store.jobs(run_id) if job.id in wanted]
            bars.show(jobs)
            said.show(jobs)
            if on_poll is not None:
                on_poll()
            if not any(job.active for job in jobs):
                return jobs
            if not supervisor.standing_by and supervisor.deaths_in_a_row() >= HOPELESS_AFTER:
                raise StoreError(
                    " ".join(supervisor.last_deaths()),
                    remedy=f"The last lines: {_tail(supervisor.log_path(0))}",
                )
            time.sleep(POLL_EVERY_S)


def _work_together(
    store: Store, job_ids: Sequence[str], on_poll: Callable[[], None] | None, quiet: bool
) -> list[JobRow]:
    bars, said = _Bars() if err.is_terminal and not quiet else _Lines(quiet), _Said(store, quiet)

    def look() -> None:
        jobs = [store.job(job_id) for job_id in job_ids]
        bars.show(jobs)
        said.show(jobs)
        if on_poll is not None:
            on_poll()

    with bars:
        stopped = lead(store, job_ids, look)
        look()
    if stopped:
        explain([store.job(job_id) for job_id in job_ids])
        raise typer.Exit(130)
    return [store.job(job_id) for job_id in job_ids]


def cancel(store: Store, job_ids: Sequence[str], within_s: float) -> None:
    """Ask the jobs to stop, and wait for them, but no longer than `within_s`."""
    jobs = [store.job(job_id) for job_id in job_ids]
    for job in sorted(jobs, key=lambda job: job.state == "running"):  # waiting jobs first, so that none starts now
        store.cancel(job.id)
    deadline = time.monotonic() + within_s
    while any(store.job(job_id).active for job_id in job_ids) and time.monotonic() < deadline:
        time.sleep(0.1)


def _tail(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
    return "\n".join(lines[-5:])


class _Said:
    """Prints the jobs' messages, each sentence once: model, device, template, warnings."""

    def __init__(self, store: Store, quiet: bool) -> None:
        self._store = store
        self._quiet = quiet
        self._after: dict[str, int] = {}
        self._printed: set[str] = set()
        self._over: set[str] = set()

    def show(self, jobs: Sequence[JobRow]) -> None:
        """Print new messages."""
        for job in jobs:
            if job.state == "queued" or job.id in self._over:
                continue
            if not job.active:
                self._over.add(job.id)  # this look is the last
            after = self._after.get(job.id, 0)
            for stored in self._store.events(job.run_id, after=after, kinds=("message",), job_id=job.id):
                self._after[job.id] = stored.seq
                assert isinstance(stored.event, MessageRecord)
                sentence = f"{stored.event.text} {stored.event.remedy}".strip()
                if not self._quiet and sentence not in self._printed:
                    err.print(sentence, soft_wrap=True, style="yellow" if stored.event.level == "warning" else "")
                self._printed.add(sentence)


class _Lines(AbstractContextManager[None]):
    """One line each time a job changes its state: for logs and pipes."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._seen: dict[str, str] = {}

    def __exit__(self, *_: object) -> None:
        """Nothing to close."""

    def show(self, jobs: Sequence[JobRow]) -> None:
        """Print changed states."""
        for job in jobs:
            if not self._quiet and self._seen.get(job.id) != job.state and job.state != "queued":
                err.print(f"{job.run_id} {job.title}: {job.state}", soft_wrap=True)
            self._seen[job.id] = job.state


class _Bars(AbstractContextManager[None]):
    """One bar per job: for terminals."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"),
            console=err,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, jobs: Sequence[JobRow]) -> None:
        """Move the bars."""
        many = len({job.run_id for job in jobs}) > 1
        for job in jobs:
            if job.id not in self._tasks:
                title = f"{job.title} ({job.run_id[-6:]})" if many else job.title
                self._tasks[job.id] = self._progress.add_task(title, total=None, start=False, state=job.state)
            task = self._tasks[job.id]
            if job.state == "running" and self._progress.tasks[task].start_time is None:
                self._progress.start_task(task)
            total = job.total or (1 if job.state == "done" else None)
            done = total if job.state == "done" else job.done
            # All steps done and still running: it is being measured.
            state = "measuring" if job.state == "running" and total and done == total else job.state
            self._progress.update(task, total=total, completed=done or 0, state=state)
            if not job.active:
                self._progress.stop_task(task)
