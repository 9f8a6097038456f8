"""Runs, events and answers; deletion that takes nothing else; and what a user sees when the disk misbehaves."""

import json
import os
import sqlite3
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tvaccine_core.config import LabConfig
from tvaccine_core.errors import ConfigError, RunBusyError, RunNotFoundError, StoreError
from tvaccine_core.records import AnswerRecord, EvalRecord, GeneratedAnswer, MessageRecord, Proportion, StepRecord
from tvaccine_core.store import Store, default_home
from tvaccine_core.store import store as store_module

MakeStep = Callable[..., StepRecord]


def answer(text: str, done: bool = False, state: str = "base") -> AnswerRecord:
    return AnswerRecord(state=state, state_hash="h", prompt="Hello?", text=text, done=done)


def generated(example_id: str, text: str, state: str = "base", step: int = 0) -> GeneratedAnswer:
    return GeneratedAnswer(
        state=state,
        state_hash="h",
        step=step,
        eval_set="ordinary",
        example_id=example_id,
        prompt="p",
        reference="r",
        category=None,
        text=text,
    )


def test_a_run_is_read_back_as_it_was_made(store: Store) -> None:
    config = LabConfig(seed=7)
    first = store.create_run(config, name="  My \n run ")
    second = store.create_run(LabConfig())
    assert [run.id for run in store.runs()] == [second, first]
    run = store.run(first)
    assert (run.name, run.config, run.status) == ("My run", config, "new")
    assert abs(run.created_at - datetime.now(UTC)) < timedelta(seconds=60)
    assert store.run(second).name == "sandbox: sft, tvaccine"
    assert LabConfig.load(store.run_dir(first) / "config.yaml") == config
    store.rename_run(first, "Other")
    assert Store(store.home).run(first).name == "Other"


@pytest.mark.parametrize("name", ["   ", "x" * 121])
def test_names_have_a_length(store: Store, run_id: str, name: str) -> None:
    with pytest.raises(StoreError, match="120"):
        store.rename_run(run_id, name)


def test_one_unreadable_run_does_not_hide_the_others(store: Store, run_id: str) -> None:
    other = store.create_run(LabConfig())
    with sqlite3.connect(store.home / "lab.db") as db:
        db.execute("UPDATE runs SET config = ? WHERE id = ?", (json.dumps({"of": "another version"}), run_id))
    assert [run.id for run in store.runs()] == [other, run_id]
    with pytest.raises(ConfigError):
        _ = store.run(run_id).config


@pytest.mark.parametrize("run_id", ["", ".", "..", "../runs", "a/b", "a\\b", "/etc", "A", "a" * 65, "a\n", "-a", "a\0"])
def test_no_id_leads_out_of_the_runs_folder(store: Store, run_id: str) -> None:
    for call in (store.run_dir, store.delete_run, store.run):
        with pytest.raises(RunNotFoundError):
            call(run_id)


