"""Several streams of examples, draws beside the step's own, and a method's last word; killed and resumed as well."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tvaccine_core.config import OptimisationConfig, SFTConfig
from tvaccine_core.data.prompts import Encoded
from tvaccine_core.errors import CancelledError, ConfigError, DataError, TrainingError
from tvaccine_core.methods.alignment.sft import SFT
from tvaccine_core.methods.base import Batch
from tvaccine_core.records import Event, MessageRecord, StepRecord
from tvaccine_core.states.model_states import ModelStates
from tvaccine_core.training.checkpoints import last_step
from tvaccine_core.training.fit import fit

MakeStates = Callable[..., ModelStates]
CONFIG = OptimisationConfig(steps=9, batch_size=3, accumulation=2, learning_rate=1e-2, checkpoint_every=4)


class Alternating(SFT):
    """As Lisa: two steps of alignment, one of the user's. A harmful batch is drawn in each, and at the end all moves.

    Its memory is the mean of what the trained weights were, as Lisa's anchors are of what they were last.
    """

    needs = ("alignment", "harmful")

    def __init__(self) -> None:
        super().__init__(SFTConfig())
        self.seen: list[tuple[int, list[int]]] = []
        self.drawn: list[list[int]] = []
        self.anchor = torch.zeros(())
        self.finished = 0

    def stream_of(self, step: int) -> str | None:
        return "alignment" if step % 3 < 2 else None

    def training_step(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        self.seen.append((step, batch.input_ids.flatten().tolist()))
        self.drawn.append(self.context.sample("harmful", 2).input_ids.flatten().tolist())
        self.anchor = self.anchor + self.passes.parameters[0].detach().sum()
        return super().training_step(model, batch, step)

    def finish(self, model: nn.Module) -> None:
        self.finished += 1
        drawn = self.context.sample("harmful", 3, self.context.generator).input_ids
        with torch.no_grad():
            for parameter in self.passes.parameters:
                parameter += 1e-3 * (self.anchor + drawn.sum())
        self.context.emit(MessageRecord(level="info", text="The end."))

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {"anchor": self.anchor}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self.anchor = state["anchor"]


@pytest.fixture
def streams(encoded: list[Encoded], probe: list[Encoded]) -> dict[str, list[Encoded]]:
    return {"user": encoded[20:], "alignment": encoded[:20], "harmful": probe}


def start(
    states: ModelStates, method: Any, streams: dict[str, list[Encoded]], folder: Path | None = None, **options: Any
) -> Iterator[Event]:
    return fit(states.model, method, streams, CONFIG, seed=3, pad_id=4, checkpoint_dir=folder, **options)


def weights(states: ModelStates) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in states.model.parameters() if parameter.requires_grad]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_a_step_trains_on_the_stream_that_the_method_picks(
    make_states: MakeStates, streams: dict[str, list[Encoded]]
) -> None:
    method = Alternating()
    list(start(make_states(), method, streams))
    known = {name: {tuple(example.input_ids) for example in examples} for name, examples in streams.items()}

    def stream_of(ids: list[int]) -> set[str]:
        rows = torch.tensor(ids).view(3, -1).tolist()
        cut = [tuple(row[: len(row) - row[::-1].index(next(i for i in row[::-1] if i != 4))]) for row in rows]
        return {name for name, examples in known.items() for row in cut if row in examples}

    assert [stream_of(ids) for _, ids in method.seen] == [
        {"alignment"} if step % 3 < 2 else {"user"} for step in range(9) for _ in range(2)
    ]


def test_draws_depend_on_the_seed_the_step_and_their_number_alone(
    make_states: MakeStates, streams: dict[str, list[Encoded]]
) -> None:
    class Restless(Alternating):
        """Draws from its generator besides."""

        def training_step(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
            torch.rand(5, generator=self.context.generator)
            return super().training_step(model, batch, step)

    methods = [Alternating(), Restless()]
    for method in methods:
        list(start(make_states(), method, streams))
    assert methods[0].drawn == methods[1].drawn
    assert len({tuple(ids) for ids in methods[0].drawn}) > 9, "micro-batches and steps draw anew"


def test_a_draw_has_no_repetition_and_is_all_there_is_at_most(
    make_states: MakeStates, streams: dict[str, list[Encoded]]
) -> None:
    method = Alternating()
    list(start(make_states(), method, streams))
    whole = method.context.sample("harmful", 99)
    assert sorted(map(sum, whole.input_ids.tolist())) == sorted(
        sum(example.input_ids) + 4 * (whole.input_ids.shape[1] - len(example.input_ids))
        for example in streams["harmful"]
    )
    with pytest.raises(ConfigError, match="no refusal examples to draw from") as caught:
        method.context.sample("refusal", 2)
    assert "user, alignment, harmful" in caught.value.remedy


@pytest.mark.parametrize("missing", ["harmful", "alignment"])
@pytest.mark.parametrize("how", ["not there", "empty"])
def test_a_stream_that_is_needed_must_be_there(
    missing: str, how: str, make_states: MakeStates, streams: dict[str, list[Encoded]]
) -> None:
    given = {name: examples for name, examples in streams.items() if name != missing}
    if how == "empty":
        given[missing] = []
    with pytest.raises((ConfigError, DataError), match=f"{missing}|nothing to train on"):
        list(start(make_states(), Alternating(), given))


def test_an_example_without_labels_is_found_in_every_stream(
    make_states: MakeStates, streams: dict[str, list[Encoded]]
) -> None:
    bad = replace(streams["harmful"][0], example_id="bad/1", labels=(-100,) * len(streams["harmful"][0].labels))
    with pytest.raises(DataError, match="bad/1"):
        list(start(make_states(), SFT(SFTConfig()), streams | {"harmful": [bad]}))


@pytest.mark.parametrize("stop_after", [1, 3, 4, 6])
def test_stopped_and_resumed_gives_the_bytes_of_an_undisturbed_run(
    stop_after: int, make_states: MakeStates, streams: dict[str, list[Encoded]], tmp_path: Path
) -> None:
    whole = make_states(dropout=0.1)
    list(start(whole, Alternating(), streams, tmp_path / "whole"))
    asked = iter(range(100))
    with pytest.raises(CancelledError):
        list(
            start(
                make_states(dropout=0.1),
                Alternating(),
                streams,
                tmp_path / "broken",
                should_stop=lambda: next(asked) == stop_after,
            )
        )
    resumed, method = make_states(dropout=0.1), Alternating()
    events = list(start(resumed, method, streams, tmp_path / "broken", resume=True))
    assert [event.step for event in events if isinstance(event, StepRecord)] == list(range(stop_after + 1, 10))
    assert same(weights(resumed), weights(whole))
    assert method.finished == 1


def test_the_last_word_comes_once_after_the_last_checkpoint(
    make_states: MakeStates, streams: dict[str, list[Encoded]], tmp_path: Path
) -> None:
    states, method = make_states(), Alternating()
    events = list(start(states, method, streams, tmp_path))
    kinds = [event.kind for event in events]
    assert kinds[-3:] == ["step", "checkpoint", "message"]
    assert kinds.count("message") == method.finished == 1
    assert all(parameter.grad is None for parameter in states.model.parameters())


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_around_the_last_word_it_is_neither_skipped_nor_doubled(
    when: str, make_states: MakeStates, streams: dict[str, list[Encoded]], tmp_path: Path
) -> None:
    """Its process is gone either between the last checkpoint and `finish`, or after it, before the state is saved."""
    whole = make_states()
    list(start(whole, Alternating(), streams))
    broken, first = make_states(), Alternating()
    for event in start(broken, first, streams, tmp_path):
        if when == "before" and event.kind == "checkpoint" and last_step(tmp_path) == CONFIG.steps:
            break
    assert first.finished == (when == "after")
    assert same(weights(broken), weights(whole)) == (when == "after")
    resumed, method = make_states(), Alternating()
    events = list(start(resumed, method, streams, tmp_path, resume=True))
    assert [event.kind for event in events] == ["message"]
    assert method.finished == 1
    assert same(weights(resumed), weights(whole))


def test_checkpoints_of_other_streams_are_refused(
    make_states: MakeStates, streams: dict[str, list[Encoded]], tmp_path: Path
) -> None:
    list(start(make_states(), Alternating(), streams, tmp_path))
    for change in ({"harmful": streams["harmful"][1:]}, {"refusal": streams["harmful"]}):
        with pytest.raises(TrainingError, match="other settings or data"):
            list(start(make_states(), Alternating(), streams | change, tmp_path, resume=True))
