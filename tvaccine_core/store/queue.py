"""The job queue inside the run store: claims, heartbeats, cancelling, resuming. Torch-free.

A job goes queued -> running -> done | failed | cancelled | interrupted; `resume` queues it again. Interrupted means
that its worker stopped or died: the work itself did not fail. Cost: an idle claim is one indexed SELECT without the
write lock, some tens of microseconds.
"""

import os
import secrets
import socket
import sqlite3
import time
from collections.abc import Collection, Sequence
from typing import Any, Literal, get_args

from tvaccine_core.config import ModelConfig
from tvaccine_core.errors import RunBusyError, RunNotFoundError, StoreError, TVaccineError
from tvaccine_core.plain_text import check_unicode
from tvaccine_core.store.database import Database
from tvaccine_core.store.dead_jobs import dead_jobs, why_dead
from tvaccine_core.store.schema import (
    JobKind,
    JobRow,
    JobState,
    Work,
    base_of,
    canonical_json,
    free_attack_id,
    job_row,
    marks,
    no_run,
)

HEARTBEAT_EVERY_S = 1.0
STALE_AFTER_S = 30.0
"""A running job without a heartbeat for this time has lost its worker."""

# Claimable: queued, and the job it depends on is done.
_CLAIMABLE = """FROM jobs AS job LEFT JOIN jobs AS dependency ON dependency.id = job.depends_on
    WHERE job.state = 'queued' AND (job.depends_on IS NULL OR dependency.state = 'done')"""
# A `generate` goes first: somebody is waiting for the answer.
_QUEUE_ORDER = "ORDER BY job.priority DESC, job.kind = 'generate' DESC, job.seq"
_PAST = {"failed": "failed", "cancelled": "was cancelled"}


