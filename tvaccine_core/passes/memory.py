"""How much of a forward pass is kept for the backward pass: the choice that trades a step's time for its memory.

Three modes give the same gradients, to rounding:

- `speed` keeps every activation;
- `balanced` keeps the activations of every second layer and runs the other layers again in the backward pass;
- `lowest` keeps only the input of each layer, and runs every layer again.

The last two also compute head and loss in chunks of rows, so that the logits never exist all at once. `auto` is the
fastest mode that fits the device by estimate. The choice is a pure function of the data's shape, the model and the
device's total memory, never of the memory that is free now, so that a resumed run chooses as the first run did.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from tvaccine_core import machine
from tvaccine_core.config import ActivationMemory
from tvaccine_core.models.anatomy import anatomy

Mode = Literal["speed", "balanced", "lowest"]
MODES: tuple[Mode, ...] = ("speed", "balanced", "lowest")
"""Fastest first."""

HEAD_CHUNK_BYTES = 2**23
"""Float32 logits per chunk, in bytes; a chunk has at least `MIN_CHUNK_ROWS` rows."""

MIN_CHUNK_ROWS = 64
"""Fewer rows would read the head's weights more often than it saves memory."""

ROOM_SHARE = 0.85
"""Share of the device's memory; the rest is for the system, the allocator and the kernels."""


@dataclass(frozen=True)
class PassShape:
    """The numbers that decide how much memory the passes of a step hold."""

    num_tokens: int
    num_labelled: int
    num_layers: int
    layer_bytes: int
    """Kept per layer and token."""
    hidden_bytes: int
    """Hidden states per token."""
    vocabulary: int


def recomputed_layers(mode: Mode, num_layers: int) -> range:
    """Layers that run again in the backward pass. `balanced` keeps the top layer and every second layer under it."""
    if mode == "speed":
        return range(0)
    if mode == "lowest":
        return range(num_layers)
    return range(num_layers % 2, num_layers, 2)


def chunk_rows(mode: Mode, vocabulary: int) -> int | None:
    """Rows of the head's input per chunk; None for all rows at once."""
    return None if mode == "speed" else max(MIN_CHUNK_ROWS, HEAD_CHUNK_BYTES // (4 * vocabulary))


def estimate_peak_bytes(mode: Mode, shape: PassShape) -> int:
    """Activations alive at the peak of a perturbed step, recomputed activations too; right to a factor of about 1.5."""
    again = len(recomputed_layers(mode, shape.num_layers))
    kept = (shape.num_layers - again) * shape.layer_bytes + again * shape.hidden_bytes
    shifts = shape.num_layers * shape.hidden_bytes
    rows = min(chunk_rows(mode, shape.vocabulary) or shape.num_labelled, shape.num_labelled)
    head = 3 * 4 * rows * shape.vocabulary  # logits, their softmax and their gradient
    running = shape.num_tokens * shape.layer_bytes * 3 // 2 if again else 0  # a layer that runs again, its gradients
    return shape.num_tokens * (kept + shifts) + max(head, running)


def choose_mode(wish: ActivationMemory, shape: PassShape, room_bytes: int | None) -> Mode:
    """The mode that `wish` names; for `auto` the fastest mode that fits, or the leanest if none fits.

    Args:
        room_bytes: None if unknown: then everything fits.
    """
    if wish != "auto":
        return wish
    if room_bytes is None:
        return "speed"
    fitting: list[Mode] = [mode for mode in MODES if estimate_peak_bytes(mode, shape) <= room_bytes]
    return fitting[0] if fitting else "lowest"


def measure_shape(model: nn.Module, *, batch_size: int, length: int, num_labelled: int) -> PassShape:
    """Shape of the passes over `batch_size` rows of `length` tokens, `num_labelled` of them labelled; runs nothing.

    A layer keeps for a token about what its linears read and write. In half precision its norms also keep float32
    copies; eager attention also keeps its maps.
    """
    parts = anatomy(model)
    causal: Any = parts.causal
    config = causal.config.get_text_config()
    embedding: Any = parts.embedding.weight
    itemsize, width = embedding.dtype.itemsize, int(config.hidden_size)
    linears = [
        module
        for name, module in parts.blocks[0].layer.named_modules()
        if isinstance(module, nn.Linear) and "lora_" not in name
    ]
    layer_bytes = sum(linear.in_features + linear.out_features for linear in linears) * itemsize
    if itemsize < 4:
        layer_bytes += 2 * 4 * width
    if config._attn_implementation == "eager":
        layer_bytes += (4 if itemsize == 4 else 4 + itemsize) * int(config.num_attention_heads) * length
    return PassShape(
        num_tokens=batch_size * length,
        num_labelled=num_labelled,
        num_layers=len(parts.blocks),
        layer_bytes=layer_bytes,
        hidden_bytes=width * itemsize,
        vocabulary=int(config.vocab_size),
    )


def measure_room(model: nn.Module, device: torch.device) -> int | None:
    """Bytes of device memory left beside weights, gradients and AdamW's moments; None if the total is unknown."""
    total = device_bytes(device)
    if total is None:
        return None
    resident = sum(parameter.nbytes * (4 if parameter.requires_grad else 1) for parameter in model.parameters())
    return int(total * ROOM_SHARE) - resident


def device_bytes(device: torch.device) -> int | None:
    """Total memory of `device`, however much of it is in use; None if the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    return machine.memory_bytes() if device.type == "cpu" else None
