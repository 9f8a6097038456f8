"""Before a model trains: compare the fast paths with the model's own modules, by loss and gradients of some examples.

The test suite compares both on every family in `KNOWN`, in float32 on a CPU. Any other model class, precision, storage
or device is compared here, once per process, class, config and adapters: about a step's work on a few examples.
Where they differ by more than rounding, training goes on with the model's own modules, and a message says so. Dropout
is off meanwhile; weights, gradients, modes and random states stay as they are.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tvaccine_core.errors import lacks_memory
from tvaccine_core.passes.losses import LabelledTokens
from tvaccine_core.passes.passes import PLAIN, Passes
from tvaccine_core.passes.randomness import without_dropout
from tvaccine_core.passes.shortcuts import has_numbers, tolerance
from tvaccine_core.records import MessageRecord

KNOWN = frozenset(
    f"transformers.models.{family}.modeling_{family}"
    for family in ("cohere", "gemma2", "gemma3", "gpt_neox", "granite", "llama", "mistral", "opt", "phi3", "qwen2")
) | {"transformers.models.qwen3.modeling_qwen3"}
"""Modules of transformers whose models the test suite compares with plain gradients."""

LIMIT, ROUNDED_LIMIT = 1e-3, 0.1
"""Largest relative error that counts as rounding: in full precision, and with half precision or quantised weights."""

SMALL = 1e-2
"""A gradient's error is relative to its own norm, or to this share of the norm of all gradients if that is larger."""

EXCERPTS = (24, 20, 16)
"""Tokens per compared example. Few: a pass without fast paths holds more, and must fit into a step's memory."""

_met: set[str] = set()
"""Signatures that this process compared and found equal. Unequal ones are compared and reported each time."""


@dataclass(frozen=True)
class Comparison:
    """Errors of the fast paths relative to the model's own modules, on the same examples."""

    fast_loss: float
    plain_loss: float
    gradient_error: float
    """Largest relative L2 error of a parameter's gradient."""
    parameter: str
    """The parameter with this error."""

    @property
    def loss_error(self) -> float:
        """Relative."""
        return abs(self.fast_loss - self.plain_loss) / max(abs(self.plain_loss), 1e-30)

    def within(self, limit: float) -> bool:
        """Whether both errors are numbers of at most `limit`."""
        return self.loss_error <= limit and self.gradient_error <= limit


def check_fast_paths(passes: Passes, model: nn.Module, tokens: LabelledTokens) -> list[MessageRecord]:
    """Turn the fast paths of `passes` off if they give other numbers than the modules of `model`.

    Processes that train together must call it with equal `tokens`, so that all of them decide alike.

    Args:
        passes: passes through `model`.
        model: with adapters; trained parameters require a gradient.
        tokens: a few labelled examples.

    Returns:
        Messages for the user: the errors of each comparison.
    """
    notes = list(passes.fast.shortcuts.notes)
    key = _signature(passes, model)
    if passes.fast is PLAIN or key in _met or not has_numbers(model) or _is_known(passes, model):
        return notes
    _met.add(key)
    name, limit = _class_of(passes.anatomy.causal).__name__, tolerance(model, LIMIT, ROUNDED_LIMIT)
    remedy = "The results are right; steps take longer. model.fast_paths false leaves the comparison out."
    fast = _try(passes, model, tokens)
    before, passes.fast = passes.fast, PLAIN
    own = _try(passes, model, tokens)
    if isinstance(own, Exception) or (isinstance(fast, Exception) and lacks_memory(fast)):
        passes.fast = before
        reason = fast if isinstance(fast, Exception) else own
        text = f"The fast paths were not compared with the modules of {name}: {reason}"
        return [*notes, MessageRecord(level="info", text=text)]
    if isinstance(fast, Exception):
        _met.discard(key)
        text = f"The fast paths do not work on {name} ({fast}), so its own modules run."
        return [*notes, MessageRecord(level="warning", text=text, remedy=remedy)]
    compared = compare(passes, model, fast, own)
    errors = (
        f"the loss by {compared.loss_error:.1e}, the gradient of {compared.parameter} by {compared.gradient_error:.1e}"
    )
    if not compared.within(limit):
        text = (
            f"The fast paths do not give what {name} gives by itself, so its own modules run. They differ, relatively: "
            f"{errors}; rounding would be at most {limit:g}."
        )
        _met.discard(key)
        return [*notes, MessageRecord(level="warning", text=text, remedy=remedy)]
    passes.fast = before
    text = f"Fast paths give what {name} gives by itself. The largest relative differences: {errors}."
    return [*notes, MessageRecord(level="info", text=text)]


Run = tuple[float, list[Tensor | None]]
"""Loss, and a gradient for each parameter of the passes."""


def compare(passes: Passes, model: nn.Module, fast: Run, own: Run) -> Comparison:
    """Errors of loss and gradients, over all trained parameters."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    whole = torch.stack([gradient.double().norm() for gradient in own[1] if gradient is not None]).norm()
    worst, where = 0.0, names[id(passes.parameters[0])]
    for parameter, ours, theirs in zip(passes.parameters, fast[1], own[1], strict=True):
        error = _error(ours, theirs, float(whole))
        if not error <= worst:  # NaN is the worst
            worst, where = error, names[id(parameter)]
    return Comparison(fast[0], own[0], worst, where)


def _error(ours: Tensor | None, theirs: Tensor | None, whole: float) -> float:
    if ours is None or theirs is None:
        return 0.0 if ours is theirs else float("inf")
    reference = max(float(theirs.double().norm()), SMALL * whole, 1e-30)
    return float((ours.double() - theirs.double()).norm()) / reference


def _try(passes: Passes, model: nn.Module, tokens: LabelledTokens) -> Run | Exception:
    """Loss and gradients by `passes` as they are now: a plain step, whose gradients are then removed."""
    before = [parameter.grad for parameter in passes.parameters]
    for parameter in passes.parameters:
        parameter.grad = None
    try:
        with without_dropout(model), passes.scope(torch.Generator().manual_seed(0)):
            loss = float(passes.descend(tokens, (), 1.0))
        if not math.isfinite(loss):
            return ValueError(f"the loss is {loss}")
        return loss, [parameter.grad for parameter in passes.parameters]
    except Exception as error:  # noqa: BLE001 - whatever a model's own code raises
        return error
    finally:
        for parameter, gradient in zip(passes.parameters, before, strict=True):
            parameter.grad = gradient


def _is_known(passes: Passes, model: nn.Module) -> bool:
    whole = tolerance(model, 1.0, 0.0) == 1.0
    return _class_of(passes.anatomy.causal).__module__ in KNOWN and whole and passes.device.type == "cpu"


def _class_of(causal: nn.Module) -> type:
    """The model's class. FSDP2 makes a new class for a divided model: then the class before it."""
    kind = type(causal)
    return kind.__bases__[1] if kind.__bases__[0].__name__ == "FSDPModule" else kind


def _signature(passes: Passes, model: nn.Module) -> str:
    """Everything that decides which code runs: classes, config, shapes, precisions, parameters, memory mode, device."""
    causal: Any = passes.anatomy.causal
    config = getattr(causal, "config", None)
    digest = hashlib.sha256(f"{passes.mode}/{passes.device.type}/{len(passes.blocks)}".encode())
    if config is not None:
        data = {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}
        digest.update(json.dumps(data, sort_keys=True, default=str).encode())
    for name, module in model.named_modules():
        digest.update(f"{name}:{type(module).__module__}.{type(module).__qualname__}".encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name}:{tuple(parameter.shape)}{parameter.dtype}{parameter.requires_grad}".encode())
    return digest.hexdigest()
