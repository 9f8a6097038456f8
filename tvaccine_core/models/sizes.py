"""Limits on the size of model that a config may ask for, and a check that its weights have this size. Torch-free.

Anybody can write a config, and transformers trusts it before it reads a weight: one wrong number takes gigabytes, or
for ever. So each count and width has a bound, far above every published model, and the weight files must hold the
sizes that the config asks for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tvaccine_core.errors import ModelError

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of every tensor in the weight files, by its name."""

MAX_LAYERS = 1024
MAX_HEADS = 4096
MAX_EXPERTS = 16384
MAX_WIDTH = 2**20
MAX_VOCABULARY = 2**22
MAX_POSITIONS = 2**26
MAX_EXPERTS_IN_ALL = 2**19
"""Experts of all layers together."""
MAX_EXCESS = 2**28
"""Numbers that a model may hold beyond twice the number in its files: computed tables, tied heads."""

LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers")
"""Families' names for the number of decoder layers, the most usual first."""
_NEEDED = {
    **dict.fromkeys(LAYER_COUNTS, MAX_LAYERS),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "emb_dim", "intermediate_size", "ffn_dim"), MAX_WIDTH),
    **dict.fromkeys(("n_inner", "head_dim", "word_embed_proj_dim", "d_ff", "ffn_hidden_size"), MAX_WIDTH),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "n_head", "n_heads", "num_heads"), MAX_HEADS),
    "vocab_size": MAX_VOCABULARY,
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "context_length"), MAX_POSITIONS
    ),
}
"""Upper bounds of settings that are at least 1 if given."""
_COUNTS = (
    (re.compile(r"(^|_)(num|n|encoder|decoder)_(\w+_)?(layers|blocks)$|^depth$"), MAX_LAYERS),
    (re.compile(r"(^|_)heads$"), MAX_HEADS),
    (re.compile(r"(^|_)experts$"), MAX_EXPERTS),
    (re.compile(r"(^|_)(size|dim|rank)(_\w+)?$"), MAX_POSITIONS),
)
"""Upper bounds of whole numbers whose names look like sizes; 0 and -1 have special meanings there."""
_EXPERTS = re.compile(r"^(num|n|moe_num)_(local_|routed_)?experts$")
_LAYER = re.compile(r"^(.*?)(?:^|\.)(\d+)\.")


def check_sizes(settings: Mapping[str, Any], name: str) -> None:
    """Raise `ModelError` if a config.json asks for a count or width that no model has.

    Args:
        settings: the config, including its parts (`text_config` and the like).
        name: the user's name for the model.
    """
    most_layers = most_experts = 1
    for key, value in _settings(settings):
        if key in _NEEDED:
            whole = isinstance(value, int) and not isinstance(value, bool)
            _require(whole and 1 <= value <= _NEEDED[key], key, value, f"from 1 to {_NEEDED[key]:,}", name)
            most_layers = max(most_layers, value) if key in LAYER_COUNTS else most_layers
        elif isinstance(value, int) and (most := _bound(key)) is not None:
            _require(value <= most, key, value, f"of at most {most:,}", name)
            most_experts = max(most_experts, value) if _EXPERTS.search(key) else most_experts
    if most_layers * most_experts > MAX_EXPERTS_IN_ALL:
        raise ModelError(
            f"config.json of {name} asks for {most_experts:,} experts in each of {most_layers:,} layers; "
            f"at most {MAX_EXPERTS_IN_ALL:,} in all are allowed.",
            remedy=_CORRECT,
        )


_CORRECT = "Correct config.json, or download or copy it again."


