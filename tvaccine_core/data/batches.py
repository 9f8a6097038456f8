"""The examples of each step. Torch-free.

`BatchStream` and `Schedule` are pure functions of the step's index, so a resumed run replays nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from random import Random

from tvaccine_core.data.prompts import Encoded
from tvaccine_core.errors import ConfigError, DataError

MAIN_STREAMS = ("user", "alignment")
"""A step trains on the first of these streams that exists, unless a method picks another."""


def derive_seed(seed: int, *purpose: str | int) -> int:
    """An independent 63-bit seed for each purpose, the same on every machine and in every process."""
    text = "/".join(str(part) for part in (seed, *purpose))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class BatchStream:
    """An endless sequence of steps over shuffled rounds of the examples.

    Every example occurs once per round; a step may cross two rounds, so that every step has the same size and nothing
    is dropped. A step's examples do not depend on how it is split into micro-batches.

    Within a step the examples are dealt to micro-batches by length. This saves padding and does not change the step's
    gradient. (Sorting several steps together would save more, but refusals, recipes and task answers differ in length:
    steps would become one-sided and the gradient noisier.)
    """

    def __init__(self, examples: Sequence[Encoded], batch_size: int, seed: int, *, accumulation: int = 1) -> None:
        if not examples:
            raise DataError("There is nothing to train on: no examples.", remedy="Choose data that is not empty.")
        self._examples = examples
        self._batch_size = batch_size
        self._step_size = batch_size * accumulation
        self._seed = seed
        # Pure; cached because consecutive steps need the same round.
        self._round = lru_cache(maxsize=2)(self._shuffle_round)

    def step_indices(self, step: int) -> list[int]:
        """Indices of the examples of step `step` (0-based), in micro-batch order."""
        size, count = self._step_size, len(self._examples)
        drawn = [self._round(position // count)[position % count] for position in range(step * size, (step + 1) * size)]
        return sorted(drawn, key=lambda index: len(self._examples[index].input_ids))

    def micro_batches(self, step: int) -> list[list[Encoded]]:
        """The examples of step `step`, micro-batch by micro-batch."""
        chosen = [self._examples[index] for index in self.step_indices(step)]
        return [chosen[start : start + self._batch_size] for start in range(0, len(chosen), self._batch_size)]

    def _shuffle_round(self, number: int) -> list[int]:
        order = list(range(len(self._examples)))
        Random(derive_seed(self._seed, "round", number)).shuffle(order)
        return order


class Schedule:
    """The examples and the stream of every optimiser step.

    Each stream goes on where its own last step ended, so that every example of a stream occurs once per round.
    """

    def __init__(
        self,
        streams: Mapping[str, Sequence[Encoded]],
        picks: Sequence[str | None],
        batch_size: int,
        seed: int,
        *,
        accumulation: int = 1,
    ) -> None:
        """
        Args:
            streams: examples by name of the stream.
            picks: the stream of each step; None for the main stream.
            batch_size: examples per micro-batch.
            seed: seed of the order.
            accumulation: micro-batches per step.

        Raises:
            ConfigError: there is no main stream, or a step picks a missing stream.
            DataError: a stream that steps train on is empty.
        """
        main = next((name for name in MAIN_STREAMS if name in streams), None)
        if main is None:
            raise ConfigError(
                f"There is no stream to train on, only: {', '.join(streams) or 'none'}.",
                remedy=f"Give examples as one of the streams: {', '.join(MAIN_STREAMS)}.",
            )
        self.main = main
        """The stream that steps train on unless the method picks another."""
        self._turns: list[tuple[str, int]] = []
        counts: dict[str, int] = {}
        for name in (pick or main for pick in picks):
            self._turns.append((name, counts.get(name, 0)))
            counts[name] = self._turns[-1][1] + 1
        missing = sorted(set(counts) - set(streams))
        if missing:
            raise ConfigError(
                f"The method trains on the stream {missing[0]!r}, which does not exist.",
                remedy=f"Give examples for this stream, beside: {', '.join(streams)}.",
            )
        self._examples = {name: streams[name] for name in {main, *counts}}
        self._streams = {
            name: BatchStream(
                examples,
                batch_size,
                seed if name == main else derive_seed(seed, "stream", name),
                accumulation=accumulation,
            )
            for name, examples in self._examples.items()
        }

    def examples(self) -> Iterator[Encoded]:
        """The examples of all streams that steps train on."""
        for examples in self._examples.values():
            yield from examples

    def micro_batches(self, step: int) -> list[list[Encoded]]:
        """The examples of optimiser step `step` (0-based), micro-batch by micro-batch."""
        name, turn = self._turns[step]
        return self._streams[name].micro_batches(turn)


def require_labels(examples: Sequence[Encoded]) -> None:
    """Raise `DataError` naming the first example without a label."""
    for example in examples:
        if not example.num_labelled:
            raise DataError(
                f"Example {example.example_id} has no labelled token, so it has no loss.",
                remedy="Raise max_length, or remove examples whose answer is empty.",
            )
