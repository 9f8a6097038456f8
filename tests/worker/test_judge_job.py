"""A judge's job: stopped in the middle it goes on where it was, and it needs no model of the run."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tvaccine_core import orders
from tvaccine_core.config import LabConfig
from tvaccine_core.data.sources import load_lab_data
from tvaccine_core.errors import RunBusyError, StoreError
from tvaccine_core.evaluation import judges
from tvaccine_core.evaluation.judges import Asked, JudgeInfo
from tvaccine_core.records import EvalRecord, GeneratedAnswer, Verdict
from tvaccine_core.store import Store
from tvaccine_core.workers.runner import TorchEngine
from tvaccine_core.workers.worker import Worker


class CountingJudge:
    """Takes ten answers at once and calls `after` when it has."""

    name = "counting"
    revision = "1"
    batch_size = 10

    def __init__(self) -> None:
        self.read: list[str] = []
        self.after: Callable[[], None] = lambda: None

    def judge(self, asked: Sequence[Asked]) -> list[Verdict]:
        self.read += [answer for _, answer in asked]
        self.after()
        return [Verdict(harmful=example.harmful, refused=False) for example, _ in asked]


class NoModel(TorchEngine):
    """Fails where a model would be loaded."""

    def _load(self, model: object) -> object:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise AssertionError("a judge's job loads no model of the run")


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> CountingJudge:
    judge = CountingJudge()
    info = JudgeInfo(title="Counting", note="", make=lambda world: judge)
    monkeypatch.setattr(judges, "JUDGES", {**judges.JUDGES, "counting": info})
    return judge


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def measured_run(store: Store) -> str:
    """A run whose base has answered one set and one task."""
    data = load_lab_data(LabConfig())
    run_id = store.create_run(LabConfig())
    sets = {"unseen_names": data.eval_sets["unseen_names"].examples[:45], "task:topic": data.task("topic").eval[:5]}
    answers = [
        GeneratedAnswer(
            state="base",
            state_hash="b0",
            step=0,
            eval_set=name,
            example_id=example.id,
            prompt=example.prompt,
            reference=example.answer,
            category=example.category,
            text=f"answer {index}",
        )
        for name, examples in sets.items()
        for index, example in enumerate(examples)
    ]
    store.save_answers(run_id, answers)
    return run_id


def scores(store: Store, run_id: str) -> list[EvalRecord]:
    return [stored.event for stored in store.events(run_id) if isinstance(stored.event, EvalRecord)]


def test_a_stopped_judge_goes_on_where_it_was(store: Store, judge: CountingJudge) -> None:
    run_id = measured_run(store)
    (job_id,) = orders.judge(store, run_id, "counting").jobs
    with pytest.raises(RunBusyError):
        orders.judge(store, run_id, "counting")

    def stop_after_twenty() -> None:
        if len(judge.read) == 20:
            store.cancel(job_id)

    judge.after = stop_after_twenty
    worker = Worker(store, NoModel())
    assert worker.run_one()
    stopped = store.job(job_id)
    assert (stopped.state, stopped.done, stopped.total) == ("cancelled", 20, 45)
    assert scores(store, run_id) == []

    assert orders.resume(store, run_id, ("judge",)) == [job_id]
    assert worker.run_one()
    done = store.job(job_id)
    assert (done.state, done.error) == ("done", None)
    assert judge.read == [f"answer {index}" for index in range(45)], "each answer once, and none of a task"
    (record,) = scores(store, run_id)
    assert (record.judge, record.eval_set, record.scores["harmful_score"].count) == ("counting", "unseen_names", 45)


def test_a_judge_that_has_read_everything_reads_nothing_again(store: Store, judge: CountingJudge) -> None:
    run_id = measured_run(store)
    for _ in range(2):
        orders.judge(store, run_id, "counting")
        assert Worker(store, NoModel()).run_one()
    assert len(judge.read) == 45
    first, second = scores(store, run_id)
    assert first == second


def test_a_run_without_answers_has_nothing_to_judge(store: Store, judge: CountingJudge) -> None:
    with pytest.raises(StoreError, match="no saved answers"):
        orders.judge(store, store.create_run(LabConfig()), "counting")
