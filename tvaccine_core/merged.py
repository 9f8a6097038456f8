"""LoRA linears computed with their merged weight, for as long as a step lasts.

peft computes `x W' + s (x A') B'`: two thin products, a scaling and a sum of full width on top of the base's product,
and as much again in the backward pass. The same function is `x (W + s B A)'`: while tokens outnumber the rank, merging
first is the smaller work, and an adapter that is frozen then costs next to nothing. The model's own weights are never
written. Results differ from peft's by rounding in float32.

Memory: the input where the adapter trains, which peft's form keeps too. Merged weights are kept for the step while they
are no larger than `KEEP_LIMIT_BYTES` in all, as in the sandbox; above that they are made anew wherever they are needed.

Only plain LoRA on a plain float linear takes this road: quantised and bfloat16 weights lose precision when merged, and
dropout, DoRA, biases and mixed batches make it another function. For the rest see `lowrank`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from tvaccine_core import hooks

KEEP_LIMIT_BYTES = 2**26


class MergedLinear(torch.autograd.Function):
    """`x (W + sum s_i B_i A_i)' + bias`, with gradients for x, A_i and B_i; W and the bias are constants.

    Arguments of `apply`: x (..., I), W (O, I), bias (O,) or None, scalings s_i, the merged weight (O, I) if it is at
    hand or None, then A_i (R, I), B_i (O, R) in turn.
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
        # Weights stay as they are while a step lasts. Saved on the context and not through autograd, they do not make
        # checkpointing run a last linear again of which nothing else is needed.
        ctx.scalings, ctx.merged, ctx.weight, ctx.factors = scalings, merged, weight, factors
        if any(ctx.needs_input_grad[5:]):
            ctx.save_for_backward(x)
        return F.linear(x, merge(weight, scalings, factors) if merged is None else merged, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        weight, factors = ctx.weight, ctx.factors
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


def mergeable(model: nn.Module) -> list[LoraLinear]:
    """The LoRA linears of `model` whose base is a plain linear in float32 or float64."""
    return [
        module
        for module in model.modules()
        if type(module) is LoraLinear
        and type(module.base_layer) is nn.Linear
        and hooks.is_whole(module.base_layer.weight)
        and module.base_layer.weight.dtype in (torch.float32, torch.float64)
    ]


def merged_forwards(modules: Sequence[LoraLinear]) -> dict[nn.Module, Callable[..., Tensor]]:
    """Forwards with merged weights for those of `modules` that allow it.

    They hold while active adapters and their values stay as they are.
    """
    plain: list[Any] = [module for module in modules if _is_plain(module)]
    keep = sum(module.base_layer.weight.nbytes for module in plain) <= KEEP_LIMIT_BYTES
    return {module: _lean_forward(module, keep) for module in plain}


def _lean_forward(module: Any, keep: bool) -> Callable[..., Tensor]:
    plain = module.forward
    weight, bias = module.base_layer.weight, module.base_layer.bias
    active = _active_adapters(module)
    factors: list[Tensor] = [part[name].weight for name in active for part in (module.lora_A, module.lora_B)]
    scalings = tuple(module.scaling[name] for name in active)
    merged = None
    if keep:
        with torch.no_grad():
            merged = merge(weight, scalings, factors)

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or x.dtype != weight.dtype or torch.is_autocast_enabled(x.device.type):
            return plain(x, *args, **kwargs)
        return MergedLinear.apply(x, weight, bias, scalings, merged, *factors)

    return forward


def _active_adapters(module: LoraLinear) -> list[str]:
    return [name for name in module.active_adapters if name in module.lora_A]


def _is_plain(module: LoraLinear) -> bool:
    """True if merging computes what peft would."""
    weight, bias = module.base_layer.weight, module.base_layer.bias
    active = _active_adapters(module)
    if module.disable_adapters or module.merged or not active:
        return False
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        return False
    return all(
        name not in module.lora_variant
        and module.lora_A[name].weight.dtype == weight.dtype
        and module.lora_B[name].bias is None
        and not (module.training and getattr(module.lora_dropout[name], "p", 0.0))
        for name in active
    )
