"""A tiny model with an adapter to train, and data for it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tvaccine_core.config import AdapterConfig, LabConfig, ModelConfig
from tvaccine_core.data.prompts import Encoded, encode_all
from tvaccine_core.data.sources import load_lab_data
from tvaccine_core.models.load import load_model
from tvaccine_core.states.model_states import ModelStates

MakeStates = Callable[..., ModelStates]


@pytest.fixture
def make_states(tiny_folder: Path) -> MakeStates:
    """Fresh states of the tiny model, with the adapter `mine` set up to train."""

    def make(dropout: float = 0.0) -> ModelStates:
        states = ModelStates(load_model(ModelConfig(name=str(tiny_folder), device="cpu")))
        states.add("mine", AdapterConfig(r=4, alpha=8, dropout=dropout), seed=1)
        states.train("mine")
        return states

    return make


@pytest.fixture(scope="session")
def encoded(tiny_folder: Path) -> list[Encoded]:
    """26 examples of different lengths."""
    tokenizer = load_model(ModelConfig(name=str(tiny_folder), device="cpu")).tokenizer
    data = load_lab_data(LabConfig())
    examples = [*data.world.alignment[:20], *data.tasks["sentiment"].train[:6]]
    return encode_all(tokenizer, examples, 200)


@pytest.fixture(scope="session")
def probe(tiny_folder: Path) -> list[Encoded]:
    """7 harmful examples."""
    tokenizer = load_model(ModelConfig(name=str(tiny_folder), device="cpu")).tokenizer
    return encode_all(tokenizer, load_lab_data(LabConfig()).world.probe[:7], 200)
