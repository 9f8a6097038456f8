"""Which examples make which step: a pure function of the step, fair to every example."""

from collections import Counter

import pytest

from tvaccine_core.data.batches import BatchStream, derive_seed, require_labels
from tvaccine_core.data.prompts import Encoded
from tvaccine_core.errors import DataError

LENGTHS = [5, 9, 7, 12, 6, 8, 5, 11, 10, 4, 13]
EXAMPLES = [Encoded(str(i), tuple(range(n)), (-100, *range(1, n))) for i, n in enumerate(LENGTHS)]


@pytest.mark.parametrize("window", [1, 3])
def test_any_step_can_be_asked_for_first(window: int) -> None:
    stream = BatchStream(EXAMPLES, 4, 7, window=window)
    steps = [stream.step_indices(step) for step in range(23)]
    for step in (22, 3, 14, 0):
        assert BatchStream(EXAMPLES, 4, 7, window=window).step_indices(step) == steps[step]
    assert BatchStream(EXAMPLES, 4, 8, window=window).step_indices(0) != steps[0]


@pytest.mark.parametrize("window", [1, 3])
def test_every_example_occurs_once_a_round_and_every_step_is_full(window: int) -> None:
    stream = BatchStream(EXAMPLES, 4, 7, window=window)
    steps = [stream.step_indices(step) for step in range(33)]  # 33 x 4 = 12 rounds of 11
    assert all(len(step) == 4 for step in steps)
    assert set(Counter(index for step in steps for index in step).values()) == {12}


def test_a_step_larger_than_the_data_repeats_it() -> None:
    counts = Counter(BatchStream(EXAMPLES, 22, 7).step_indices(0))
    assert set(counts.values()) == {2}


def test_a_step_is_the_same_however_it_is_split() -> None:
    whole = BatchStream(EXAMPLES, 6, 7)
    split = BatchStream(EXAMPLES, 2, 7, accumulation=3)
    for step in range(5):
        assert whole.step_indices(step) == split.step_indices(step)
        assert [len(batch) for batch in split.micro_batches(step)] == [2, 2, 2]
    assert split.indices(4) == split.step_indices(1)[2:4]


def test_micro_batches_are_dealt_by_length() -> None:
    lengths = [len(example.input_ids) for batch in BatchStream(EXAMPLES, 2, 7, accumulation=5).micro_batches(0)
               for example in batch]  # fmt: skip
    assert lengths == sorted(lengths)


def test_a_window_saves_padding() -> None:
    many = [Encoded(str(i), (1,) * (4 + i % 17), (-100,) * (4 + i % 17)) for i in range(340)]

    def padded(window: int) -> int:
        stream = BatchStream(many, 4, 7, window=window)
        return sum(4 * max(len(many[i].input_ids) for i in stream.step_indices(step)) for step in range(80))

    assert padded(8) < 0.75 * padded(1)


def test_seeds_of_different_purposes_differ_and_never_change() -> None:
    assert derive_seed(0, "order") == 5231958647509549229
    seeds = [derive_seed(0, "order"), derive_seed(1, "order"), derive_seed(0, "adapter"), derive_seed(0, "order", 1)]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_no_examples_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to train on"):
        BatchStream([], 4, 7)


def test_an_example_without_a_label_is_named() -> None:
    first_only = Encoded("lonely/3", (5, 6), (5, -100))  # a first token can never be predicted
    with pytest.raises(DataError, match="lonely/3"):
        require_labels([*EXAMPLES, first_only])
