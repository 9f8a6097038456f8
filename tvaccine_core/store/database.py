"""SQLite for several processes and threads at once: one connection per thread, WAL, and errors a user can act on.

Source: SQLite's documentation of WAL mode (sqlite.org/wal.html). Writers take the write lock at the beginning
(`BEGIN IMMEDIATE`), so a transaction never fails half-way without it; readers see a snapshot and block nobody.
`synchronous=NORMAL`: a killed process loses nothing that it committed, and a power cut loses at most the last commits;
the database is valid after both.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from tvaccine_core.errors import StoreError

BUSY_TIMEOUT_S = 20.0

_REMEDIES = (
    ("SQLITE_FULL", "The disk is full.", "Free some space (delete old runs), then try again."),
    ("SQLITE_READONLY", "It cannot be written.", "Choose a folder you may write to with --data-dir or TVACCINE_HOME."),
    ("SQLITE_PERM", "It cannot be opened.", "Choose a folder you may write to with --data-dir or TVACCINE_HOME."),
    ("SQLITE_CANTOPEN", "It cannot be opened.", "Choose a folder you may write to with --data-dir or TVACCINE_HOME."),
    ("SQLITE_CORRUPT", "It is damaged.", "Move the file away; a new one is made. The runs' folders are kept."),
    ("SQLITE_NOTADB", "It is not a database.", "Move the file away; a new one is made. The runs' folders are kept."),
    ("SQLITE_BUSY", "Another process holds it.", "Wait a moment and try again; close other programs that use it."),
    ("SQLITE_LOCKED", "Another process holds it.", "Wait a moment and try again; close other programs that use it."),
    ("SQLITE_IOERR", "The disk cannot be read or written.", "Check the disk, or choose another with --data-dir."),
)


Migration = Callable[[sqlite3.Connection], None]
"""Takes a database from one version to the next, inside the caller's transaction."""


