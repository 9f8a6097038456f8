"""A stack of adapters as one adapter: W + B1 A1 + B2 A2 = W + [B1 B2] [A1; A2], exactly."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tvaccine_core.states.adapter_files import PlainAdapter, named_factors
from tvaccine_core.states.adapters import Adapters, factors_of


def concatenate(adapters: Adapters, stack: Sequence[str]) -> PlainAdapter:
    """A stack, bottom to top, as one adapter with new tensors on the CPU.

    A single adapter stays as it is. In a stack, each A includes its scaling. A module that some adapters lack is filled
    with zeros, since peft has one rank per adapter.
    """
    if len(stack) == 1:
        return _copy(adapters, stack[0])
    rank = sum(adapters.rank_and_alpha(name)[0] for name in stack)
    tensors: dict[str, Tensor] = {}
    for module_name, layer in adapters.layers.items():
        factors = [(*factors_of(layer, name), layer.scaling[name]) for name in stack if name in layer.lora_A]
        if not factors:
            continue
        a = torch.cat([a.detach() * scaling for a, _, scaling in factors]).cpu()  # (r, in)
        b = torch.cat([b.detach() for _, b, _ in factors], dim=1).cpu()  # (out, r)
        missing = rank - a.shape[0]
        a, b = nn.functional.pad(a, (0, 0, 0, missing)), nn.functional.pad(b, (0, missing))
        tensors |= named_factors(module_name, a, b)
    return PlainAdapter(tensors, rank=rank, alpha=float(rank))


def _copy(adapters: Adapters, name: str) -> PlainAdapter:
    rank, alpha = adapters.rank_and_alpha(name)
    tensors: dict[str, Tensor] = {}
    for module_name, layer in adapters.layers.items():
        if name in layer.lora_A:
            a, b = (factor.detach().cpu().clone() for factor in factors_of(layer, name))
            tensors |= named_factors(module_name, a, b)
    return PlainAdapter(tensors, rank=rank, alpha=float(alpha))
