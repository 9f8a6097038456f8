"""Which examples make which step: a pure function of the step, fair to every example."""

from collections import Counter
from dataclasses import replace

import pytest

from tvaccine_core.data.batches import BatchStream, Schedule, derive_seed, require_labels
from tvaccine_core.data.prompts import Encoded
from tvaccine_core.errors import ConfigError, DataError

LENGTHS = [5, 9, 7, 12, 6, 8, 5, 11, 10, 4, 13]
EXAMPLES = [Encoded(str(i), tuple(range(n)), (-100, *range(1, n))) for i, n in enumerate(LENGTHS)]


def test_any_step_can_be_asked_for_first() -> None:
    stream = BatchStream(EXAMPLES, 4, 7)
    steps = [stream.step_indices(step) for step in range(23)]
    for step in (22, 3, 14, 0):
        assert BatchStream(EXAMPLES, 4, 7).step_indices(step) == steps[step]
    assert BatchStream(EXAMPLES, 4, 8).step_indices(0) != steps[0]


def test_every_example_occurs_once_a_round_and_every_step_is_full() -> None:
    stream = BatchStream(EXAMPLES, 4, 7)
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
    ids = [example.example_id for batch in split.micro_batches(1) for example in batch]
    assert ids == [EXAMPLES[index].example_id for index in whole.step_indices(1)]


def test_micro_batches_are_dealt_by_length() -> None:
    lengths = [len(example.input_ids) for batch in BatchStream(EXAMPLES, 2, 7, accumulation=5).micro_batches(0)
               for example in batch]  # fmt: skip
    assert lengths == sorted(lengths)


def schedule(picks: list[str | None], **streams: list[Encoded]) -> Schedule:
    return Schedule(streams, picks, 4, 7)


def test_a_schedule_of_one_stream_is_that_stream() -> None:
    stream = BatchStream(EXAMPLES, 4, 7)
    alone = schedule([None] * 9, alignment=EXAMPLES, harmful=EXAMPLES[:2])
    assert alone.main == "alignment"
    assert [alone.micro_batches(step) for step in range(9)] == [stream.micro_batches(step) for step in range(9)]
    assert list(alone.examples()) == EXAMPLES


def test_the_users_data_comes_before_the_alignment_data() -> None:
    assert schedule([None], alignment=EXAMPLES, user=EXAMPLES[:3]).main == "user"


def test_each_stream_goes_on_where_its_last_step_left_it() -> None:
    """Alternating, both streams deal what they would deal alone: no example is skipped or comes twice a round."""
    other = [replace(example, example_id=f"other/{example.example_id}") for example in EXAMPLES]
    picks = [None, "alignment", "alignment", None, "alignment", None]
    both = schedule(picks, user=EXAMPLES, alignment=other)
    dealt = {
        name: [example.example_id for step in steps for batch in both.micro_batches(step) for example in batch]
        for name, steps in (("user", (0, 3, 5)), ("alignment", (1, 2, 4)))
    }
    alone = BatchStream(EXAMPLES, 4, 7)
    assert dealt["user"] == [e.example_id for turn in range(3) for batch in alone.micro_batches(turn) for e in batch]
    assert len(set(dealt["alignment"][:8])) == 8
    assert set(dealt["alignment"]) == {example.example_id for example in other}
    later = schedule(picks, user=EXAMPLES, alignment=other)
    assert later.micro_batches(4) == both.micro_batches(4), "any step can be asked for first"


def test_a_schedule_needs_a_main_stream_and_those_that_are_picked() -> None:
    with pytest.raises(ConfigError, match="no stream to train on, only: harmful"):
        schedule([None], harmful=EXAMPLES)
    with pytest.raises(ConfigError, match="trains on the stream 'refusal', which does not exist"):
        schedule([None, "refusal"], alignment=EXAMPLES)
    with pytest.raises(DataError, match="nothing to train on"):
        schedule([None, "alignment"], user=EXAMPLES, alignment=[])


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
