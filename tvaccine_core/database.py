"""SQLite for several processes and threads at once: one connection a thread, WAL, and errors a user can act on.

Source: SQLite's documentation of WAL mode (sqlite.org/wal.html). Writers take the write lock up front
(`BEGIN IMMEDIATE`), so a transaction never dies half-way for want of it; readers see a snapshot and block nobody.
`synchronous=NORMAL`: a killed process loses nothing it committed and a power cut at most the last commits; the
database is valid after both.
"""

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tvaccine_core.errors import StoreError

BUSY_TIMEOUT_S = 20.0

_REMEDIES = (
    ("SQLITE_FULL", "The disk is full.", "Free some space (delete old runs), then try again."),
    ("SQLITE_READONLY", "It cannot be written.", "Choose a folder you may write to with --data-dir or TVACCINE_HOME."),
    ("SQLITE_PERM", "It cannot be opened.", "Choose a folder you may write to with --data-dir or TVACCINE_HOME."),
    ("SQLITE_CANTOPEN", "It cannot be opened.", "Choose a folder you may write to with --data-dir or TVACCINE_HOME."),
    ("SQLITE_CORRUPT", "It is damaged.", "Move the file away; a new one is made. The runs' folders are kept."),
    ("SQLITE_NOTADB", "It is no database.", "Move the file away; a new one is made. The runs' folders are kept."),
    ("SQLITE_BUSY", "Another process holds it.", "Wait a moment and try again; close other programs that use it."),
    ("SQLITE_LOCKED", "Another process holds it.", "Wait a moment and try again; close other programs that use it."),
    ("SQLITE_IOERR", "The disk cannot be read or written.", "Check the disk, or choose another with --data-dir."),
)


class Database:
    """The file at `path`, created with `schema` when it is new.

    Raises:
        StoreError: the file cannot be used, or was written by a newer version.
    """

    def __init__(self, path: Path, schema: Sequence[str], version: int) -> None:
        self.path = path
        self._local = threading.local()
        self._create(schema, version)

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
        with self._translate():
            connection = self._connection()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                _end(connection, "ROLLBACK")
                raise

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
        connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        connection.row_factory = sqlite3.Row
        self._use_wal(connection)
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")
        return connection

    def _use_wal(self, connection: sqlite3.Connection) -> None:
        # The switch to WAL needs a moment alone and does not wait on the busy handler: two first openers collide.
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

    def _create(self, schema: Sequence[str], version: int) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"Cannot make the folder {self.path.parent}: {error.strerror or error}",
                remedy="Choose a folder you may write to with --data-dir or TVACCINE_HOME.",
            ) from error
        with self.read() as connection:
            (found,) = connection.execute("PRAGMA user_version").fetchone()
        if found == 0:
            with self.write() as connection:
                (found,) = connection.execute("PRAGMA user_version").fetchone()  # another process may have been first
                if found == 0:
                    for statement in schema:
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version={version}")
                    found = version
        if found != version:
            raise StoreError(
                f"{self.path} has schema version {found}; this program knows version {version}.",
                remedy="Update the program, or choose another folder with --data-dir or TVACCINE_HOME.",
            )

    @contextmanager
    def _translate(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.IntegrityError:
            raise  # a broken constraint is the caller's to explain
        except sqlite3.Error as error:
            name = _name_of(error)
            for prefix, what, remedy in _REMEDIES:
                if name.startswith(prefix):
                    raise StoreError(f"The run store {self.path}: {what} ({error})", remedy=remedy) from error
            raise


def _name_of(error: sqlite3.Error) -> str:
    # Errors that the sqlite3 module raises itself carry no SQLite code.
    return getattr(error, "sqlite_errorname", "")


def _end(connection: sqlite3.Connection, how: str) -> None:
    # SQLite itself rolls back on some errors (a full disk, for one); ending twice would hide the first error.
    if connection.in_transaction:
        connection.execute(how)
