"""A model's anatomy: its decoder layers, their halves, embedding and head, found by structure and not by class names.

Works on decoder-only Hugging Face models, bare or wrapped by peft.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from tvaccine_core.errors import ModelError


@dataclass(frozen=True)
class Block:
    """One decoder layer and its two halves. `mlp` is None where the layer holds its linears directly (OPT)."""

    layer: nn.Module
    attention: nn.Module
    mlp: nn.Module | None


@dataclass(frozen=True)
class Anatomy:
    """The parts of a causal language model that methods work on."""

    causal: nn.Module
    """The Hugging Face model with its head and adapters, without peft's outer wrapper."""
    blocks: tuple[Block, ...]
    embedding: nn.Module
    head: nn.Module


def causal_model(model: nn.Module) -> nn.Module:
    """The Hugging Face model inside peft's wrapper, or `model` itself."""
    unwrap: Callable[[], nn.Module] | None = getattr(model, "get_base_model", None)
    return model if unwrap is None else unwrap()


def _only_child(layer: nn.Module, words: tuple[str, ...]) -> nn.Module | None:
    """The direct child with weights whose name holds one of `words`, norms aside; None if there is not exactly one."""
    found = [
        child
        for name, child in layer.named_children()
        if any(word in name for word in words)
        and "norm" not in name + type(child).__name__.lower()
        and any(True for _ in child.parameters())
    ]
    return found[0] if len(found) == 1 else None


def find_blocks(model: nn.Module) -> list[Block]:
    """The decoder layers of `model`, lowest first: the one module list whose every item holds one attention module.

    Raises:
        ModelError: there is none, or more than one (an encoder-decoder, or a vision tower beside the text model).
    """
    found: list[list[Block]] = []
    for module in model.modules():
        if not isinstance(module, nn.ModuleList) or not len(module):
            continue
        blocks = []
        for layer in module:
            attention = _only_child(layer, ("attn", "attention"))
            if attention is None:
                break
            blocks.append(Block(layer, attention, _only_child(layer, ("mlp", "feed_forward", "ffn", "moe"))))
        if len(blocks) == len(module):
            found.append(blocks)
    if len(found) != 1:
        raise ModelError(
            f"Expected one stack of decoder layers with attention in {type(causal_model(model)).__name__}, "
            f"found {len(found)}.",
            remedy="Use a decoder-only, text-only causal language model such as Llama, Qwen, Mistral or Gemma.",
        )
    return found[0]


def anatomy(model: nn.Module) -> Anatomy:
    """Find the parts of `model`.

    Raises:
        ModelError: it has no head, no input embedding, or not exactly one stack of decoder layers.
    """
    causal: Any = causal_model(model)
    parts = {}
    for part, getter in (("head", "get_output_embeddings"), ("embedding", "get_input_embeddings")):
        get = getattr(causal, getter, None)
        parts[part] = get() if callable(get) else None
        if not isinstance(parts[part], nn.Module):
            raise ModelError(
                f"{type(causal).__name__} has no {part}.",
                remedy="Load the model as a causal language model (AutoModelForCausalLM).",
            )
    return Anatomy(causal, tuple(find_blocks(causal)), parts["embedding"], parts["head"])


def is_whole(parameter: Any) -> bool:
    """True if all of a parameter is in this process; FSDP's shards (`DTensor`) are whole only while a layer runs."""
    return isinstance(parameter, nn.Parameter) and type(parameter).__name__ != "DTensor"


def find_body(parts: Anatomy) -> nn.Module | None:
    """The module that holds the stack of decoder layers, but not the head; None if there is none.

    A module around it is not enough: OPT's causal model does not call it.
    """
    first = parts.blocks[0].layer
    for module in parts.causal.modules():
        stacks = [child for child in module.children() if isinstance(child, nn.ModuleList)]
        if any(first in set(stack.children()) for stack in stacks):
            return None if parts.head in set(module.modules()) else module
    return None
