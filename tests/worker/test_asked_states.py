"""What is kept in memory to answer prompts: as saved now, and no more of it than a limit."""

from pathlib import Path

import pytest
import torch

from tvaccine_core.config import AdapterConfig, ModelConfig
from tvaccine_core.errors import RunNotFoundError
from tvaccine_core.models.load import load_model
from tvaccine_core.names import state_folder
from tvaccine_core.states.model_states import ModelStates
from tvaccine_core.workers import asked_states
from tvaccine_core.workers.asked_states import AskedStates

ALIGNED = "aligned/sft"


@pytest.fixture
def states(tiny_folder: Path) -> ModelStates:
    return ModelStates(load_model(ModelConfig(name=str(tiny_folder), device="cpu")))


def save(states: ModelStates, run_dir: Path, seed: int, state: str = ALIGNED) -> str:
    """An adapter saved as a job saves it, and gone from memory; returns its hash."""
    states.add("job", AdapterConfig(r=2), seed=seed)
    record = states.save("job", ["job"], state_folder(run_dir, state))
    states.drop("job")
    return record.state_hash


def test_a_saved_state_is_read_once_and_again_when_it_is_replaced(states: ModelStates, tmp_path: Path) -> None:
    asked = AskedStates()
    first = save(states, tmp_path, seed=1)
    name = asked.load(states, tmp_path, "run", ALIGNED)
    assert name != ALIGNED  # a job may train a state of that name meanwhile
    assert AskedStates.has(name)
    assert not AskedStates.has(ALIGNED)
    kept = next(p for key, p in states.model.named_parameters() if f".{name}." in key)
    with torch.no_grad():
        kept.add_(1)  # what is in memory only is not read over
    assert asked.load(states, tmp_path, "run", ALIGNED) == name
    assert any(p is kept for p in states.model.parameters())
    second = save(states, tmp_path, seed=2)
    assert states.hash_of(asked.load(states, tmp_path, "run", ALIGNED)) == second != first


def test_runs_do_not_share_a_name(states: ModelStates, tmp_path: Path) -> None:
    asked = AskedStates()
    hashes = [save(states, tmp_path / run, seed) for seed, run in enumerate("ab")]
    names = [asked.load(states, tmp_path / run, run, ALIGNED) for run in "ab"]
    assert [states.hash_of(name) for name in names] == hashes
    assert len(set(hashes)) == 2


def test_what_was_asked_longest_ago_goes_first(
    states: ModelStates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asked_states, "NUM_ASKED", 2)
    asked = AskedStates()
    for run in "abc":
        save(states, tmp_path / run, seed=1)
    a, b = (asked.load(states, tmp_path / run, run, ALIGNED) for run in "ab")
    assert asked.load(states, tmp_path / "a", "a", ALIGNED) == a
    c = asked.load(states, tmp_path / "c", "c", ALIGNED)
    assert set(states.names) == {"base", a, c}
    assert b not in states.names


def test_the_base_needs_no_file_and_a_state_does(states: ModelStates, tmp_path: Path) -> None:
    asked = AskedStates()
    assert asked.load(states, tmp_path, "run", "base") == "base"
    with pytest.raises(RunNotFoundError):
        asked.load(states, tmp_path, "run", ALIGNED)
    assert states.names == ("base",)
