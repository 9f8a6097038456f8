"""Run store: runs, jobs, events and answers in SQLite, plus one folder of artifacts per run. Torch-free.

The only channel between the engine (a worker process writes) and page and command line (they read and queue). Layout:

    home/lab.db            runs, jobs, events, answers
    home/runs/<run id>/    config.yaml, states/, checkpoints/, log/
    home/log/              output of the worker processes

Times are UTC. Cost: an `events` call that finds nothing new is one indexed SELECT, some tens of microseconds.
"""

import os
import re
import secrets
import shutil
import sqlite3
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path

from tvaccine_core.config import LabConfig
from tvaccine_core.errors import RunBusyError, StoreError
from tvaccine_core.plain_text import check_unicode
from tvaccine_core.records import Event, GeneratedAnswer, Verdict
from tvaccine_core.store.database import Database
from tvaccine_core.store.migrations import MIGRATIONS
from tvaccine_core.store.queue import JobQueue, add_jobs, find_job, known_run
from tvaccine_core.store.schema import (
    RUN_COLUMNS,
    SCHEMA,
    SCHEMA_VERSION,
    Revisions,
    RunRow,
    StoredEvent,
    Work,
    base_of,
    event_identity,
    event_step,
    job_row,
    marks,
    no_run,
    run_row,
    stored_event,
)
from tvaccine_core.store.sweep_list import SweepList

MAX_NAME = 120
_RUN_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")


def default_home() -> Path:
    """`TVACCINE_HOME`, else the platform's folder for a user's application data."""
    if chosen := os.environ.get("TVACCINE_HOME"):
        return expand_folder(Path(chosen))
    if sys.platform == "win32":
        parent = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        parent = Path.home() / "Library" / "Application Support"
    else:
        parent = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return parent / "tvaccine-lab"


