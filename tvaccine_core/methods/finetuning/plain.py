"""Plain fine-tuning on the user's data as it is: the target of the harmful fine-tuning attack.

Source: Qi et al., "Fine-tuning Aligned Language Models Compromises Safety, Even When Users Do Not Intend To!",
arXiv:2310.03693. Stage: fine-tuning. Cost: one forward and one backward pass.

    every step:  descend d g(w) / d w        g: cross-entropy of the user's labelled tokens
"""

from __future__ import annotations

from torch import Tensor, nn

from tvaccine_core.config import PlainConfig
from tvaccine_core.methods.base import Batch, Method


class Plain(Method[PlainConfig]):
    """Descend the user's loss."""

    def training_step(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        with self.scope():
            return {"loss": self.passes.descend(batch.prepare(), frozen=(), weight=batch.weight)}
