"""RMS norms of a half-precision model that keep their input as it came.

Hugging Face's modules cast the input to float32, and autograd holds that copy: 4 bytes for every token and channel,
twice a layer. The same function with its gradient written out holds the 2-byte input and one number a token. Its
forward pass is bit-equal to theirs; its gradient differs by rounding.

Two forms are in use: Llama's and its kin's, `w * round(x / rms(x))`, and Gemma's, `round((1 + w) * x / rms(x))`, where
`round` goes to the precision of x. Which one a module has is found by trying, once; any other runs its own code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

HALF = (torch.bfloat16, torch.float16)


class RMSNorm(torch.autograd.Function):
    """Arguments of `apply`: x (..., D), weight (D,), a constant, epsilon, and whether the weight's zero means one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, from_one: bool) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)  # (..., 1)
        ctx.weight, ctx.from_one = weight, from_one
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x, scale)
        if from_one:
            return (wide * scale * (1.0 + weight.float())).to(x.dtype)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        x, scale = ctx.saved_tensors
        weight = ctx.weight
        inner = gradient.float() * (1.0 + weight.float()) if ctx.from_one else (gradient * weight).float()
        normed = x.float() * scale
        inner = inner - normed * (inner * normed).mean(-1, keepdim=True)
        return inner.mul_(scale).to(x.dtype), None, None, None


def lean_norms(model: nn.Module) -> dict[nn.Module, Callable[..., Any]]:
    """Forwards for the frozen half-precision RMS norms of `model` whose form is known."""
    forms: dict[tuple[type, float], bool | None] = {}
    forwards: dict[nn.Module, Callable[..., Any]] = {}
    for module in model.modules():
        weight, epsilon = getattr(module, "weight", None), _epsilon(module)
        if epsilon is None or type(weight) is not nn.Parameter or weight.dim() != 1:
            continue  # a sharded weight is whole only while its layer runs
        if weight.dtype not in HALF or weight.requires_grad or getattr(module, "bias", None) is not None:
            continue
        key = type(module), epsilon
        if key not in forms:
            forms[key] = _find_form(module, weight, epsilon)
        form = forms[key]
        if form is not None:
            forwards[module] = _lean_forward(module, weight, epsilon, form)
    return forwards


def _epsilon(module: nn.Module) -> float | None:
    if "RMSNorm" not in type(module).__name__:
        return None
    value = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return value if isinstance(value, float) else None


def _find_form(module: nn.Module, weight: Tensor, epsilon: float) -> bool | None:
    """Whether `module` counts its weight from one; None if neither form gives its results bit for bit."""
    ramp = torch.linspace(-3, 5, 7 * len(weight), device=weight.device).view(1, 7, -1).to(weight.dtype)
    with torch.no_grad():
        theirs = module(ramp)
        for from_one in (False, True):
            if torch.equal(theirs, RMSNorm.apply(ramp, weight, epsilon, from_one)):
                return from_one
    return None


def _lean_forward(module: nn.Module, weight: Tensor, epsilon: float, from_one: bool) -> Callable[..., Any]:
    plain = module.forward

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs or x.dtype != weight.dtype or weight.requires_grad:
            return plain(x, *args, **kwargs)
        return RMSNorm.apply(x, weight, epsilon, from_one)

    return forward
