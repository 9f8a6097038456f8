"""LoRA linears computed with their merged weight, for as long as a step lasts.

peft computes `x W' + s (x A') B'`: two thin products, a scaling and a sum of full width on top of the base's product,
and as much again in the backward pass. The same function is `x (W + s B A)'`: while tokens outnumber the rank, merging
first is the smaller work, and an adapter that is frozen then costs next to nothing. The merged weight is made anew
wherever it is needed, so nothing is kept but what peft's form keeps too (the input, where the adapter trains), and the
model's own weights are never written. Results differ from peft's by rounding in float32.

Only plain LoRA on a plain float linear takes this road: quantised and bfloat16 weights lose precision when merged, and
dropout, DoRA, biases and mixed batches make it another function. All else runs peft's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from tvaccine_core import hooks


class MergedLinear(torch.autograd.Function):
    """`x (W + sum s_i B_i A_i)' + bias`, with gradients for x, A_i and B_i; W and the bias are constants.

    Arguments of `apply`: x (..., I), W (O, I), bias (O,) or None, scalings s_i, then A_i (R, I), B_i (O, R) in turn.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, scalings: tuple[float, ...], *factors: Tensor
    ) -> Tensor:
        ctx.scalings = scalings
        ctx.save_for_backward(x if any(ctx.needs_input_grad[4:]) else None, weight, *factors)
        return F.linear(x, _merge(weight, scalings, factors), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight, *factors = ctx.saved_tensors
        result: list[Tensor | None] = [None, None, None, None]
        if ctx.needs_input_grad[0]:
            result[0] = gradient @ _merge(weight, ctx.scalings, factors)
        if x is None:  # no adapter trains
            return (*result, *(None for _ in factors))
        x, gradient = x.reshape(-1, x.shape[-1]), gradient.reshape(-1, gradient.shape[-1])  # (N, I), (N, O)
        for index, scaling in enumerate(ctx.scalings):
            a, b = factors[2 * index : 2 * index + 2]
            for_a, for_b = ctx.needs_input_grad[4 + 2 * index : 6 + 2 * index]
            # products with the thin side first, (R, N), run up to three times as fast on a CPU
            result.append((b.t() @ gradient.t()).mul_(scaling) @ x if for_a else None)
            result.append(((a @ x.t()).mul_(scaling) @ gradient).t() if for_b else None)
        return tuple(result)


def _merge(weight: Tensor, scalings: tuple[float, ...], factors: Any) -> Tensor:
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
        and module.base_layer.weight.dtype in (torch.float32, torch.float64)
    ]


@contextmanager
def merged_adapters(modules: list[LoraLinear]) -> Iterator[None]:
    """Compute `modules` with merged weights. Keep it open until backward is done, as checkpointing runs them again."""
    with hooks.replace_forwards({module: _lean_forward(module) for module in modules}):
        yield


def _lean_forward(module: LoraLinear) -> Callable[..., Tensor]:
    plain = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base = module.base_layer
        active = [name for name in module.active_adapters if name in module.lora_A]
        if not active or args or kwargs or not _is_plain(module, x, active):
            return plain(x, *args, **kwargs)
        factors = [part[name].weight for name in active for part in (module.lora_A, module.lora_B)]
        scalings = tuple(module.scaling[name] for name in active)
        return MergedLinear.apply(x, base.weight, base.bias, scalings, *factors)

    return forward


def _is_plain(module: LoraLinear, x: Tensor, active: list[str]) -> bool:
    """True if merging computes what peft would for this input."""
    weight, bias = module.base_layer.weight, module.base_layer.bias
    if module.disable_adapters or module.merged or weight.requires_grad or (bias is not None and bias.requires_grad):
        return False
    if x.dtype != weight.dtype or torch.is_autocast_enabled(x.device.type):
        return False
    return all(
        name not in module.lora_variant
        and module.lora_A[name].weight.dtype == weight.dtype
        and module.lora_B[name].bias is None
        and not (module.training and getattr(module.lora_dropout[name], "p", 0.0))
        for name in active
    )
