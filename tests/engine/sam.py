"""Sharpness-aware minimisation over the adapters: a two-pass method, and plain autograd to hold it against.

Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", arXiv:2010.01412:

    eps = rho * g / ||g||,  g = d f(w) / d w
    descend d f(w + eps) / d w
"""

from typing import Any

import torch
from torch import Tensor, nn

from tvaccine_core.config import SFTConfig
from tvaccine_core.fast.lean_adapters import _draw, _dropped
from tvaccine_core.methods.base import Batch, Method
from tvaccine_core.models.anatomy import find_blocks
from tvaccine_core.passes.losses import LabelledTokens, cross_entropy
from tvaccine_core.passes.perturbation import scale_to_radius, sum_over_processes, total_norm


class SAM(Method[SFTConfig]):
    """Descend the loss at the weights that are worst nearby."""

    def __init__(self, rho: float) -> None:
        super().__init__(SFTConfig())
        self.rho = rho

    def training_step(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        tokens, reduce_sum = batch.prepare(), self.context.reduce_sum
        with self.passes.scope(self.context.generator, self.context.rank):
            loss, mine = self.passes.gradients(tokens, self.passes.parameters)
            gradients = sum_over_processes(mine, batch.share, reduce_sum)
            with self.passes.moved(scale_to_radius(gradients, total_norm(gradients), self.rho)):
                moved_loss = self.passes.descend(tokens, (), batch.weight)
        return {"loss": loss, "moved_loss": moved_loss}


class SeededDropout(nn.Module):
    """Dropout in peft's own linears by the masks of `lowrank`, which depend on nothing but a seed.

    In the last feed-forward half, which the lab runs at `positions` only, it drops there alone: no other row counts.
    """

    def __init__(self, p: float, positions: Tensor | None) -> None:
        super().__init__()
        self.p, self.positions = p, positions

    def forward(self, x: Tensor) -> Tensor:
        rows, drop = x.reshape(-1, x.shape[-1]), _draw(self)
        if self.positions is None:
            return _dropped(rows, drop).view(x.shape)
        return rows.index_copy(0, self.positions, _dropped(rows[self.positions], drop)).view(x.shape)


def plain_sam(model: nn.Module, tokens: LabelledTokens, rho: float, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Gradients by name at the moved weights, and the loss before, by peft's own code and autograd alone.

    Args:
        model: a copy: its dropouts are exchanged and its weights moved for good.
        tokens: the batch.
        rho: radius of the move.
        seed: of the dropout masks, as the step's scope draws it.
    """
    last = find_blocks(model)[-1].mlp
    in_last = set() if last is None else set(last.modules())
    for module in list(model.modules()):
        for adapter, dropout in list(getattr(module, "lora_dropout", {}).items()):
            dropouts: Any = module.lora_dropout
            dropouts[adapter] = SeededDropout(
                getattr(dropout, "p", 0.0), tokens.positions if module in in_last else None
            ).train(dropout.training)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}

    def gradients() -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(seed)
        logits = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, use_cache=False).logits
        loss = cross_entropy(logits.flatten(0, 1)[tokens.positions], tokens.targets)
        return loss.detach(), list(torch.autograd.grad(loss, list(trained.values())))

    loss, here = gradients()
    norm = torch.cat([gradient.flatten() for gradient in here]).norm()
    with torch.no_grad():
        for parameter, gradient in zip(trained.values(), here, strict=True):
            parameter += rho * gradient / (norm + 1e-7)
    return dict(zip(trained, gradients()[1], strict=True)), loss
