"""A store with one run, and a patient way to wait."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tvaccine_core.config import LabConfig
from tvaccine_core.store import Store


@pytest.fixture(autouse=True)
def _package_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts in child processes import the package too."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "home")


@pytest.fixture
def run_id(store: Store) -> str:
    return store.create_run(LabConfig())


@pytest.fixture
def wait_until() -> Callable[[Callable[[], object]], None]:
    def wait(condition: Callable[[], object], timeout_s: float = 120.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, "waited too long"
            time.sleep(0.01)

    return wait
