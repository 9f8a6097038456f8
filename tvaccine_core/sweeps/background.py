"""Makes the sweeps of a store, one after the other, oldest first, in a thread beside the workers. Torch-free.

What is to be made stands in the store: so a sweep that is stopped, or whose server ends in any way, goes on later.
"""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from tvaccine_core.config import ModelConfig, parse_config
from tvaccine_core.errors import ConfigError, StoreError, TVaccineError
from tvaccine_core.store import Store, SweepRow
from tvaccine_core.sweeps.drive import POLL_EVERY_S, Progress, run_sweep, withdraw
from tvaccine_core.sweeps.plan import Sweep, cells_of

LOOK_EVERY_S = 1.0
"""Pause between two looks for a sweep that is to be made."""

log = logging.getLogger(__name__)


class _EndedError(Exception):
    """The sweep was stopped or deleted, or the program ends."""


class SweepDriver:
    """Makes sweeps from `start` to `stop` (or as a context manager).

    Args:
        home: the store's folder.
        at_once: runs that are queued or running at the same time.
        may_work: False while another program's workers serve this folder: then sweeps wait.
        permit: raises `ConfigError` if the page may not load a model.
    """

    def __init__(
        self,
        home: Path,
        at_once: int,
        may_work: Callable[[], bool] = lambda: True,
        permit: Callable[[ModelConfig], None] = lambda model: None,
    ) -> None:
        self.store = Store(home)
        self.at_once = at_once
        self._may_work = may_work
        self._permit = permit
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "SweepDriver":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to look for sweeps."""
        self._over.clear()
        self._thread = threading.Thread(target=self._watch, name="sweeps", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop looking. A sweep that is being made stays as it is, and its queued work in the store."""
        self._over.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            row = None
            try:
                row = self.store.sweeps.next() if self._may_work() else None
                if row is not None:
                    self._make(row)
            except StoreError as error:  # the disk is full, or the database is held: it may be better soon
                log.warning("%s %s", error, error.remedy)
            except Exception as error:  # the thread must outlive a fault, and nobody may wait for this sweep for ever
                log.exception("a sweep ended by a fault")
                if row is not None:
                    self._give_up(row, TVaccineError(f"A fault of the lab: {error}", remedy="See the server's log."))
        self.store.close()

    def _make(self, row: SweepRow) -> None:
        active: list[str] = []
        said: list[object] = []

        def look(progress: Progress) -> None:
            active[:] = progress.active
            problems = tuple(dict.fromkeys(progress.failed.values()))
            left = progress.seconds_left
            if [progress.done, problems] != said:
                said[:] = [progress.done, problems]
                self.store.sweeps.report(row.id, progress.done, problems, left)

        def pause() -> None:
            if self._over.wait(POLL_EVERY_S) or not self._may_work() or not self._wanted(row.id):
                raise _EndedError

        try:
            sweep = parse_config(Sweep, row.spec)
            for cell in cells_of(sweep):
                self._permit(cell.config.model)
        except ConfigError as error:  # made by another version, or with other permissions
            self._give_up(row, error)
            return
        try:
            progress = run_sweep(self.store, sweep, at_once=self.at_once, look=look, pause=pause)
            look(progress)
            self.store.sweeps.set_state(row.id, "done")
        except _EndedError:
            if not self._over.is_set() and not self._wanted(row.id):
                withdraw(self.store, sweep, active)
        except StoreError:
            raise
        except TVaccineError as error:  # a setting that cannot work any more: the model's files are gone, say
            self._give_up(row, error)

    def _give_up(self, row: SweepRow, error: TVaccineError) -> None:
        self.store.sweeps.report(row.id, row.done, (f"{error} {error.remedy}".strip(),), None)
        self.store.sweeps.set_state(row.id, "stopped")

    def _wanted(self, sweep_id: str) -> bool:
        """True while the sweep exists and nobody has stopped it."""
        return self.store.sweeps.state(sweep_id) == "running"
