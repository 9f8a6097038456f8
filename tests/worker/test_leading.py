"""The leader of several processes around a fake engine, the others played by a stand-in: what it takes and posts."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from fake_engine import FakeEngine

from tvaccine_core import processes as ranks_module
from tvaccine_core.cli.follow import follow
from tvaccine_core.config import LabConfig
from tvaccine_core.errors import ModelError, StoreError, TrainingError
from tvaccine_core.processes import Ranks, Word
from tvaccine_core.records import Event
from tvaccine_core.store import JobRow, Store
from tvaccine_core.workers import multi_process as launch
from tvaccine_core.workers import runner as engine_module


class Leader(Ranks):
    """The first of two processes; the second does nothing but, if asked to, want a stop or fail."""

    size = 2

    def __init__(self) -> None:
        self.posted: list[str] = []
        self.shared: list[str] = []
        self.acknowledged = threading.Event()
        self.their_failure: TrainingError | None = None
        self.seen = threading.Event()
        self.on_stop: Callable[[], None] = lambda: None

    def share(self, payload: bytes | None) -> bytes:
        self.shared.append(json.loads(payload or b"")["kind"])
        return payload or b""

    def agree(self, word: Word) -> Word:
        return word

    def post_failure(self, error: Exception) -> None:
        """Keep what is posted."""
        self.posted.append(str(error))

    def failure(self) -> TrainingError | None:
        """What was posted."""
        if self.their_failure is not None:
            self.seen.set()
            return self.their_failure
        return TrainingError(self.posted[0]) if self.posted else None

    def acknowledge(self) -> None:
        """Remember."""
        self.acknowledged.set()


class Engine(FakeEngine):
    """Does `before` at the second step."""

    before: Callable[[], None] = staticmethod(lambda: None)

    def run(self, store: Store, job: JobRow, config: LabConfig, should_stop: Callable[[], bool]) -> Iterator[Event]:
        for event in super().run(store, job, config, should_stop):
            yield event
            if event.kind == "step" and event.step == 2:
                Engine.before()


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Leader:
    leader = Leader()
    monkeypatch.setattr(launch, "_group", leader)
    monkeypatch.setattr(engine_module, "TorchEngine", lambda ranks: Engine())
    monkeypatch.setattr(Engine, "before", staticmethod(lambda: None))
    return leader


def enqueue(store: Store, run_id: str, method: str, **more: Any) -> str:
    return store.enqueue(run_id, "align", {"aligned": method}, **more)


def test_only_the_commands_own_jobs_are_taken_and_what_they_wait_for(store: Store, run_id: str, group: Leader) -> None:
    """Another run's older job that fails would leave the followers with half a conversation."""
    foreign = store.enqueue(run_id, "attack", {"defence": "sft", "fail": "known"})
    needed = enqueue(store, run_id, "sft")
    own = enqueue(store, run_id, "vaccine", depends_on=needed)
    assert not launch.lead(store, [own], lambda: None)
    assert [store.job(job).state for job in (foreign, needed, own)] == ["queued", "done", "done"]
    assert group.posted == []


def test_a_failed_job_is_posted_and_the_others_are_not_begun(store: Store, run_id: str, group: Leader) -> None:
    broken = store.enqueue(run_id, "attack", {"defence": "sft", "fail": "known"})
    own = enqueue(store, run_id, "vaccine")
    assert not launch.lead(store, [broken, own], lambda: None)
    assert [store.job(job).state for job in (broken, own)] == ["failed", "cancelled"]
    assert group.posted == ["No such model."]


def test_a_stop_that_another_process_asked_for_interrupts_and_ends_all(
    store: Store, run_id: str, group: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(Engine, "before", staticmethod(lambda: group.on_stop()))
    jobs = [enqueue(store, run_id, method) for method in ("sft", "vaccine")]
    jobs.append(store.enqueue(run_id, "attack", {"defence": "sft"}, depends_on=jobs[0]))
    with pytest.raises(typer.Exit) as end:
        follow(store, jobs, quiet=True)
    assert end.value.exit_code == 130
    assert [store.job(job).state for job in jobs] == ["interrupted", "cancelled", "cancelled"]
    assert group.posted == []


def test_a_store_that_fails_is_posted_and_no_end_is_shared(
    tmp_path: Path, store: Store, run_id: str, group: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The followers are in a sum: what they must not hear is that all is well."""

    def fill_the_disk() -> None:
        def full(*_: object, **__: object) -> bool:
            raise StoreError("database or disk is full", remedy="Free some space.")

        for name in ("append", "heartbeat", "finish"):
            monkeypatch.setattr(Store, name, full)

    def command_line() -> int:
        with pytest.raises(StoreError):
            launch.lead(store, [job], lambda: None)
        return 1

    class EndedError(Exception):
        pass

    def end(code: int) -> None:
        raise EndedError(code)

    monkeypatch.setattr(Engine, "before", staticmethod(fill_the_disk))
    monkeypatch.setattr(ranks_module, "join", lambda: group)
    monkeypatch.setattr(launch, "_end", end)
    job = enqueue(store, run_id, "sft")
    with pytest.raises(EndedError, match="1"):
        launch.run_together(command_line)
    assert group.posted == ["database or disk is full"]
    assert group.shared == []


def test_a_leader_that_fails_by_itself_is_not_cut_off(
    store: Store, run_id: str, group: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It still has to print and to write its report."""
    monkeypatch.setattr(launch, "LOOK_EVERY_S", 1.0)
    ended: list[int] = []
    monkeypatch.setattr(launch, "_end", ended.append)

    def all_fail() -> None:
        group.their_failure = TrainingError("Process 1 of 2: the loss is nan.")
        assert group.seen.wait(60)
        raise ModelError("The loss is nan.")

    monkeypatch.setattr(Engine, "before", staticmethod(all_fail))
    job = enqueue(store, run_id, "sft")
    before = set(threading.enumerate())
    launch.lead(store, [job], lambda: None)
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    assert group.acknowledged.is_set()
    assert ended == []
    assert store.job(job).error == "The loss is nan."


def test_a_leader_that_waits_for_a_failed_process_is_ended_with_its_message(
    store: Store, run_id: str, group: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = threading.Event()

    class LeftError(Exception):
        pass

    def wait_in_a_sum() -> None:
        group.their_failure = TrainingError("Process 1 of 2: no memory left.", remedy="Lower batch_size.")
        assert left.wait(60)
        raise LeftError

    monkeypatch.setattr(launch, "_end", lambda _code: left.set())
    monkeypatch.setattr(Engine, "before", staticmethod(wait_in_a_sum))
    jobs = [enqueue(store, run_id, method) for method in ("sft", "vaccine")]
    launch.lead(store, jobs, lambda: None)
    found = store.job(jobs[0])
    assert (found.state, found.error, found.remedy) == (
        "failed",
        "Process 1 of 2: no memory left.",
        "Lower batch_size.",
    )
    assert store.job(jobs[1]).state == "cancelled"
    assert group.acknowledged.is_set()
