"""What a method is: the contract between one algorithm and the training loop.

`training_step` adds one micro-batch's gradient to `.grad` of every parameter that this step trains. On return weights
are bit-equal to entry, no hook is left behind, `requires_grad` is as it was, and torch's global random state is
untouched: all randomness, dropout masks included, comes from the method's own generator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from tvaccine_core.activation_memory import Mode
from tvaccine_core.config import Config
from tvaccine_core.grads import joint_norm, l2_norm, scale_to_radius
from tvaccine_core.losses import LabelledTokens
from tvaccine_core.methods import MethodInfo, method_info
from tvaccine_core.passes import Passes
from tvaccine_core.records import Event

ConfigT = TypeVar("ConfigT", bound=Config)


@dataclass(frozen=True, eq=False)
class Batch:
    """One micro-batch, padded on the right. Labels follow Hugging Face: not shifted, -100 where nothing is learned."""

    input_ids: Tensor  # (B, T) long
    attention_mask: Tensor  # (B, T) long, 1 on real tokens
    labels: Tensor  # (B, T) long
    weight: float = 1.0
    """This micro-batch's share of its optimiser step's labelled tokens; scales the gradient it adds."""
    share: float = 1.0
    """Of a micro-batch that several processes divide: the share of its labelled tokens that is here."""
    prepared: LabelledTokens | None = field(default=None, repr=False)

    @property
    def num_tokens(self) -> int:
        """Labelled tokens after the causal shift. Waits for the device if the batch is not on the CPU."""
        return int((self.labels[:, 1:] != -100).sum())

    def prepare(self) -> LabelledTokens:
        """The part of this batch that its loss depends on."""
        return self.prepared or LabelledTokens.of(self.input_ids, self.attention_mask, self.labels)

    def pieces(self, num_rows: int) -> list[Batch]:
        """Its rows, so many at a time, those pieces left out in which nothing is labelled; shares are of the whole."""
        rows = zip(
            *(tensor.split(num_rows) for tensor in (self.input_ids, self.attention_mask, self.labels)), strict=True
        )
        pieces = [Batch(*tensors, weight=self.weight) for tensors in rows]
        whole = self.num_tokens
        return [replace(piece, share=self.share * piece.num_tokens / whole) for piece in pieces if piece.num_tokens]

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`. Prepares it first, where that costs no wait for the device."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            labels=self.labels.to(device),
            prepared=self.prepare().to(device),
        )


@dataclass(frozen=True)
class MethodContext:
    """What the loop lends a method."""

    generator: torch.Generator
    """On the CPU; the method's only source of randomness."""
    sample_harmful: Callable[[int, torch.Generator], Batch] | None
    """A batch of so many harmful examples from the probe split; None where a run has none."""
    reduce_sum: Callable[[Tensor], Tensor]
    """Sum over processes; the identity in one."""
    emit: Callable[[Event], None]
    """Report an event of the method's own, e.g. a `LayerDrawRecord`."""
    rank: int = 0
    """Which of the processes this is; all draw the same layers, each has dropout masks of its own."""
    activation_memory: Mode = "speed"
    """What passes keep for their backward passes."""
    fast_paths: bool = True
    """Whether the lab's own forms of modules may stand in for the model's, see `fast_paths`."""


class Method(ABC, Generic[ConfigT]):
    """One algorithm. Make it, `setup` once, then `training_step` for every micro-batch."""

    passes: Passes
    context: MethodContext
    perturbation_norms: dict[int, Tensor]
    """Layer -> L2 norm of its share of the last step's perturbation, in this process; empty without a perturbation."""

    def __init__(self, config: ConfigT) -> None:
        self.config = config
        self.perturbation_norms = {}

    @property
    def info(self) -> MethodInfo:
        """This method's entry in `METHODS`."""
        return method_info(getattr(self.config, "name", ""))

    def setup(self, model: nn.Module, context: MethodContext) -> None:
        """Look at the model once. What requires a gradient now is what this method may train.

        Raises:
            ModelError: the model's parts cannot be found by structure.
        """
        self.passes = Passes(model, context.activation_memory, fast=context.fast_paths)
        self.context = context

    @abstractmethod
    def training_step(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        """Add `batch.weight` times this micro-batch's gradient to `.grad` of what step `step` (0-based) trains.

        Returns:
            Detached 0-dim tensors; always `loss`, the clean loss, mean over the batch's labelled tokens. Where several
            processes divide a micro-batch, each is such a mean here, or the same in all of them.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """What a resumed run needs beside weights and optimiser."""
        return {"generator": self.context.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up where `state_dict` left off. Call it after `setup`."""
        self.context.generator.set_state(state["generator"])

    def plain_step(self, batch: Batch, frozen: Sequence[nn.Parameter]) -> dict[str, Tensor]:
        """Descend the loss without a perturbation in all parameters but `frozen`."""
        self.perturbation_norms = {}
        with self.passes.scope(self.context.generator, self.context.rank):
            return {"loss": self.passes.descend(batch.prepare(), frozen, batch.weight)}

    def perturbed_step(
        self, batch: Batch, layers: Sequence[int], *, floor: int, frozen: Sequence[nn.Parameter], rho: float
    ) -> dict[str, Tensor]:
        """Two passes: find the worst shift of radius `rho` at the attention outputs of `layers`, descend under it.

        Nothing below layer `floor` trains; `frozen` are the parameters from there up that do not train either.
        Processes that divide the micro-batch find its shift together: each loss here is a mean over its own tokens, so
        the micro-batch's gradient at a hidden state is `batch.share` times the one found.
        """
        tokens = batch.prepare()
        reduce_sum = self.context.reduce_sum
        with self.passes.scope(self.context.generator, self.context.rank):
            clean = self.passes.clean(tokens, layers, floor)
            mine = {layer: l2_norm(gradient) * batch.share for layer, gradient in clean.gradients.items()}
            norm, norms = joint_norm(mine, reduce_sum)
            shifts = scale_to_radius(clean.gradients, norm, rho * batch.share)
            self.perturbation_norms = {layer: l2_norm(shift) for layer, shift in shifts.items()}
            perturbed_loss = self.passes.perturbed(tokens, clean, shifts, frozen, batch.weight)
        return {
            "loss": clean.loss,
            "perturbed_loss": perturbed_loss,
            "perturbation_norm": joint_norm(self.perturbation_norms, reduce_sum)[0],
            "clean_grad_norm": norm,
            **{f"clean_grad_norm.{layer}": value for layer, value in norms.items()},
        }
