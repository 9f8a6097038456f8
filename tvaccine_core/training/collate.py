"""From examples to batches: padding, each process's share, and draws from streams beside the one that is trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tvaccine_core.data.batches import derive_seed
from tvaccine_core.data.prompts import MASKED, Encoded
from tvaccine_core.methods.base import Batch
from tvaccine_core.processes import ALONE, Ranks


def collate(
    examples: Sequence[Encoded], pad_id: int, *, total_labelled: int | None = None, ranks: Ranks = ALONE
) -> Batch:
    """Pad on the right into one `Batch` on the CPU, prepared for its loss.

    Args:
        examples: at least one.
        pad_id: fills `input_ids`; it is masked, so any value will do.
        total_labelled: labelled tokens of the whole optimiser step; the batch's weight is its share of these tokens.
            None: the batch is the whole step.
        ranks: the processes that divide the batch. Examples are dealt in turn, since they are sorted by length. A
            process without an example takes one with weight 0, since all must take part in the sums.
    """
    whole = sum(example.num_labelled for example in examples)
    mine = examples[ranks.index :: ranks.size]
    share = sum(example.num_labelled for example in mine) / whole
    examples = mine or examples[:1]
    longest = max(len(example.input_ids) for example in examples)
    rows = [(example, longest - len(example.input_ids)) for example in examples]
    return Batch(
        input_ids=torch.tensor([[*example.input_ids, *[pad_id] * gap] for example, gap in rows]),
        attention_mask=torch.tensor([[1] * len(example.input_ids) + [0] * gap for example, gap in rows]),
        labels=torch.tensor([[*example.labels, *[MASKED] * gap] for example, gap in rows]),
        weight=share * (1.0 if total_labelled is None else whole / total_labelled),
        share=share,
    ).to("cpu")


class Sampler:
    """Draws batches from a stream that steps do not train on."""

    def __init__(self, examples: Sequence[Encoded], pad_id: int, device: torch.device, ranks: Ranks, seed: int) -> None:
        self._examples, self._pad_id, self._device, self._ranks = examples, pad_id, device, ranks
        self._seed, self._step, self._drawn = seed, 0, 0

    def begin(self, step: int) -> None:
        """Draw for this step from now on."""
        self._step, self._drawn = step, 0

    def __call__(self, count: int, generator: torch.Generator | None = None) -> Batch:
        """A batch of `count` examples without repetition, or of all if there are fewer.

        Without a generator the draw depends on the seed, the step and the number of draws in this step so far.
        """
        if generator is None:
            generator = torch.Generator().manual_seed(derive_seed(self._seed, self._step, self._drawn))
            self._drawn += 1
        order = torch.randperm(len(self._examples), generator=generator)[:count].tolist()
        chosen = [self._examples[index] for index in order]
        return collate(chosen, self._pad_id, ranks=self._ranks).to(self._device)
