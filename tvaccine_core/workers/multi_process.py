"""One job done by the processes of a launcher (torchrun, accelerate launch): rank 0 leads, the others follow.

The leader is the command line and the worker in one process. It takes jobs from the store and tells the followers.
These need neither the store nor its disk: the leader sends them config, checkpoint and adapters. They only train with
it. While the leader measures and saves, they wait or, if they hold parts of the base, lend these to its passes.

The processes agree on a stop before a step; then the leader ends the command, whichever process got the signal. They
cannot agree on a failure: a process that fails inside a step leaves the others waiting in a sum. So each process has a
thread that looks for posted failures. The leader's thread records the failure as the job's and ends its process; a
follower's thread just ends its process. Only the steps since the last checkpoint are lost.

Imports torch only if several processes were started.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from tvaccine_core.errors import CancelledError, StoreError, TVaccineError
from tvaccine_core.machine import launched_as
from tvaccine_core.store import Store
from tvaccine_core.workers.supervisor import Supervisor
from tvaccine_core.workers.worker import Worker

if TYPE_CHECKING:
    from tvaccine_core.processes import Group

LOOK_EVERY_S = 0.3
ACKNOWLEDGED_WITHIN_S = 30.0

log = logging.getLogger(__name__)

_group: Group | None = None


def started_together() -> bool:
    """True if a launcher started this process as one of several. Raises `ConfigError`, see `launched_as`."""
    return "RANK" in os.environ and launched_as()[1] > 1


def run_together(command_line: Callable[[], int]) -> NoReturn:
    """Meet the other processes, then run `command_line` (rank 0) or follow it (the others); ends the process.

    Raises:
        TVaccineError: the processes do not meet.
    """
    global _group
    from tvaccine_core import processes as ranks

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s", stream=sys.stderr)
    _group = group = ranks.join()
    if not group.leads:
        _follow(group)
    code = command_line()
    if group.failure() is not None:  # the others see it and end, if they have not ended yet
        _end(code or 1)
    group.share(json.dumps({"kind": "end"}).encode())
    ranks.leave(code)


def lead(store: Store, job_ids: Sequence[str], look: Callable[[], None]) -> bool:
    """Do `job_ids` and the jobs that they wait for, together with the followers, until none can go on.

    Ends at the first failure. Jobs that still wait are cancelled: nobody else would do them.

    Args:
        store: on this process's disk.
        job_ids: the jobs to do.
        look: called a few times per second from another thread, to show progress.

    Returns:
        True if a signal stopped it, here or in a follower.

    Raises:
        StoreError: another program's workers would take the jobs, or the store fails.
    """
    from tvaccine_core.workers.runner import TorchEngine

    assert _group is not None
    group, stop, over = _group, threading.Event(), threading.Event()
    wanted = _with_dependencies(store, job_ids)
    worker = Worker(store, TorchEngine(ranks=group), job_ids=wanted, stop=stop)

    def on_failure(error: TVaccineError) -> None:
        """End this process if its main thread waits for a failed process; if it fails itself, it reports more."""
        while not over.wait(2 * LOOK_EVERY_S):  # so that the main thread and the report can finish writing
            mine = [job for job in store.all_jobs() if job.state == "running" and job.worker_id == worker.id]
            for job in mine:
                store.finish(job.id, "failed", error, worker_id=worker.id)
                sys.stderr.write(f"{job.title} of run {job.run_id}: failed. {error}\n  {error.remedy}\n")
            if mine:
                _cancel_waiting(store, job_ids)
                group.acknowledge()
                _end(1)
        group.acknowledge()

    def show() -> None:
        while not over.wait(LOOK_EVERY_S):
            look()
        store.close()

    lock = Supervisor(store.home, 0)  # without workers: it keeps other supervisors away
    with lock, _stopped_by_signals(stop):
        if lock.standing_by:
            raise StoreError(
                f"Another program's workers serve {store.home}; they would take the jobs.",
                remedy="End the other program, or choose another folder with --data-dir.",
            )
        group.on_stop = stop.set
        threading.Thread(target=_look_for_failures, args=(group, on_failure, over), daemon=True).start()
        shown = threading.Thread(target=show, daemon=True)
        shown.start()
        try:
            while not stop.is_set() and worker.run_one():
                failed = next((job for job in map(store.job, wanted) if job.state == "failed"), None)
                if failed is not None:
                    group.post_failure(TVaccineError(failed.error or "", remedy=failed.remedy or ""))
                    break
            _cancel_waiting(store, job_ids)
        except Exception as error:
            with contextlib.suppress(RuntimeError):  # the launcher's store may be gone
                group.post_failure(error)  # the others may wait in a sum
            raise
        finally:
            over.set()
            shown.join()
    return stop.is_set()


def _follow(group: Group) -> NoReturn:
    """Train with the leader until it says that all is done."""
    from tvaccine_core.workers.runner import TorchEngine

    stop, over = threading.Event(), threading.Event()
    engine = TorchEngine(ranks=group)

    def on_failure(error: TVaccineError) -> None:
        _end(1)

    threading.Thread(target=_look_for_failures, args=(group, on_failure, over), daemon=True).start()
    try:
        with tempfile.TemporaryDirectory() as folder, _stopped_by_signals(stop):
            while (task := json.loads(group.share(None)))["kind"] != "end":
                with contextlib.suppress(CancelledError):
                    engine.follow(task, Path(folder), stop.is_set)
    except Exception as error:
        over.set()
        log.exception("process %d of %d fails", group.index, group.size)
        with contextlib.suppress(RuntimeError):  # the leader may be gone, and the launcher's store with it
            group.post_failure(error)
            group.wait_until_acknowledged(ACKNOWLEDGED_WITHIN_S)
        _end(1)
    over.set()
    from tvaccine_core import processes as ranks

    ranks.leave(0)


def _look_for_failures(group: Group, on_failure: Callable[[TVaccineError], None], over: threading.Event) -> None:
    while not over.wait(LOOK_EVERY_S):
        try:
            error = group.failure()
        except RuntimeError:  # the store's process is gone; a waiting process notices its broken connection
            return
        if error is not None:
            on_failure(error)
            return


def _with_dependencies(store: Store, job_ids: Sequence[str]) -> list[str]:
    """`job_ids`, and the unfinished jobs that they depend on."""
    wanted = list(job_ids)
    for job_id in wanted:  # grows meanwhile
        needed = store.job(job_id).depends_on
        if needed is not None and needed not in wanted and store.job(needed).active:
            wanted.append(needed)
    return wanted


def _cancel_waiting(store: Store, job_ids: Sequence[str]) -> None:
    for job in map(store.job, job_ids):
        if job.state == "queued":
            store.cancel(job.id)


@contextlib.contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """SIGTERM and Ctrl-C end the job after its step, with a checkpoint; a second signal ends the process at once."""

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(code: int) -> NoReturn:
    """End the process at once: the main thread may wait in a sum for a dead process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
