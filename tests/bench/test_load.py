"""bench load: its numbers by hand, its viewers against a real page, and the whole of it once."""

import asyncio
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from processes import free_port

import app
from app.services import PRESETS, Lab
from tvaccine_core.bench import load
from tvaccine_core.bench.load_page import CpuTimes
from tvaccine_core.bench.load_viewers import Wiring, percentile
from tvaccine_core.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Lab]]:
    """The page without workers, and the lab behind it."""
    home = tmp_path_factory.mktemp("load") / "home"
    blocks = app.build_app(home)
    _, url, _ = blocks.queue().launch(prevent_thread_lock=True, **app.launch_options(home, blocks))
    yield url, Lab(home)
    blocks.close()


def measure(*arguments: Any, **options: Any) -> load.LoadReport:
    """`load.run` in a thread of its own: a browser test of this process may have left an event loop in the main one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(load.run, *arguments, **options).result()


def test_percentiles_are_those_of_a_short_list_worked_by_hand() -> None:
    values = [50.0, 10.0, 40.0, 20.0, 30.0]
    assert [percentile(values, share) for share in (0.0, 0.2, 0.5, 0.95, 1.0)] == [10.0, 10.0, 20.0, 50.0, 50.0]
    assert percentile([7.0], 0.5) == 7.0
    assert math.isnan(percentile([], 0.5))
    assert load.Latency.of([]).p95_ms is None


def test_processor_time_is_shared_out() -> None:
    before = CpuTimes(at=10.0, page=1.0, workers=5.0, client=0.5, machine=100.0)
    after = CpuTimes(at=20.0, page=2.0, workers=15.0, client=1.0, machine=114.0)
    shares = load.CpuShares.between(before, after)
    assert (shares.page, shares.workers, shares.viewers) == (0.1, 1.0, 0.05)
    assert shares.others == pytest.approx(0.25)
    elsewhere = load.CpuShares.between(
        CpuTimes(at=0.0, page=None, workers=None, client=0.0, machine=0.0),
        CpuTimes(at=2.0, page=None, workers=None, client=1.0, machine=2.0),
    )
    assert (elsewhere.page, elsewhere.workers, elsewhere.viewers, elsewhere.others) == (None, None, 0.5, None)


def test_viewers_of_a_page_with_nothing_new_get_nothing(
    served: tuple[str, Lab], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, lab = served
    lab.start_alignment(PRESETS["sandbox-check"].config)
    monkeypatch.setattr(load, "SETTLE_S", 1.5)  # every viewer's first poll, which brings everything
    report = measure(4, 1.2, url, True, say=lambda _: None)
    assert 4 <= report.polls.answered <= 4 * 2
    assert report.errors == 0
    assert report.bytes_per_poll == 0
    assert report.refreshes.answered == 0
    assert report.steps_per_s is None
    assert "nothing new" in load.render(report)


@pytest.mark.parametrize("slow_s", [0.0, 1.5], ids=["quick", "slow to count steps"])
def test_viewers_of_a_page_on_which_things_happen_get_them(
    served: tuple[str, Lab], monkeypatch: pytest.MonkeyPatch, slow_s: float
) -> None:
    url, lab = served
    real = load.steps_done

    async def steps_done(client: httpx.AsyncClient, run_id: str) -> int:
        await asyncio.sleep(slow_s)
        return await real(client, run_id)

    monkeypatch.setattr(load, "steps_done", steps_done)
    run = lab.start_alignment(PRESETS["sandbox-manners"].config)
    monkeypatch.setattr(load, "SETTLE_S", 1.5)

    def stop(said: str) -> None:
        if "viewers" in said:  # they count from now on
            lab.stop(run, ("align",))

    report = measure(3, 4.0, url, True, say=stop)
    assert report.errors == 0
    assert report.bytes_per_poll
    assert report.refreshes.answered == 3, "a button changed: each page lets Gradio draw it, once"


def test_a_page_that_is_no_lab_is_named(tmp_path: Path) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ConfigError, match="does not answer") as caught:
        measure(1, 1.0, nowhere, True, say=lambda _: None)
    assert caught.value.remedy
    with pytest.raises(ConfigError, match="does not answer"):
        measure(1, 1.0, "no address", True, say=lambda _: None)
    with pytest.raises(ConfigError, match="not a lab"):
        Wiring.of({"dependencies": [{"id": 1, "targets": [[3, "click"]], "outputs": []}]})


@pytest.mark.slow
def test_the_command_starts_a_page_trains_and_leaves_nothing_running(tmp_path: Path) -> None:
    report = tmp_path / "load.json"
    arguments = ["--clients", "3", "--seconds", "3", "--json", str(report)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "tvaccine_core", "bench", "load", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text(encoding="utf-8"))
    assert found["polls"]["answered"] >= 3
    assert found["errors"] == 0
    assert found["steps_per_s"] > 0
    assert found["cpu"]["page"] > 0
    assert found["cpu"]["workers"] > 0
    assert not list(tmp_path.glob("tvaccine-load-*")), "its data folder is gone"
