"""Migrations of the run store, each from one version to the next. Torch-free.

A migration runs inside one transaction, so a store always has the old version or the new one, never a mixture.
"""

import json
import sqlite3
import time
from collections.abc import Mapping

from tvaccine_core.store.database import Migration
from tvaccine_core.store.schema import (
    ATTACK_NAMES,
    RECORDED,
    REVISIONS,
    SWEEPS,
    VERDICTS,
    canonical_json,
    free_attack_id,
)

_TWICE = "Version 1 of the lab gave two attacks the name {name}, so the saved weights may be of either."
_TWICE_REMEDY = "Resume it: it is done again from the start, under the name {name}."


def one_to_two(db: sqlite3.Connection) -> None:
    """Revisions, jobs that name defences, and attack names that are unique."""
    db.execute("ALTER TABLE runs ADD COLUMN revision INTEGER NOT NULL DEFAULT 0")
    _name_defences(db)
    _separate_attacks(db)
    db.execute(ATTACK_NAMES)
    for statement in REVISIONS:
        db.execute(statement)


def _name_defences(db: sqlite3.Connection) -> None:
    """A method of version 1 is now the defence of that name, and the key of its aligned state.

    An unfinished attack starts anew: its checkpoint is of version 1's training, which had no fine-tuning stage.
    """
    for kind, name in (("align", "aligned"), ("attack", "defence")):
        rows = db.execute("SELECT seq, params FROM jobs WHERE kind = ?", (kind,)).fetchall()
        for row in rows:
            params = json.loads(row["params"])
            params[name] = params.pop("method")
            db.execute("UPDATE jobs SET params = ? WHERE seq = ?", (canonical_json(params), row["seq"]))
    db.execute(
        """DELETE FROM events WHERE kind = 'checkpoint' AND job_id IN
        (SELECT id FROM jobs WHERE kind = 'attack' AND state != 'done')"""
    )


def _separate_attacks(db: sqlite3.Connection) -> None:
    """Two attacks started at the same moment could get one name. Each gets its own name, and must be done again."""
    rows = db.execute("SELECT seq, run_id, params FROM jobs WHERE kind = 'attack' ORDER BY seq").fetchall()
    settings: dict[tuple[str, str], str] = {}  # (run, attack) -> the attack's settings
    taken: dict[str, set[str]] = {}
    owners: dict[tuple[str, str, str], int] = {}  # (run, attack, defence) -> job
    clashes: list[tuple[int, str, dict[str, object]]] = []
    for row in rows:
        params, run = json.loads(row["params"]), str(row["run_id"])
        name, attack = str(params["attack_id"]), json.dumps(params["attack"], sort_keys=True)
        taken.setdefault(run, set()).add(name)
        key = (run, name, str(params["defence"]))
        if settings.setdefault((run, name), attack) != attack or owners.setdefault(key, row["seq"]) != row["seq"]:
            clashes.append((row["seq"], run, params))
    renamed: dict[tuple[str, str, str], str] = {}
    for seq, run, params in clashes:
        old = str(params["attack_id"])
        attack = json.dumps(params["attack"], sort_keys=True)
        if (run, old, attack) not in renamed:
            renamed[run, old, attack] = free_attack_id(taken[run])
            taken[run].add(renamed[run, old, attack])
        new = renamed[run, old, attack]
        db.execute("UPDATE jobs SET params = ? WHERE seq = ?", (canonical_json({**params, "attack_id": new}), seq))
        _do_again(db, seq, old, new)
        first = owners.get((run, old, str(params["defence"])))
        if first is not None:
            _do_again(db, first, old, old)


def _do_again(db: sqlite3.Connection, seq: int, old: str, new: str) -> None:
    db.execute("DELETE FROM events WHERE job_id = (SELECT id FROM jobs WHERE seq = ?)", (seq,))
    db.execute(
        """UPDATE jobs SET state = 'interrupted', done = NULL, total = NULL, worker_id = NULL, finished_at = ?,
        error = ?, remedy = ? WHERE seq = ? AND started_at IS NOT NULL""",
        (time.time(), _TWICE.format(name=old), _TWICE_REMEDY.format(name=new), seq),
    )


def two_to_three(db: sqlite3.Connection) -> None:
    """Verdicts of more than one judge."""
    db.execute(VERDICTS)


def three_to_four(db: sqlite3.Connection) -> None:
    """Sweeps."""
    for statement in SWEEPS:
        db.execute(statement)


def four_to_five(db: sqlite3.Connection) -> None:
    """Recorded runs."""
    db.execute(RECORDED)


MIGRATIONS: Mapping[int, Migration] = {1: one_to_two, 2: two_to_three, 3: three_to_four, 4: four_to_five}
"""By the version that they start from."""
