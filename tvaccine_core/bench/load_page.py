"""The page under load: started like a user does, called like a script does, its processor time read from outside."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from tvaccine_core.errors import ConfigError, TVaccineError

ROOT = Path(__file__).resolve().parents[2]
START_S = 90.0
"""Longest wait for the first page, and for the first step of a training."""
LOOK_EVERY_S = 0.2


@contextmanager
def started_page(*, workers: bool) -> Iterator[tuple[str, int]]:
    """`app.py` on a new data folder, ended with the block; yields its address and process id.

    Raises:
        ConfigError: there is no app.py beside this package, or it does not start.
    """
    if not (ROOT / "app.py").is_file():
        raise ConfigError(f"{ROOT} has no app.py to start.", remedy="Name a page that runs already: --url.")
    port = _free_port()
    with tempfile.TemporaryDirectory(prefix="tvaccine-load-") as folder:
        command = [sys.executable, "app.py", "--host", "127.0.0.1", "--port", str(port), "--data-dir", folder]
        log = Path(folder) / "page.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *([] if workers else ["--no-worker"])],
                cwd=ROOT,
                env=os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        url = f"http://127.0.0.1:{port}"
        try:
            _wait_for_page(url, process, log)
            yield url, process.pid
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for_page(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(httpx.HTTPError):
            if httpx.get(url, timeout=START_S, trust_env=False).is_success:
                return
        time.sleep(LOOK_EVERY_S)
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
    raise ConfigError(f"The page did not start: {' '.join(said) or 'it said nothing'}", remedy="Try `python app.py`.")


@asynccontextmanager
async def script(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the page at `url`. Raises `ConfigError` if nothing answers there, or not a page of this lab."""
    try:
        async with httpx.AsyncClient(base_url=url, timeout=START_S, trust_env=False) as client:
            yield client
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigError(f"{url} does not answer: {error}", remedy="Give the address that app.py printed.") from error


async def call(client: httpx.AsyncClient, endpoint: str, *values: Any) -> Any:
    """The answer of one of the page's endpoints. Raises `ConfigError` if there is none, `TVaccineError` if it fails."""
    joined = await client.post(f"/gradio_api/call/{endpoint}", json={"data": list(values)})
    if not joined.is_success:
        raise ConfigError(
            f"The page has no endpoint /{endpoint}: {joined.status_code}.",
            remedy="Give the address of a lab of this version.",
        )
    answer = await client.get(f"/gradio_api/call/{endpoint}/{joined.json()['event_id']}")
    event, _, data = answer.text.strip().rpartition("\n\n")[2].partition("\n")
    if event != "event: complete":
        raise TVaccineError(f"/{endpoint} failed: {data.removeprefix('data: ')}", remedy="See what the page logged.")
    return json.loads(data.removeprefix("data: "))[0]


async def steps_done(client: httpx.AsyncClient, run: str) -> int:
    """Optimiser steps of all alignments of a run together."""
    status = await call(client, "run_status", run)
    return sum(job["done"] or 0 for job in status["jobs"] if job["work"].startswith("align"))


async def wait_for_steps(client: httpx.AsyncClient, run: str) -> None:
    """Wait until the run takes steps. Raises `TVaccineError` if it takes none."""
    deadline = time.monotonic() + START_S
    while await steps_done(client, run) == 0:
        if time.monotonic() > deadline:
            raise TVaccineError(
                f"No step of the run {run} was made in {START_S:.0f} s.",
                remedy="Check that the page has workers and that the machine is free.",
            )
        await asyncio.sleep(LOOK_EVERY_S)


@dataclass(frozen=True)
class CpuTimes:
    """Seconds of processor time so far. `page` and `workers` are None if this process did not start the page."""

    at: float
    page: float | None
    workers: float | None
    client: float
    machine: float
    """All processes of the machine together."""

    @classmethod
    def now(cls, page_pid: int | None) -> CpuTimes:
        """Read them."""
        page = workers = None
        if page_pid is not None:
            process = psutil.Process(page_pid)
            page, workers = _seconds(process), sum(_seconds(child) for child in process.children(recursive=True))
        all_times = psutil.cpu_times()
        busy = sum(all_times) - all_times.idle - getattr(all_times, "iowait", 0.0) - getattr(all_times, "guest", 0.0)
        return cls(time.monotonic(), page, workers, _seconds(psutil.Process()), busy)


def _seconds(process: psutil.Process) -> float:
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return times.user + times.system
    return 0.0
