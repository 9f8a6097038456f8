"""Gradient algebra on plain tensors: norms and the perturbation they define."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part", bound=Hashable)
"""What a tensor belongs to: a layer's index, a parameter."""

EPSILON = 1e-7
"""Keeps the perturbation finite where the gradient is zero; the value of the authors' code."""


def l2_norm(tensor: Tensor) -> Tensor:
    """L2 norm over all elements, 0-dim, in float32 or better."""
    return torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))


def joint_norm(
    norms: Mapping[Part, Tensor], reduce_sum: Callable[[Tensor], Tensor]
) -> tuple[Tensor, dict[Part, Tensor]]:
    """L2 norm, over all processes, of everything whose parts have these norms here; and that of each part."""
    squares = reduce_sum(torch.stack(list(norms.values())).square())
    return squares.sum().sqrt(), dict(zip(norms, squares.sqrt().unbind(), strict=True))


def total_norm(gradients: Mapping[Part, Tensor]) -> Tensor:
    """L2 norm of all of `gradients` together, 0-dim."""
    return joint_norm({part: l2_norm(gradient) for part, gradient in gradients.items()}, lambda squares: squares)[0]


def sum_over_processes(
    gradients: Mapping[Part, Tensor], share: float, reduce_sum: Callable[[Tensor], Tensor]
) -> dict[Part, Tensor]:
    """The gradients of a micro-batch that several processes divide, the same bits in each.

    Args:
        gradients: of the mean over the tokens here; the same parts, in the same order, in every process.
        share: of the micro-batch's labelled tokens that is here.
        reduce_sum: sum over processes.
    """
    flat = reduce_sum(torch.cat([gradient.flatten() for gradient in gradients.values()]) * share)
    pieces = flat.split([gradient.numel() for gradient in gradients.values()])
    return {
        part: piece.view_as(gradient).to(gradient.dtype)
        for (part, gradient), piece in zip(gradients.items(), pieces, strict=True)
    }


def scale_to_radius(gradients: Mapping[Part, Tensor], norm: Tensor, radius: float) -> dict[Part, Tensor]:
    """The first-order worst shift within an L2 ball: `radius * g / (norm + 1e-7)`, `norm` being that of all g."""
    scale = radius / (norm + EPSILON)
    return {part: gradient * scale.to(gradient.dtype) for part, gradient in gradients.items()}
