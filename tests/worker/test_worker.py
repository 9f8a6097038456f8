"""The worker around a fake engine: how jobs end, what is reported, and prompts answered between steps."""

import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_engine import FakeEngine

from tvaccine_core.config import LabConfig, ModelConfig
from tvaccine_core.errors import OutOfMemoryError, StoreError
from tvaccine_core.records import AnswerRecord, Event, MessageRecord
from tvaccine_core.store import JobRow, Store
from tvaccine_core.workers import job_report
from tvaccine_core.workers import worker as worker_module
from tvaccine_core.workers.worker import Worker

WaitUntil = Callable[[Callable[[], object]], None]


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def worker(store: Store, engine: FakeEngine) -> Worker:
    return Worker(store, engine)


def enqueue(store: Store, run_id: str, **params: Any) -> str:
    return store.enqueue(run_id, "align", {"aligned": "sft", **params})


def ask(store: Store, run_id: str, **params: Any) -> str:
    return store.enqueue(run_id, "generate", {"prompt": "Hello?", "states": ["base"], **params})


def reported(store: Store, job: JobRow, kind: str = "step") -> list[int]:
    return [stored.event.step for stored in store.events(job.run_id, kinds=[kind], job_id=job.id)]  # pyright: ignore


def in_background(worker: Worker) -> threading.Thread:
    thread = threading.Thread(target=worker.run_one)
    thread.start()
    return thread


def test_a_job_runs_to_its_end_and_everything_it_said_is_stored(store: Store, run_id: str, worker: Worker) -> None:
    job_id = enqueue(store, run_id, steps=40)
    assert worker.run_one()
    assert not worker.run_one()
    job = store.job(job_id)
    assert (job.state, job.error, job.done, job.total) == ("done", None, 40, 40)
    assert reported(store, job) == list(range(1, 41))
    assert reported(store, job, "checkpoint") == list(range(5, 41, 5))


@pytest.mark.parametrize("fail", ["known", "unknown", "memory"])
def test_a_failed_job_says_why_and_the_next_one_runs(
    store: Store, run_id: str, worker: Worker, engine: FakeEngine, fail: str
) -> None:
    broken = enqueue(store, run_id, fail=fail)
    waiting = store.enqueue(run_id, "attack", {"defence": "sft", "attack_id": "a1"}, depends_on=broken)
    fine = enqueue(store, run_id)
    while worker.run_one():
        pass
    job = store.job(broken)
    assert [store.job(j).state for j in (broken, waiting, fine)] == ["failed", "cancelled", "done"]
    assert reported(store, job) == [1, 2]
    assert job.error
    assert job.remedy
    if fail == "known":
        assert (job.error, job.remedy) == ("No such model.", "Take another.")
    elif fail == "unknown":
        path = store.run_dir(run_id) / "log" / f"{broken}.txt"
        assert f"<data folder>/runs/{run_id}/log/{broken}.txt" in job.remedy
        assert str(store.home) not in job.remedy
        assert "Traceback" in path.read_text()
        assert "Traceback" not in job.error
    else:
        assert "memory" in job.error
        assert "smaller batch" in job.remedy
    assert engine.released == (fail == "memory")


def test_what_a_job_says_tells_visitors_no_place_of_this_machine(store: Store, run_id: str, worker: Worker) -> None:
    broken = enqueue(store, run_id, fail="placed")
    assert worker.run_one()
    job = store.job(broken)
    assert job.error == f"<data folder>/runs/{run_id}/checkpoints/{broken}.txt is damaged."
    assert job.remedy == f"Delete <data folder>/runs/{run_id}/checkpoints."
    (said,) = (stored.event for stored in store.events(run_id, kinds=["message"]))
    assert isinstance(said, MessageRecord)
    assert (said.text, said.remedy) == (
        f"<data folder>/runs/{run_id}/checkpoints/{broken}.txt looks odd.",
        "Look into <data folder>.",
    )


def test_a_job_that_ran_out_of_memory_gets_the_plan_s_advice(store: Store, run_id: str, worker: Worker) -> None:
    advised, unknown = enqueue(store, run_id, fail="memory", advice="Take nf4."), enqueue(store, run_id, fail="memory")
    while worker.run_one():
        pass
    told, plain = ((store.job(job).remedy or "") for job in (advised, unknown))
    assert store.job(advised).state == store.job(unknown).state == "failed"
    assert told == f"{plain} Take nf4."
    assert plain.startswith("Close other programs")