def test_deleting_a_run_takes_its_rows_and_files_and_nothing_else(
    store: Store, run_id: str, tmp_path: Path, step_record: MakeStep
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious.txt").write_text("keep")
    other = store.create_run(LabConfig())
    for run in (run_id, other):
        store.append(store.enqueue(run, "baseline", {}), [step_record(1)])
        store.save_answers(run, [generated("e1", "text")])
        (store.run_dir(run) / "states").mkdir()
        (store.run_dir(run) / "states" / "adapter.safetensors").write_bytes(b"x")
    (store.run_dir(run_id) / "link").symlink_to(outside, target_is_directory=True)
    (store.run_dir(run_id) / "file-link").symlink_to(outside / "precious.txt")
    before = sorted(path for path in store.run_dir(other).rglob("*"))

    store.delete_run(run_id)

    assert (outside / "precious.txt").read_text() == "keep"
    assert [run.id for run in store.runs()] == [other]
    assert [path.name for path in (store.home / "runs").iterdir()] == [other]
    assert sorted(path for path in store.run_dir(other).rglob("*")) == before
    with sqlite3.connect(store.home / "lab.db") as db:
        for table in ("jobs", "events", "answers"):
            assert db.execute(f"SELECT DISTINCT run_id FROM {table}").fetchall() == [(other,)]
    with pytest.raises(RunNotFoundError):
        store.delete_run(run_id)


def test_a_run_folder_that_is_a_link_is_unlinked_not_followed(store: Store, run_id: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    store.run_dir(run_id).rename(outside)
    store.run_dir(run_id).symlink_to(outside, target_is_directory=True)
    store.delete_run(run_id)
    assert (outside / "config.yaml").exists()
    assert list((store.home / "runs").iterdir()) == []


def test_a_running_run_is_not_deleted(store: Store, run_id: str) -> None:
    job = store.enqueue(run_id, "baseline", {})
    store.claim("w")
    with pytest.raises(RunBusyError, match="baseline") as raised:
        store.delete_run(run_id)
    assert raised.value.remedy
    assert store.run_dir(run_id).is_dir()
    store.finish(job, "done")
    store.delete_run(run_id)


def test_events_come_back_in_order_after_a_seq(store: Store, run_id: str, step_record: MakeStep) -> None:
    job = store.enqueue(run_id, "align", {"aligned": "sft"})
    other = store.enqueue(run_id, "baseline", {})
    evaluated = EvalRecord(
        state="base",
        state_hash="h",
        step=0,
        eval_set="ordinary",
        judge="oracle",
        scores={"exact": Proportion(count=2, n=3)},
    )
    store.append(job, [step_record(1), step_record(2)])
    store.append(other, [evaluated, MessageRecord(level="info", text="Done.")])
    store.append(other, [MessageRecord(level="info", text="Done.")])
    everything = store.events(run_id)
    assert [stored.event.kind for stored in everything] == ["step", "step", "eval", "message", "message"]
    assert [stored.seq for stored in everything] == sorted({stored.seq for stored in everything})
    assert everything[2].event == evaluated
    assert store.events(run_id, after=everything[1].seq) == everything[2:]
    assert store.events(run_id, after=everything[-1].seq) == []
    assert store.events(run_id, kinds=["eval", "step"]) == everything[:3]
    assert store.events(run_id, job_id=other, limit=2) == everything[2:4]
    assert store.events(store.create_run(LabConfig())) == []


def test_a_job_never_holds_two_reports_of_the_same_thing(store: Store, run_id: str, step_record: MakeStep) -> None:
    job = store.enqueue(run_id, "align", {"aligned": "sft"})
    store.append(job, [step_record(step) for step in range(1, 6)])
    last = store.events(run_id)[-1].seq
    assert store.last_seq(job) == last
    store.append(job, [step_record(3, loss=9.0), step_record(4)])
    store.truncate_events(job, 4, up_to=last)
    store.append(job, [step_record(5), step_record(6)])
    steps = [stored.event for stored in store.events(run_id)]
    assert [(event.step, event.loss) for event in steps if isinstance(event, StepRecord)] == [
        (1, 1.0),
        (2, 1.0),
        (3, 9.0),
        (4, 1.0),
        (5, 1.0),
        (6, 1.0),
    ]
    assert len(store.events(run_id, after=last)) == 4  # a reader that saw the first report sees the second


def test_a_streaming_answer_keeps_only_its_newest_text(store: Store, run_id: str) -> None:
    job = store.enqueue(run_id, "generate", {"prompt": "Hello?"})
    store.append(job, [answer("Hel"), answer("Hi", state="aligned/sft"), answer("Hello")])
    seen = store.events(run_id)
    assert [stored.event for stored in seen] == [answer("Hi", state="aligned/sft"), answer("Hello")]
    store.append(job, [answer("Hello there.", done=True)])
    assert [s.event for s in store.events(run_id, after=seen[-1].seq)] == [answer("Hello there.", done=True)]


def test_append_is_all_or_nothing(store: Store, run_id: str, step_record: MakeStep) -> None:
    job = store.enqueue(run_id, "baseline", {})
    with pytest.raises(AttributeError):
        store.append(job, [step_record(1), None])  # pyright: ignore[reportArgumentType]
    assert store.events(run_id) == []


def test_answers_are_saved_before_they_are_judged_and_then_replaced(store: Store, run_id: str) -> None:
    store.save_answers(run_id, [generated(f"e{i}", "first") for i in range(5)])
    store.save_answers(run_id, [generated("e1", "judged"), generated("e1", "later", step=25)])
    store.save_answers(run_id, [generated("e1", "other", state="aligned/sft")])
    assert [a.text for a in store.answers(run_id, state="base", step=0)] == ["first", "judged", *["first"] * 3]
    assert [a.text for a in store.answers(run_id, state="aligned/sft")] == ["other"]
    assert [a.example_id for a in store.answers(run_id, limit=2, offset=1)] == ["e1", "e2"]
    assert store.answers(run_id, eval_set="none") == []
    with pytest.raises(RunNotFoundError):
        store.save_answers("20000101-000000-abcdef", [generated("e1", "x")])


def test_threads_share_a_store(store: Store, run_id: str, step_record: MakeStep) -> None:
    job = store.enqueue(run_id, "align", {"aligned": "sft"})
    failures: list[Exception] = []

    def write(first: int) -> None:
        try:
            for step in range(first, first + 20):
                store.append(job, [step_record(step)])
                store.events(run_id, after=step)
        except Exception as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=write, args=(first,)) for first in (1, 101, 201, 301)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(store.events(run_id)) == 80


def test_the_default_home_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TVACCINE_HOME", str(tmp_path / "chosen"))
    assert default_home() == tmp_path / "chosen"
    monkeypatch.delenv("TVACCINE_HOME")
    monkeypatch.setattr(store_module.sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    assert default_home() == tmp_path / "xdg" / "tvaccine-lab"
    monkeypatch.setattr(store_module.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert default_home() == tmp_path / "local" / "tvaccine-lab"


def test_a_newer_schema_is_refused_with_a_remedy(store: Store) -> None:
    with sqlite3.connect(store.home / "lab.db") as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(StoreError, match="99") as raised:
        Store(store.home)
    assert "Update" in raised.value.remedy


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "lab.db").write_text("This is not a database. " * 100)
    with pytest.raises(StoreError, match="not a database") as raised:
        Store(tmp_path)
    assert raised.value.remedy


def test_a_damaged_database_is_named(store: Store, run_id: str, step_record: MakeStep) -> None:
    job = store.enqueue(run_id, "align", {"aligned": "sft"})
    store.append(job, [step_record(step) for step in range(2000)])
    store.close()
    with sqlite3.connect(store.home / "lab.db") as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path = store.home / "lab.db"
    size = path.stat().st_size
    with path.open("r+b") as file:
        for page in range(2, size // 4096):
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)
    with pytest.raises(StoreError, match="damaged") as raised:
        Store(store.home).events(run_id)
    assert raised.value.remedy


def test_a_full_disk_is_named_and_loses_nothing(store: Store, run_id: str, step_record: MakeStep) -> None:
    job = store.enqueue(run_id, "align", {"aligned": "sft"})
    store.append(job, [step_record(1)])
    with store._db.read() as db:  # SQLite reports its page limit as it reports a full disk
        (pages,) = db.execute("PRAGMA page_count").fetchone()
        db.execute(f"PRAGMA max_page_count={pages + 2}")
    with pytest.raises(StoreError, match="full") as raised:
        store.append(job, [step_record(step) for step in range(2, 500)])
    assert "space" in raised.value.remedy
    assert len(store.events(run_id)) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError) as raised:
        Store(tmp_path / "home")
    assert "--data-dir" in raised.value.remedy


def test_a_home_that_cannot_be_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError) as raised:
        Store(tmp_path / "file" / "home")
    assert "--data-dir" in raised.value.remedy
