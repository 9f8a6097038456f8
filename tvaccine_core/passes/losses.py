"""Losses: tensors in, scalar out; and the part of a batch that a causal loss depends on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tvaccine_core.errors import DataError

IGNORED = -100
"""Label of a position where nothing is learned."""


@dataclass(frozen=True, eq=False)
class LabelledTokens:
    """The part of a right- or left-padded batch that its loss can depend on under causal attention.

    Columns after the last labelled column cannot reach the loss and are cut. If no row starts with padding, a labelled
    token only attends to real tokens, so no padding mask is needed and attention may take its fast causal path.
    The head is needed at `positions` only.
    """

    input_ids: Tensor  # (B, T') long
    attention_mask: Tensor | None  # (B, T') long, None where causality alone hides the padding
    positions: Tensor  # (N,) long, into the (B * T') flattened tokens: where the next token is labelled
    targets: Tensor  # (N,) long, the next token
    real: Tensor  # (B, T') bool, False on padding; stays on the device it came from
    all_ids: Tensor | None = None  # (B, T) long, nothing cut; None: `input_ids`
    all_mask: Tensor | None = None  # (B, T) long

    def whole(self) -> LabelledTokens:
        """The same labels among all columns, all padding masked: for a model in which no column may be left out."""
        if self.all_ids is None:
            return self
        rows, columns = self.positions // self.input_ids.shape[1], self.positions % self.input_ids.shape[1]
        positions = rows * self.all_ids.shape[1] + columns
        real = torch.ones_like(self.all_ids, dtype=torch.bool) if self.all_mask is None else self.all_mask.bool()
        return LabelledTokens(self.all_ids, self.all_mask, positions, self.targets, real)

    @classmethod
    def of(cls, input_ids: Tensor, attention_mask: Tensor, labels: Tensor) -> LabelledTokens:
        """Prepare (B, T) tensors. Waits for the device if they are not on the CPU.

        Raises:
            DataError: no token is labelled.
        """
        labelled = labels[:, 1:] != IGNORED  # (B, T-1)
        columns = labelled.any(dim=0).nonzero()
        if not len(columns):
            raise DataError(
                "A batch has no labelled token, so it has no loss.",
                remedy="Raise max_length, or remove examples whose answer is empty.",
            )
        num_columns = int(columns[-1]) + 1
        labelled = labelled[:, :num_columns]
        mask = attention_mask[:, :num_columns]
        padded_right = bool((mask[:, 1:] <= mask[:, :-1]).all()) and bool(mask[:, 0].all())
        return cls(
            input_ids=input_ids[:, :num_columns],
            attention_mask=None if padded_right else mask,
            positions=labelled.flatten().nonzero().squeeze(1),
            targets=labels[:, 1 : num_columns + 1][labelled],
            real=mask.bool(),
            all_ids=input_ids,
            all_mask=attention_mask,
        )

    def to(self, device: torch.device | str) -> LabelledTokens:
        """The same tokens on `device`."""
        return LabelledTokens(
            input_ids=self.input_ids.to(device),
            attention_mask=None if self.attention_mask is None else self.attention_mask.to(device),
            positions=self.positions.to(device),
            targets=self.targets.to(device),
            real=self.real,
            all_ids=None if self.all_ids is None else self.all_ids.to(device),
            all_mask=None if self.all_mask is None else self.all_mask.to(device),
        )


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of (N, V) logits against (N,) targets, in float32 or better."""
    return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), targets)


def chunked_cross_entropy(
    hidden: Tensor,
    targets: Tensor,
    logits_of: Callable[[Tensor], Tensor],
    parameters: Sequence[Tensor],
    num_rows: int,
) -> Tensor:
    """`cross_entropy(logits_of(hidden), targets)` with the logits of at most `num_rows` rows alive at a time.

    Args:
        hidden: (N, D).
        targets: (N,) long.
        logits_of: gives (n, V) logits for n rows; a row's logits depend on this row alone.
        parameters: those used by `logits_of` that may require a gradient.
        num_rows: at least 1.
    """
    return _ChunkedCrossEntropy.apply(hidden, targets, logits_of, num_rows, *parameters)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The gradient is taken chunk by chunk in the forward pass, so only its sum waits for the backward pass.

    As in Liger's fused linear cross-entropy (Hsu et al., arXiv:2410.10989), for any head that autograd knows.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        logits_of: Callable[[Tensor], Tensor],
        num_rows: int,
        *parameters: Tensor,
    ) -> Tensor:
        needed = [ctx.needs_input_grad[0], *ctx.needs_input_grad[4:]]
        num_chunks = -(-len(targets) // num_rows)
        total: Tensor | None = None
        rows: list[Tensor] = []
        sums: list[Tensor | None] = [None] * len(parameters)
        for chunk, labels in zip(hidden.chunk(num_chunks), targets.chunk(num_chunks), strict=True):
            chunk = chunk.detach().requires_grad_(needed[0])
            with torch.set_grad_enabled(any(needed)):
                logits = logits_of(chunk)
                logits = logits if logits.dtype == torch.float64 else logits.float()
                loss = F.cross_entropy(logits, labels, reduction="sum") / len(targets)
                del logits
            total = loss.detach() if total is None else total + loss.detach()
            wanted = [tensor for tensor, need in zip((chunk, *parameters), needed, strict=True) if need]
            if not wanted:
                continue
            gradients = iter(torch.autograd.grad(loss, wanted))
            del loss
            if needed[0]:
                rows.append(next(gradients))
            for index in (index for index, need in enumerate(needed[1:]) if need):
                before, new = sums[index], next(gradients)
                sums[index] = new if before is None else before.add_(new)
        ctx.save_for_backward(torch.cat(rows) if rows else None, *sums)
        assert total is not None
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        rows, *sums = (None if saved is None else saved * gradient.to(saved.dtype) for saved in ctx.saved_tensors)
        return (rows, None, None, None, *sums)