class JobQueue:
    """The jobs of all runs; the part of `Store` that workers use."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def enqueue(
        self,
        run_id: str,
        kind: JobKind,
        params: dict[str, Any],
        *,
        depends_on: str | None = None,
        priority: int = 0,
    ) -> str:
        """Queue work and return the job's id. `params` are JSON values.

        A job that depends on another becomes claimable when the other is done, is cancelled when the other fails or is
        cancelled, and waits while the other is interrupted.

        Raises:
            RunBusyError: the same work of this run (kind and params) is already queued or running.
            StoreError: the job it depends on failed or was cancelled.
            DataError: its prompt is not valid Unicode.
        """
        (job_id,) = self.enqueue_all(run_id, [Work(kind, params, depends_on)], priority=priority)
        return job_id

    def enqueue_all(self, run_id: str, work: Sequence[Work], *, priority: int = 0) -> list[str]:
        """Queue several jobs, all or none; see `enqueue`. Returns their ids."""
        with self._db.write() as db:
            return add_jobs(db, run_id, work, priority)

    def enqueue_attack(
        self,
        run_id: str,
        attack: dict[str, Any],
        aligned: dict[str, str],
        repaired: Collection[str] = (),
        priority: int = 0,
    ) -> tuple[str, list[str]]:
        """Queue one attack on several aligned models, and the repairs that follow, all or none.

        Returns the attack's name in the run, and the jobs.

        Args:
            attack: the attack's settings, as JSON values.
            aligned: defence -> the job that aligns its model, finished or not.
            repaired: the defences whose repair is queued after the attack.

        Raises:
            RunBusyError: the same attack on one of the defences is already queued or running.
            StoreError: an alignment failed or was cancelled.
        """
        with self._db.write() as db:
            made = db.execute("SELECT * FROM jobs WHERE run_id = ? AND kind = 'attack'", (known_run(run_id),))
            others = [job_row(row) for row in made]
            for job in others:
                if job.active and job.params["defence"] in aligned and job.params["attack"] == attack:
                    raise _busy(f"The same attack, {job.params['attack_id']} of run {run_id},", job)
            attack_id = free_attack_id({str(job.params["attack_id"]) for job in others})
            work = [
                Work("attack", {"defence": name, "attack_id": attack_id, "attack": attack}, needs)
                for name, needs in aligned.items()
            ]
            work += [Work("repair", job.params, place) for place, job in enumerate(work) if _defence(job) in repaired]
            return attack_id, add_jobs(db, run_id, work, priority)

    def claim(
        self,
        worker_id: str,
        kinds: Collection[JobKind] | None = None,
        model: ModelConfig | None = None,
        job_ids: Collection[str] | None = None,
    ) -> JobRow | None:
        """Take the next job for the calling process; None if there is none. No job is given twice.

        Args:
            worker_id: unique to the worker, also after restarts.
            kinds: only these kinds.
            model: only jobs of runs with exactly this base model.
            job_ids: only these jobs.
        """
        query, values = f"SELECT job.seq {_CLAIMABLE}", []
        if kinds is not None:
            query += f" AND job.kind IN ({marks(kinds)})"
            values += kinds
        if model is not None:
            query += " AND job.base = ?"
            values.append(base_of(model))
        if job_ids is not None:
            query += f" AND job.id IN ({marks(job_ids)})"
            values += job_ids
        query += f" {_QUEUE_ORDER} LIMIT 1"
        with self._db.read() as db:  # an idle poll must not take the write lock
            if db.execute(query, values).fetchone() is None:
                return None
        now = time.time()
        with self._db.write() as db:
            row = db.execute(
                f"""UPDATE jobs SET state = 'running', worker_id = ?, host = ?, pid = ?, started_at = ?,
                heartbeat_at = ?, finished_at = NULL WHERE seq = ({query}) RETURNING *""",
                (worker_id, socket.gethostname(), os.getpid(), now, now, *values),
            ).fetchone()
        return None if row is None else job_row(row)

    def heartbeat(self, job_id: str, progress: tuple[int, int] | None = None, *, worker_id: str | None = None) -> bool:
        """Say that the job is alive; `progress` is (steps done, steps in all).

        Returns False if the job is no longer the caller's: then stop working on it. If a job was reaped while its
        worker only slept (a closed laptop), and no other worker took it, the worker gets it back.
        """
        done, total = progress or (None, None)
        with self._db.write() as db:
            changed = db.execute(
                """UPDATE jobs SET heartbeat_at = ?, done = COALESCE(?, done), total = COALESCE(?, total),
                state = 'running', finished_at = NULL, error = NULL, remedy = NULL
                WHERE id = ? AND (state = 'running' OR (state = 'interrupted' AND worker_id = ?))
                AND worker_id = COALESCE(?, worker_id)""",
                (time.time(), done, total, job_id, worker_id, worker_id),
            ).rowcount
        return changed > 0

    def finish(
        self,
        job_id: str,
        state: Literal["done", "failed", "cancelled", "interrupted"],
        error: TVaccineError | None = None,
        *,
        worker_id: str | None = None,
    ) -> bool:
        """End a running job; jobs that depend on a failed or cancelled job are cancelled too.

        Returns False, and changes nothing, if the job is not running or, with `worker_id`, not that worker's.
        """
        message, remedy = (str(error), error.remedy) if error else (None, None)
        with self._db.write() as db:
            # An interrupted job forgets its worker, so that no late heartbeat can revive it.
            changed = db.execute(
                """UPDATE jobs SET state = ?, error = ?, remedy = ?, finished_at = ?,
                worker_id = CASE WHEN ? = 'interrupted' THEN NULL ELSE worker_id END
                WHERE id = ? AND state = 'running' AND worker_id = COALESCE(?, worker_id)""",
                (state, message, remedy, time.time(), state, job_id, worker_id),
            ).rowcount
            if changed:
                _cancel_dependants(db, job_id)
        return changed > 0

    def cancel(self, job_id: str) -> None:
        """Ask a job to stop: a running job stops within a step, a waiting job at once, an ended job stays as it is."""
        with self._db.write() as db:
            job = find_job(db, job_id)
            if job.state == "running":
                db.execute("UPDATE jobs SET cancel_requested = 1 WHERE id = ?", (job_id,))
            elif job.state in ("queued", "interrupted"):
                db.execute(
                    "UPDATE jobs SET state = 'cancelled', finished_at = ?, worker_id = NULL WHERE id = ?",
                    (time.time(), job_id),
                )
                _cancel_dependants(db, job_id)

    def cancel_requested(self, job_id: str) -> bool:
        """True if somebody asked the running job to stop, or deleted it."""
        with self._db.read() as db:
            row = db.execute("SELECT cancel_requested FROM jobs WHERE id = ?", (job_id,)).fetchone()
        return row is None or bool(row[0])

    def resume(self, job_id: str) -> None:
        """Queue an interrupted, cancelled or failed job again; its worker goes on from the last checkpoint.

        If the work it depends on had several attempts, a finished attempt counts, else the newest.

        Raises:
            RunBusyError: it is queued or running, or another job with the same work is.
            StoreError: it is done, or the job it depends on failed or was cancelled.
        """
        with self._db.write() as db:
            job = find_job(db, job_id)
            if job.state == "done":
                raise StoreError(f"`{job.title}` is already done.", remedy="Start it anew to do it again.")
            if job.active:
                raise _busy(f"`{job.title}` of run {job.run_id}")
            needed = job.depends_on and _best_attempt(db, job.depends_on)
            if needed is not None:
                _check_dependency(find_job(db, needed), job.run_id)
            try:
                db.execute(
                    """UPDATE jobs SET state = 'queued', resumed = 1, cancel_requested = 0, worker_id = NULL,
                    error = NULL, remedy = NULL, finished_at = NULL, depends_on = ? WHERE id = ?""",
                    (needed, job_id),
                )
            except sqlite3.IntegrityError as error:
                raise _busy(f"The same `{job.title}` of run {job.run_id}") from error

    def reap(self, timeout_s: float = STALE_AFTER_S) -> list[JobRow]:
        """Mark running jobs whose worker is dead as interrupted, and return them.

        Dead means: its process on this machine is gone, or there was no heartbeat for `timeout_s`. A job that was asked
        to stop becomes cancelled instead.
        """
        with self._db.read() as db:
            if not dead_jobs(db, timeout_s):
                return []
        with self._db.write() as db:
            dead = dead_jobs(db, timeout_s)
            for job, gone in dead:
                state = "cancelled" if job.cancel_requested else "interrupted"
                db.execute(
                    "UPDATE jobs SET state = ?, finished_at = ?, error = ?, remedy = ? WHERE id = ?",
                    (state, time.time(), *why_dead(job, gone, timeout_s), job.id),
                )
                _cancel_dependants(db, job.id)
            return [find_job(db, job.id) for job, _ in dead]

    def held_by(self, pid: int) -> list[JobRow]:
        """The running jobs of process `pid` on this machine: a job, and perhaps a prompt that it answers meanwhile."""
        with self._db.read() as db:
            query = "SELECT * FROM jobs WHERE state = 'running' AND host = ? AND pid = ?"
            return [job_row(row) for row in db.execute(query, (socket.gethostname(), pid))]

    def job(self, job_id: str) -> JobRow:
        """One job."""
        with self._db.read() as db:
            return find_job(db, job_id)

    def all_jobs(self) -> list[JobRow]:
        """Jobs of all runs, oldest first."""
        with self._db.read() as db:
            return [job_row(row) for row in db.execute("SELECT * FROM jobs ORDER BY seq")]

    def jobs(self, run_id: str, *, states: Collection[JobState] | None = None) -> list[JobRow]:
        """Jobs of a run, oldest first; none if there is no such run."""
        query, values = "SELECT * FROM jobs WHERE run_id = ?", [known_run(run_id)]
        if states is not None:
            query += f" AND state IN ({marks(states)})"
            values += states
        with self._db.read() as db:
            return [job_row(row) for row in db.execute(f"{query} ORDER BY seq", values)]

    def queue_position(self, job_id: str) -> int | None:
        """Number of queued jobs before this job; None if it is not queued."""
        with self._db.read() as db:
            rows = db.execute(f"SELECT job.id FROM jobs AS job WHERE job.state = 'queued' {_QUEUE_ORDER}").fetchall()
        order = [row[0] for row in rows]
        return order.index(job_id) if job_id in order else None


WITHOUT_MODELS = ("judge",)
"""Kinds of jobs that a recorded run allows."""


def add_jobs(db: sqlite3.Connection, run_id: str, work: Sequence[Work], priority: int = 0) -> list[str]:
    """Queue jobs inside the caller's transaction; see `JobQueue.enqueue`. Returns their ids."""
    job_ids: list[str] = []
    row = db.execute("SELECT recorded FROM runs WHERE id = ?", (known_run(run_id),)).fetchone()
    if row is not None and row["recorded"] is not None and any(job.kind not in WITHOUT_MODELS for job in work):
        raise StoreError(
            "This run is recorded: its models are not here.",
            remedy="Press “Run it live”, or start a run of your own on Align.",
        )
    for job in work:
        if job.kind not in get_args(JobKind):
            raise StoreError(f"No job of kind {job.kind!r}.", remedy=f"Use one of {', '.join(get_args(JobKind))}.")
        if isinstance(prompt := job.params.get("prompt"), str):
            check_unicode(prompt, "The prompt")
        needs = job_ids[job.needs] if isinstance(job.needs, int) else job.needs
        if needs is not None:
            _check_dependency(find_job(db, needs), run_id)
        job_ids.append(f"{job.kind}-{secrets.token_hex(5)}")
        try:
            added = db.execute(
                """INSERT INTO jobs (id, run_id, kind, params, base, priority, depends_on, created_at)
                SELECT ?, id, ?, ?, base, ?, ?, ? FROM runs WHERE id = ?""",
                (job_ids[-1], job.kind, canonical_json(job.params), priority, needs, time.time(), known_run(run_id)),
            ).rowcount
        except sqlite3.IntegrityError as error:
            raise _busy(f"The same `{job.kind}` of run {run_id}") from error
        if not added:
            raise no_run(run_id)
    return job_ids


