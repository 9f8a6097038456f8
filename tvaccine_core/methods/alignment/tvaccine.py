"""T-Vaccine: find the safety-critical layers, perturb and train these layers, freeze the rest.

Source: Liu, Lin, Huang, Mo, Mu and Shen, "Targeted Vaccine: Safety Alignment for Large Language Models against Harmful
Fine-Tuning via Layer-wise Perturbation", arXiv:2410.09760. Stage: alignment. Cost: two forward and two backward passes
from the lowest drawn layer up, one forward pass below it (see `passes`), a scoring pass every `rescore_every` steps.

    every rescore_every steps:   s_l = ||d h / d e_l||,  prob_l = s_l / sum s        h: loss on harmful data
    every resample_every steps:  draw num_layers layers without replacement by prob
    every step:                  g_l   = d f / d e_l  for the drawn layers           e_l: output of attention module l
                                 eps_l = rho * g_l / (||g over drawn layers, tokens and batch|| + 1e-7)
                                 descend d f(e_l + eps_l) / d w

Freezing has two readings. `layer` is the paper's: everything outside the drawn layers is frozen. `attention` is the
released code's: attention adapters train in the drawn layers only; every other adapter trains if the gradient reaches
it. The gradient reaches the lowest drawn layer and, in models of more than 26 layers, one layer below it. Parameters
outside the layers are frozen by `layer`. By `attention` a head trains; an embedding trains if the gradient reaches
layer 0.

Accelerated by Vaccine's published rule: a perturbed step every `perturb_every` steps (tau). All other steps descend the
plain loss f(e_l), in the same parameters: layers are drawn and frozen as before.

Departures from the authors' code: both passes share dropout masks; the layers are scored on a batch
(`probe_batch_size`) rather than on one sample; the norm is that of one micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tvaccine_core.config import TVaccineConfig
from tvaccine_core.errors import ConfigError, TrainingError
from tvaccine_core.methods.base import Batch, Method, MethodContext
from tvaccine_core.models.files import ModelFacts
from tvaccine_core.passes.perturbation import Perturbation, l2_norm, worst_perturbation
from tvaccine_core.records import LayerDrawRecord, LayerScoreRecord

ONE_BELOW_ABOVE = 26
"""In models of more layers than this, the released code's gradient reaches one layer below the lowest drawn layer."""

SCORED_AT_ONCE = 8
"""Rows of the probe per pass where memory is short. Scores equal those of a single pass, except for dropout masks."""