class Store(JobQueue):
    """The store in folder `home`, made if missing. Threads may share it; each process opens its own.

    Every method raises `StoreError` with a remedy if the disk or the database fails, and `RunNotFoundError` for an id
    that does not exist.
    """

    def __init__(self, home: Path) -> None:
        self.home = expand_folder(home).absolute()
        super().__init__(Database(self.home / "lab.db", SCHEMA, SCHEMA_VERSION, MIGRATIONS))
        self.sweeps = SweepList(self._db)

    def writing(self) -> AbstractContextManager[sqlite3.Connection]:
        """One transaction that writes, for the modules of this package."""
        return self._db.write()

    def close(self) -> None:
        """Close this thread's connection; the next use opens a new one."""
        self._db.close()

    def create_run(
        self, config: LabConfig, name: str | None = None, work: Sequence[Work] = (), priority: int = 0
    ) -> str:
        """Make a run, its folder and its first jobs, all or nothing; ids start with the time, so they sort by age.

        Raises:
            RunBusyError: with `work`, if a run of the same config has its alignment queued or running; names that run.
        """
        run_id = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        title = _run_name(name or _default_name(config))
        text = config.model_dump_json()
        folder = self.run_dir(run_id)
        try:
            with self._db.write() as db:
                if work:
                    _refuse_twin(db, text)
                db.execute(
                    "INSERT INTO runs (id, name, created_at, base, config) VALUES (?, ?, ?, ?, ?)",
                    (run_id, title, time.time(), base_of(config.model), text),
                )
                add_jobs(db, run_id, work, priority)
                _make_run_folder(folder, config)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return run_id

    def revisions(self, run_id: str | None) -> Revisions:
        """Counters that tell whether anything changed since the last look; one SELECT by key.

        Raises:
            RunNotFoundError: the run is deleted.
        """
        with self._db.read() as db:
            row = db.execute(
                """SELECT run_list.revision, runs.revision FROM run_list LEFT JOIN runs ON runs.id = ?
                WHERE run_list.id = 1""",
                (run_id,),
            ).fetchone()
        if run_id is not None and row[1] is None:
            raise no_run(run_id)
        return Revisions(runs=row[0], run=row[1] or 0)

    def runs(self) -> list[RunRow]:
        """Every run, newest first."""
        with self._db.read() as db:
            return [run_row(row) for row in db.execute(f"SELECT {RUN_COLUMNS} FROM runs ORDER BY runs.rowid DESC")]

    def run(self, run_id: str) -> RunRow:
        """One run."""
        with self._db.read() as db:
            row = db.execute(f"SELECT {RUN_COLUMNS} FROM runs WHERE runs.id = ?", (known_run(run_id),)).fetchone()
        if row is None:
            raise no_run(run_id)
        return run_row(row)

    def rename_run(self, run_id: str, name: str) -> None:
        """Give a run another name: 1 to `MAX_NAME` characters. Raises `StoreError` if it is recorded."""
        if self.run(run_id).recorded:
            raise StoreError("A recorded run keeps its name.", remedy="Choose another run.")
        with self._db.write() as db:
            if db.execute("UPDATE runs SET name = ? WHERE id = ?", (_run_name(name), run_id)).rowcount == 0:
                raise no_run(run_id)

    def run_dir(self, run_id: str) -> Path:
        """The run's folder. Raises `RunNotFoundError` for any other text, so that no path leads out of `home/runs`."""
        if not _RUN_ID.fullmatch(known_run(run_id)):
            raise no_run(run_id)
        return self.home / "runs" / run_id

    def delete_run(self, run_id: str) -> None:
        """Delete a run's rows and its folder, and nothing else: links are removed, never followed.

        Raises:
            RunBusyError: one of its jobs is running.
        """
        folder = self.run_dir(run_id)
        doomed = folder.with_name(f".deleting-{run_id}")
        with self._db.write() as db:
            busy = db.execute("SELECT * FROM jobs WHERE run_id = ? AND state = 'running'", (run_id,)).fetchone()
            if busy is not None:
                raise RunBusyError(
                    f"Run {run_id} is busy: `{job_row(busy).title}` is running.",
                    remedy="Stop it, wait until it has ended, then delete the run.",
                )
            if db.execute("SELECT 1 FROM runs WHERE id = ? AND recorded IS NOT NULL", (run_id,)).fetchone():
                raise StoreError("A recorded run ships with the lab and is not deleted.", remedy="Choose another run.")
            if db.execute("DELETE FROM runs WHERE id = ?", (run_id,)).rowcount == 0:
                raise no_run(run_id)
            try:
                if folder.is_symlink() or folder.exists():
                    folder.rename(doomed)  # atomic, so that rows and folder go together or not at all
            except OSError as error:
                raise _folder_error(folder, error) from error
        try:
            if doomed.is_symlink():
                doomed.unlink()
            elif doomed.exists():
                shutil.rmtree(doomed)
        except OSError as error:
            raise StoreError(
                f"The run is deleted, but some of its files in {doomed} are still there: {error.strerror or error}",
                remedy="Close the programs that use them and delete that folder by hand.",
            ) from error

    def append(self, job_id: str, events: Sequence[Event]) -> None:
        """Add events, all or none, in order.

        An event with the same identity (the same step after a resume, the same pane of a streaming answer) replaces the
        older event and has a new `seq`: a job never holds both.
        """
        now = time.time()
        with self._db.write() as db:
            run_id = find_job(db, job_id).run_id
            db.executemany(
                """INSERT OR REPLACE INTO events (run_id, job_id, at, kind, step, identity, event)
                VALUES (?, ?, ?, ?, ?, ?, ?)""",
                [
                    (run_id, job_id, now, event.kind, event_step(event), event_identity(event), event.model_dump_json())
                    for event in events
                ],
            )

    def last_seq(self, job_id: str) -> int:
        """`seq` of the job's newest event, 0 if it has none."""
        with self._db.read() as db:
            return db.execute("SELECT COALESCE(MAX(seq), 0) FROM events WHERE job_id = ?", (job_id,)).fetchone()[0]

    def last_checkpoint(self, job_id: str) -> int:
        """Step of the newest checkpoint that the job reported, 0 if none; all events before it are in the store."""
        query = "SELECT COALESCE(MAX(step), 0) FROM events WHERE job_id = ? AND kind = 'checkpoint'"
        with self._db.read() as db:
            return db.execute(query, (job_id,)).fetchone()[0]

    def truncate_events(self, job_id: str, step: int, up_to: int) -> None:
        """Delete a job's events from `step` on, up to seq `up_to`: it has resumed and reports these steps again."""
        with self._db.write() as db:
            db.execute("DELETE FROM events WHERE job_id = ? AND step >= ? AND seq <= ?", (job_id, step, up_to))

    def events(
        self,
        run_id: str,
        after: int = 0,
        kinds: Collection[str] | None = None,
        job_id: str | None = None,
        limit: int | None = None,
    ) -> list[StoredEvent]:
        """A run's events with `seq` above `after`, in order of `seq`.

        A reader that remembers the last `seq` misses nothing: no event appears later with a lower `seq`. A reader that
        keeps events should let a later event of the same step, state and set replace the earlier one.
        """
        query = "SELECT seq, job_id, at, event FROM events WHERE run_id = ? AND seq > ?"
        values: list[str | int] = [known_run(run_id), after]
        if kinds is not None:
            query += f" AND kind IN ({marks(kinds)})"
            values += kinds
        if job_id is not None:
            query += " AND job_id = ?"
            values.append(job_id)
        values.append(-1 if limit is None else limit)
        with self._db.read() as db:
            rows = db.execute(f"{query} ORDER BY seq LIMIT ?", values).fetchall()
        return [stored_event(row) for row in rows]

    def save_answers(self, run_id: str, answers: Sequence[GeneratedAnswer]) -> None:
        """Keep generations; a later one of the same example, state, step and set (now judged) replaces the older.

        Other judges' verdicts on an answer are deleted if its text changes.
        """
        rows = [(*_place(run_id, answer), answer.model_dump_json()) for answer in answers]
        try:
            with self._db.write() as db:
                db.executemany(
                    f"""DELETE FROM verdicts WHERE {_PLACE} = (?, ?, ?, ?, ?) AND EXISTS (
                    SELECT 1 FROM answers WHERE {_PLACE} = (?, ?, ?, ?, ?) AND json_extract(answer, '$.text') != ?)""",
                    [(*_place(run_id, answer), *_place(run_id, answer), answer.text) for answer in answers],
                )
                db.executemany(
                    """INSERT INTO answers (run_id, state, step, eval_set, example_id, answer)
                    VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET answer = excluded.answer""",
                    rows,
                )
        except sqlite3.IntegrityError as error:
            raise no_run(run_id) from error

    def answers(
        self,
        run_id: str,
        state: str | None = None,
        eval_set: str | None = None,
        limit: int = 100,
        offset: int = 0,
        step: int | None = None,
    ) -> list[GeneratedAnswer]:
        """A page of the saved generations, oldest first."""
        query = "SELECT answer FROM answers WHERE run_id = ?"
        values: list[str | int] = [run_id]
        for column, value in (("state", state), ("eval_set", eval_set), ("step", step)):
            if value is not None:
                query += f" AND {column} = ?"
                values.append(value)
        with self._db.read() as db:
            rows = db.execute(f"{query} ORDER BY seq LIMIT ? OFFSET ?", [*values, limit, offset]).fetchall()
        return [GeneratedAnswer.model_validate_json(row[0]) for row in rows]

    def unjudged(self, run_id: str, judge: str, revision: str, eval_sets: Collection[str]) -> list[GeneratedAnswer]:
        """Saved answers to these sets without a verdict by this judge and revision, oldest first."""
        query = f"""SELECT answer FROM answers WHERE run_id = ? AND eval_set IN ({marks(eval_sets)}) AND NOT EXISTS (
            SELECT 1 FROM verdicts WHERE ({_columns("verdicts")}) = ({_columns("answers")})
            AND judge = ? AND revision = ?) ORDER BY seq"""
        with self._db.read() as db:
            rows = db.execute(query, (known_run(run_id), *eval_sets, judge, revision)).fetchall()
        return [GeneratedAnswer.model_validate_json(row["answer"]) for row in rows]

    def save_verdicts(
        self, run_id: str, judge: str, revision: str, verdicts: Sequence[tuple[GeneratedAnswer, Verdict]]
    ) -> None:
        """Keep a judge's verdicts on saved answers, all or none; a verdict replaces that of an older revision."""
        rows = [(*_place(run_id, answer), judge, revision, said.model_dump_json()) for answer, said in verdicts]
        try:
            with self._db.write() as db:
                db.executemany("INSERT OR REPLACE INTO verdicts VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        except sqlite3.IntegrityError as error:
            raise no_run(run_id) from error

    def second_judges(self, run_id: str) -> list[tuple[str, str]]:
        """Name and revision of every second judge of the run's saved answers."""
        query = "SELECT DISTINCT judge, revision FROM verdicts WHERE run_id = ? ORDER BY judge, revision"
        with self._db.read() as db:
            return [(row["judge"], row["revision"]) for row in db.execute(query, (known_run(run_id),))]

    def judged(self, run_id: str, judge: str, revision: str) -> list[GeneratedAnswer]:
        """Saved answers with a verdict of one judge, oldest first."""
        query = f"""SELECT answer, verdict FROM answers JOIN verdicts
            ON ({_columns("verdicts")}) = ({_columns("answers")})
            WHERE answers.run_id = ? AND judge = ? AND revision = ? ORDER BY answers.seq"""
        with self._db.read() as db:
            rows = db.execute(query, (known_run(run_id), judge, revision)).fetchall()
        return [
            GeneratedAnswer.model_validate_json(row["answer"]).model_copy(
                update={"verdict": Verdict.model_validate_json(row["verdict"])}
            )
            for row in rows
        ]


_PLACE_COLUMNS = ("run_id", "state", "step", "eval_set", "example_id")
_PLACE = f"({', '.join(_PLACE_COLUMNS)})"


def _columns(table: str) -> str:
    return ", ".join(f"{table}.{column}" for column in _PLACE_COLUMNS)


def _place(run_id: str, answer: GeneratedAnswer) -> tuple[str, str, int, str, str]:
    """The key of an answer, in the order of `_PLACE_COLUMNS`."""
    return run_id, answer.state, answer.step, answer.eval_set, answer.example_id


def _refuse_twin(db: sqlite3.Connection, config: str) -> None:
    """Raise `RunBusyError` if a run of the same config has its alignment queued or running."""
    twin = db.execute(
        """SELECT runs.id, runs.name FROM runs JOIN jobs ON jobs.run_id = runs.id
        WHERE jobs.state IN ('queued', 'running') AND jobs.kind = 'align' AND runs.config = ? LIMIT 1""",
        (config,),
    ).fetchone()
    if twin is not None:
        raise RunBusyError(
            f"The same run, {twin['id']} ({twin['name']}), is already queued or running.",
            remedy="Open that run, or change a setting such as the seed, or wait until it has ended.",
            run_id=twin["id"],
        )


def _make_run_folder(folder: Path, config: LabConfig) -> None:
    try:
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    except OSError as error:
        raise _folder_error(folder, error) from error


def _default_name(config: LabConfig) -> str:
    name = f"{config.model.name}: {', '.join(defence.name for defence in config.defences)}"
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…"


def _run_name(name: str) -> str:
    check_unicode(name, "The run's name")
    name = " ".join(name.split())
    if not 1 <= len(name) <= MAX_NAME:
        raise StoreError(
            f"A run's name has 1 to {MAX_NAME} characters, not {len(name)}.", remedy="Choose another name."
        )
    return name


def expand_folder(folder: Path) -> Path:
    """`folder` with a leading `~` replaced by the home folder. Raises `StoreError`."""
    try:
        return folder.expanduser()
    except RuntimeError as error:
        raise StoreError(
            f"{folder} begins with a user who has no home folder on this machine.",
            remedy="Give another folder with --data-dir or TVACCINE_HOME.",
        ) from error


def _folder_error(folder: Path, error: OSError) -> StoreError:
    return StoreError(
        f"Cannot write {folder}: {error.strerror or error}",
        remedy="Free some space, or choose a folder you may write to with --data-dir or TVACCINE_HOME.",
    )
