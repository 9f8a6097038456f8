"""Frozen RMS norms that keep their input as it came, and one number per token.

Source: Zhang and Sennrich, "Root Mean Square Layer Normalization", arXiv:1910.07467. Hugging Face's modules are a chain
of seven operations, each with its own gradient, on a float32 copy. For an input in half precision autograd holds this
copy: 4 bytes per token and channel, twice per layer. The same function with its gradient written out holds the input
and one number per token, and takes 0.7 to 0.8 of the time where operations are short. Its forward pass is bit-equal to
theirs; its gradient differs by rounding.

Two forms are in use: `w * round(x / rms(x))` in Llama and its relatives, `round((1 + w) * x / rms(x))` in Gemma, where
`round` goes to the precision of x. The form of a class is found by trying; any other class runs its own code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tvaccine_core.models.anatomy import is_whole

PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


class RMSNorm(torch.autograd.Function):
    """Arguments of `apply`: x (..., D), weight (D,), a constant, epsilon, and whether a weight of 0 stands for 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float, from_one: bool) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + epsilon)  # (..., 1)
        ctx.weight, ctx.from_one = weight, from_one
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x, scale)
        normed = wide * scale
        if from_one:
            return normed.mul_(1.0 + weight.float()).to(x.dtype)
        return normed.to(x.dtype).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, scale = ctx.saved_tensors
        weight, wide = ctx.weight, x.float()
        # d x = s (g - x s^2 mean(g x)) for s = 1 / rms(x), g = w d y
        inner = gradient.float() * (1.0 + weight.float()) if ctx.from_one else (gradient * weight).float()
        along = (inner * wide).sum(-1, keepdim=True).mul_(scale.pow(3)).mul_(-1 / x.shape[-1])  # (..., 1)
        return inner.mul_(scale).addcmul_(wide, along).to(x.dtype), None, None, None


def lean_norms(model: nn.Module) -> dict[nn.Module, Callable[..., Any]]:
    """Forwards for the frozen RMS norms of `model` whose form is known."""
    forms: dict[tuple[type, float, torch.dtype], bool | None] = {}
    forwards: dict[nn.Module, Callable[..., Any]] = {}
    for module in model.modules():
        weight, epsilon = getattr(module, "weight", None), _epsilon(module)
        if epsilon is None or not isinstance(weight, nn.Parameter) or not is_whole(weight) or weight.dim() != 1:
            continue
        if weight.dtype not in PRECISIONS or weight.requires_grad or getattr(module, "bias", None) is not None:
            continue
        key = type(module), epsilon, weight.dtype
        if key not in forms:
            forms[key] = _find_form(module, len(weight), weight.dtype, epsilon)
        form = forms[key]
        if form is not None:
            forwards[module] = _lean_forward(module, weight, epsilon, form)
    return forwards


def _epsilon(module: nn.Module) -> float | None:
    if "RMSNorm" not in type(module).__name__ or "forward" in module.__dict__:
        return None
    value = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    return value if isinstance(value, float) else None


def _find_form(module: nn.Module, width: int, dtype: torch.dtype, epsilon: float) -> bool | None:
    """True for Gemma's form, False for Llama's; None if neither gives the results of `module` bit for bit.

    It is tried on test weights, so the weights of `module` may be anywhere, or not exist yet.
    """
    weight = nn.Parameter(torch.linspace(-1, 2, width).to(dtype), requires_grad=False)
    double = copy.copy(module)
    double.__dict__["_parameters"] = {"weight": weight}
    ramp = torch.linspace(-3, 5, 7 * width).view(1, 7, width).to(dtype)
    with torch.no_grad():
        try:
            theirs = double.forward(ramp)
        except Exception:  # noqa: BLE001 - a module that needs other arguments is of another form
            return None
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
