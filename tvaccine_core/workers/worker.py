"""The worker process: takes jobs from the store, runs them, and answers prompts between two training steps.

It keeps the base model between jobs, sends heartbeats from a separate thread, stops within a step when asked to, and
survives a job that fails. All its results go to the store. SIGTERM, Ctrl-C or (under a supervisor) the death of its
parent end it after the current step: the job keeps its checkpoint and becomes interrupted.

Cost: an idle worker makes five indexed SELECTs per second; a running job costs one SELECT per step and about five small
transactions per second, made outside the training thread.
"""

import contextlib
import faulthandler
import gc
import logging
import math
import os
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn, Protocol

from tvaccine_core.config import LabConfig, ModelConfig
from tvaccine_core.errors import CancelledError, OutOfMemoryError, TVaccineError, lacks_memory
from tvaccine_core.plain_text import without_places
from tvaccine_core.records import AnswerRecord, Event, MessageRecord
from tvaccine_core.store import JobKind, JobRow, Store
from tvaccine_core.workers.job_report import Report

IDLE_POLL_S = 0.2
REAP_EVERY_S = 5.0
SERVE_EVERY_S = 0.3
"""Pause between two looks for prompts while a job trains."""
SERVE_FOR_S = 8.0
"""Longest pause of a training job for one answer."""
ORPHAN_GRACE_S = 60
SILENT_S = 60.0
"""A worker process with a job ends itself if none of its threads could run for this time."""
NICE = 5
"""How much a supervised worker lowers its priority, see `_stand_back`."""

log = logging.getLogger(__name__)

ShouldStop = Callable[[], bool]


class Engine(Protocol):
    """The part of the engine that a worker uses; `TorchEngine` in production."""

    def run(self, store: Store, job: JobRow, config: LabConfig, should_stop: ShouldStop) -> Iterator[Event]:
        """Do any job but `generate`. Between two events the model may be used to answer.

        Raises `CancelledError` within a step after `should_stop()` becomes True.
        """
        ...

    def answer(
        self, store: Store, job: JobRow, config: LabConfig, should_stop: ShouldStop, time_limit_s: float
    ) -> Iterator[AnswerRecord]:
        """Do a `generate` job in at most `time_limit_s`. Changes nothing on which a running training depends."""
        ...

    def memory_remedy(self, job: JobRow, config: LabConfig) -> str:
        """Changes that make a job fit which ran out of memory; may be empty. May take half a minute."""
        ...

    def release(self) -> None:
        """Free the memory of models."""
        ...


class Worker:
    """Runs jobs until `stop` is set.

    Args:
        kinds: only jobs of these kinds; None for all.
        job_ids: only these jobs, and prompts while one of them trains; None for all.
        stop: set it, from any thread or a signal handler, to end after the current step.
        silent_s: end the process if it has a job and none of its threads could run for this time; None: never, for a
            worker that shares its process.
    """

    def __init__(
        self,
        store: Store,
        engine: Engine,
        *,
        kinds: Collection[JobKind] | None = None,
        job_ids: Collection[str] | None = None,
        stop: threading.Event | None = None,
        silent_s: float | None = None,
    ) -> None:
        self.store = store
        self.engine = engine
        self.kinds = kinds
        self.job_ids = job_ids
        self.stop = stop or threading.Event()
        self._silent_s = silent_s
        self._training = False
        self.id = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"

    def run(self) -> None:
        """Take jobs until told to stop; idle in between."""
        next_reap = 0.0
        while not self.stop.is_set():
            if self.run_one():
                continue
            if time.monotonic() >= next_reap:
                for job in self.store.reap():
                    log.warning("%s lost its worker", job.id)
                next_reap = time.monotonic() + REAP_EVERY_S
            self.stop.wait(IDLE_POLL_S)

    def run_one(self) -> bool:
        """Take a job and do it; False if there was none."""
        job = self.store.claim(self.id, self.kinds, job_ids=self.job_ids)
        if job is None:
            return False
        if job.kind == "generate":
            self._answer(job, math.inf)
        else:
            self._work(job)
        return True

    def _report(self, job: JobRow) -> Report:
        return Report(self.store, job, self.id, self._silent_s)

    def _work(self, job: JobRow) -> None:
        report = self._report(job)
        if job.resumed:
            report.recall_progress()

        def should_stop() -> bool:
            return self.stop.is_set() or report.lost or self.store.cancel_requested(job.id)

        def body() -> None:
            config = self.store.run(job.run_id).config
            next_look = 0.0
            for event in self.engine.run(self.store, job, config, should_stop):
                report.add(event)
                if time.monotonic() >= next_look and not should_stop():
                    self._serve(config.model)
                    next_look = time.monotonic() + SERVE_EVERY_S

        self._training = True
        try:
            self._attempt(job, report, body)
        finally:
            self._training = False

    def _serve(self, model: ModelConfig) -> None:
        """Answer the prompts that wait for the base model in memory."""
        if self.kinds is not None and "generate" not in self.kinds:
            return
        job = self.store.claim(self.id, ["generate"], model)
        if job is not None:
            self._answer(job, SERVE_FOR_S)

    def _answer(self, job: JobRow, time_limit_s: float) -> None:
        report = self._report(job)

        def should_stop() -> bool:
            return self.stop.is_set() or report.lost or self.store.cancel_requested(job.id)

        def body() -> None:
            config = self.store.run(job.run_id).config
            began = time.monotonic()
            for record in self.engine.answer(self.store, job, config, should_stop, time_limit_s):
                report.add(record)
            if time.monotonic() - began > time_limit_s:
                report.add(
                    MessageRecord(
                        level="warning",
                        text=f"The answers end after {time_limit_s:.0f} s, because training goes on.",
                        remedy="Ask again when the training has ended.",
                    )
                )

        self._attempt(job, report, body)

    def _attempt(self, job: JobRow, report: Report, body: Callable[[], None]) -> None:
        """Run `body` and record in the store how it ended. Only a store's error is raised."""
        log.info("%s (%s of %s) begins", job.id, job.title, job.run_id)
        error: TVaccineError | None = None
        state: Literal["done", "failed", "cancelled", "interrupted"] = "done"
        try:
            with report:
                body()
        except CancelledError:
            state = "interrupted" if self.stop.is_set() and not self.store.cancel_requested(job.id) else "cancelled"
        except TVaccineError as known:
            state, error = "failed", _bare(known)
            log.warning("%s failed: %s", job.id, known)
        except Exception as unknown:  # noqa: BLE001 - a worker survives any error of a job
            # As text: a log handler that keeps records would keep the traceback's frames and their models.
            log.error("%s failed\n%s", job.id, "".join(traceback.format_exception(unknown)))
            state, error = "failed", self._explain(job, unknown)
        if isinstance(error, OutOfMemoryError):
            if job.kind != "generate" or not self._training:  # a prompt must not take a training's model away
                self.engine.release()
            gc.collect()
            if job.kind != "generate":
                error.remedy = f"{error.remedy} {self._memory_remedy(job)}".strip()
        if report.lost:
            log.warning("%s went to another worker or was deleted", job.id)
            return
        if error is not None:  # from here on everybody on the page reads it
            error.args = (without_places(str(error), self.store.home),)
            error.remedy = without_places(error.remedy, self.store.home)
        self.store.finish(job.id, state, error, worker_id=self.id)
        log.info("%s ends: %s", job.id, state)

    def _memory_remedy(self, job: JobRow) -> str:
        """The engine's advice; the job stays this worker's meanwhile. Empty if there is none."""
        try:
            with self._report(job):
                return self.engine.memory_remedy(job, self.store.run(job.run_id).config)
        except Exception:
            log.warning("no plan for %s", job.id, exc_info=True)
            return ""

    def _explain(self, job: JobRow, error: Exception) -> TVaccineError:
        """An unexpected exception as a readable error; its traceback goes to a file of the run."""
        if lacks_memory(error):
            return OutOfMemoryError(
                f"There was not enough memory for `{job.title}`.",
                remedy="Close other programs and resume the job, or start a new run with a smaller batch, shorter "
                "examples or nf4 quantization.",
            )
        path = self.store.run_dir(job.run_id) / "log" / f"{job.id}.txt"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC\n{''.join(traceback.format_exception(error))}\n")
        except OSError as unwritten:
            log.warning("cannot write %s: %s", path, unwritten)
            return TVaccineError(_short(error), remedy="The worker's log has the details.")
        return TVaccineError(_short(error), remedy=f"This is a fault in the program. The details are in {path}.")


