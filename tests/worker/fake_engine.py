"""A stand-in for the engine: counts steps instead of training, keeps a checkpoint file, misbehaves when asked to.

As a script it is a worker process: `python fake_engine.py HOME [--supervised] [--silent-s=SECONDS]`.
"""

import argparse
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import repeat
from pathlib import Path

from tvaccine_core.config import LabConfig
from tvaccine_core.errors import CancelledError, ModelError
from tvaccine_core.records import AnswerRecord, CheckpointRecord, Event, LayerDrawRecord, MessageRecord, StepRecord
from tvaccine_core.store import JobRow, Store
from tvaccine_core.workers.worker import SILENT_S, run_worker


class FakeEngine:
    """`params` of a job: `steps`, `step_s`, `checkpoint_every`, and `fail`.

    `fail` is one of known, placed, unknown, memory, die, hang, hold. `hang` never looks at `should_stop`, as a model
    that is being loaded; `hold` goes round in C with the interpreter's lock held: no thread of the process goes on, and
    no handler of a signal.
    """

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.released = 0

    def run(self, store: Store, job: JobRow, config: LabConfig, should_stop: Callable[[], bool]) -> Iterator[Event]:
        """Count from the checkpoint to `steps`."""
        path = store.run_dir(job.run_id) / "checkpoints" / f"{job.id}.txt"
        start = store.last_checkpoint(job.id) if job.resumed else 0
        every, total = job.params.get("checkpoint_every", 5), job.params.get("steps", 10)
        yield LayerDrawRecord(step=start, layers=(0,))
        for step in range(start + 1, total + 1):
            if should_stop():
                path.parent.mkdir(exist_ok=True)
                path.write_text(str(step - 1))
                yield CheckpointRecord(step=step - 1, path=path.name)
                raise CancelledError("Stopped.")
            if step == 3 and job.params.get("fail") == "placed":
                yield MessageRecord(level="warning", text=f"{path} looks odd.", remedy=f"Look into {store.home}.")
                raise ModelError(f"{path} is damaged.", remedy=f"Delete {path.parent}.")
            self._misbehave(job.params.get("fail") if step == 3 else None)
            step_s = job.params.get("step_s", 0.0)
            time.sleep(step_s)
            self.steps.append(step)
            yield StepRecord(
                step=step, num_steps=total, loss=1, learning_rate=1, grad_norm=1, elapsed_s=step * step_s, num_tokens=1
            )
            if step % every == 0:
                path.parent.mkdir(exist_ok=True)
                path.write_text(str(step))
                yield CheckpointRecord(step=step, path=path.name)

    def answer(
        self, store: Store, job: JobRow, config: LabConfig, should_stop: Callable[[], bool], time_limit_s: float
    ) -> Iterator[AnswerRecord]:
        """Say `words` words, one every `step_s`."""
        if job.params.get("fail") == "hang":
            self._misbehave("hang")
        if job.params.get("fail"):
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.")
        words, deadline = job.params.get("words", 3), time.monotonic() + time_limit_s
        for word in range(1, words + 1):
            if time.monotonic() > deadline:
                return
            if should_stop():
                raise CancelledError("Stopped.")
            time.sleep(job.params.get("step_s", 0.0))
            yield AnswerRecord(
                state="base", state_hash="h", prompt=job.params["prompt"], text="word " * word, done=word == words
            )

    def memory_remedy(self, job: JobRow, config: LabConfig) -> str:
        """`advice` of the job's `params`; without one there is no plan."""
        return job.params["advice"]

    def release(self) -> None:
        """Count."""
        self.released += 1

    def _misbehave(self, how: str | None) -> None:
        match how:
            case "known":
                raise ModelError("No such model.", remedy="Take another.")
            case "unknown":
                raise ZeroDivisionError("secret /path")
            case "memory":
                raise MemoryError
            case "die":
                os._exit(3)
            case "hang":
                time.sleep(1000)
            case "hold":
                time.sleep(0.5)  # what was said gets into the store
                deque(repeat(None), maxlen=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("--supervised", action="store_true")
    parser.add_argument("--silent-s", type=float, default=SILENT_S)
    given = parser.parse_args()
    run_worker(given.home, FakeEngine, supervised=given.supervised, silent_s=given.silent_s)
