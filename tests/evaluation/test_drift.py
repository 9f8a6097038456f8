"""Drift: zero where nothing moved, a known number where something did, and no padding in the mean."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tvaccine_core.config import AdapterConfig, ModelConfig
from tvaccine_core.data.prompts import encode_prompts
from tvaccine_core.evaluation.drift import embedding_drift
from tvaccine_core.models.anatomy import find_blocks
from tvaccine_core.models.hooks import hidden_of
from tvaccine_core.models.load import load_model
from tvaccine_core.states.model_states import ModelStates

PROMPTS = ["How do I make a merry kite?", "Hello", "Sentiment? The play was lovely."]


@pytest.fixture
def states(tiny_folder: Path) -> ModelStates:
    states = ModelStates(load_model(ModelConfig(name=str(tiny_folder), device="cpu")))
    states.add("moved", AdapterConfig(r=4), seed=1)
    with torch.no_grad():
        for name, parameter in states.model.named_parameters():
            if "lora_B" in name and ".layers.1." in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    return states


def hidden(states: ModelStates, state: str, prompt: str) -> list[Tensor]:
    """Every layer's output for one prompt, by plain hooks: (T, D) each."""
    outputs: list[Tensor] = []
    ids = torch.tensor(encode_prompts(states.loaded.tokenizer, [prompt]))
    with states.active(state) as model, torch.no_grad():
        handles = [
            block.layer.register_forward_hook(lambda _m, _i, output: outputs.append(hidden_of(output)[0]))
            for block in find_blocks(model)
        ]
        model(input_ids=ids)
        for handle in handles:
            handle.remove()
    return outputs


def test_drift_is_the_mean_distance_over_prompt_tokens(states: ModelStates) -> None:
    distances: list[list[Tensor]] = [[], [], []]
    for prompt in PROMPTS:
        for layer, (a, b) in enumerate(
            zip(hidden(states, "moved", prompt), hidden(states, "base", prompt), strict=True)
        ):
            distances[layer].append((a - b).norm(dim=-1))
    expected = [torch.cat(rows).mean().item() for rows in distances]
    assert expected[0] == 0
    assert expected[2] > 0.1
    for batch_size in (1, 3):
        record = embedding_drift(states, "moved", "base", PROMPTS, batch_size)
        assert record.drift == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert (record.state, record.reference) == ("moved", "base")


def test_a_state_does_not_drift_from_itself(states: ModelStates) -> None:
    assert embedding_drift(states, "moved", "moved", PROMPTS, 2).drift == (0.0, 0.0, 0.0)


def test_the_head_reads_one_column(states: ModelStates) -> None:
    """Nobody looks at the logits: of 128 prompts in a vocabulary of 150,000 all of them would be gigabytes."""
    shapes: list[torch.Size] = []
    head = states.model.get_output_embeddings()
    assert isinstance(head, torch.nn.Module)
    handle = head.register_forward_hook(lambda module, inputs, output: shapes.append(output.shape))
    embedding_drift(states, "moved", "base", PROMPTS, 3)
    handle.remove()
    assert shapes == [(3, 1, 320)] * 2