def _settings(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every setting except null, at any depth; each entry of a list, which has one entry per layer."""
    pending: list[Mapping[str, Any]] = [settings]
    while pending:
        for key, value in pending.pop().items():
            for each in value if isinstance(value, list) and key not in LAYER_COUNTS else [value]:
                if isinstance(each, dict) and key not in _NEEDED:
                    pending.append(each)
                elif each is not None:
                    yield key, each


def _bound(key: str) -> int | None:
    return next((most for looks, most in _COUNTS if looks.search(key)), None)


def _require(holds: bool, key: str, value: Any, allowed: str, name: str) -> None:
    if not holds:
        shown = repr(value) if not isinstance(value, int) or value < 10**40 else "too large"
        raise ModelError(
            f"{key} in config.json of {name} is {shown[:80]}; it must be a whole number {allowed}.", remedy=_CORRECT
        )


def text_settings(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a config that describes the language model."""
    text = settings.get("text_config")
    return text if isinstance(text, dict) else settings


def num_layers(settings: Mapping[str, Any]) -> int | None:
    """Decoder layers that a config asks for; None if it does not say. `settings` has passed `check_sizes`."""
    text = text_settings(settings)
    return next((text[key] for key in LAYER_COUNTS if text.get(key) is not None), None)


def check_agreement(settings: Mapping[str, Any], shapes: Shapes, name: str) -> None:
    """Raise `ModelError` if the weights plainly belong to a model of other sizes than the config's.

    It compares the number of layers, the vocabulary and the width, if both sides tell. This is quick and needs no
    knowledge of the model's family; loading compares every tensor.
    """
    text = text_settings(settings)
    asked, extra = num_layers(settings), text.get("num_nextn_predict_layers")
    stacks = _stacks(shapes)
    # Layers that predict several tokens ahead are stored after the others, and ignored on loading. A model that runs
    # its layers several times counts each run.
    allowed = [asked, asked + extra if asked and isinstance(extra, int) else asked, text.get("num_layers_per_stack")]
    if asked is not None and stacks and not any(held in allowed for held in stacks.values()):
        prefix, held = max(stacks.items(), key=lambda stack: stack[1])
        raise ModelError(
            f"config.json of {name} asks for {asked:,} layers, but its weights hold {held:,} ({prefix}.0 to "
            f"{prefix}.{held - 1}).",
            remedy=_BELONG,
        )
    dimensions = {size for shape in shapes.values() for size in shape}
    for key, what in (("vocab_size", "a vocabulary"), ("hidden_size", "a width"), ("n_embd", "a width")):
        wanted = text.get(key)
        if isinstance(wanted, int) and stacks and wanted not in dimensions:
            raise ModelError(
                f"config.json of {name} asks for {what} of {wanted:,} ({key}), which no tensor of its weights has.",
                remedy=_BELONG,
            )


_BELONG = "Use the config.json that the weights were saved with, or download or copy all of the model again."


def _stacks(shapes: Shapes) -> dict[str, int]:
    """Number of modules in each numbered list, by the name before the number, e.g. `model.layers`."""
    found: dict[str, int] = {}
    for tensor in shapes:
        if match := _LAYER.match(tensor):
            prefix, index = match[1], int(match[2][:9])
            found[prefix] = max(found.get(prefix, 0), index + 1)
    return found


def check_count(
    asked: int, computed: int, settings: Mapping[str, Any], shapes: Shapes, num_bytes: int, name: str
) -> None:
    """Raise `ModelError` if a model would be far larger in memory than its weight files.

    Args:
        asked: parameters of the model that is to be built.
        computed: elements of its buffers.
        settings: its config.json.
        shapes: shapes of the tensors in its files.
        num_bytes: size of its weight files.
        name: the user's name for the model.
    """
    # Quantised weights are stored packed: up to one weight per bit.
    packed = settings.get("quantization_config") is not None
    held = 8 * num_bytes if packed else sum(math.prod(shape) for shape in shapes.values())
    for count, what in ((asked, "parameters"), (computed, "numbers in tables")):
        if count > 2 * held + MAX_EXCESS:
            raise ModelError(
                f"config.json of {name} asks for a model of {count:,} {what}, but its weights hold {held:,}.",
                remedy=_BELONG,
            )


def list_some(names: Iterable[str], shown: int = 3) -> str:
    """The first few of `names` in order, and how many more there are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - shown:,} more" if len(ordered) > shown else ""
    return ", ".join(ordered[:shown]) + more