@pytest.mark.parametrize("typed", [True, False])
def test_when_memory_is_released_nothing_holds_what_the_failure_held(
    store: Store, run_id: str, worker: Worker, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, typed: bool
) -> None:
    """A half-loaded model hangs on the frames of the error's traceback, and on those of its cause's."""

    class Weights:
        pass

    held: list[weakref.ref[Weights]] = []
    alive: list[int] = []

    def load() -> None:
        weights = Weights()
        held.append(weakref.ref(weights))
        raise MemoryError

    def run(*_: object) -> Iterator[Event]:
        weights = Weights()
        held.append(weakref.ref(weights))
        try:
            load()
        except MemoryError as error:
            if not typed:
                raise
            raise OutOfMemoryError("It does not fit.", remedy="Take a smaller one.") from error
        yield from ()

    monkeypatch.setattr(engine, "run", run)
    monkeypatch.setattr(engine, "release", lambda: alive.append(sum(weights() is not None for weights in held)))
    job_id = enqueue(store, run_id)
    worker.run_one()
    assert store.job(job_id).state == "failed"
    assert (len(held), alive) == (2, [0])


def test_cancel_stops_within_a_step_and_keeps_the_checkpoint(
    store: Store, run_id: str, worker: Worker, engine: FakeEngine, wait_until: WaitUntil
) -> None:
    job_id = enqueue(store, run_id, steps=10_000, step_s=0.02)
    thread = in_background(worker)
    wait_until(lambda: len(engine.steps) >= 3)
    store.cancel(job_id)
    done = engine.steps[-1]
    thread.join()
    assert engine.steps[-1] <= done + 1
    job = store.job(job_id)
    assert (job.state, job.error) == ("cancelled", None)
    assert reported(store, job) == engine.steps

    store.resume(job_id)
    engine.steps.clear()
    worker.stop.set()  # a stop while a job runs: interrupted, not cancelled
    worker.run_one()
    assert store.job(job_id).state == "interrupted"
    assert engine.steps == []


def test_progress_and_heartbeats_appear_while_a_job_runs(
    store: Store, run_id: str, worker: Worker, wait_until: WaitUntil
) -> None:
    job_id = enqueue(store, run_id, steps=100_000, step_s=0.01)
    thread = in_background(worker)
    wait_until(lambda: store.job(job_id).done)
    first = store.job(job_id)
    assert first.total == 100_000
    wait_until(lambda: (store.job(job_id).done or 0) > (first.done or 0))
    assert store.job(job_id).heartbeat_at > first.heartbeat_at  # pyright: ignore[reportOptionalOperand]
    assert reported(store, first)  # written while it runs, not at its end
    store.cancel(job_id)
    thread.join()


def test_a_resumed_job_goes_on_from_its_checkpoint_and_reports_no_step_twice(
    store: Store, run_id: str, worker: Worker, engine: FakeEngine
) -> None:
    """The first attempt dies at step 9, four steps after its last checkpoint, having reported everything."""
    job_id = enqueue(store, run_id, steps=12, checkpoint_every=5)
    job = store.claim("dead")
    assert job is not None
    said: list[Event] = []
    for event in engine.run(store, job, LabConfig(), lambda: False):
        said.append(event)
        if event.kind == "step" and event.step == 9:
            break
    store.append(job_id, said)
    store.reap(timeout_s=-1)
    store.resume(job_id)
    seen = store.last_seq(job_id)
    engine.steps.clear()

    assert worker.run_one()

    assert engine.steps == [6, 7, 8, 9, 10, 11, 12]
    assert reported(store, job) == list(range(1, 13))
    assert reported(store, job, "layer_draw") == [0, 5]
    fresh = store.events(run_id, after=seen, kinds=["step"])
    assert [stored.event.step for stored in fresh] == engine.steps  # pyright: ignore


def test_a_job_killed_after_its_last_step_tells_all_its_steps(
    store: Store, run_id: str, worker: Worker, engine: FakeEngine
) -> None:
    """What the store knew of the progress is a heartbeat old; the attempt that ends the job takes no step."""
    job_id = enqueue(store, run_id, steps=10)
    job = store.claim("dead")
    assert job is not None
    store.append(job_id, list(engine.run(store, job, LabConfig(), lambda: False)))
    store.heartbeat(job_id, (7, 10))
    store.reap(timeout_s=-1)
    store.resume(job_id)
    assert worker.run_one()
    job = store.job(job_id)
    assert (job.state, job.done, job.total) == ("done", 10, 10)


