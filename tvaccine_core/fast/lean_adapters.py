"""LoRA linears that keep only their input, in its own precision, for the backward pass.

peft's form casts the input to float32 once per linear, and autograd holds each copy: 142 KB per token and layer of a
bfloat16 Llama-2-7B. With dropout it also holds the dropped-out input and the mask. Here a LoRA linear holds its input
as it came, shared by all linears that read the same tensor. Casts and masks are made again in the backward pass, masks
from a seed. The same model then holds 47 KB, most of it needed for other reasons anyway.

The function is peft's: adapters in float32, their sum added to the base's output. The base, float32, bfloat16 or
quantised, runs its own code. The sum is rounded to the output's precision once, at the end. Casting bfloat16 to float32
is exact, so results differ from peft's only by this rounding. A float32 base without dropout takes `merged_adapters`.

Cost: two more thin products than peft in the backward pass, less than one percent of a layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from tvaccine_core.fast.merged_adapters import merged_forwards, require_unchanged, versions_of
from tvaccine_core.models import hooks
from tvaccine_core.models.anatomy import is_whole

ADAPTED_LINEARS = {
    "peft.tuners.lora.layer.Linear",
    "peft.tuners.lora.bnb.Linear4bit",
    "peft.tuners.lora.bnb.Linear8bitLt",
}
"""By name: bitsandbytes' classes exist only where it is installed."""


class LowRankSum(torch.autograd.Function):
    """`y + sum s_i drop_i(x) A_i' B_i'`, with gradients for x, y, A_i and B_i.

    Arguments of `apply`: x (..., I), y (..., O), scalings s_i, dropout probabilities and seeds (probability 0: none),
    then A_i (R, I), B_i (O, R) in turn, all in one precision, which is that of the products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        y: Tensor,
        scalings: tuple[float, ...],
        drops: tuple[tuple[float, int], ...],
        *factors: Tensor,
    ) -> Tensor:
        ctx.scalings, ctx.drops, ctx.factors, ctx.shape, ctx.dtype = scalings, drops, factors, x.shape, x.dtype
        ctx.versions = versions_of(factors)
        if any(ctx.needs_input_grad[4:]):
            ctx.save_for_backward(x)
        inputs = x.reshape(-1, x.shape[-1]).to(factors[0].dtype)  # (N, I)
        total = y.reshape(-1, y.shape[-1]).to(factors[0].dtype, copy=True)  # (N, O)
        for index, (scaling, drop) in enumerate(zip(scalings, drops, strict=True)):
            a, b = factors[2 * index : 2 * index + 2]
            total.addmm_(_dropped(inputs, drop) @ a.t(), b.t(), alpha=scaling)
        return total.to(y.dtype).view(y.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (outer,) = gradients
        require_unchanged(ctx.factors, ctx.versions)
        precision = ctx.factors[0].dtype
        gradient = outer.reshape(-1, outer.shape[-1]).to(precision)  # (N, O)
        inputs = None
        if any(ctx.needs_input_grad[4:]):
            (x,) = ctx.saved_tensors
            inputs = x.reshape(-1, x.shape[-1]).to(precision)
        for_x: Tensor | None = None
        result: list[Tensor | None] = []
        for index, (scaling, drop) in enumerate(zip(ctx.scalings, ctx.drops, strict=True)):
            a, b = ctx.factors[2 * index : 2 * index + 2]
            wanted_a, wanted_b = ctx.needs_input_grad[4 + 2 * index : 6 + 2 * index]
            thin = (b.t() @ gradient.t()).mul_(scaling)  # (R, N)
            if ctx.needs_input_grad[0]:
                part = _dropped(thin.t() @ a, drop)
                for_x = part if for_x is None else for_x.add_(part)
            dropped = _dropped(inputs, drop) if inputs is not None and (wanted_a or wanted_b) else None
            result.append(thin @ dropped if dropped is not None and wanted_a else None)
            result.append(
                ((a @ dropped.t()).mul_(scaling) @ gradient).t() if dropped is not None and wanted_b else None
            )
        if for_x is not None:
            for_x = for_x.to(ctx.dtype).view(ctx.shape)
        return (for_x, outer if ctx.needs_input_grad[1] else None, None, None, *result)


def _dropped(x: Tensor, drop: tuple[float, int]) -> Tensor:
    """`x` with dropout of a probability and a mask's seed. The map is diagonal: its own transpose."""
    probability, seed = drop
    if not probability:
        return x
    generator = torch.Generator(x.device).manual_seed(seed)
    mask = torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(1 - probability, generator=generator)
    return x * mask / (1 - probability)


def adapted_linears(model: nn.Module) -> list[LoraLayer]:
    """The LoRA linears of `model` that the lab can run leaner than peft."""
    return [
        module
        for module in model.modules()
        if isinstance(module, LoraLayer) and f"{type(module).__module__}.{type(module).__name__}" in ADAPTED_LINEARS
    ]


@contextmanager
def lean_adapters(modules: Sequence[LoraLayer], mergeable: Sequence[LoraLinear]) -> Iterator[None]:
    """Run `mergeable` with merged weights where possible, and the other `modules` so that each keeps only its input.

    Anything else (DoRA, biases, mixed batches, autocast) runs peft's own code. Active adapters and their values must
    not change inside. Keep it open until backward is done, as checkpointing runs the modules again.
    """
    forwards = merged_forwards(mergeable)
    others: list[Any] = [module for module in modules if module not in forwards and _is_vanilla(module)]
    forwards |= {module: _low_rank_forward(module) for module in others}
    with hooks.replace_forwards(forwards):
        yield


def _is_vanilla(module: Any) -> bool:
    active = _active(module)
    if module.disable_adapters or module.merged or not active:
        return False
    if any(parameter.requires_grad for parameter in module.base_layer.parameters()):
        return False
    precisions = {part[name].weight.dtype for name in active for part in (module.lora_A, module.lora_B)}
    return len(precisions) == 1 and all(
        name not in module.lora_variant
        and module.lora_B[name].bias is None
        and is_whole(module.lora_A[name].weight)
        and type(module.lora_dropout[name]) in (nn.Identity, nn.Dropout)
        for name in active
    )


def _low_rank_forward(module: Any) -> Callable[..., Tensor]:
    plain, base, active = module.forward, module.base_layer, _active(module)
    factors: list[Tensor] = [part[name].weight for name in active for part in (module.lora_A, module.lora_B)]
    scalings = tuple(module.scaling[name] for name in active)
    dropouts = [module.lora_dropout[name] for name in active]

    def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if args or kwargs or torch.is_autocast_enabled(x.device.type):
            return plain(x, *args, **kwargs)
        drops = tuple(_draw(dropout) for dropout in dropouts)
        return LowRankSum.apply(x, base(x), scalings, drops, *factors)

    return forward


def _draw(dropout: nn.Module) -> tuple[float, int]:
    """Probability and seed for one run; the seed comes from torch's global generator, like peft's mask."""
    probability = getattr(dropout, "p", 0.0) if dropout.training else 0.0
    return probability, int(torch.randint(2**62, ())) if probability else 0


def _active(module: Any) -> list[str]:
    return [name for name in module.active_adapters if name in module.lora_A]
