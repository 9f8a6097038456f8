"""Embedding drift: how far an attack moved the hidden states (Huang et al., arXiv:2402.01109).

Mean over prompt tokens of the L2 distance between two states' hidden states at each decoder layer's output, on the same
prompts. It shows where in the network alignment was lost. Its scale depends on the model, so compare layers and methods
of one model only. Padding is excluded. Cost: one forward pass over the prompts per state.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from tvaccine_core.data.prompts import encode_prompts
from tvaccine_core.evaluation.in_batches import in_batches
from tvaccine_core.models.anatomy import anatomy
from tvaccine_core.models.hooks import hidden_of, last_column, record_output
from tvaccine_core.records import DriftRecord
from tvaccine_core.states.model_states import ModelStates


def embedding_drift(
    states: ModelStates, state: str, reference: str, prompts: Sequence[str], batch_size: int
) -> DriftRecord:
    """Drift of `state` from `reference` at each layer, lowest first; `prompts` must not be empty."""
    encoded = sorted(encode_prompts(states.loaded.tokenizer, prompts), key=len)
    total = torch.zeros(len(anatomy(states.loaded.model).blocks), dtype=torch.float64)
    num_tokens = 0

    def measure(batch: Sequence[list[int]]) -> None:
        nonlocal num_tokens
        longest = max(map(len, batch))
        ids = torch.tensor([prompt + [states.loaded.pad_id] * (longest - len(prompt)) for prompt in batch])
        mask = torch.tensor([[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in batch])
        now, before = (_hidden_states(states, name, ids, mask) for name in (state, reference))
        real = mask.bool()
        distances = [(a - b).norm(dim=-1)[real].sum() for a, b in zip(now, before, strict=True)]  # (B, T) each
        total.add_(torch.stack(distances).double())
        num_tokens += int(mask.sum())

    in_batches(encoded, batch_size, measure)
    return DriftRecord(state=state, reference=reference, drift=tuple((total / num_tokens).tolist()))


def _hidden_states(states: ModelStates, state: str, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """Output of every decoder layer, each (B, T, D), float32 on the CPU."""
    device = states.loaded.device
    with torch.no_grad(), states.active(state) as model, ExitStack() as stack:
        parts = anatomy(model)
        captured = [stack.enter_context(record_output(block.layer)) for block in parts.blocks]
        stack.enter_context(last_column(parts.head))  # the logits are not used
        model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    return [hidden_of(outputs[0]).float().cpu() for outputs in captured]
