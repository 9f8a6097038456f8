"""Gradient algebra on plain tensors: norms and the perturbation they define."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part", bound=Hashable)
"""The key of a tensor: a layer's index, or a parameter."""

EPSILON = 1e-7
"""Keeps the perturbation finite where the gradient is zero; the value of the authors' code."""


def l2_norm(tensor: Tensor) -> Tensor:
    """L2 norm over all elements, 0-dim, in float32 or better."""
    return torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))


def joint_norm(
    norms: Mapping[Part, Tensor], reduce_sum: Callable[[Tensor], Tensor]
) -> tuple[Tensor, dict[Part, Tensor]]:
    """L2 norm over all parts and all processes, from each part's norm in this process; and each part's own."""
    squares = reduce_sum(torch.stack(list(norms.values())).square())
    return squares.sum().sqrt(), dict(zip(norms, squares.sqrt().unbind(), strict=True))


def total_norm(gradients: Mapping[Part, Tensor]) -> Tensor:
    """L2 norm of all of `gradients` together, 0-dim."""
    return joint_norm({part: l2_norm(gradient) for part, gradient in gradients.items()}, lambda squares: squares)[0]


def sum_over_processes(
    gradients: Mapping[Part, Tensor], share: float, reduce_sum: Callable[[Tensor], Tensor]
) -> dict[Part, Tensor]:
    """The gradients of a micro-batch that several processes divide, the same bits in each process.

    Args:
        gradients: of the mean over this process's tokens; the same parts, in the same order, in every process.
        share: this process's share of the micro-batch's labelled tokens.
        reduce_sum: sum over processes.
    """
    flat = reduce_sum(torch.cat([gradient.flatten() for gradient in gradients.values()]) * share)
    pieces = flat.split([gradient.numel() for gradient in gradients.values()])
    return {
        part: piece.view_as(gradient).to(gradient.dtype)
        for (part, gradient), piece in zip(gradients.items(), pieces, strict=True)
    }


def scale_to_radius(gradients: Mapping[Part, Tensor], norm: Tensor, radius: float) -> dict[Part, Tensor]:
    """The first-order worst shift within an L2 ball: `radius * g / (norm + 1e-7)`, where `norm` is that of all g."""
    scale = radius / (norm + EPSILON)
    return {part: gradient * scale.to(gradient.dtype) for part, gradient in gradients.items()}


@dataclass(frozen=True, eq=False)
class Perturbation:
    """The worst shift of hidden states per layer, its norms, and the norms of its gradient."""

    shifts: dict[int, Tensor]
    """Layer -> (B, T', D), for this process's rows."""
    norms: dict[int, Tensor]
    """Layer -> L2 norm of its shift, for this process's rows."""
    gradient_norm: Tensor
    """Joint over the layers and all processes."""
    gradient_norms: dict[int, Tensor]
    """Layer -> L2 norm of its gradient, over all processes."""

    def numbers(self) -> Perturbation:
        """A copy to keep from step to step: without the shifts, which are as large as the hidden states."""
        return replace(self, shifts={})

    def metrics(self, reduce_sum: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        """The numbers that a step reports, the same in all processes."""
        return {
            "perturbation_norm": joint_norm(self.norms, reduce_sum)[0],
            "clean_grad_norm": self.gradient_norm,
            **{f"clean_grad_norm.{layer}": value for layer, value in self.gradient_norms.items()},
        }


def worst_perturbation(
    gradients: Mapping[int, Tensor], radius: float, share: float, reduce_sum: Callable[[Tensor], Tensor]
) -> Perturbation:
    """The shift of hidden states by which a loss grows most, to first order, within an L2 ball joint over all of them.

    Processes that divide a micro-batch find its shift together. A process's loss is a mean over its own tokens, so the
    micro-batch's gradient at a hidden state is `share` times the process's gradient.

    Args:
        gradients: layer -> d loss / d hidden states, (B, T', D).
        radius: radius of the ball.
        share: this process's share of the micro-batch's labelled tokens.
        reduce_sum: sum over processes.
    """
    mine = {layer: l2_norm(gradient) * share for layer, gradient in gradients.items()}
    norm, norms = joint_norm(mine, reduce_sum)
    shifts = scale_to_radius(gradients, norm, radius * share)
    return Perturbation(shifts, {layer: l2_norm(shift) for layer, shift in shifts.items()}, norm, norms)
