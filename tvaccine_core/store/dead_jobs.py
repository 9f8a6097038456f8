"""Running jobs whose worker is dead, and the messages about them. Torch-free."""

import os
import socket
import sqlite3
import sys
import time

from tvaccine_core.store.schema import JobRow, job_row

_RESUME = "Resume it: it goes on from its last checkpoint."


def dead_jobs(db: sqlite3.Connection, timeout_s: float) -> list[tuple[JobRow, bool]]:
    """Running jobs whose worker is dead, each with True if its process is known to be gone."""
    host, now = socket.gethostname(), time.time()
    found = []
    for row in db.execute("SELECT * FROM jobs WHERE state = 'running'"):
        gone = row["host"] == host and not _process_exists(row["pid"])
        if gone or now - row["heartbeat_at"] > timeout_s:
            found.append((job_row(row), gone))
    return found


def why_dead(job: JobRow, gone: bool, timeout_s: float) -> tuple[str, str]:
    """Message and remedy for a job whose worker is dead."""
    if gone and job.cancel_requested:
        return "Its worker process ended while the job was being stopped.", _RESUME
    if gone:
        return (
            "Its worker process ended before the job did.",
            f"{_RESUME} If it stops again, look at the worker's log; the machine may lack memory.",
        )
    silent = f"Its worker gave no sign of life for {timeout_s:.0f} s"
    if job.cancel_requested:
        return f"{silent} while the job was being stopped.", _RESUME
    return f"{silent}.", f"If the machine slept, wait: the worker goes on with its job. If not: {_RESUME}"


def _process_exists(pid: int) -> bool:
    if sys.platform == "win32":
        return True  # os.kill(pid, 0) would end the process there; the heartbeat decides alone
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
