"""The linear modules of a model that get an adapter.

Families name and fuse their projections differently: Llama has q_proj, k_proj and v_proj, Phi-3 one qkv_proj, GPT-NeoX
one query_key_value. So `all-linear` goes by structure: every linear inside a decoder layer, and none outside, neither
the head nor OPT's projections around the layers. Every given name must match something.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from tvaccine_core.config import ALL_LINEAR
from tvaccine_core.errors import ModelError
from tvaccine_core.models.anatomy import find_blocks


def find_targets(model: nn.Module, wanted: Sequence[str]) -> list[str]:
    """Full names of the linears of `model` that match `wanted`, in the model's order.

    Args:
        model: the Hugging Face model, whether or not it holds adapters already.
        wanted: `all-linear`, or ends of names (`q_proj`, `self_attn.q_proj`).

    Raises:
        ModelError: a name matches no linear; the remedy names all linears.
    """
    if tuple(wanted) == (ALL_LINEAR,):
        inside = {id(module) for block in find_blocks(model) for module in block.layer.modules()}
        return [name for name, module in _linears(model) if id(module) in inside]
    names = [name for name, _ in _linears(model)]
    unknown = [end for end in wanted if not any(_ends(name, end) for name in names)]
    if unknown:
        there = sorted({name.rsplit(".", 1)[-1] for name in names})
        raise ModelError(
            f"The model has no linear module called {', '.join(unknown)}.",
            remedy=f"Set target_modules to {ALL_LINEAR}, or to some of: {', '.join(there)}.",
        )
    return [name for name in names if any(_ends(name, end) for end in wanted)]


def shorten(targets: Collection[str], model: nn.Module) -> list[str]:
    """The last parts of the names of `targets` if they match nothing else in `model`, else the full names; sorted."""
    ends = {name.rsplit(".", 1)[-1] for name in targets}
    matched = {name for name, _ in _modules(model) if name.rsplit(".", 1)[-1] in ends}
    return sorted(ends if matched == set(targets) else targets)


def _linears(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in _modules(model) if isinstance(module, (nn.Linear, Conv1D, LoraLayer)))


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module by name; a linear that holds adapters counts as one."""
    adapted: str | None = None
    for name, module in model.named_modules():
        if adapted is not None and name.startswith(adapted):  # its parts follow directly
            continue
        if isinstance(module, LoraLayer):
            adapted = f"{name}."
        yield name, module  # pyright: ignore[reportReturnType]  an adapted linear is a module as well


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")
