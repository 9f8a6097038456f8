"""What a method is: the contract between one algorithm and the training loop.

`training_step` adds one micro-batch's gradient to `.grad` of every parameter that this step trains. On return weights
are bit-equal to entry, no hook is left behind, `requires_grad` is as it was, and torch's global random state is
untouched: all randomness, dropout masks included, comes from the method's own generator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from tvaccine_core.config import Config
from tvaccine_core.errors import ConfigError
from tvaccine_core.methods import MethodInfo, method_info
from tvaccine_core.passes.losses import LabelledTokens
from tvaccine_core.passes.memory import Mode
from tvaccine_core.passes.passes import Passes
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
    """Where several processes divide a micro-batch: this process's share of its labelled tokens."""
    prepared: LabelledTokens | None = field(default=None, repr=False)

    @property
    def num_tokens(self) -> int:
        """Labelled tokens after the causal shift. Waits for the device if the batch is not on the CPU."""
        return int((self.labels[:, 1:] != -100).sum())

    def prepare(self) -> LabelledTokens:
        """The part of this batch that its loss depends on."""
        return self.prepared or LabelledTokens.of(self.input_ids, self.attention_mask, self.labels)

    def pieces(self, num_rows: int) -> list[Batch]:
        """Its rows, `num_rows` at a time, without pieces that have no label; a share is a part of the whole batch."""
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


Draw = Callable[[int, torch.Generator | None], Batch]
"""Draws a batch of a number of examples; see `MethodContext.sample`."""


@dataclass(frozen=True)
class MethodContext:
    """What the training loop gives a method."""

    generator: torch.Generator
    """On the CPU; the method's only source of randomness."""
    reduce_sum: Callable[[Tensor], Tensor]
    """Sum over processes; the identity in one."""
    emit: Callable[[Event], None]
    """Report an event of the method's own, e.g. a `LayerDrawRecord`."""
    rank: int = 0
    """The number of this process; all draw the same layers, each has dropout masks of its own."""
    activation_memory: Mode = "speed"
    """How much passes keep for their backward passes."""
    fast_paths: bool = True
    """Whether the lab's faster forms of modules may replace the model's own, see `fast.switch`."""
    streams: Mapping[str, Draw] = field(default_factory=dict)
    """Draws batches from the streams that exist, by their names."""

    def sample(self, stream: str, count: int, generator: torch.Generator | None = None) -> Batch:
        """A batch of `count` examples of a stream, or of all if there are fewer, on the model's device.

        Without a generator the draw depends on the seed, the step and the number of draws in this step so far. Several
        processes divide it like the batch that is trained on; `weight` is this process's share.

        Raises:
            ConfigError: there is no such stream.
        """
        if stream not in self.streams:
            raise ConfigError(
                f"There are no {stream} examples to draw from.",
                remedy=f"Name one of the streams that are there: {', '.join(self.streams) or 'none'}.",
            )
        return self.streams[stream](count, generator)


class Method(ABC, Generic[ConfigT]):
    """One algorithm. Make it, `setup` once, then `training_step` for every micro-batch, and `finish` once."""

    passes: Passes
    context: MethodContext

    def __init__(self, config: ConfigT) -> None:
        self.config = config

    @property
    def info(self) -> MethodInfo:
        """This method's entry in `METHODS`."""
        return method_info(getattr(self.config, "name", ""))

    @property
    def needs(self) -> tuple[str, ...]:
        """Streams that it needs beside the stream it trains on."""
        return self.info.capabilities(self.config).needs

    def stream_of(self, step: int) -> str | None:
        """The stream that step `step` (0-based) trains on; None for the main one. A pure function of the step."""
        return None

    def setup(self, model: nn.Module, context: MethodContext) -> None:
        """Look at the model once. The method may train the parameters that require a gradient now.

        Raises:
            ModelError: the model's parts cannot be found by structure.
            ConfigError: a stream that the method needs is not there.
        """
        missing = [stream for stream in self.needs if stream not in context.streams]
        if missing:
            raise ConfigError(
                f"{self.info.title} needs {missing[0]} examples, and there are none.",
                remedy=f"Give a data set with {missing[0]} examples, or choose another method.",
            )
        self.passes = Passes(model, context.activation_memory, fast=context.fast_paths)
        self.context = context

    @abstractmethod
    def training_step(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        """Add `batch.weight` times this micro-batch's gradient to `.grad` of what step `step` (0-based) trains.

        Returns:
            Detached 0-dim tensors; always `loss`, the clean loss, mean over the batch's labelled tokens. Where several
            processes divide a micro-batch, a value is the mean over this process's tokens, or the same in all.
        """

    def finish(self, model: nn.Module) -> None:
        """Called once, after the last step; may change weights.

        A checkpoint holds weights and `state_dict` from before this call: the result must follow from them alone.
        """

    def scope(self) -> AbstractContextManager[None]:
        """The context around all passes of one step, backward included; see `Passes.scope`."""
        return self.passes.scope(self.context.generator, self.context.rank)

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that a resumed run needs beside weights and optimiser."""
        return {"generator": self.context.generator.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`, a result of `state_dict`. Call it after `setup`."""
        self.context.generator.set_state(state["generator"])
