"""A recording holds a finished run but its models; in another store it is the same run, to be looked at only."""

import json
import lzma
from pathlib import Path

import pytest

from tvaccine_core import orders
from tvaccine_core.config import PRESETS
from tvaccine_core.errors import DataError, StoreError
from tvaccine_core.records import EvalRecord, GeneratedAnswer, Proportion, StateRecord, StepRecord
from tvaccine_core.store import Store
from tvaccine_core.store.recorded import SUFFIX, drop_others, record, recorded_id, take

CONFIG = PRESETS["sandbox-check"].config


def finished_run(store: Store) -> str:
    order = orders.start_run(store, CONFIG, "by hand", attack=True)
    while (job := store.claim("worker")) is not None:
        state = f"made-by/{job.id[-4:]}"
        step = StepRecord(step=1, num_steps=1, loss=0.5, learning_rate=1e-3, grad_norm=1.0, elapsed_s=0.1, num_tokens=7)
        scores = {"harmful_score": Proportion(count=3, n=8)}
        measured = EvalRecord(
            state=state, state_hash="ab", step=1, eval_set="aligned_names", judge="oracle", scores=scores
        )
        store.append(job.id, [step, measured, StateRecord(state=state, state_hash="ab", path=f"states/{state}")])
        store.heartbeat(job.id, (1, 1))
        store.finish(job.id, "done")
    answer = GeneratedAnswer(
        state="base",
        state_hash="ab",
        step=0,
        eval_set="aligned_names",
        example_id="e1",
        prompt="How?",
        reference="So.",
        category=None,
        text="Stir.",
    )
    store.save_answers(order.run_id, [answer])
    store.enqueue(order.run_id, "generate", {"prompt": "secret?", "states": ["base"], "owner": "me"})
    return order.run_id


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    store = Store(tmp_path / "one")
    path = tmp_path / f"look{SUFFIX}"
    path.write_bytes(record(store, finished_run(store), "Recorded: look"))
    return path


def test_the_run_is_the_same_in_another_store(tmp_path: Path, recording: Path) -> None:
    theirs, ours = Store(tmp_path / "one"), Store(tmp_path / "two")
    run_id = take(ours, recording)
    assert run_id == recorded_id(recording) == "recorded-look"
    run, (original,) = ours.run(run_id), theirs.runs()
    assert (run.name, run.config, run.status, run.recorded) == ("Recorded: look", original.config, "done", True)
    work = [job for job in theirs.jobs(original.id) if job.kind != "generate"]
    assert [(job.kind, job.params, job.state, job.done) for job in ours.jobs(run_id)] == [
        (job.kind, job.params, "done", job.done) for job in work
    ]
    kept = [stored.event for stored in ours.events(run_id)]
    assert [event for event in kept if event.kind == "eval"] == [
        stored.event for stored in theirs.events(original.id, kinds=("eval",))
    ]
    assert {event.path for event in kept if isinstance(event, StateRecord)} == {""}, "there are no models"
    assert ours.answers(run_id) == theirs.answers(original.id)
    assert "secret" not in lzma.decompress(recording.read_bytes()).decode()


def test_it_is_taken_once_and_a_new_recording_replaces_it(tmp_path: Path, recording: Path) -> None:
    store = Store(tmp_path / "two")
    take(store, recording)
    revision = store.revisions(None)
    take(store, recording)
    assert store.revisions(None) == revision
    other = Store(tmp_path / "three")
    recording.write_bytes(record(other, finished_run(other), "Recorded: again"))
    take(store, recording)
    assert [run.name for run in store.runs()] == ["Recorded: again"]


def test_it_cannot_go_on_and_is_not_deleted(tmp_path: Path, recording: Path) -> None:
    store = Store(tmp_path / "two")
    run_id = take(store, recording)
    harder = CONFIG.attack.model_copy(update={"harmful_ratio": 0.9})
    for act in (
        lambda: orders.start_attack(store, run_id, harder),
        lambda: orders.align(store, run_id),
        lambda: store.enqueue(run_id, "generate", {"prompt": "How?", "states": ["base"], "owner": "me"}),
    ):
        with pytest.raises(StoreError, match="its models are not here") as caught:
            act()
        assert caught.value.remedy
    with pytest.raises(StoreError, match="not deleted"):
        store.delete_run(run_id)
    with pytest.raises(StoreError, match="keeps its name"):
        store.rename_run(run_id, "mine")
    assert orders.judge(store, run_id, "refusal-keywords").jobs, "another judge needs saved answers only"


def test_an_unfinished_run_is_not_recorded(tmp_path: Path) -> None:
    store = Store(tmp_path)
    order = orders.start_run(store, CONFIG, attack=True)
    with pytest.raises(StoreError, match="not done"):
        record(store, order.run_id, "x")


NAMELESS = json.dumps({"format": 1, "config": CONFIG.model_dump(mode="json"), "events": [], "jobs": []}).encode()


@pytest.mark.parametrize(
    "content",
    [b"", b"rubbish", lzma.compress(b"{}"), lzma.compress(b'{"format": 99}'), lzma.compress(NAMELESS)],
)
def test_what_is_no_recording_is_refused_and_the_store_stays_as_it_is(tmp_path: Path, content: bytes) -> None:
    store, path = Store(tmp_path), tmp_path / f"bad{SUFFIX}"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a recording"):
        take(store, path)
    with pytest.raises(DataError, match="Cannot read"):
        take(store, tmp_path / "absent")
    assert store.runs() == []


def test_recordings_that_no_longer_ship_leave_and_names_that_no_run_can_have_are_refused(
    tmp_path: Path, recording: Path
) -> None:
    store = Store(tmp_path / "two")
    run_id = take(store, recording)
    drop_others(store, [run_id])
    assert [run.id for run in store.runs()] == [run_id]
    drop_others(store, [])
    assert store.runs() == []
    odd = recording.with_name(f"No Name{SUFFIX}")
    odd.write_bytes(recording.read_bytes())
    with pytest.raises(DataError, match="not a recording"):
        take(store, odd)
