"""Vaccine: train under the worst small shift of the hidden states, in every layer.

Source: Huang, Hu and Liu, "Vaccine: Perturbation-aware Alignment for Large Language Models against Harmful
Fine-tuning Attack", arXiv:2402.01109. Stage: alignment. Cost: two forward and two backward passes, the first backward
without adapter gradients.

    every step:  g_l   = d f / d e_l                                     e_l: output of attention module l
                 eps_l = rho * g_l / (||g over layers, tokens and batch|| + 1e-7)
                 descend d f(e_l + eps_l) / d w

Accelerated, as published: a perturbed step every `perturb_every` steps (tau); all other steps are plain, at SFT's cost.

Departures from the authors' code: both passes share dropout masks; the norm is that of one micro-batch.
"""

from __future__ import annotations

from torch import Tensor, nn

from tvaccine_core.config import VaccineConfig
from tvaccine_core.methods.base import Batch, Method
from tvaccine_core.passes.perturbation import Perturbation, worst_perturbation


class Vaccine(Method[VaccineConfig]):
    """Perturb every attention output, train every parameter."""

    perturbation: Perturbation | None = None
    """The perturbation of the last step; None after a plain step."""

    def training_step(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        tokens, reduce_sum = batch.prepare(), self.context.reduce_sum
        self.perturbation = None
        with self.scope():
            if step % self.config.perturb_every:
                return {"loss": self.passes.descend(tokens, frozen=(), weight=batch.weight)}

            # 1. The clean pass: g_l = d f / d e_l, in every layer.
            clean = self.passes.clean(tokens, range(len(self.passes.blocks)), floor=0)

            # 2. eps_l = rho * g_l / ||g||, joint over the layers.
            eps = worst_perturbation(clean.gradients, self.config.rho, batch.share, reduce_sum)

            # 3. The perturbed pass: descend d f(e_l + eps_l) / d w.
            loss = self.passes.perturbed(tokens, clean, eps.shifts, frozen=(), weight=batch.weight)
        self.perturbation = eps.numbers()
        return {"loss": clean.loss, "perturbed_loss": loss, **eps.metrics(reduce_sum)}
