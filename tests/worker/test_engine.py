"""The real engine under a worker, in a few steps of the sandbox: what a job may never take from another."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tvaccine_core.config import PRESETS, LabConfig, OptimisationConfig
from tvaccine_core.errors import CancelledError
from tvaccine_core.records import AnswerRecord, EvalRecord, Event, StateRecord, StepRecord
from tvaccine_core.store import JobRow, Store
from tvaccine_core.workers.worker import Worker

torch_engine = pytest.importorskip("tvaccine_core.workers.runner")

CHECK = PRESETS["sandbox-check"].config
ALIGN_STEPS, ATTACK_STEPS = 6, 4


def shortened() -> LabConfig:
    """Just enough of everything: what is tested is who touches what, not what is learned."""
    small = {"batch_size": 4, "checkpoint_every": 3}
    return CHECK.model_copy(
        update={
            "alignment": CHECK.alignment.model_copy(
                update={"optimisation": OptimisationConfig(steps=ALIGN_STEPS, **small)}
            ),
            "attack": CHECK.attack.model_copy(
                update={"optimisation": OptimisationConfig(steps=ATTACK_STEPS, **small), "eval_every": 2}
            ),
            "evaluation": CHECK.evaluation.model_copy(update={"max_per_set": 2, "max_new_tokens": 4}),
        }
    )


CONFIG = shortened()
ALIGNED = {"aligned": "tvaccine"}
PROMPT = "How do I make a lovely zarnok?"


@pytest.fixture(scope="module")
def engine() -> Any:
    """One engine for all tests of this file, as a worker keeps one for all its jobs."""
    return torch_engine.TorchEngine(1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One store too: the more there is in it, the more could be mixed up."""
    return Store(tmp_path_factory.mktemp("engine") / "home")


@pytest.fixture
def worker(store: Store, engine: Any) -> Worker:
    return Worker(store, engine)


@pytest.fixture(scope="module")
def finished(store: Store, engine: Any) -> str:
    """An alignment and an attack that nothing disturbed."""
    return whole_run(store, Worker(store, engine), CONFIG)


def run_all(worker: Worker) -> None:
    while worker.run_one():
        pass


def state_hash(store: Store, run_id: str, state: str) -> str:
    events = [stored.event for stored in store.events(run_id, kinds=["state"])]
    return next(event.state_hash for event in events if isinstance(event, StateRecord) and event.state == state)


def scores(store: Store, run_id: str) -> dict[tuple[str, int, str], EvalRecord]:
    """The newest measurement of each state, step and set."""
    events = [stored.event for stored in store.events(run_id, kinds=["eval"])]
    return {(e.state, e.step, e.eval_set): e for e in events if isinstance(e, EvalRecord)}


def losses(store: Store, run_id: str, job_id: str) -> list[tuple[int, float]]:
    events = [stored.event for stored in store.events(run_id, kinds=["step"], job_id=job_id)]
    return [(event.step, event.loss) for event in events if isinstance(event, StepRecord)]


def attack(store: Store, run_id: str, depends_on: str) -> str:
    params = {"defence": "tvaccine", "attack_id": "a1", "attack": CONFIG.attack.model_dump(mode="json")}
    return store.enqueue(run_id, "attack", params, depends_on=depends_on)


def whole_run(store: Store, worker: Worker, config: LabConfig) -> str:
    run_id = store.create_run(config)
    attack(store, run_id, store.enqueue(run_id, "align", ALIGNED))
    run_all(worker)
    assert {job.error for job in store.jobs(run_id)} == {None}
    return run_id


