"""Sweeps that a server makes beside its workers: the test plays the workers, in a thread."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tvaccine_core import orders
from tvaccine_core.config import parse_config
from tvaccine_core.errors import StoreError
from tvaccine_core.store import Store
from tvaccine_core.sweeps.background import SweepDriver
from tvaccine_core.sweeps.plan import Sweep, cells_of


def spec(**fields: Any) -> dict[str, Any]:
    given = {"name": "test", "preset": "sandbox-check", "defences": ["sft"], "vary": {"seed": [0, 1]}, **fields}
    return parse_config(Sweep, given).model_dump(mode="json")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def working(store: Store) -> Iterator[threading.Event]:
    """While set, a worker does all jobs at once."""
    on, over = threading.Event(), threading.Event()

    def work() -> None:
        mine = Store(store.home)
        while not over.wait(0.02):
            job = mine.claim("worker") if on.is_set() else None
            if job is not None:
                mine.finish(job.id, "done")

    thread = threading.Thread(target=work)
    thread.start()
    on.set()
    yield on
    over.set()
    thread.join()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_sweep_is_made_and_says_how_far_it_is(store: Store, working: threading.Event) -> None:
    sweep_id = store.sweeps.add("test", spec(), 2)
    before = store.revisions(None)
    with SweepDriver(store.home, 2):
        wait_until(lambda: store.sweeps.get(sweep_id).state == "done")
    row = store.sweeps.get(sweep_id)
    assert (row.done, row.total, row.problems) == (2, 2, ())
    assert store.revisions(None) != before
    assert {run.name for run in store.runs()} == {"sweep test, seed 0", "sweep test, seed 1"}


def test_a_stopped_sweep_stops_its_work_and_goes_on_later(store: Store, working: threading.Event) -> None:
    working.clear()
    sweep_id = store.sweeps.add("test", spec(), 2)
    with SweepDriver(store.home, 2):
        wait_until(lambda: len(store.runs()) == 2)
        store.sweeps.set_state(sweep_id, "stopped")
        wait_until(lambda: not any(job.active for run in store.runs() for job in store.jobs(run.id)))
        assert store.sweeps.add("test", spec(), 2) == sweep_id, "an equal sweep goes on"
        working.set()
        wait_until(lambda: store.sweeps.get(sweep_id).state == "done")
    assert store.sweeps.get(sweep_id).done == 2
    assert len(store.runs()) == 2


def test_a_sweep_goes_on_when_its_server_is_started_again(store: Store, working: threading.Event) -> None:
    working.clear()
    sweep_id = store.sweeps.add("test", spec(), 2)
    with SweepDriver(store.home, 1):
        wait_until(lambda: len(store.runs()) == 1)
    (run,) = store.runs()
    assert all(job.state == "queued" for job in store.jobs(run.id)), "the end of a server is no wish to stop"
    assert store.sweeps.get(sweep_id).state == "running"
    working.set()
    with SweepDriver(store.home, 1):
        wait_until(lambda: store.sweeps.get(sweep_id).state == "done")


def test_a_driver_waits_while_another_program_works(store: Store, working: threading.Event) -> None:
    store.sweeps.add("test", spec(), 2)
    free = threading.Event()
    with SweepDriver(store.home, 1, free.is_set):
        time.sleep(1.5)
        assert store.runs() == []
        free.set()
        wait_until(lambda: len(store.runs()) == 2)


def test_sweeps_are_made_one_after_the_other_oldest_first(store: Store, working: threading.Event) -> None:
    first = store.sweeps.add("one", spec(name="one"), 2)
    second = store.sweeps.add("two", spec(name="two", vary={"attack.seed": [5]}), 1)
    assert [row.id for row in store.sweeps.all()] == [second, first]
    with SweepDriver(store.home, 1):
        wait_until(lambda: store.sweeps.get(second).state == "done")
    assert store.sweeps.get(first).state == "done"
    assert [run.name.split(",")[0] for run in reversed(store.runs())] == ["sweep one", "sweep one", "sweep two"]


def test_settings_that_cannot_work_stop_a_sweep_with_the_reason(store: Store, working: threading.Event) -> None:
    sweep_id = store.sweeps.add("test", spec(defences=["sft", "tvaccine num_layers=99"]), 4)
    with SweepDriver(store.home, 1):
        wait_until(lambda: store.sweeps.get(sweep_id).state == "stopped")
    (problem,) = store.sweeps.get(sweep_id).problems
    assert "layers" in problem
    assert store.runs() == []


def test_a_deleted_sweep_ends_and_its_runs_stay(store: Store, working: threading.Event) -> None:
    working.clear()
    sweep_id = store.sweeps.add("test", spec(), 2)
    with SweepDriver(store.home, 2):
        wait_until(lambda: len(store.runs()) == 2)
        store.sweeps.delete(sweep_id)
        wait_until(lambda: not any(job.active for run in store.runs() for job in store.jobs(run.id)))
    assert len(store.runs()) == 2
    with pytest.raises(StoreError, match="There is no sweep"):
        store.sweeps.get(sweep_id)


def test_work_of_a_reader_in_a_sweeps_run_survives_a_stop(store: Store, working: threading.Event) -> None:
    """A visitor opened a cell as a run and started an attack of their own there."""
    working.clear()
    sweep_id = store.sweeps.add("test", spec(vary={"seed": [0]}), 1)
    with SweepDriver(store.home, 1):
        wait_until(lambda: len(store.runs()) == 1 and len(store.jobs(store.runs()[0].id)) == 3)
        (run,) = store.runs()
        config = cells_of(parse_config(Sweep, spec()))[0].config
        order = orders.start_attack(store, run.id, config.attack.model_copy(update={"harmful_ratio": 0.77}))
        store.sweeps.set_state(sweep_id, "stopped")
        wait_until(lambda: any(job.state == "cancelled" for job in store.jobs(run.id)))
        time.sleep(1)
    assert [store.job(job).state for job in order.jobs] == ["queued"]