class TVaccine(Method[TVaccineConfig]):
    """Perturb and train the layers drawn by their harmful gradient norm."""

    perturbation: Perturbation | None = None
    """The perturbation of the last step; None after a plain step."""

    def setup(self, model: nn.Module, context: MethodContext) -> None:
        """Raises `ConfigError` if the model has too few layers, or if layers are to be scored without harmful data."""
        if self._uses_scores and "harmful" not in context.streams:
            raise ConfigError(
                f"layer_choice {self.config.layer_choice!r} scores layers on harmful data, and there is none.",
                remedy="Give harmful probe data, or choose layers uniform, first, last or all.",
            )
        super().setup(model, context)
        self._num_blocks = len(self.passes.blocks)
        self.info.check(self.config, ModelFacts(folder=None, num_layers=self._num_blocks))
        self._forced = False
        self._layers: tuple[int, ...] = ()
        self._scores: Tensor | None = None  # (L,)
        self._last_drawn: int | None = None
        self._frozen: list[nn.Parameter] = []
        self._places = self._locate_parameters()

    @property
    def layers(self) -> tuple[int, ...]:
        """The drawn layers, ascending; empty before the first draw."""
        return self._layers

    def set_layers(self, layers: Sequence[int] | None) -> None:
        """Force the drawn layers from now on; None goes back to scoring and drawing.

        Raises:
            ConfigError: empty, or not layers of the model.
        """
        self._forced = layers is not None
        if layers is None:
            self._layers = ()
            self._last_drawn = None
            return
        self._use(tuple(sorted(set(layers))))

    def training_step(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        if not self._forced and step != self._last_drawn:
            self._schedule(step)
        return self.descend(batch, step)

    def descend(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """Train what the draw allows: on f(e_l + eps_l) if the step is to be perturbed, else on f(e_l)."""
        tokens, reduce_sum = batch.prepare(), self.context.reduce_sum
        self.perturbation = None
        with self.scope():
            if step % self.config.perturb_every:
                return {"loss": self.passes.descend(tokens, self._frozen, batch.weight)}

            # 1. The clean pass: g_l = d f / d e_l, in the drawn layers. Nothing under the floor trains.
            clean = self.passes.clean(tokens, self._layers, self._floor(self._layers))

            # 2. eps_l = rho * g_l / ||g||, joint over the drawn layers.
            eps = worst_perturbation(clean.gradients, self.config.rho, batch.share, reduce_sum)

            # 3. The perturbed pass, from the floor up: descend d f(e_l + eps_l) / d w.
            loss = self.passes.perturbed(tokens, clean, eps.shifts, self._frozen, batch.weight)
        self.perturbation = eps.numbers()
        return {"loss": clean.loss, "perturbed_loss": loss, **eps.metrics(reduce_sum)}

    def score_layers(self, harmful: Batch) -> tuple[Tensor, Tensor]:
        """Over all processes: gradient norm of the harmful loss at every attention output, (L,), and that loss."""
        norms: list[Tensor] = []  # of each piece, (L,)
        losses: list[Tensor] = []
        # Processes that divide the rows hold fewer each, and all must make the same number of passes.
        lean = self.context.activation_memory == "lowest" and harmful.share == 1
        pieces = harmful.pieces(SCORED_AT_ONCE) if lean else []
        with self.scope():
            for piece in pieces or [harmful]:
                clean = self.passes.clean(piece.prepare(), range(self._num_blocks), floor=0)
                norms.append(torch.stack([l2_norm(gradient) for gradient in clean.gradients.values()]) * piece.share)
                losses.append(clean.loss * piece.share)
                del clean  # else its gradients would stay for the next piece
        # Squares add up: a row's loss has no gradient at another row's outputs.
        reduce_sum = self.context.reduce_sum
        return reduce_sum(torch.stack(norms).square().sum(0)).sqrt(), reduce_sum(torch.stack(losses).sum())

    def state_dict(self) -> dict[str, Tensor]:
        state = super().state_dict()
        state["layers"] = torch.tensor(self._layers, dtype=torch.long)
        if self._scores is not None:
            state["layer_scores"] = self._scores
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self._scores = state.get("layer_scores")
        layers = tuple(state["layers"].tolist())
        if layers:
            self._use(layers)

    @property
    def _uses_scores(self) -> bool:
        return bool(self.info.capabilities(self.config).scoring_rows)

    def _schedule(self, step: int) -> None:
        """Score and draw if they are due at `step`: once per step, however many micro-batches it has."""
        if self._uses_scores and (self._scores is None or step % self.config.rescore_every == 0):
            probe = self.context.sample("harmful", self.config.probe_batch_size, self.context.generator)
            self._rescore(step, probe)
        if not self._layers or step % self.config.resample_every == 0:
            self._use(self._draw())
            self.context.emit(LayerDrawRecord(step=step, layers=self._layers))
        self._last_drawn = step

    def _rescore(self, step: int, harmful: Batch) -> None:
        scores, loss = self.score_layers(harmful.to(self.passes.device))
        self._scores = scores.cpu()
        total = float(self._scores.sum())
        if not 0 < total < float("inf"):
            raise TrainingError(
                f"Layer scores at step {step} must be finite and not all zero, got {self._scores.tolist()}.",
                remedy="Look at the harmful probe data and the model: its loss has no usable gradient.",
            )
        self.context.emit(
            LayerScoreRecord(
                step=step,
                layer_scores=tuple(self._scores.tolist()),
                layer_probabilities=tuple((self._scores / total).tolist()),
                harmful_loss=float(loss),
            )
        )

    def _draw(self) -> tuple[int, ...]:
        count, choice = self.config.num_layers, self.config.layer_choice
        if choice == "all":
            return tuple(range(self._num_blocks))
        if choice == "first":
            return tuple(range(count))
        if choice == "last":
            return tuple(range(self._num_blocks - count, self._num_blocks))
        if choice == "uniform" or self._scores is None:
            drawn = torch.randperm(self._num_blocks, generator=self.context.generator)[:count]
        elif choice == "top_k":
            drawn = self._scores.topk(count).indices
        else:
            candidates = int((self._scores > 0).sum())
            if candidates < count:
                raise TrainingError(
                    f"Only {candidates} layers have a score above zero, but {count} are to be drawn by score.",
                    remedy="Lower num_layers, or choose layers uniform.",
                )
            drawn = torch.multinomial(self._scores, count, replacement=False, generator=self.context.generator)
        return tuple(sorted(drawn.tolist()))

    def _floor(self, layers: Sequence[int]) -> int:
        """The lowest layer in which anything trains."""
        one_below = self.config.freezing == "attention" and self._num_blocks > ONE_BELOW_ABOVE
        return max(0, min(layers) - one_below)

    def _use(self, layers: tuple[int, ...]) -> None:
        if not layers or not 0 <= layers[0] <= layers[-1] < self._num_blocks:
            raise ConfigError(
                f"Layers {list(layers)} are not layers of the model.",
                remedy=f"Give at least one layer from 0 to {self._num_blocks - 1}.",
            )
        self._layers = layers
        self._frozen = [
            parameter
            for parameter, place in zip(self.passes.parameters, self._places, strict=True)
            if not self._trains(place, layers)
        ]
        if len(self._frozen) == len(self.passes.parameters):
            raise ConfigError(
                f"Nothing trains in layers {list(layers)}: no adapter is there.",
                remedy="Put adapters in every layer.",
            )

    def _trains(self, place: tuple[int | None, str], layers: tuple[int, ...]) -> bool:
        layer, part = place
        if self.config.freezing == "layer" or part == "attention":
            return layer in layers
        if part == "below":
            return self._floor(layers) == 0
        return layer is None or layer >= self._floor(layers)

    def _locate_parameters(self) -> list[tuple[int | None, str]]:
        """(layer, part) of every parameter that may train; `below` acts on the input of layer 0 only."""
        in_head = {id(parameter) for parameter in self.passes.anatomy.head.parameters()}
        places: dict[int, tuple[int | None, str]] = dict.fromkeys(self.passes.below_blocks - in_head, (None, "below"))
        for index, block in enumerate(self.passes.blocks):
            places.update({id(parameter): (index, "other") for parameter in block.layer.parameters()})
            places.update({id(parameter): (index, "attention") for parameter in block.attention.parameters()})
        return [places.get(id(parameter), (None, "above")) for parameter in self.passes.parameters]
