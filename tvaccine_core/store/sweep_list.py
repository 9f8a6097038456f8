"""Sweeps in the store: what was asked for, and how far it is. Their cells are in runs like any others. Torch-free."""

import json
import secrets
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from tvaccine_core.errors import StoreError
from tvaccine_core.store.database import Database
from tvaccine_core.store.schema import canonical_json, utc

SweepState = Literal["running", "stopped", "done"]


@dataclass(frozen=True)
class SweepRow:
    """A sweep. `running`: it is made, or waits for an older sweep; `done`: every cell is made or has failed."""

    id: str
    name: str
    created_at: datetime
    state: SweepState
    total: int
    """Number of cells that differ."""
    done: int
    problems: tuple[str, ...]
    """What went wrong with cells, or with the sweep, and what to do."""
    seconds_left: float | None
    spec_json: str

    @property
    def spec(self) -> dict[str, Any]:
        """The sweep's file, as JSON values."""
        return json.loads(self.spec_json)


class SweepList:
    """The table of sweeps."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(self, name: str, spec: dict[str, Any], total: int) -> str:
        """Add a sweep that is to be made; returns its id. An equal sweep that is there already goes on instead."""
        text = json.dumps(spec)  # in the order of the file
        with self._db.write() as db:
            for row in db.execute("SELECT id, spec FROM sweeps").fetchall():
                if canonical_json(json.loads(row["spec"])) == canonical_json(spec):
                    db.execute("UPDATE sweeps SET state = 'running' WHERE id = ?", (row["id"],))
                    return row["id"]
            sweep_id = f"s{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
            db.execute(
                "INSERT INTO sweeps (id, name, spec, created_at, total) VALUES (?, ?, ?, ?, ?)",
                (sweep_id, name, text, time.time(), total),
            )
            return sweep_id

    def all(self) -> list[SweepRow]:
        """Every sweep, newest first."""
        with self._db.read() as db:
            return [_sweep_row(row) for row in db.execute("SELECT * FROM sweeps ORDER BY rowid DESC")]

    def get(self, sweep_id: str) -> SweepRow:
        """One sweep. Raises `StoreError` if there is none of that id."""
        with self._db.read() as db:
            row = db.execute("SELECT * FROM sweeps WHERE id = ?", (sweep_id,)).fetchone()
        if row is None:
            raise _no_sweep(sweep_id)
        return _sweep_row(row)

    def state(self, sweep_id: str) -> SweepState | None:
        """State of a sweep; None if there is none of that id."""
        with self._db.read() as db:
            row = db.execute("SELECT state FROM sweeps WHERE id = ?", (sweep_id,)).fetchone()
        return None if row is None else row["state"]

    def next(self) -> SweepRow | None:
        """The oldest sweep that is to be made."""
        with self._db.read() as db:
            row = db.execute("SELECT * FROM sweeps WHERE state = 'running' ORDER BY rowid LIMIT 1").fetchone()
        return None if row is None else _sweep_row(row)

    def set_state(self, sweep_id: str, state: SweepState) -> None:
        """Let a sweep be made, stop or be done."""
        with self._db.write() as db:
            if db.execute("UPDATE sweeps SET state = ? WHERE id = ?", (state, sweep_id)).rowcount == 0:
                raise _no_sweep(sweep_id)

    def report(self, sweep_id: str, done: int, problems: Sequence[str], seconds_left: float | None) -> None:
        """Say how far a sweep is. Nothing happens if it was deleted meanwhile."""
        with self._db.write() as db:
            db.execute(
                "UPDATE sweeps SET done = ?, problems = ?, seconds_left = ? WHERE id = ?",
                (done, json.dumps(list(problems)), seconds_left, sweep_id),
            )

    def delete(self, sweep_id: str) -> None:
        """Forget a sweep; its runs stay."""
        with self._db.write() as db:
            if db.execute("DELETE FROM sweeps WHERE id = ?", (sweep_id,)).rowcount == 0:
                raise _no_sweep(sweep_id)


def _sweep_row(row: sqlite3.Row) -> SweepRow:
    return SweepRow(
        id=row["id"],
        name=row["name"],
        created_at=utc(row["created_at"]),
        state=row["state"],
        total=row["total"],
        done=row["done"],
        problems=tuple(json.loads(row["problems"])),
        seconds_left=row["seconds_left"],
        spec_json=row["spec"],
    )


def _no_sweep(sweep_id: object) -> StoreError:
    return StoreError(f"There is no sweep {str(sweep_id)[:80]!r}.", remedy="Choose one of the listed sweeps.")
