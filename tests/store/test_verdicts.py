"""What second judges say of saved answers: kept per judge and revision, dropped with the text it was said of."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tvaccine_core.config import LabConfig
from tvaccine_core.errors import RunNotFoundError
from tvaccine_core.records import GeneratedAnswer, LayerValuesRecord, Verdict
from tvaccine_core.store import Store
from tvaccine_core.store.schema import ATTACK_NAMES, REVISIONS, TABLES

SETS = ("unseen_names", "ordinary")


def answer(number: int, text: str = "said", eval_set: str = "unseen_names") -> GeneratedAnswer:
    return GeneratedAnswer(
        state="aligned/sft",
        state_hash="a0",
        step=0,
        eval_set=eval_set,
        example_id=f"{eval_set}/{number}",
        prompt="p",
        reference="r",
        category=None,
        text=text,
    )


YES, NO = Verdict(harmful=True, refused=False), Verdict(harmful=False, refused=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def run_id(store: Store) -> str:
    run_id = store.create_run(LabConfig())
    store.save_answers(run_id, [answer(1), answer(2), answer(3, eval_set="ordinary"), answer(4, eval_set="task:topic")])
    return run_id


def waiting(store: Store, run_id: str, judge: str = "j", revision: str = "1") -> list[str]:
    return [found.example_id for found in store.unjudged(run_id, judge, revision, SETS)]


def test_answers_wait_for_each_judge_and_revision(store: Store, run_id: str) -> None:
    everything = ["unseen_names/1", "unseen_names/2", "ordinary/3"]
    assert waiting(store, run_id) == everything
    store.save_verdicts(run_id, "j", "1", [(answer(2), YES)])
    assert waiting(store, run_id) == ["unseen_names/1", "ordinary/3"]
    assert waiting(store, run_id, "other") == everything
    assert waiting(store, run_id, revision="2") == everything
    assert [(found.example_id, found.verdict) for found in store.judged(run_id, "j", "1")] == [("unseen_names/2", YES)]
    assert store.judged(run_id, "j", "2") == []
    assert store.answers(run_id)[1].verdict is None, "the run's own judge has not spoken"


def test_a_newer_revision_replaces_the_older_verdict(store: Store, run_id: str) -> None:
    store.save_verdicts(run_id, "j", "1", [(answer(1), YES)])
    store.save_verdicts(run_id, "j", "2", [(answer(1), NO)])
    assert store.judged(run_id, "j", "1") == []
    assert [found.verdict for found in store.judged(run_id, "j", "2")] == [NO]
    assert store.second_judges(run_id) == [("j", "2")]


def test_a_verdict_goes_with_the_text_it_was_given_on(store: Store, run_id: str) -> None:
    store.save_verdicts(run_id, "j", "1", [(answer(1), YES), (answer(2), YES)])
    store.save_answers(run_id, [answer(1, "said otherwise"), answer(2).model_copy(update={"verdict": NO})])
    assert waiting(store, run_id) == ["unseen_names/1", "ordinary/3"]
    assert [found.example_id for found in store.judged(run_id, "j", "1")] == ["unseen_names/2"]


def test_verdicts_go_with_their_run(store: Store, run_id: str) -> None:
    store.save_verdicts(run_id, "j", "1", [(answer(1), YES)])
    store.delete_run(run_id)
    with closing(sqlite3.connect(store.home / "lab.db")) as db:
        assert db.execute("SELECT COUNT(*) FROM verdicts").fetchone() == (0,)
    with pytest.raises(RunNotFoundError):
        store.save_verdicts(run_id, "j", "1", [(answer(1), YES)])


def test_a_store_of_version_2_is_taken_over(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "lab.db")) as db:
        for statement in (*TABLES, ATTACK_NAMES, *REVISIONS):
            db.execute(statement)
        db.execute("PRAGMA user_version=2")
        config = LabConfig().model_dump_json(exclude={"data"})
        db.execute("INSERT INTO runs (id, name, created_at, base, config) VALUES ('old', 'Old', 1, '{}', ?)", (config,))
        db.commit()
    store = Store(tmp_path)
    assert store.run("old").config == LabConfig()
    store.save_answers("old", [answer(1)])
    assert waiting(store, "old") == ["unseen_names/1"]


def test_a_number_per_layer_that_is_reported_again_replaces_the_first(store: Store, run_id: str) -> None:
    """After a resume the same step may be reported twice."""
    job = store.enqueue(run_id, "align", {"aligned": "sft"})
    for value in (1.0, 2.0):
        store.append(job, [LayerValuesRecord(step=5, name="sink divergence", values=((value,),))])
    store.append(job, [LayerValuesRecord(step=5, name="distance", values=((7.0,),))])
    events = [stored.event for stored in store.events(run_id)]
    assert [event.values for event in events if isinstance(event, LayerValuesRecord)] == [((2.0,),), ((7.0,),)]
