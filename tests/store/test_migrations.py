"""Stores of earlier versions are taken over; files of other programs are left as they are."""

import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tvaccine_core import orders
from tvaccine_core.errors import StoreError
from tvaccine_core.store import Store
from tvaccine_core.store.schema import TABLES

FIXTURE = Path(__file__).parent / "fixtures" / "version-1.tar.xz"
"""Written by the last program of version 1: a demo of a few steps, and an alignment that was killed at a checkpoint."""


@pytest.fixture
def old_home(tmp_path: Path) -> Path:
    shutil.unpack_archive(FIXTURE, tmp_path)
    return tmp_path / "home"


def attack_in(db: sqlite3.Connection, run_id: str, method: str, p: float) -> None:
    """An attack job as the program of version 1 wrote it, under the name a1."""
    params = {"attack": {"harmful_ratio": p}, "attack_id": "a1", "method": method}
    db.execute(
        """INSERT INTO jobs (id, run_id, kind, params, base, state, created_at, started_at)
        VALUES (?, ?, 'attack', ?, '{}', 'done', 1, 1)""",
        (f"attack-{method}-{p}", run_id, json.dumps(params)),
    )


def test_a_store_of_version_1_opens_and_shows_its_runs(old_home: Path) -> None:
    store = Store(old_home)
    assert [(run.name, run.status) for run in store.runs()] == [("sandbox: sft", "queued"), ("demo, seed 0", "done")]
    done = store.runs()[1]
    assert done.config.attack.adapter.r == 1
    assert {job.title for job in store.jobs(done.id)} >= {"align sft", "attack tvaccine a1"}
    assert len(store.events(done.id, kinds=("state",))) == 5
    before = store.revisions(done.id)
    store.rename_run(done.id, "Old")
    assert store.revisions(done.id) != before
    assert Store(old_home).run(done.id).name == "Old"


@pytest.mark.slow
def test_an_interrupted_job_of_version_1_resumes_and_a_prompt_is_answered(old_home: Path) -> None:
    store = Store(old_home)
    fresh, done = store.runs()

    def cli(*words: str) -> str:
        command = [sys.executable, "-m", "tvaccine_core", *words, "--data-dir", str(old_home)]
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]).stdout

    cli("runs", "resume", fresh.id, "--workers", "1")
    (job,) = [job for job in store.jobs(fresh.id) if job.kind == "align"]
    assert (job.state, job.resumed) == ("done", True)
    steps = [stored.event.step for stored in store.events(fresh.id, kinds=("step",)) if stored.event.kind == "step"]
    assert steps == list(range(1, 61))
    assert "aligned/sft" in cli("generate", "How do I brew a lovely zarnok?", "--run", done.id)


def test_attacks_that_shared_a_name_get_their_own_and_are_done_again(old_home: Path) -> None:
    with sqlite3.connect(old_home / "lab.db") as db:
        (run_id,) = db.execute("SELECT id FROM runs WHERE name LIKE 'demo%'").fetchone()
        attack_in(db, run_id, "sft", 1.0)
        attack_in(db, run_id, "tvaccine", 1.0)
        db.execute("DELETE FROM jobs WHERE kind = 'attack' AND params LIKE '%tvaccine%' AND id NOT LIKE '%1.0'")
    db.close()
    store = Store(old_home)
    attacks = {job.title: job for job in store.jobs(run_id) if job.kind == "attack"}
    assert sorted(attacks) == ["attack sft a1", "attack sft a2", "attack tvaccine a2"]
    assert {job.state for job in attacks.values()} == {"interrupted"}
    assert attacks["attack sft a2"].params["attack"] == {"harmful_ratio": 1.0}
    assert all("a1" in (job.error or "") and job.remedy for job in attacks.values())
    assert len(orders.resume(store, run_id, ("attack",))) == 3


def test_a_migration_that_fails_leaves_the_store_as_it_was(old_home: Path) -> None:
    with sqlite3.connect(old_home / "lab.db") as db:
        db.execute("DROP TABLE answers")
    db.close()
    with pytest.raises(StoreError, match=r"lacks .*answers"):
        Store(old_home)
    with sqlite3.connect(old_home / "lab.db") as db:
        assert db.execute("PRAGMA user_version").fetchone() == (1,)
        columns = [row[1] for row in db.execute("PRAGMA table_info(runs)")]
        assert "revision" not in columns
    db.close()


def written(path: Path, version: int, *statements: str) -> bytes:
    with sqlite3.connect(path) as db:
        for statement in statements:
            db.execute(statement)
        db.execute(f"PRAGMA user_version={version}")
    db.close()
    return path.read_bytes()


@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize(
    "statements",
    [
        (),
        ("CREATE TABLE runs (id TEXT, distance REAL)",),
        ("CREATE TABLE runs (id TEXT, distance REAL)", "CREATE TABLE jobs (id TEXT, params TEXT)"),
        tuple(TABLES[:3]),
    ],
)
def test_another_program_s_database_is_named_and_not_touched(
    tmp_path: Path, version: int, statements: tuple[str, ...]
) -> None:
    path = tmp_path / "lab.db"
    before = written(path, version, *statements)
    if version == 0 and not statements:
        assert Store(tmp_path).runs() == [], "an empty file becomes a store"
        return
    with pytest.raises(StoreError, match="another program") as raised:
        Store(tmp_path)
    assert "--data-dir" in raised.value.remedy
    assert path.read_bytes() == before


def test_a_store_whose_tables_are_gone_is_named(old_home: Path) -> None:
    with sqlite3.connect(old_home / "lab.db") as db:
        for table in ("answers", "events", "jobs", "runs"):
            db.execute(f"DROP TABLE {table}")
    db.close()
    with pytest.raises(StoreError, match="damaged") as raised:
        Store(old_home)
    assert raised.value.remedy
