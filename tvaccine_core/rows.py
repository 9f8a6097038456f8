"""The tables of the run store, and their rows as values. Torch-free."""

import json
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

from tvaccine_core.config import LabConfig, ModelConfig, parse_config
from tvaccine_core.errors import RunNotFoundError
from tvaccine_core.records import Event, parse_event

JobKind = Literal["baseline", "align", "attack", "evaluate", "generate"]
JobState = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
RunStatus = Literal["new", "queued", "running", "done", "failed", "cancelled", "interrupted"]

SCHEMA_VERSION = 1
SCHEMA: Sequence[str] = (
    """CREATE TABLE runs (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, created_at REAL NOT NULL, base TEXT NOT NULL, config TEXT NOT NULL)""",
    """CREATE TABLE jobs (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        run_id TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        kind TEXT NOT NULL,
        params TEXT NOT NULL,
        base TEXT NOT NULL,
        state TEXT NOT NULL DEFAULT 'queued'
            CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled', 'interrupted')),
        priority INTEGER NOT NULL DEFAULT 0,
        depends_on TEXT,
        resumed INTEGER NOT NULL DEFAULT 0,
        cancel_requested INTEGER NOT NULL DEFAULT 0,
        done INTEGER, total INTEGER,
        worker_id TEXT, host TEXT, pid INTEGER,
        created_at REAL NOT NULL, started_at REAL, heartbeat_at REAL, finished_at REAL,
        error TEXT, remedy TEXT)""",
    # Two of the same work at once would write the same files. The index decides, so no two processes can disagree.
    """CREATE UNIQUE INDEX jobs_active ON jobs (run_id, kind, params)
        WHERE state IN ('queued', 'running') AND kind != 'generate'""",
    "CREATE INDEX jobs_by_state ON jobs (state)",
    "CREATE INDEX jobs_by_run ON jobs (run_id)",
    "CREATE INDEX jobs_by_dependency ON jobs (depends_on)",
    """CREATE TABLE events (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        run_id TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        job_id TEXT NOT NULL,
        at REAL NOT NULL, kind TEXT NOT NULL, step INTEGER, identity TEXT, event TEXT NOT NULL)""",
    "CREATE INDEX events_by_run ON events (run_id, seq)",
    "CREATE INDEX events_by_job ON events (job_id, seq)",
    "CREATE UNIQUE INDEX events_by_identity ON events (job_id, identity) WHERE identity IS NOT NULL",
    """CREATE TABLE answers (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        run_id TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
        state TEXT NOT NULL, step INTEGER NOT NULL, eval_set TEXT NOT NULL, example_id TEXT NOT NULL,
        answer TEXT NOT NULL,
        UNIQUE (run_id, state, step, eval_set, example_id))""",
)

# A run's status comes from the last attempt at each piece of work: a retry that succeeded outweighs the failure before.
RUN_COLUMNS = """runs.*, (
    SELECT group_concat(job.state) FROM jobs AS job
    WHERE job.run_id = runs.id AND job.kind != 'generate' AND job.seq IN (
        SELECT MAX(seq) FROM jobs WHERE run_id = runs.id GROUP BY kind, params)) AS states"""
_STATUS_ORDER: tuple[RunStatus, ...] = ("running", "queued", "interrupted", "failed", "cancelled", "done")


@dataclass(frozen=True)
class RunRow:
    """A run. `config` is parsed when first read, so that one unreadable old run does not hide the others."""

    id: str
    name: str
    created_at: datetime
    status: RunStatus
    config_json: str

    @cached_property
    def config(self) -> LabConfig:
        """Raises `ConfigError` if the run was made by a version with other settings."""
        return parse_config(LabConfig, json.loads(self.config_json))


