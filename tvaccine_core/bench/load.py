"""How quickly the page answers a room: viewers that all watch one run, while it trains or rests.

The page is the real page, in its own process with real workers; the viewers share this process. All of it runs on one
machine, so the viewers take time from the page and the workers; the report says how much.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

import httpx

from tvaccine_core.bench.load_page import CpuTimes, call, script, started_page, steps_done, wait_for_steps
from tvaccine_core.bench.load_viewers import PATIENCE_S, Tally, Wiring, percentile, watch
from tvaccine_core.errors import ConfigError
from tvaccine_core.records import Record

SETTLE_S = 3.0
"""Pause between the viewers' arrival and the first request that counts."""
PRESET = "sandbox-manners"


class Latency(Record):
    """Milliseconds from a request to the end of its answer."""

    answered: int
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    max_ms: float | None

    @classmethod
    def of(cls, values: list[float]) -> Latency:
        """From measured milliseconds."""
        shares = (0.5, 0.95, 0.99, 1.0)
        found = [percentile(values, share) if values else None for share in shares]
        return cls(answered=len(values), p50_ms=found[0], p95_ms=found[1], p99_ms=found[2], max_ms=found[3])


class CpuShares(Record):
    """Processor time per second of the measurement: 1 is one full core. None if this process did not start the page."""

    page: float | None
    workers: float | None
    viewers: float
    others: float | None
    """All other programs on the machine."""

    @classmethod
    def between(cls, before: CpuTimes, after: CpuTimes) -> CpuShares:
        """Between two readings."""
        seconds = after.at - before.at
        viewers = (after.client - before.client) / seconds
        if before.page is None or after.page is None or before.workers is None or after.workers is None:
            return cls(page=None, workers=None, viewers=viewers, others=None)
        page, workers = (after.page - before.page) / seconds, (after.workers - before.workers) / seconds
        machine = (after.machine - before.machine) / seconds
        return cls(page=page, workers=workers, viewers=viewers, others=max(0.0, machine - page - workers - viewers))


class LoadReport(Record):
    """The results of `bench load`."""

    clients: int
    seconds: float
    idle: bool
    cores: int
    polls: Latency
    refreshes: Latency
    """Gradio events that the news led to."""
    errors: int
    bytes_per_poll: float | None
    steps_per_s: float | None
    """Training steps of all methods together; None if nothing trained."""
    cpu: CpuShares


def run(clients: int, seconds: float, url: str | None, idle: bool, say: Callable[[str], None]) -> LoadReport:
    """Measure. Starts a page unless `url` names one.

    Raises:
        ConfigError: there is no page at `url`, no page can be started, or with `idle` the page has no run.
    """
    if url is not None:
        return asyncio.run(_measure(url.rstrip("/"), None, clients, seconds, idle, say))
    say("starting the page")
    with started_page(workers=not idle) as (own_url, pid):
        return asyncio.run(_measure(own_url, pid, clients, seconds, idle, say))


async def _measure(
    url: str, pid: int | None, clients: int, seconds: float, idle: bool, say: Callable[[str], None]
) -> LoadReport:
    tally, counting, over = Tally(), asyncio.Event(), asyncio.Event()
    viewers: list[asyncio.Task[None]] = []
    async with script(url) as client:
        wiring = Wiring.of((await client.get("/config")).json())
        run_id = await _open_run(client, idle, own_page=pid is not None)
        try:
            if not idle:
                say("waiting for the first step")
                await wait_for_steps(client, run_id)
            viewers += [asyncio.create_task(watch(url, wiring, run_id, tally, counting, over)) for _ in range(clients)]
            await asyncio.sleep(SETTLE_S)
            await _until_all_see(tally, clients)
            steps, before = await steps_done(client, run_id), CpuTimes.now(pid)
            say(f"{clients} viewers, {seconds:g} s")
            counting.set()  # at once: what happens from now on counts
            await asyncio.sleep(seconds)
            counting.clear()
            steps, after = await steps_done(client, run_id) - steps, CpuTimes.now(pid)
        finally:
            over.set()
            await asyncio.gather(*viewers)
            if not idle:
                await call(client, "stop", run_id)
    answered = len(tally.polls_ms)
    return LoadReport(
        clients=clients,
        seconds=after.at - before.at,
        idle=idle,
        cores=os.cpu_count() or 1,
        polls=Latency.of(tally.polls_ms),
        refreshes=Latency.of(tally.refreshes_ms),
        errors=tally.errors,
        bytes_per_poll=tally.num_bytes / answered if answered else None,
        steps_per_s=None if idle else steps / (after.at - before.at),
        cpu=CpuShares.between(before, after),
    )


async def _until_all_see(tally: Tally, clients: int) -> None:
    """Wait until every viewer has the page; on a page that does not answer, no longer than their patience."""
    deadline = time.monotonic() + PATIENCE_S
    while tally.watching < clients and time.monotonic() < deadline:
        await asyncio.sleep(0.05)


async def _open_run(client: httpx.AsyncClient, idle: bool, own_page: bool) -> str:
    """The run to watch: a new one that trains, or one in which nothing happens."""
    if idle and not own_page:
        runs = await call(client, "list_runs")
        if not runs:
            raise ConfigError("The page has no run to look at.", remedy="Start one there, or leave --idle out.")
        return runs[0]["id"]
    return await call(client, "start_alignment", PRESET, [])  # without workers the job waits for ever


def render(report: LoadReport) -> str:
    """The report as plain text."""
    what = "nothing new" if report.idle else f"a run trains at {report.steps_per_s or 0.0:.1f} steps per s"
    lines = [
        f"{report.clients} viewers for {report.seconds:.0f} s on {report.cores} cores; {what}; {report.errors} errors",
        f"{'':<12}{'answered':>10}{'p50 ms':>10}{'p95 ms':>10}{'p99 ms':>10}{'max ms':>10}",
        _row("polls", report.polls),
        _row("refreshes", report.refreshes),
    ]
    if report.bytes_per_poll is not None:
        lines.append(f"{report.bytes_per_poll:,.0f} bytes per poll")
    parts = {name: getattr(report.cpu, name) for name in CpuShares.model_fields}
    shown = ", ".join(f"{name} {share:.2f}" for name, share in parts.items() if share is not None)
    return "\n".join([*lines, f"cores in use: {shown}"])


def _row(name: str, latency: Latency) -> str:
    values = (latency.p50_ms, latency.p95_ms, latency.p99_ms, latency.max_ms)
    shown = "".join(f"{'–' if value is None else f'{value:.0f}':>10}" for value in values)
    return f"{name:<12}{latency.answered:>10}{shown}"