def known_run(run_id: object) -> str:
    """`run_id` if it can be a run's id. Raises `RunNotFoundError`: no other type of value may stand for all runs."""
    if not isinstance(run_id, str) or not run_id or not run_id.isascii():
        raise no_run(run_id)
    return run_id


def _defence(work: Work) -> str:
    return str(work.params["defence"])


def find_job(db: sqlite3.Connection, job_id: str) -> JobRow:
    """The job, inside the caller's transaction. Raises `RunNotFoundError`."""
    row = db.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if row is None:
        raise RunNotFoundError(f"There is no job {job_id!r}.", remedy="Its run may be deleted: list the runs.")
    return job_row(row)


def _best_attempt(db: sqlite3.Connection, job_id: str) -> str:
    """The finished job with the work of `job_id`, else the newest: a failed job may have been started anew."""
    (found,) = db.execute(
        """SELECT other.id FROM jobs AS one JOIN jobs AS other USING (run_id, kind, params)
        WHERE one.id = ? ORDER BY other.state = 'done' DESC, other.rowid DESC LIMIT 1""",
        (job_id,),
    ).fetchone()
    return str(found)


def _check_dependency(dependency: JobRow, run_id: str) -> None:
    if dependency.run_id != run_id:
        raise StoreError(
            f"Job {dependency.id} belongs to run {dependency.run_id}, not to {run_id}.",
            remedy="Let a job wait only for jobs of its own run.",
        )
    if dependency.state in _PAST:
        raise StoreError(
            f"`{dependency.title}`, which this needs, {_PAST[dependency.state]}.",
            remedy=f"Resume or start `{dependency.title}` first.",
        )


def _cancel_dependants(db: sqlite3.Connection, job_id: str) -> None:
    job = find_job(db, job_id)
    if job.state not in _PAST:
        return
    waiting = db.execute(
        """UPDATE jobs SET state = 'cancelled', finished_at = ?, error = ?, remedy = ?
        WHERE depends_on = ? AND state IN ('queued', 'interrupted') RETURNING id""",
        (
            time.time(),
            f"`{job.title}`, which this needs, {_PAST[job.state]}.",
            f"Resume or start `{job.title}`, then resume this.",
            job_id,
        ),
    ).fetchall()
    for row in waiting:
        _cancel_dependants(db, row["id"])


def _busy(what: str, job: JobRow | None = None) -> RunBusyError:
    return RunBusyError(
        f"{what} is already queued or running.",
        remedy="Wait until it has ended, or stop it first.",
        run_id=job.run_id if job else "",
        attack_id=str(job.params.get("attack_id", "")) if job else "",
    )
