"""Viewers of the page without a browser: they send the same requests as the page's script, equally often.

A viewer keeps one connection, like a browser, and holds the page's heartbeat open. It measures the time from sending a
request to the last byte of its answer.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from tvaccine_core.errors import ConfigError

POLL_S = 1.0
PATIENCE_S = 30.0


@dataclass
class Tally:
    """The viewers' results: milliseconds per request, bytes received, failed requests, and how many have the page."""

    polls_ms: list[float] = field(default_factory=list)
    refreshes_ms: list[float] = field(default_factory=list)
    num_bytes: int = 0
    errors: int = 0
    watching: int = 0


@dataclass(frozen=True)
class Wiring:
    """Gradio's numbers for the page's refresh: its event, the rail that raises it, the rail's place in its outputs."""

    function: int
    rail: int
    place: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> Wiring:
        """Find them in the page's config. Raises `ConfigError` if the page is not a lab's."""
        for dependency in config["dependencies"]:
            for component, event in dependency["targets"]:
                if event == "look":
                    return cls(dependency["id"], component, dependency["outputs"].index(component))
        raise ConfigError("This page is not a lab's.", remedy="Give the address that app.py printed.")


@dataclass
class Viewer:
    """One browser with the page open on `run`."""

    client: httpx.AsyncClient
    wiring: Wiring
    run: str
    tally: Tally
    counting: asyncio.Event
    session: str = field(default_factory=lambda: secrets.token_hex(6))
    watched: dict[str, str] = field(default_factory=dict)
    """The page's instructions on what to watch: run, attack, sweep, and the state that Gradio refreshes."""
    seen: str = ""

    async def refresh(self) -> None:
        """Refresh as the page does when it opens and when there is news: one Gradio event outside the queue."""
        memory = {"run": self.run, "attack": None, "base": False, "owner": self.session}
        body = {
            "data": [memory, None],
            "event_data": None,
            "fn_index": self.wiring.function,
            "trigger_id": self.wiring.rail,
            "session_hash": self.session,
        }
        answer = await self._timed(self.tally.refreshes_ms, self.client.post("/gradio_api/run/predict", json=body))
        if answer is not None:
            self.watched = answer.json()["data"][self.wiring.place].get("watched", self.watched)

    async def poll(self) -> None:
        """Ask for news once."""
        params = {name: self.watched[name] for name in ("run", "attack", "sweep")} | {"seen": self.seen}
        counted = self.counting.is_set()
        answer = await self._timed(self.tally.polls_ms, self.client.get("/lab/news", params=params))
        if answer is None or not answer.content:
            return
        if counted:
            self.tally.num_bytes += len(answer.content)
        news = answer.json()
        self.seen = news.get("seen", "")
        if news.get("look") != self.watched["look"]:
            await self.refresh()

    async def _timed(self, spent_ms: list[float], sent: Awaitable[httpx.Response]) -> httpx.Response | None:
        """The answer, or None after a failure; counted if the measurement was on when the request was sent."""
        counted = self.counting.is_set()
        began = time.perf_counter()
        try:
            answer: httpx.Response | None = (await sent).raise_for_status()
        except httpx.HTTPError:
            answer = None
        if counted and answer is not None:
            spent_ms.append(1000 * (time.perf_counter() - began))
        elif counted:
            self.tally.errors += 1
        return answer


async def watch(url: str, wiring: Wiring, run: str, tally: Tally, counting: asyncio.Event, over: asyncio.Event) -> None:
    """One viewer of `run`, until `over`; its results while `counting` go into `tally`."""
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, trust_env=False) as client:
        viewer = Viewer(client, wiring, run, tally, counting)
        heart = asyncio.create_task(_hold(client, viewer.session))
        await _sleep(over, random.random() * POLL_S)
        while not viewer.watched and not over.is_set():
            await viewer.refresh()
        tally.watching += 1
        while not over.is_set():
            await viewer.poll()
            await _sleep(over, POLL_S * (0.85 + 0.3 * random.random()))
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
    """The value that `share` (0 to 1) of `values` do not exceed; NaN without values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, round(share * len(ordered)) - 1))] if ordered else float("nan")
