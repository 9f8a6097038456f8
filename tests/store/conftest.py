"""A fresh store per test, and short ways to say what the tests need."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tvaccine_core.config import LabConfig
from tvaccine_core.records import StepRecord
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
def step_record() -> Callable[[int], StepRecord]:
    def make(step: int, loss: float = 1.0) -> StepRecord:
        return StepRecord(
            step=step, num_steps=100, loss=loss, learning_rate=0.1, grad_norm=1.0, elapsed_s=step, num_tokens=3
        )

    return make
