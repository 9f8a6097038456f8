"""Losses: tensors in, scalar out; and the part of a batch that a causal loss depends on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tvaccine_core.errors import DataError

IGNORED = -100
"""Label of a position where nothing is learned."""


@dataclass(frozen=True, eq=False)
class LabelledTokens:
    """What the loss of a right- or left-padded batch can depend on under causal attention.

    Columns after the last labelled one cannot reach the loss and are cut. Where no row starts with padding, a labelled
    token only ever attends to real tokens, so no padding mask is needed and attention may take its fast causal path.
    The head is needed at `positions` only.
    """

    input_ids: Tensor  # (B, T') long
    attention_mask: Tensor | None  # (B, T') long, None where causality alone hides the padding
    positions: Tensor  # (N,) long, into the (B * T') flattened tokens: where the next token is labelled
    targets: Tensor  # (N,) long, that next token

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
        )

    def to(self, device: torch.device | str) -> LabelledTokens:
        """The same tokens on `device`."""
        return LabelledTokens(
            input_ids=self.input_ids.to(device),
            attention_mask=None if self.attention_mask is None else self.attention_mask.to(device),
            positions=self.positions.to(device),
            targets=self.targets.to(device),
        )


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats of (N, V) logits against (N,) targets, in float32 or better."""
    return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), targets)