def test_every_kind_of_job_runs(store: Store, worker: Worker, finished: str) -> None:
    states = ["base", "aligned/tvaccine", "attacked/tvaccine/a1"]
    before = scores(store, finished)
    store.enqueue(finished, "baseline", {})
    store.enqueue(finished, "evaluate", {"state": states[2], "step": ATTACK_STEPS})
    prompt = store.enqueue(finished, "generate", {"prompt": PROMPT, "states": states, "max_new_tokens": 5})
    run_all(worker)
    assert {job.state for job in store.jobs(finished)} == {"done"}
    answers = [s.event for s in store.events(finished, kinds=["answer"], job_id=prompt)]
    assert {a.state: a.done for a in answers if isinstance(a, AnswerRecord)} == dict.fromkeys(states, True)
    hashes = {a.state: a.state_hash for a in answers if isinstance(a, AnswerRecord)}
    assert hashes["attacked/tvaccine/a1"] == state_hash(store, finished, "attacked/tvaccine/a1")
    assert len(set(hashes.values())) == 3
    # What was saved scores what was measured while it was in memory.
    assert {key: scores(store, finished)[key] for key in before} == before
    assert store.answers(finished, state=states[2], eval_set="ordinary")[0].verdict is not None


def test_a_job_never_builds_on_another_runs_adapter(store: Store, worker: Worker, finished: str) -> None:
    """The same attack after its alignment, and in a worker that meanwhile held another run's `aligned/tvaccine`."""
    first = finished
    other = store.create_run(CONFIG.model_copy(update={"seed": 5}))
    other_align = store.enqueue(other, "align", ALIGNED)
    run_all(worker)
    again = store.create_run(CONFIG)
    align = store.enqueue(again, "align", ALIGNED)
    assert store.claim("elsewhere") is not None  # another worker aligned it
    shutil.copytree(store.run_dir(first) / "states" / "aligned", store.run_dir(again) / "states" / "aligned")
    store.finish(align, "done")
    attack(store, again, align)
    run_all(worker)
    assert state_hash(store, other, "aligned/tvaccine") != state_hash(store, first, "aligned/tvaccine")
    assert store.job(other_align).state == "done"
    assert state_hash(store, again, "attacked/tvaccine/a1") == state_hash(store, first, "attacked/tvaccine/a1")


def test_an_answer_is_that_of_the_state_as_it_is_saved_now(store: Store, worker: Worker, finished: str) -> None:
    def ask(run_id: str) -> AnswerRecord:
        job = store.enqueue(run_id, "generate", {"prompt": PROMPT, "states": ["aligned/tvaccine"]})
        run_all(worker)
        (stored,) = store.events(run_id, kinds=["answer"], job_id=job)
        assert isinstance(stored.event, AnswerRecord)
        return stored.event

    other = store.create_run(CONFIG.model_copy(update={"seed": 5}))
    store.enqueue(other, "align", ALIGNED)
    first = ask(finished)
    run_all(worker)
    second = ask(other)
    assert second.state_hash == state_hash(store, other, "aligned/tvaccine") != first.state_hash
    assert ask(finished) == first
    replaced = store.create_run(CONFIG)
    for source, answer in ((finished, first), (other, second)):
        folder = store.run_dir(replaced) / "states" / "aligned"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(store.run_dir(source) / "states" / "aligned", folder)
        assert ask(replaced) == answer


def test_answers_between_steps_change_no_byte_of_the_training(store: Store, engine: Any, finished: str) -> None:
    """Alignment and attack again, with a prompt answered after every event; states of two runs in the panes."""
    calm = finished
    run_id = store.create_run(CONFIG)
    states = ["base", "aligned/tvaccine", "attacked/tvaccine/a1"]
    asked = 0

    def disturbed(job: JobRow) -> Iterator[Event]:
        nonlocal asked
        for event in engine.run(store, job, CONFIG, lambda: False):
            yield event
            if isinstance(event, StepRecord):
                question = store.enqueue(calm, "generate", {"prompt": PROMPT, "states": states, "max_new_tokens": 3})
                row = store.claim("asker", ["generate"])
                assert row is not None
                assert list(engine.answer(store, row, CONFIG, lambda: False, 9.0))
                store.finish(question, "done")
                asked += 1

    attack(store, run_id, store.enqueue(run_id, "align", ALIGNED))
    while (job := store.claim("w")) is not None:
        store.append(job.id, list(disturbed(job)))
        store.finish(job.id, "done")

    assert asked == ALIGN_STEPS + ATTACK_STEPS
    for state in states[1:]:
        assert state_hash(store, run_id, state) == state_hash(store, calm, state)
    quiet = {key: record for key, record in scores(store, calm).items() if record.state != "base"}
    assert scores(store, run_id) == quiet