@dataclass(frozen=True)
class JobRow:
    """A job. `done` of `total` optimiser steps, None while unknown; `error` and `remedy` say why it did not end well.

    `started_at` is when its last attempt began; `resumed` is true if that attempt goes on from a checkpoint.
    """

    id: str
    run_id: str
    kind: JobKind
    params: dict[str, Any]
    state: JobState
    done: int | None
    total: int | None
    worker_id: str | None
    created_at: datetime
    started_at: datetime | None
    heartbeat_at: datetime | None
    finished_at: datetime | None
    error: str | None
    remedy: str | None
    depends_on: str | None
    resumed: bool
    cancel_requested: bool

    @property
    def active(self) -> bool:
        """True while the job is queued or running."""
        return self.state in ("queued", "running")

    @property
    def title(self) -> str:
        """What the job does, in words: `align tvaccine`."""
        keys = ("method", "attack_id", "state")
        return " ".join([self.kind, *(str(self.params[key]) for key in keys if key in self.params)])


@dataclass(frozen=True)
class StoredEvent:
    """An event as the store holds it. `seq` only grows, over all runs."""

    seq: int
    job_id: str
    at: datetime
    event: Event


def run_row(row: sqlite3.Row) -> RunRow:
    """A row of `RUN_COLUMNS` as a value."""
    states = (row["states"] or "").split(",")
    status: RunStatus = "new"
    for candidate in _STATUS_ORDER:
        if candidate in states:
            status = candidate
            break
    return RunRow(row["id"], row["name"], utc(row["created_at"]), status, row["config"])


def job_row(row: sqlite3.Row) -> JobRow:
    """A row of the table `jobs` as a value."""
    return JobRow(
        id=row["id"],
        run_id=row["run_id"],
        kind=row["kind"],
        params=json.loads(row["params"]),
        state=row["state"],
        done=row["done"],
        total=row["total"],
        worker_id=row["worker_id"],
        created_at=utc(row["created_at"]),
        started_at=_maybe_utc(row["started_at"]),
        heartbeat_at=_maybe_utc(row["heartbeat_at"]),
        finished_at=_maybe_utc(row["finished_at"]),
        error=row["error"],
        remedy=row["remedy"],
        depends_on=row["depends_on"],
        resumed=bool(row["resumed"]),
        cancel_requested=bool(row["cancel_requested"]),
    )


def stored_event(row: sqlite3.Row) -> StoredEvent:
    """A row of the table `events` as a value."""
    return StoredEvent(row["seq"], row["job_id"], utc(row["at"]), parse_event(row["event"]))


def event_step(event: Event) -> int | None:
    """The step an event tells of, None for those that tell of no step."""
    match event.kind:
        case "drift" | "state" | "answer" | "message":
            return None
        case _:
            return event.step


def event_identity(event: Event) -> str | None:
    """What an event reports on; None if each report stands for itself. A job keeps one event of an identity."""
    match event.kind:
        case "step" | "layer_scores" | "layer_draw" | "checkpoint":
            return f"{event.kind}:{event.step}"
        case "eval":
            return f"eval:{event.state}:{event.step}:{event.eval_set}"
        case "drift":
            return f"drift:{event.state}:{event.reference}"
        case "state" | "answer":
            return f"{event.kind}:{event.state}"
        case "message":
            return None


def base_of(model: ModelConfig) -> str:
    """The model config as text; jobs with equal text share one loaded model."""
    return canonical_json(model.model_dump(mode="json"))


def canonical_json(value: dict[str, Any]) -> str:
    """Equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def marks(values: Collection[Any]) -> str:
    """Placeholders for `IN (…)`."""
    return ", ".join("?" * len(values))


def utc(seconds: float) -> datetime:
    """Seconds since the epoch as a time that knows its zone."""
    return datetime.fromtimestamp(seconds, UTC)


def _maybe_utc(seconds: float | None) -> datetime | None:
    return None if seconds is None else utc(seconds)


def no_run(run_id: str) -> RunNotFoundError:
    """The error for an id that no run has."""
    return RunNotFoundError(f"There is no run {run_id!r}.", remedy="Choose one of the listed runs.")
