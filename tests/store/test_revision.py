"""Revisions: one number per run, and one for the list of runs; each changes with what a viewer sees."""

import sqlite3
from collections.abc import Callable

import pytest

from tvaccine_core.config import LabConfig
from tvaccine_core.errors import RunNotFoundError
from tvaccine_core.records import AnswerRecord, StepRecord
from tvaccine_core.store import Store

MakeStep = Callable[..., StepRecord]


def test_whatever_a_viewer_sees_of_a_run_changes_its_revision(store: Store, run_id: str, step_record: MakeStep) -> None:
    other = store.create_run(LabConfig(seed=1))
    job = ""

    def enqueue() -> None:
        nonlocal job
        job = store.enqueue(run_id, "align", {"aligned": "sft"})

    acts: dict[str, Callable[[], object]] = {
        "a job is made": enqueue,
        "it begins": lambda: store.claim("w"),
        "it reports": lambda: store.append(job, [step_record(1), step_record(2)]),
        "it is further": lambda: store.heartbeat(job, (2, 10)),
        "what it reported is taken back": lambda: store.truncate_events(job, 2, up_to=store.last_seq(job)),
        "it is asked to stop": lambda: store.cancel(job),
        "it ends": lambda: store.finish(job, "cancelled"),
        "it is queued again": lambda: store.resume(job),
        "the run has another name": lambda: store.rename_run(run_id, "Other"),
    }
    seen = store.revisions(run_id)
    others = store.revisions(other)
    for what, act in acts.items():
        act()
        now = store.revisions(run_id)
        assert now.run > seen.run, what
        seen = now
    assert store.revisions(other).run == others.run
    assert store.revisions(None).run == 0


def test_what_no_viewer_sees_changes_nothing(store: Store, run_id: str) -> None:
    job = store.enqueue(run_id, "align", {"aligned": "sft"})
    question = store.enqueue(run_id, "generate", {"prompt": "Hello?"})
    store.claim("w", kinds=["align"])
    store.heartbeat(job, (1, 10))
    seen = store.revisions(run_id)
    store.heartbeat(job, (1, 10))
    store.append(question, [AnswerRecord(state="base", state_hash="h", prompt="p", text="t", done=False)])
    assert store.revisions(run_id) == seen


def test_the_list_of_runs_has_a_revision_of_its_own(store: Store, run_id: str, step_record: MakeStep) -> None:
    job = store.enqueue(run_id, "align", {"aligned": "sft"})
    store.claim("w")
    seen = store.revisions(None).runs
    store.append(job, [step_record(1)])
    store.heartbeat(job, (1, 10))
    assert store.revisions(None).runs == seen, "a list of runs shows no steps"
    acts: dict[str, Callable[[], object]] = {
        "a state": lambda: store.finish(job, "done"),
        "a name": lambda: store.rename_run(run_id, "Other"),
        "a new run": lambda: store.create_run(LabConfig()),
        "one run less": lambda: store.delete_run(run_id),
    }
    for what, act in acts.items():
        act()
        assert store.revisions(None).runs > seen, what
        seen = store.revisions(None).runs


def test_a_deleted_run_is_told_apart(store: Store, run_id: str) -> None:
    store.delete_run(run_id)
    with pytest.raises(RunNotFoundError):
        store.revisions(run_id)


def test_both_revisions_cost_one_select_by_key(store: Store, run_id: str) -> None:
    store.revisions(run_id)
    statements: list[str] = []
    connection: sqlite3.Connection = store._db._connection()
    connection.set_trace_callback(statements.append)
    store.revisions(run_id)
    connection.set_trace_callback(None)
    selects = [line for line in statements if line.lstrip().startswith("SELECT")]
    assert len(selects) == 1
    plan = [row["detail"] for row in connection.execute(f"EXPLAIN QUERY PLAN {selects[0]}")]
    assert all("SCAN runs" not in step for step in plan), plan
