"""A running job's events on their way from worker to store, and the heartbeat of its worker."""

import logging
import signal
import sys
import threading
import time

from tvaccine_core.errors import RunNotFoundError
from tvaccine_core.plain_text import without_places
from tvaccine_core.records import Event, StepRecord
from tvaccine_core.store import JobRow, Store
from tvaccine_core.store.queue import HEARTBEAT_EVERY_S

FLUSH_EVERY_S = 0.2

log = logging.getLogger(__name__)


class Report:
    """Writes a running job's events in batches, and heartbeats with progress, from a thread of its own.

    Leaving the context writes all pending events. If the store fails, the job stops at its next event. With `silent_s`
    a system alarm ends the process unless heartbeats reset it: a process whose threads all hang cannot end itself.
    """

    def __init__(self, store: Store, job: JobRow, worker_id: str, silent_s: float | None = None) -> None:
        self.lost = False
        """True when the job is no longer this worker's."""
        self._store = store
        self._job = job
        self._worker_id = worker_id
        self._silent_s = silent_s
        self._lock = threading.Lock()
        self._events: list[Event] = []
        self._progress: tuple[int, int] | None = None
        self._failure: Exception | None = None
        self._earlier = store.last_seq(job.id) if job.resumed else 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"report-{job.id}", daemon=True)

    def __enter__(self) -> "Report":
        self._put_off()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._call_off()
        self.flush()
        if self._progress is not None and not self.lost:  # a short job ends between two heartbeats
            self._store.heartbeat(self._job.id, self._progress, worker_id=self._worker_id)

    def recall_progress(self) -> None:
        """Begin with the steps done at the last checkpoint: a job that only measures from here takes no step."""
        at = self._store.last_checkpoint(self._job.id)
        for stored in reversed(self._store.events(self._job.run_id, kinds=["step"], job_id=self._job.id)):
            if isinstance(stored.event, StepRecord) and stored.event.step <= at:
                self._progress = (stored.event.step, stored.event.num_steps)
                return

    def add(self, event: Event) -> None:
        """Take an event; it is in the store a moment later. Raises an earlier error of the store."""
        if self._failure is not None:
            raise self._failure
        if event.kind == "progress":
            self._progress = (event.done, event.total)
            return
        if event.kind == "message":
            event = event.model_copy(
                update={"text": self._placeless(event.text), "remedy": self._placeless(event.remedy)}
            )
        if event.kind == "step":
            self._progress = (event.step, event.num_steps)
            if self._earlier:  # the interrupted attempt went further than its last checkpoint
                self._store.truncate_events(self._job.id, event.step, self._earlier)
                self._earlier = 0
        with self._lock:
            self._events.append(event)

    def _placeless(self, text: str) -> str:
        return without_places(text, self._store.home)

    def flush(self) -> None:
        """Write all pending events now."""
        with self._lock:  # held while writing, so that two flushes cannot swap the order
            if self._events and not self.lost:
                self._store.append(self._job.id, self._events)
            self._events = []

    def _put_off(self) -> None:
        if self._silent_s is not None:
            _set_alarm(self._silent_s)

    def _call_off(self) -> None:
        if self._silent_s is not None:
            _set_alarm(0)  # the report of an outer job sets it again at its next beat

    def _beat(self) -> None:
        next_heartbeat = 0.0
        while not self._ended.wait(FLUSH_EVERY_S):
            self._put_off()
            try:
                self.flush()
                if time.monotonic() >= next_heartbeat:
                    self.lost |= not self._store.heartbeat(self._job.id, self._progress, worker_id=self._worker_id)
                    next_heartbeat = time.monotonic() + HEARTBEAT_EVERY_S
            except RunNotFoundError:
                self.lost = True
            except Exception as error:
                log.exception("%s cannot report", self._job.id)
                self._failure = error
                self._call_off()  # no beat resets it any more, and the job must reach its next event
                break
        self._store.close()


def _set_alarm(seconds: float) -> None:
    """Make the system end this process after `seconds` awake, whoever holds the interpreter's lock; 0: never."""
    if sys.platform != "win32":
        signal.setitimer(signal.ITIMER_REAL, seconds)
