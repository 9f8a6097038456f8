"""SFT: supervised fine-tuning on the alignment data. The undefended twin of every defence.

Stage: alignment. Cost: one forward and one backward pass.

    every step:  descend d f(w) / d w        f: cross-entropy of the labelled tokens
"""

from __future__ import annotations

from torch import Tensor, nn

from tvaccine_core.config import SFTConfig
from tvaccine_core.methods.base import Batch, Method


class SFT(Method[SFTConfig]):
    """Descend the alignment loss."""

    def training_step(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        with self.scope():
            return {"loss": self.passes.descend(batch.prepare(), frozen=(), weight=batch.weight)}