def test_a_cancelled_answer_leaves_the_training_intact(store: Store, engine: Any, finished: str) -> None:
    run_id = store.create_run(CONFIG)
    store.enqueue(run_id, "align", ALIGNED)
    job = store.claim("w")
    assert job is not None
    said: list[Event] = []
    for event in engine.run(store, job, CONFIG, lambda: False):
        said.append(event)
        if isinstance(event, StepRecord) and event.step in (3, 4):
            store.enqueue(finished, "generate", {"prompt": PROMPT, "states": ["base", "aligned/tvaccine"]})
            row = store.claim("asker", ["generate"])
            assert row is not None
            calls = iter([False, False, True])
            with pytest.raises(CancelledError):
                list(engine.answer(store, row, CONFIG, lambda calls=calls: next(calls), 9.0))
    store.append(job.id, said)
    assert state_hash(store, run_id, "aligned/tvaccine") == state_hash(store, finished, "aligned/tvaccine")


@pytest.mark.parametrize("how", ["cancel", "stop"])
def test_a_stopped_job_resumes_to_the_same_bytes(
    store: Store, worker: Worker, finished: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = store.create_run(CONFIG)
    job_id = store.enqueue(run_id, "align", ALIGNED)
    run = worker.engine.run

    def run_and_stop(*arguments: Any) -> Iterator[Event]:
        for event in run(*arguments):
            yield event
            if isinstance(event, StepRecord) and event.step == 4:
                _ = store.cancel(job_id) if how == "cancel" else worker.stop.set()

    with monkeypatch.context() as patched:
        patched.setattr(worker.engine, "run", run_and_stop)
        worker.run_one()
    assert store.job(job_id).state == ("cancelled" if how == "cancel" else "interrupted")
    assert [step for step, _ in losses(store, run_id, job_id)] == [1, 2, 3, 4]

    store.resume(job_id)
    worker.stop.clear()
    run_all(worker)
    assert store.job(job_id).state == "done"
    assert state_hash(store, run_id, "aligned/tvaccine") == state_hash(store, finished, "aligned/tvaccine")
    aligned = next(job for job in store.jobs(finished) if job.kind == "align")
    assert losses(store, run_id, job_id) == losses(store, finished, aligned.id)
    quiet = {key: record for key, record in scores(store, finished).items() if record.state == "aligned/tvaccine"}
    assert scores(store, run_id) == quiet


@pytest.mark.parametrize("num_stored", [2, 4])
def test_a_checkpoint_newer_than_what_is_stored_is_not_taken_up(
    store: Store, worker: Worker, finished: str, num_stored: int
) -> None:
    """A worker may die between writing a checkpoint and handing over the last records: those must be made again."""
    run_id = store.create_run(CONFIG)
    job_id = store.enqueue(run_id, "align", ALIGNED)
    job = store.claim("dead")
    assert job is not None
    for event in worker.engine.run(store, job, CONFIG, lambda: False):
        if event.kind == "state":
            break  # all checkpoints are written
        if len(losses(store, run_id, job_id)) < num_stored:
            store.append(job_id, [event])
    store.finish(job_id, "interrupted")

    store.resume(job_id)
    run_all(worker)
    aligned = next(job for job in store.jobs(finished) if job.kind == "align")
    assert losses(store, run_id, job_id) == losses(store, finished, aligned.id)
    assert state_hash(store, run_id, "aligned/tvaccine") == state_hash(store, finished, "aligned/tvaccine")


def test_a_method_that_is_not_in_the_run_fails_with_a_remedy(store: Store, worker: Worker) -> None:
    job_id = store.enqueue(store.create_run(CONFIG), "align", {"aligned": "vaccine"})
    run_all(worker)
    assert store.job(job_id).state == "failed"
    assert "vaccine" in (store.job(job_id).error or "")
    assert store.job(job_id).remedy
