"""Gradient algebra on plain tensors: norms and the perturbation they define."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

EPSILON = 1e-7
"""Keeps the perturbation finite where the gradient is zero; the value of the authors' code."""


def l2_norm(tensor: Tensor) -> Tensor:
    """L2 norm over all elements, 0-dim, in float32 or better."""
    return torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))


def joint_norm(norms: Mapping[int, Tensor], reduce_sum: Callable[[Tensor], Tensor]) -> tuple[Tensor, dict[int, Tensor]]:
    """L2 norm, over all processes, of everything whose parts have these norms here; and that of each part."""
    squares = reduce_sum(torch.stack(list(norms.values())).square())
    return squares.sum().sqrt(), dict(zip(norms, squares.sqrt().unbind(), strict=True))


def scale_to_radius(gradients: Mapping[int, Tensor], norm: Tensor, radius: float) -> dict[int, Tensor]:
    """The first-order worst shift within an L2 ball: `radius * g / (norm + 1e-7)`, `norm` being that of all g."""
    scale = radius / (norm + EPSILON)
    return {index: gradient * scale.to(gradient.dtype) for index, gradient in gradients.items()}
