"""A base divided among the processes of one job, for the leading worker and its followers."""

from __future__ import annotations

import json
from dataclasses import replace

import torch

from tvaccine_core.config import LabConfig, ModelConfig
from tvaccine_core.errors import ConfigError
from tvaccine_core.models.load import load_model, pick_device
from tvaccine_core.models.shard import shard_base
from tvaccine_core.names import BASE
from tvaccine_core.processes import Ranks
from tvaccine_core.states.model_states import ModelStates


def load_divided(model: ModelConfig, num_threads: int | None, ranks: Ranks) -> ModelStates:
    """The divided base; the leader makes the others load it too. Then call `Ranks.take_part_by` with `run_a_pass`.

    Raises:
        ConfigError: there is one process only.
        TrainingError: the processes have different models.
        ModelError: see `load_model`.
    """
    if ranks.size == 1:
        raise ConfigError(
            "model.shard divides the base among several processes, and this is one alone.",
            remedy="Start the command with torchrun or accelerate launch, or turn model.shard off.",
        )
    if ranks.leads:
        config = LabConfig(model=model)
        ranks.share(json.dumps({"kind": "load", "config": config.to_yaml()}).encode())
    whole = load_model(model.model_copy(update={"device": "cpu"}), num_threads)
    ranks.require_same(whole.key, "base model")
    shard_base(whole.model)
    return ModelStates(replace(whole, config=model, device=pick_device(model.device)), ranks.announce)


def run_a_pass(states: ModelStates) -> None:
    """Lend this process's part of the weights to a forward pass of the leader."""
    with torch.no_grad(), states.active(BASE) as model:
        model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=states.loaded.device), use_cache=False)
