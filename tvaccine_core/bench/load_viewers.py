"""Viewers of the page without a browser: they ask for what the page's script asks for, as often, and no more.

A viewer keeps one connection, as a browser does, and holds the page's heartbeat open. What it measures is the time from
sending a request to the last byte of its answer.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

POLL_S = 1.0
PATIENCE_S = 30.0


@dataclass
class Tally:
    """What viewers met: milliseconds a request took, bytes that came, requests that failed."""

    polls_ms: list[float] = field(default_factory=list)
    refreshes_ms: list[float] = field(default_factory=list)
    num_bytes: int = 0
    errors: int = 0


@dataclass(frozen=True)
class Wiring:
    """Numbers that Gradio gave the page's timer and its event."""

    function: int
    trigger: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> Wiring:
        """Find them in the page's config."""
        for dependency in config["dependencies"]:
            for component, event in dependency["targets"]:
                if event == "tick":
                    return cls(dependency["id"], component)
        raise LookupError("the page has no timer")


async def watch(url: str, wiring: Wiring, run: str, tally: Tally, counting: asyncio.Event, over: asyncio.Event) -> None:
    """One viewer of `run`, until `over`; what it meets while `counting` goes into `tally`."""
    session = secrets.token_hex(6)
    memory = {"run": run, "attack": None, "base": False, "owner": session}
    body = {"data": [memory, None], "fn_index": wiring.function, "trigger_id": wiring.trigger, "session_hash": session}
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, trust_env=False) as client:
        heart = asyncio.create_task(_hold(client, session))
        await asyncio.sleep(random.random() * POLL_S)
        while not over.is_set():
            began = time.perf_counter()
            counted = counting.is_set()
            try:
                answer = await client.post("/gradio_api/run/predict", json=body)
                failed = not answer.is_success
                if counted:
                    tally.num_bytes += len(answer.content)
            except httpx.HTTPError:
                failed = True
            spent = time.perf_counter() - began
            if counted:
                tally.errors += failed
                if not failed:
                    tally.polls_ms.append(1000 * spent)
            await _sleep(over, POLL_S - spent % POLL_S)  # the timer's next tick
        heart.cancel()


async def _hold(client: httpx.AsyncClient, session: str) -> None:
    with suppress(httpx.HTTPError):
        async with client.stream("GET", f"/gradio_api/heartbeat/{session}", timeout=None) as stream:
            async for _ in stream.aiter_raw():
                pass


async def _sleep(over: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(over.wait(), seconds)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of `values` do not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))] if ordered else float("nan")
