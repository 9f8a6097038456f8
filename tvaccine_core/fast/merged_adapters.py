"""LoRA linears computed with their merged weight, for as long as a step lasts or a state answers.

peft computes `x W' + s (x A') B'`: two thin products, a scaling and a sum of full width on top of the base's product,
and as much again in the backward pass. The same function is `x (W + s B A)'`: with more tokens than ranks, merging
first is less work, and a frozen adapter costs next to nothing. The model's own weights are never written. Results
differ from peft's by rounding in float32.

Memory: the input where the adapter trains, which peft's form keeps too. Merged weights are kept if they have at most
`KEEP_LIMIT_BYTES` in all, as in the sandbox. Larger ones are made again wherever a step needs them, which costs little
beside a batch of tokens; answers, which are made token by token, are left to peft.

Only plain LoRA on a plain float linear is merged: quantised and bfloat16 weights would lose precision, and with
dropout, DoRA, biases or mixed batches the function is another. For these see `lean_adapters`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from tvaccine_core.errors import TrainingError
from tvaccine_core.models.anatomy import is_whole

KEEP_LIMIT_BYTES = 2**28
"""Limit on all merged copies of a model's weights together."""


class MergedLinear(torch.autograd.Function):
    """`x (W + sum s_i B_i A_i)' + bias`, with gradients for x, A_i and B_i; W and the bias are constants.

    Arguments of `apply`: x (..., I), W (O, I), bias (O,) or None, scalings s_i, the merged weight (O, I) if it exists
    already or None, then A_i (R, I), B_i (O, R) in turn.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        scalings: tuple[float, ...],
        merged: Tensor | None,
        *factors: Tensor,
    ) -> Tensor:
        # Weights do not change during a step, so they are saved on the context instead of through autograd. Otherwise
        # checkpointing would run a layer's last linear again for them alone.
        ctx.scalings, ctx.merged, ctx.weight, ctx.factors = scalings, merged, weight, factors
        ctx.versions = versions_of(factors)
        if any(ctx.needs_input_grad[5:]):
            ctx.save_for_backward(x)
        return F.linear(x, merge(weight, scalings, factors) if merged is None else merged, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        weight, factors = ctx.weight, ctx.factors
        require_unchanged(factors, ctx.versions)
        result: list[Tensor | None] = [None, None, None, None, None]
        if ctx.needs_input_grad[0]:
            result[0] = gradient @ (merge(weight, ctx.scalings, factors) if ctx.merged is None else ctx.merged)
        if not any(ctx.needs_input_grad[5:]):
            return (*result, *(None for _ in factors))
        (x,) = ctx.saved_tensors
        x, gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])  # (N, I), (N, O)
        for index, scaling in enumerate(ctx.scalings):
            a, b = factors[2 * index : 2 * index + 2]
            for_a, for_b = ctx.needs_input_grad[5 + 2 * index : 7 + 2 * index]
            # products with the thin side first, (R, N), run up to three times as fast on a CPU
            result.append((b.t() @ gradient.t()).mul_(scaling) @ x if for_a else None)
            result.append(((a @ x.t()).mul_(scaling) @ gradient).t() if for_b else None)
        return tuple(result)


def merge(weight: Tensor, scalings: Sequence[float], factors: Sequence[Tensor]) -> Tensor:
    """`W + sum s_i B_i A_i`, (O, I), for factors A_i, B_i in turn."""
    for index, scaling in enumerate(scalings):
        weight = torch.addmm(weight, factors[2 * index + 1], factors[2 * index], alpha=scaling)
    return weight


def versions_of(tensors: Sequence[Tensor]) -> list[int]:
    """How often each tensor was changed in place, as autograd counts it."""
    return [tensor._version for tensor in tensors]


def require_unchanged(tensors: Sequence[Tensor], versions: Sequence[int]) -> None:
    """Raise `TrainingError` if a tensor was changed since it had its version: a gradient would be wrong."""
    if versions_of(tensors) != versions:
        raise TrainingError(
            "An adapter's weights were changed while a step was using them.",
            remedy="Report this method: it must move weights by `Passes.moved`.",
        )


def mergeable(model: nn.Module) -> list[LoraLinear]:
    """The LoRA linears of `model` whose base is a plain linear in float32 or float64."""
    return [
        module
        for module in model.modules()
        if type(module) is LoraLinear
        and type(module.base_layer) is nn.Linear
        and is_whole(module.base_layer.weight)
        and module.base_layer.weight.dtype in (torch.float32, torch.float64)
    ]


def merged_forwards(modules: Sequence[LoraLinear]) -> dict[nn.Module, Callable[..., Tensor]]:
    """Forwards with merged weights, for the `modules` that allow merging.

    They are valid while active adapters and their values stay as they are.
    """
    linears = {module: linear for module in modules if (linear := _read(module)) is not None and linear.factors}
    keep = _may_keep(linears.values())
    return {module: _lean_forward(module, linear, keep) for module, linear in linears.items()}


def merged_forwards_without_gradient(modules: Sequence[LoraLinear]) -> dict[nn.Module, Callable[[Tensor], Tensor]]:
    """Forwards for evaluations, with kept merged weights; empty if these are too large.

    Generating takes a quarter less time than under peft. A module without an active adapter runs as the base's linear.
    Tokens are the same as under peft, logits differ by rounding. The forwards are valid while active adapters and their
    values stay as they are.
    """
    linears = {module: linear for module in modules if (linear := _read(module)) is not None}
    if not _may_keep(linears.values()):
        return {}
    with torch.no_grad():
        merged = {module: merge(linear.weight, linear.scalings, linear.factors) for module, linear in linears.items()}
    return {module: partial(_linear, weight=merged[module], bias=linear.bias) for module, linear in linears.items()}


class _Linear(NamedTuple):
    """The parts of a plain LoRA linear, as they are now."""

    weight: Tensor  # (O, I)
    bias: Tensor | None  # (O,)
    scalings: tuple[float, ...]
    factors: tuple[Tensor, ...]  # A_i (R, I), B_i (O, R) in turn


def _may_keep(linears: Iterable[_Linear]) -> bool:
    return sum(linear.weight.nbytes for linear in linears if linear.factors) <= KEEP_LIMIT_BYTES


def _linear(x: Tensor, *, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


def _lean_forward(module: LoraLinear, linear: _Linear, keep: bool) -> Callable[..., Tensor]:
    plain = module.forward
    weight, bias, scalings, factors = linear
    merged = None
    versions = versions_of(factors)
    if keep:
        with torch.no_grad():
            merged = merge(weight, scalings, factors)

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or x.dtype != weight.dtype or torch.is_autocast_enabled(x.device.type):
            return plain(x, *args, **kwargs)
        if keep:
            require_unchanged(factors, versions)
        return MergedLinear.apply(x, weight, bias, scalings, merged, *factors)

    return forward


def _read(module: Any) -> _Linear | None:
    """The parts of `module`, without factors if no adapter is active; None if merging would give another function.

    Called at every step for every linear.
    """
    if module.merged:
        return None
    base = module.base_layer
    weight, bias = base.weight, base.bias
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return None
    down, up, dropouts, training = module.lora_A, module.lora_B, module.lora_dropout, module.training
    names = [] if module.disable_adapters else [name for name in module.active_adapters if name in down]
    factors: list[Tensor] = []
    for name in names:
        a, b = down[name].weight, up[name]
        dropped = training and getattr(dropouts[name], "p", 0.0)
        if dropped or name in module.lora_variant or a.dtype != weight.dtype or b.bias is not None:
            return None
        factors += a, b.weight
    return _Linear(weight, bias, tuple(module.scaling[name] for name in names), tuple(factors))