def _bare(error: TVaccineError) -> TVaccineError:
    """The error without traceback and cause, whose frames would keep parts of a model in memory."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


def run_worker(
    home: Path,
    make_engine: Callable[[], Engine],
    *,
    kinds: Collection[JobKind] | None = None,
    supervised: bool = False,
    silent_s: float = SILENT_S,
) -> NoReturn:
    """Run a worker process until SIGTERM, SIGINT or, if `supervised`, the end of its standard input.

    It ends itself, with a traceback of each thread, if it has a job and no thread could run for `silent_s`.

    `make_engine` may take seconds (it imports torch); until it is done a signal ends the process at once.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    stop = threading.Event()
    if supervised:
        _stand_back()
        threading.Thread(target=_wait_for_the_parents_end, args=(stop,), name="parent", daemon=True).start()
    gc.disable()  # a tenth of the import would be spent on garbage collection that finds none
    engine = make_engine()
    gc.freeze()
    gc.enable()

    def handle(number: int, _frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)  # a second signal ends at once

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
    if sys.platform != "win32":
        faulthandler.register(signal.SIGALRM, chain=True)  # chain: afterwards the signal ends the process, as usual
    worker = Worker(Store(home), engine, kinds=kinds, stop=stop, silent_s=silent_s)
    log.info("worker %s serves %s", worker.id, worker.store.home)
    worker.run()
    log.info("worker %s ends", worker.id)
    worker.store.close()
    logging.shutdown()
    os._exit(0)  # everything is stored; torch's shutdown would take two more seconds


def _stand_back() -> None:
    """Lower the priority of this process, and of all threads that it starts, below the page's.

    Linux divides the cores among sessions first ("autogroups") and uses `nice` only inside a session. A supervised
    worker leads its own session, so the session's priority must be lowered too.
    """
    if sys.platform == "win32":
        return
    # With two workers training on two cores, 5 and 50 ms of work in a third process took 9 and 100 ms (median). `nice`
    # alone, 5 or 19, changes nothing; with the session at 5 they take 5 and 51 ms; at 7, 10 and 15 the same. Higher
    # values only starve the worker beside other load: at 10 it gets a tenth of another session's share, at 5 a third.
    os.nice(NICE)
    if sys.platform == "linux" and os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):  # a kernel without autogroups
            Path("/proc/self/autogroup").write_text(str(NICE))


def _wait_for_the_parents_end(stop: threading.Event) -> None:
    """Standard input is a pipe from the parent: it ends when the parent ends, in any way."""
    # Not through sys.stdin: a thread that waits inside its buffer makes the interpreter abort at exit.
    with contextlib.suppress(OSError):
        while os.read(0, 1):
            pass
    stop.set()
    time.sleep(ORPHAN_GRACE_S)
    log.error("still at work %d s after the parent's end; leaving", ORPHAN_GRACE_S)
    os._exit(1)  # a blocked main thread would block sys.exit too; the job shows as interrupted
