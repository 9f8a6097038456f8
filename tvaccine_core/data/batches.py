"""Which examples make which step. Torch-free.

`BatchStream` is a pure function of the step's index: to resume a run, nothing is replayed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from random import Random

from tvaccine_core.data.prompts import Encoded
from tvaccine_core.errors import DataError


def derive_seed(seed: int, *purpose: str | int) -> int:
    """An independent 63-bit seed for each purpose, the same on every machine and in every process."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class BatchStream:
    """An endless sequence of steps over shuffled rounds of the examples.

    Every example occurs once a round; a step may straddle two rounds, so that every step has the same size and nothing
    is dropped. A step's examples do not depend on how it is split into micro-batches.

    Within a step the examples are dealt to micro-batches by length, which saves padding and leaves the step's gradient
    as it is. With `window` > 1 that many consecutive steps are sorted by length together and then shuffled: still less
    padding, but refusals, recipes and task answers differ in length, so steps become one-sided and the gradient
    noisier. Off by default for that reason.
    """

    def __init__(
        self, examples: Sequence[Encoded], batch_size: int, seed: int, *, accumulation: int = 1, window: int = 1
    ) -> None:
        if not examples:
            raise DataError("There is nothing to train on: no examples.", remedy="Choose data that is not empty.")
        self._examples = examples
        self._batch_size = batch_size
        self._step_size = batch_size * accumulation
        self._seed = seed
        self._window = window
        # Both are pure; cached because consecutive steps ask for the same round and the same window again and again.
        self._round = lru_cache(maxsize=2)(self._shuffle_round)
        self._steps = lru_cache(maxsize=1)(self._deal_window)

    def step_indices(self, step: int) -> list[int]:
        """Indices of the examples of optimiser step `step` (0-based), in micro-batch order."""
        return self._steps(step // self._window)[step % self._window]

    def indices(self, index: int) -> list[int]:
        """Indices of the examples of micro-batch `index`, counted from the first step on."""
        per_step = self._step_size // self._batch_size
        start = (index % per_step) * self._batch_size
        return self.step_indices(index // per_step)[start : start + self._batch_size]

    def micro_batches(self, step: int) -> list[list[Encoded]]:
        """The examples of step `step`, micro-batch by micro-batch."""
        chosen = [self._examples[index] for index in self.step_indices(step)]
        return [chosen[start : start + self._batch_size] for start in range(0, len(chosen), self._batch_size)]

    def _shuffle_round(self, number: int) -> list[int]:
        order = list(range(len(self._examples)))
        Random(derive_seed(self._seed, "round", number)).shuffle(order)
        return order

    def _deal_window(self, number: int) -> list[list[int]]:
        size = self._step_size * self._window
        count = len(self._examples)
        drawn = [
            self._round(position // count)[position % count] for position in range(number * size, (number + 1) * size)
        ]
        drawn.sort(key=lambda index: len(self._examples[index].input_ids))
        steps = [drawn[start : start + self._step_size] for start in range(0, size, self._step_size)]
        Random(derive_seed(self._seed, "window", number)).shuffle(steps)
        return steps


def require_labels(examples: Sequence[Encoded]) -> None:
    """Raise `DataError` naming the first example with nothing to learn."""
    for example in examples:
        if not example.num_labelled:
            raise DataError(
                f"Example {example.example_id} has no labelled token, so it has no loss.",
                remedy="Raise max_length, or remove examples whose answer is empty.",
            )
