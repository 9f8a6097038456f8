"""Recorded runs: a finished run as one file, and the same run in another store, to be looked at. Torch-free.

A recording holds config, jobs, events and answers of a run, but no models and no visitor's questions. In a store it is
a run that cannot go on: nothing can be asked of its models, and it is not deleted.
"""

import hashlib
import json
import lzma
import sqlite3
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tvaccine_core.config import LabConfig, parse_config
from tvaccine_core.errors import ConfigError, DataError, RunNotFoundError, StoreError
from tvaccine_core.records import Event, StateRecord, parse_event
from tvaccine_core.store.schema import base_of, canonical_json, event_identity, event_step
from tvaccine_core.store.store import Store

FORMAT = 1
SUFFIX = ".run.xz"
MAX_BYTES = 64 << 20
"""Largest recording, unpacked."""
LEFT_OUT = ("checkpoint", "progress", "answer")
"""Kinds of events that say nothing about a finished run."""
_BROKEN = (
    *(ConfigError, RunNotFoundError, KeyError, TypeError, ValueError, EOFError, lzma.LZMAError, sqlite3.IntegrityError),
    AttributeError,
)
RECORDINGS = Path(__file__).resolve().parents[2] / "assets" / "recorded"
"""The recordings that ship with the lab."""
_REMEDY = "Record it again: python -m tvaccine_core record"


def recorded_id(path: Path) -> str:
    """The id of a recording's run in every store."""
    return f"recorded-{path.name.removesuffix(SUFFIX)}"


def record(store: Store, run_id: str, name: str) -> bytes:
    """A finished run as a recording called `name`.

    Raises:
        StoreError: some work of the run is not done.
    """
    run, jobs = store.run(run_id), [job for job in store.jobs(run_id) if job.kind != "generate"]
    if not jobs or any(job.state != "done" for job in jobs):
        raise StoreError(f"Some work of run {run_id} is not done.", remedy="Wait for it, or resume it; then record it.")
    number = {job.id: index for index, job in enumerate(jobs)}
    began = run.created_at.timestamp()
    events = []
    for stored in store.events(run_id):
        if stored.job_id in number and stored.event.kind not in LEFT_OUT:
            after = round(stored.at.timestamp() - began, 2)
            events.append([number[stored.job_id], after, _placeless(stored.event).model_dump(mode="json")])
    answers, page = [], 0
    while found := store.answers(run_id, limit=1000, offset=page):
        answers += [answer.model_dump(mode="json") for answer in found]
        page += len(found)
    content = {
        "format": FORMAT,
        "name": name,
        "created_at": began,
        "config": run.config.model_dump(mode="json"),
        "jobs": [
            {
                "kind": job.kind,
                "params": job.params,
                "done": job.done,
                "total": job.total,
                "started": _since(job.started_at, began),
                "finished": _since(job.finished_at, began),
            }
            for job in jobs
        ],
        "events": events,
        "answers": answers,
    }
    return lzma.compress(canonical_json(content).encode(), preset=9)


def take(store: Store, path: Path) -> str:
    """Put the recording in `path` into the store, unless it is there; an older recording is replaced. Returns its run.

    Raises:
        DataError: it cannot be read, or is not a recording of this version.
    """
    run_id = recorded_id(path)
    try:
        store.run_dir(run_id)  # refuses names that no run can have
        packed = path.read_bytes()
        digest = hashlib.sha256(packed).hexdigest()[:16]
        if any(run.id == run_id and run.recording == digest for run in store.runs()):
            return run_id
        content = json.loads(lzma.LZMADecompressor().decompress(packed, MAX_BYTES))
        if content["format"] != FORMAT:
            raise ValueError("another format")
        config = parse_config(LabConfig, content["config"])
        events = [(int(job), float(at), parse_event(json.dumps(event))) for job, at, event in content["events"]]
        with store.writing() as db:
            db.execute("DELETE FROM runs WHERE id = ?", (run_id,))
            _insert(db, run_id, digest, config, content, events)
    except OSError as error:
        raise DataError(f"Cannot read {path}: {error.strerror or error}.", remedy=_REMEDY) from error
    except _BROKEN as error:
        raise DataError(f"{path} is not a recording that this version reads.", remedy=_REMEDY) from error
    return run_id


def drop_others(store: Store, kept: Collection[str]) -> None:
    """Take recorded runs out of the store that are not `kept`: they no longer ship."""
    with store.writing() as db:
        for row in db.execute("SELECT id FROM runs WHERE recorded IS NOT NULL").fetchall():
            if row["id"] not in kept:
                db.execute("DELETE FROM runs WHERE id = ?", (row["id"],))


def _insert(
    db: sqlite3.Connection,
    run_id: str,
    digest: str,
    config: LabConfig,
    content: dict[str, Any],
    events: list[tuple[int, float, Event]],
) -> None:
    base, began = base_of(config.model), float(content["created_at"])
    db.execute(
        "INSERT INTO runs (id, name, created_at, base, config, recorded) VALUES (?, ?, ?, ?, ?, ?)",
        (run_id, content["name"], began, base, config.model_dump_json(), digest),
    )
    for number, job in enumerate(content["jobs"]):
        db.execute(
            """INSERT INTO jobs (id, run_id, kind, params, base, state, done, total, created_at, started_at,
            finished_at) VALUES (?, ?, ?, ?, ?, 'done', ?, ?, ?, ?, ?)""",
            (
                *(f"{run_id}-{number}", run_id, job["kind"], canonical_json(job["params"]), base),
                *(job["done"], job["total"], began, began + job["started"], began + job["finished"]),
            ),
        )
    db.executemany(
        "INSERT INTO events (run_id, job_id, at, kind, step, identity, event) VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (
                *(run_id, f"{run_id}-{job}", began + at, event.kind),
                *(event_step(event), event_identity(event), event.model_dump_json()),
            )
            for job, at, event in events
        ],
    )
    db.executemany(
        "INSERT INTO answers (run_id, state, step, eval_set, example_id, answer) VALUES (?, ?, ?, ?, ?, ?)",
        [
            (run_id, *(answer[key] for key in ("state", "step", "eval_set", "example_id")), json.dumps(answer))
            for answer in content["answers"]
        ],
    )


def _placeless(event: Event) -> Event:
    """A state without its folder: a recording has no models."""
    return event.model_copy(update={"path": ""}) if isinstance(event, StateRecord) else event


def _since(moment: Any, began: float) -> float:
    return round(moment.timestamp() - began, 2) if moment else 0.0
