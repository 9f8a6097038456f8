"""The tables of the run store, and their rows as values. Torch-free."""

import json
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal, get_args

from tvaccine_core.config import LabConfig, ModelConfig, parse_config
from tvaccine_core.errors import RunNotFoundError
from tvaccine_core.records import Event, parse_event

JobKind = Literal["baseline", "align", "attack", "repair", "evaluate", "judge", "generate"]
JobState = Literal["queued", "running", "done", "failed", "cancelled", "interrupted"]
WORK_KINDS: tuple[JobKind, ...] = tuple(kind for kind in get_args(JobKind) if kind != "generate")
"""Kinds of jobs that make up a run; questions belong to visitors."""
RunStatus = Literal["new", "queued", "running", "done", "failed", "cancelled", "interrupted"]

TABLES: Sequence[str] = (
    """CREATE TABLE runs (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, created_at REAL NOT NULL, base TEXT NOT NULL, config TEXT NOT NULL,
        revision INTEGER NOT NULL DEFAULT 0)""",
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
    # The same work twice at once would write the same files. An index decides, so that processes cannot disagree.
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

ATTACK_NAMES = """CREATE UNIQUE INDEX attack_names ON jobs
    (run_id, json_extract(params, '$.attack_id'), json_extract(params, '$.defence')) WHERE kind = 'attack'"""
"""Two attacks with one name would write the same folder of weights."""

_CHANGE_RUN = "UPDATE runs SET revision = revision + 1 WHERE id = {row}.run_id"
_CHANGE_LIST = "UPDATE run_list SET revision = revision + 1"
_SEEN_OF_A_JOB = ("state", "done", "total", "cancel_requested", "error")
_BEFORE, _AFTER = (", ".join(f"{row}.{name}" for name in _SEEN_OF_A_JOB) for row in ("OLD", "NEW"))
# Triggers count, so that no writer can forget it. Heartbeats without progress and streaming answers do not count.
REVISIONS: Sequence[str] = (
    "CREATE TABLE run_list (id INTEGER PRIMARY KEY CHECK (id = 1), revision INTEGER NOT NULL)",
    "INSERT INTO run_list VALUES (1, 0)",
    f"CREATE TRIGGER run_made AFTER INSERT ON runs BEGIN {_CHANGE_LIST}; END",
    f"CREATE TRIGGER run_deleted AFTER DELETE ON runs BEGIN {_CHANGE_LIST}; END",
    f"""CREATE TRIGGER run_renamed AFTER UPDATE OF name ON runs BEGIN
        UPDATE runs SET revision = revision + 1 WHERE id = NEW.id; {_CHANGE_LIST}; END""",
    f"CREATE TRIGGER job_made AFTER INSERT ON jobs BEGIN {_CHANGE_RUN.format(row='NEW')}; {_CHANGE_LIST}; END",
    f"""CREATE TRIGGER job_changed AFTER UPDATE ON jobs WHEN ({_BEFORE}) IS NOT ({_AFTER})
        BEGIN {_CHANGE_RUN.format(row="NEW")}; END""",
    f"""CREATE TRIGGER job_state_changed AFTER UPDATE OF state ON jobs WHEN OLD.state IS NOT NEW.state
        BEGIN {_CHANGE_LIST}; END""",
    f"""CREATE TRIGGER event_made AFTER INSERT ON events WHEN NEW.kind != 'answer'
        BEGIN {_CHANGE_RUN.format(row="NEW")}; END""",
    f"CREATE TRIGGER event_taken_back AFTER DELETE ON events BEGIN {_CHANGE_RUN.format(row='OLD')}; END",
)

VERDICTS = """CREATE TABLE verdicts (
    run_id TEXT NOT NULL REFERENCES runs (id) ON DELETE CASCADE,
    state TEXT NOT NULL, step INTEGER NOT NULL, eval_set TEXT NOT NULL, example_id TEXT NOT NULL,
    judge TEXT NOT NULL, revision TEXT NOT NULL, verdict TEXT NOT NULL,
    PRIMARY KEY (run_id, state, step, eval_set, example_id, judge)) WITHOUT ROWID"""
"""Verdicts on saved answers by judges other than the run's own."""

_SEEN_OF_A_SWEEP = ("state", "total", "done", "problems")
_SWEEP_BEFORE, _SWEEP_AFTER = (", ".join(f"{row}.{name}" for name in _SEEN_OF_A_SWEEP) for row in ("OLD", "NEW"))
SWEEPS: Sequence[str] = (
    """CREATE TABLE sweeps (
        id TEXT PRIMARY KEY, name TEXT NOT NULL, spec TEXT NOT NULL, created_at REAL NOT NULL,
        state TEXT NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'stopped', 'done')),
        total INTEGER NOT NULL, done INTEGER NOT NULL DEFAULT 0, problems TEXT NOT NULL DEFAULT '[]',
        seconds_left REAL)""",
    f"CREATE TRIGGER sweep_made AFTER INSERT ON sweeps BEGIN {_CHANGE_LIST}; END",
    f"CREATE TRIGGER sweep_deleted AFTER DELETE ON sweeps BEGIN {_CHANGE_LIST}; END",
    f"""CREATE TRIGGER sweep_changed AFTER UPDATE ON sweeps WHEN ({_SWEEP_BEFORE}) IS NOT ({_SWEEP_AFTER})
        BEGIN {_CHANGE_LIST}; END""",
)
"""Sweeps that the page's server makes in the background; their cells are in runs like any others."""

RECORDED = "ALTER TABLE runs ADD COLUMN recorded TEXT"
"""Digest of the recording that a run was taken from; NULL for the store's own runs."""

SCHEMA_VERSION = 5
SCHEMA: Sequence[str] = (*TABLES, ATTACK_NAMES, *REVISIONS, VERDICTS, *SWEEPS, RECORDED)

# A run's status comes from the last attempt at each piece of work: a successful retry replaces the failure before.
RUN_COLUMNS = """runs.*, (
    SELECT group_concat(job.state) FROM jobs AS job
    WHERE job.run_id = runs.id AND job.kind != 'generate' AND job.seq IN (
        SELECT MAX(seq) FROM jobs WHERE run_id = runs.id GROUP BY kind, params)) AS states"""
_STATUS_ORDER: tuple[RunStatus, ...] = ("running", "queued", "interrupted", "failed", "cancelled", "done")


@dataclass(frozen=True)
class RunRow:
    """A run. `config` is parsed at first use, so that one unreadable old run does not hide the others."""

    id: str
    name: str
    created_at: datetime
    status: RunStatus
    config_json: str
    recording: str | None = None
    """Digest of the recording that it was taken from; None for the store's own runs."""

    @property
    def recorded(self) -> bool:
        """True if it shipped with the lab: to be looked at, without models."""
        return self.recording is not None

    @cached_property
    def config(self) -> LabConfig:
        """Raises `ConfigError` if the run was made by a version with other settings."""
        return parse_config(LabConfig, json.loads(self.config_json))


@dataclass(frozen=True)
class JobRow:
    """A job. `done` of `total` optimiser steps, None while unknown; `error` and `remedy` say why it failed.

    `started_at` is the start of the last attempt; `resumed` is true if this attempt goes on from a checkpoint.
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
        keys = ("aligned", "defence", "attack_id", "state", "judge")
        return " ".join([self.kind, *(str(self.params[key]) for key in keys if key in self.params)])


@dataclass(frozen=True)
class Work:
    """A job to be queued. `needs` is the job it waits for: its index in the same list, or its id."""

    kind: JobKind
    params: dict[str, Any]
    needs: int | str | None = None


@dataclass(frozen=True)
class Revisions:
    """Counters that only grow: if they are equal, nothing that a viewer sees has changed."""

    runs: int
    """Changes of the list of runs, names and states, and of the sweeps."""
    run: int
    """Changes of one run: its name, jobs and events except answers to questions; 0 if no run was named."""


@dataclass(frozen=True)
class StoredEvent:
    """An event in the store. `seq` only grows, over all runs."""

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
    return RunRow(row["id"], row["name"], utc(row["created_at"]), status, row["config"], row["recorded"])


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
    """The step of an event; None if it has none."""
    match event.kind:
        case "drift" | "state" | "answer" | "progress" | "message":
            return None
        case _:
            return event.step


def event_identity(event: Event) -> str | None:
    """The subject of an event, of which a job keeps only the newest event; None if a job keeps every such event."""
    match event.kind:
        case "step" | "layer_scores" | "layer_draw" | "checkpoint":
            return f"{event.kind}:{event.step}"
        case "eval":
            return f"eval:{event.state}:{event.step}:{event.eval_set}"  # a job has one judge
        case "layer_values":
            return f"layer_values:{event.step}:{event.name}"
        case "drift":
            return f"drift:{event.state}:{event.reference}"
        case "state" | "answer":
            return f"{event.kind}:{event.state}"
        case "progress" | "message":
            return None


def base_of(model: ModelConfig) -> str:
    """The model config as text; jobs with equal text share one loaded model."""
    data = model.model_dump(mode="json")
    if model.fast_paths:
        del data["fast_paths"]  # older runs, without this field, must have the same text
    return canonical_json(data)


def canonical_json(value: dict[str, Any]) -> str:
    """Equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def free_attack_id(taken: Collection[str]) -> str:
    """The first of a1, a2, … that no attack of a run has."""
    return next(f"a{number}" for number in range(1, len(taken) + 2) if f"a{number}" not in taken)


def marks(values: Collection[Any]) -> str:
    """Placeholders for `IN (…)`."""
    return ", ".join("?" * len(values))


def utc(seconds: float) -> datetime:
    """Seconds since the epoch as a time with a time zone."""
    return datetime.fromtimestamp(seconds, UTC)


def _maybe_utc(seconds: float | None) -> datetime | None:
    return None if seconds is None else utc(seconds)


def no_run(run_id: object) -> RunNotFoundError:
    """The error for an id that no run has."""
    return RunNotFoundError(f"There is no run {str(run_id)[:80]!r}.", remedy="Choose one of the listed runs.")