def test_a_job_taken_away_is_dropped_without_a_word(
    store: Store,
    run_id: str,
    worker: Worker,
    engine: FakeEngine,
    wait_until: WaitUntil,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job_report, "HEARTBEAT_EVERY_S", 0.05)
    job_id = enqueue(store, run_id, steps=100_000, step_s=0.01)
    thread = in_background(worker)
    wait_until(lambda: len(engine.steps) >= 3)
    store.reap(timeout_s=-1)
    store.resume(job_id)
    other = store.claim("other")
    assert other is not None
    thread.join()
    assert (store.job(job_id).state, store.job(job_id).worker_id) == ("running", "other")


def test_prompts_are_answered_between_steps(store: Store, run_id: str, worker: Worker, wait_until: WaitUntil) -> None:
    job_id = enqueue(store, run_id, steps=100_000, step_s=0.01)
    thread = in_background(worker)
    wait_until(lambda: store.job(job_id).done)
    same_base = store.create_run(LabConfig())
    other_base = store.create_run(LabConfig(model=ModelConfig(quantization="nf4")))
    prompts = [ask(store, run_id), ask(store, same_base)]
    foreign = ask(store, other_base)
    wait_until(lambda: all(store.job(prompt).state == "done" for prompt in prompts))
    assert store.job(job_id).state == "running"
    assert store.job(foreign).state == "queued"
    (answer,) = store.events(run_id, kinds=["answer"], job_id=prompts[0])
    assert isinstance(answer.event, AnswerRecord)
    assert answer.event.done
    store.cancel(job_id)
    thread.join()
    assert worker.run_one()
    assert store.job(foreign).state == "done"


def test_a_prompt_that_fails_does_not_hurt_the_training(
    store: Store, run_id: str, worker: Worker, engine: FakeEngine, wait_until: WaitUntil
) -> None:
    job_id = enqueue(store, run_id, steps=100_000, step_s=0.01)
    thread = in_background(worker)
    wait_until(lambda: store.job(job_id).state == "running")
    prompt = ask(store, run_id, fail="memory")
    wait_until(lambda: not store.job(prompt).active)
    assert store.job(job_id).state == "running"
    done = len(engine.steps)
    wait_until(lambda: len(engine.steps) > done)
    store.cancel(job_id)
    thread.join()
    assert store.job(prompt).state == "failed"
    assert "memory" in (store.job(prompt).error or "")
    assert engine.released == 0
    ask(store, run_id, fail="memory")
    worker.run_one()
    assert engine.released == 1


def test_an_answer_gets_only_its_time_while_a_job_trains(
    store: Store, run_id: str, worker: Worker, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "SERVE_FOR_S", 0.1)
    job_id = enqueue(store, run_id, steps=100_000, step_s=0.01)
    thread = in_background(worker)
    wait_until(lambda: store.job(job_id).state == "running")
    prompt = ask(store, run_id, words=1000, step_s=0.01)
    wait_until(lambda: not store.job(prompt).active)
    assert store.job(prompt).state == "done"
    kinds = [stored.event.kind for stored in store.events(run_id, job_id=prompt)]
    assert kinds == ["answer", "message"]
    store.cancel(job_id)
    thread.join()


def test_a_prompt_can_be_cancelled_while_it_is_answered(
    store: Store, run_id: str, worker: Worker, wait_until: WaitUntil
) -> None:
    prompt = ask(store, run_id, words=100_000, step_s=0.01)
    thread = in_background(worker)
    wait_until(lambda: store.job(prompt).state == "running")
    store.cancel(prompt)
    thread.join()
    assert store.job(prompt).state == "cancelled"


def test_a_store_that_fails_stops_the_job(
    store: Store, run_id: str, worker: Worker, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = enqueue(store, run_id, steps=100_000, step_s=0.01)

    def full(*_: object) -> None:
        raise StoreError("The disk is full.", remedy="Free some space.")

    monkeypatch.setattr(store, "append", full)
    worker.run_one()
    assert len(engine.steps) < 1000
    assert (store.job(job_id).state, store.job(job_id).error) == ("failed", "The disk is full.")


def test_kinds_limit_what_a_worker_takes(store: Store, run_id: str, engine: FakeEngine) -> None:
    align, prompt = enqueue(store, run_id), ask(store, run_id)
    only_align = Worker(store, engine, kinds=["align"])
    while only_align.run_one():
        pass
    assert (store.job(align).state, store.job(prompt).state) == ("done", "queued")