class Database:
    """The file at `path`, created with `schema` if it is new, migrated to `version` if it is older.

    Args:
        migrations: by the version that they start from.

    Raises:
        StoreError: the file cannot be used, is another program's, lacks a part, or was written by a newer version.
    """

    def __init__(
        self, path: Path, schema: Sequence[str], version: int, migrations: Mapping[int, Migration] | None = None
    ) -> None:
        self.path = path
        self._local = threading.local()
        self._open_as(schema, version, migrations or {})

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection, inside one snapshot: several SELECTs see the same moment."""
        with self._translate():
            connection = self._connection()
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                _end(connection, "COMMIT")

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection, inside one transaction that holds the write lock; an exception undoes it."""
        with self._translate(), _transaction(self._connection(), "BEGIN IMMEDIATE") as connection:
            yield connection

    def close(self) -> None:
        """Close this thread's connection; the next use opens a new one."""
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._local.connection = None

    def _connection(self) -> sqlite3.Connection:
        # A connection must not cross a fork: the child would share file locks and buffers with its parent.
        if getattr(self._local, "connection", None) is None or self._local.pid != os.getpid():
            self._local.connection = self._open()
            self._local.pid = os.getpid()
        return self._local.connection

    def _open(self) -> sqlite3.Connection:
        connection = self._connect()
        self._use_wal(connection)
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")
        return connection

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        connection.row_factory = sqlite3.Row
        return connection

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        # The switch to WAL needs exclusive access and ignores the busy timeout: two first openers collide.
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        while True:
            try:
                (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
                break
            except sqlite3.OperationalError as error:
                if not _name_of(error).startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        if mode != "wal":
            raise StoreError(
                f"{self.path} is on a file system without shared memory (SQLite offers only `{mode}` mode there).",
                remedy="Choose a folder on a local disk with --data-dir or TVACCINE_HOME.",
            )

    def _open_as(self, schema: Sequence[str], version: int, migrations: Mapping[int, Migration]) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"Cannot make the folder {self.path.parent}: {error.strerror or error}",
                remedy="Choose a folder you may write to with --data-dir or TVACCINE_HOME.",
            ) from error
        # A separate connection that does not switch to WAL, so that another program's file stays as it was.
        with self._translate(), closing(self._connect()) as connection:
            with _transaction(connection, "BEGIN"):
                found = _version_of(connection)
                if found == version:
                    self._check_parts(connection, schema)
                    return
            with _transaction(connection, "BEGIN IMMEDIATE"):
                found = self._bring_to(connection, schema, version, migrations)
                if found == version:
                    self._check_parts(connection, schema)
                    connection.execute(f"PRAGMA user_version={version}")
                    return
        raise StoreError(
            f"{self.path} has schema version {found}; this program knows version {version}.",
            remedy="Update the program, or choose another folder with --data-dir or TVACCINE_HOME.",
        )

    def _bring_to(
        self, connection: sqlite3.Connection, schema: Sequence[str], version: int, migrations: Mapping[int, Migration]
    ) -> int:
        """Create or migrate; returns the version reached. Another process may have done it already."""
        found = _version_of(connection)
        if found == 0:
            if foreign := sorted(_parts_of(connection)):
                raise self._foreign(foreign)
            for statement in schema:
                connection.execute(statement)
            found = version
        while found in migrations and found < version:
            try:
                migrations[found](connection)
            except sqlite3.OperationalError as error:
                if not _name_of(error).startswith("SQLITE_ERROR"):
                    raise  # other errors, such as a full disk, have their own messages
                raise self._broken(str(error)) from error
            found += 1
        return found

    def _check_parts(self, connection: sqlite3.Connection, schema: Sequence[str]) -> None:
        """Raise `StoreError` if a table, column, index or trigger of `schema` is missing."""
        with closing(sqlite3.connect(":memory:")) as model:
            for statement in schema:
                model.execute(statement)
            expected = _parts_of(model)
        if missing := sorted(expected - _parts_of(connection)):
            more = f" and {len(missing) - 3} more parts" if len(missing) > 3 else ""
            raise self._broken(f"it lacks {', '.join(missing[:3])}{more}")

    def _broken(self, why: str) -> StoreError:
        return StoreError(
            f"The run store {self.path} is damaged, or another program's: {why}.",
            remedy="Move the file away (a new one is made, the runs' folders are kept), or choose another folder "
            "with --data-dir or TVACCINE_HOME.",
        )

    def _foreign(self, parts: Sequence[str]) -> StoreError:
        return StoreError(
            f"{self.path} is a database of another program: it holds {', '.join(parts[:3])}.",
            remedy="Choose another folder with --data-dir or TVACCINE_HOME.",
        )

    @contextmanager
    def _translate(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError:
            raise  # the caller explains a broken constraint
        except sqlite3.Error as error:
            name = _name_of(error)
            for prefix, what, remedy in _REMEDIES:
                if name.startswith(prefix):
                    raise StoreError(f"The run store {self.path}: {what} ({error})", remedy=remedy) from error
            raise


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Iterator[sqlite3.Connection]:
    """Committed at the end; an exception undoes it."""
    connection.execute(begin)
    try:
        yield connection
        _end(connection, "COMMIT")
    except BaseException:
        _end(connection, "ROLLBACK")
        raise


def _version_of(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _parts_of(connection: sqlite3.Connection) -> set[str]:
    """Every table, index and trigger, and each table's columns, in words."""
    rows = connection.execute("SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'").fetchall()
    parts = {f"the {kind} `{name}`" for kind, name in rows}
    for kind, name in rows:
        if kind == "table":
            columns = connection.execute("SELECT name FROM pragma_table_info(?)", (name,)).fetchall()
            parts |= {f"the column `{name}.{column}`" for (column,) in columns}
    return parts


def _name_of(error: sqlite3.Error) -> str:
    # Errors that the sqlite3 module raises itself carry no SQLite code.
    return getattr(error, "sqlite_errorname", "")


def _end(connection: sqlite3.Connection, how: str) -> None:
    # SQLite itself rolls back on some errors, such as a full disk; ending twice would hide the first error.
    if connection.in_transaction:
        connection.execute(how)
