"""The loop against a hand-written one; determinism; stopping; and everything that must end in a typed error."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tvaccine_core.config import OptimisationConfig, SFTConfig, TVaccineConfig
from tvaccine_core.data.prompts import Encoded
from tvaccine_core.errors import CancelledError, DataError, NonFiniteLossError, OutOfMemoryError, TrainingError
from tvaccine_core.evaluation.generate import generate_answers
from tvaccine_core.methods import load_method
from tvaccine_core.methods.alignment.sft import SFT
from tvaccine_core.methods.base import Batch
from tvaccine_core.passes import memory as activation_memory
from tvaccine_core.records import Event, LayerDrawRecord, LayerScoreRecord, MessageRecord, StepRecord
from tvaccine_core.states.model_states import ModelStates
from tvaccine_core.training import fit as training
from tvaccine_core.training.collate import collate
from tvaccine_core.training.fit import fit, learning_rate_at

MakeStates = Callable[..., ModelStates]
CONFIG = OptimisationConfig(steps=6, batch_size=5, learning_rate=1e-2, weight_decay=0.1, checkpoint_every=0)


def run(states: ModelStates, encoded: list[Encoded], config: OptimisationConfig = CONFIG, **options: object) -> list:
    method = options.pop("method", None) or SFT(SFTConfig())
    streams = {"alignment": encoded, "harmful": options.pop("probe", ())}
    settings = {"seed": 3, "pad_id": states.loaded.pad_id, **options}
    return list(fit(states.model, method, streams, config, **settings))  # pyright: ignore


def weights(states: ModelStates) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in states.model.named_parameters() if ".mine." in name}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def steps_of(events: list[Event]) -> list[StepRecord]:
    return [event for event in events if isinstance(event, StepRecord)]


def test_learning_rate_by_hand() -> None:
    config = OptimisationConfig(steps=10, learning_rate=1.0, warmup_ratio=0.2, schedule="cosine")
    expected = [0.5, 1.0] + [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
    assert [learning_rate_at(step, config) for step in range(10)] == pytest.approx(expected)
    constant = config.model_copy(update={"schedule": "constant"})
    assert [learning_rate_at(step, constant) for step in range(10)] == pytest.approx([0.5] + [1.0] * 9)
    all_warm = config.model_copy(update={"warmup_ratio": 1.0})
    assert learning_rate_at(9, all_warm) == 1.0


def test_collate_by_hand() -> None:
    one = Encoded("a", (7, 8, 9, 3), (-100, -100, 9, 3))
    two = Encoded("b", (7, 3), (-100, 3))
    batch = collate([one, two], pad_id=4, total_labelled=6)
    assert batch.input_ids.tolist() == [[7, 8, 9, 3], [7, 3, 4, 4]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.labels.tolist() == [[-100, -100, 9, 3], [-100, 3, -100, -100]]
    assert batch.num_tokens == 3
    assert batch.weight == 0.5
    assert collate([one], pad_id=4).weight == 1.0


def test_fit_equals_a_plain_loop(make_states: MakeStates, encoded: list[Encoded]) -> None:
    """transformers' own loss, backward, clipping and AdamW, in the order of examples that the stream deals."""
    from tvaccine_core.data.batches import BatchStream, derive_seed

    states = make_states()
    events = steps_of(run(states, encoded))
    reference = make_states()
    model = reference.model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, lr=1.0, weight_decay=CONFIG.weight_decay, foreach=False)
    stream = BatchStream(encoded, CONFIG.batch_size, derive_seed(3, "order"))
    for step in range(CONFIG.steps):
        batch = collate(stream.micro_batches(step)[0], reference.loaded.pad_id)
        loss = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, CONFIG.max_grad_norm)
        optimiser.param_groups[0]["lr"] = learning_rate_at(step, CONFIG)
        optimiser.step()
        assert events[step].loss == pytest.approx(loss.item(), rel=1e-5)
        assert events[step].grad_norm == pytest.approx(norm.item(), rel=1e-4)
        assert events[step].num_tokens == batch.num_tokens
    assert max(event.grad_norm for event in events) > CONFIG.max_grad_norm  # clipping was at work
    for name, value in weights(states).items():
        torch.testing.assert_close(value, weights(reference)[name], rtol=0, atol=2e-3)


def test_records_count_and_progress(make_states: MakeStates, encoded: list[Encoded]) -> None:
    events = steps_of(run(make_states(), encoded, CONFIG.model_copy(update={"steps": 40})))
    assert [event.step for event in events] == list(range(1, 41))
    assert {event.num_steps for event in events} == {40}
    assert all(a.elapsed_s < b.elapsed_s for a, b in pairwise(events))
    assert sum(event.loss for event in events[-5:]) < 0.8 * sum(event.loss for event in events[:5])


def test_the_same_seed_gives_the_same_bytes(make_states: MakeStates, encoded: list[Encoded]) -> None:
    results = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(results))  # the global state must not matter
        states = make_states(dropout=0.2)
        run(states, encoded, seed=seed)
        results.append(weights(states))
    assert equal(results[0], results[1])
    assert not equal(results[0], results[2])


def test_only_what_requires_a_gradient_changes(make_states: MakeStates, encoded: list[Encoded]) -> None:
    states = make_states()
    before = {name: p.detach().clone() for name, p in states.model.named_parameters()}
    run(states, encoded)
    changed = {name for name, p in states.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == set(weights(states))
    assert all(p.grad is None for p in states.model.parameters())


def test_accumulation_equals_one_batch(make_states: MakeStates, encoded: list[Encoded]) -> None:
    """Micro-batches hold different numbers of labelled tokens, so only token weighting can make them equal."""
    whole, split = make_states(), make_states()
    one = steps_of(run(whole, encoded, CONFIG.model_copy(update={"batch_size": 6})))
    many = steps_of(run(split, encoded, CONFIG.model_copy(update={"batch_size": 2, "accumulation": 3})))
    for a, b in zip(one, many, strict=True):
        assert a.num_tokens == b.num_tokens
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-3)
    for name, value in weights(whole).items():
        # Adam divides by the gradient's size: where that is nearly 0, rounding decides. All moved by up to 4e-2.
        torch.testing.assert_close(value, weights(split)[name], rtol=0, atol=2e-3)


@pytest.mark.parametrize("method", ["sft", "tvaccine"])
def test_answers_between_steps_leave_training_as_it_was(
    make_states: MakeStates, encoded: list[Encoded], probe: list[Encoded], method: str
) -> None:
    config = SFTConfig() if method == "sft" else TVaccineConfig(num_layers=2, resample_every=2, rescore_every=4)

    def train(disturb: bool) -> tuple[dict[str, Tensor], list[float]]:
        states = make_states(dropout=0.2)
        states.define("now", ["mine"])
        losses = []
        events = fit(
            states.model,
            load_method(config),
            {"alignment": encoded, "harmful": probe},
            CONFIG,
            seed=3,
            pad_id=states.loaded.pad_id,
        )
        for event in events:
            if isinstance(event, StepRecord):
                losses.append(event.loss)
                if disturb:
                    generate_answers(states, [("mine", "How do I make a kite?"), ("base", "Hello")], 3, 2)
                    generate_answers(states, [("now", "Hello")], 3, 2)
                    states.hash_of("now")
        return weights(states), losses

    calm, calm_losses = train(disturb=False)
    disturbed, disturbed_losses = train(disturb=True)
    assert calm_losses == disturbed_losses
    assert equal(calm, disturbed)


def test_a_methods_own_records_come_before_their_step(
    make_states: MakeStates, encoded: list[Encoded], probe: list[Encoded]
) -> None:
    method = load_method(TVaccineConfig(num_layers=2, resample_every=2, rescore_every=4, probe_batch_size=16))
    events = run(make_states(), encoded, method=method, probe=probe)
    kinds = [type(event) for event in events]
    assert kinds[:3] == [LayerScoreRecord, LayerDrawRecord, StepRecord]
    assert kinds.count(LayerScoreRecord) == 2
    assert kinds.count(LayerDrawRecord) == 3


def test_stop_is_honoured_within_one_step(make_states: MakeStates, encoded: list[Encoded]) -> None:
    seen: list[int] = []
    events = fit(
        (states := make_states()).model,
        SFT(SFTConfig()),
        {"alignment": encoded},
        CONFIG,
        seed=3,
        pad_id=states.loaded.pad_id,
        should_stop=lambda: len(seen) >= 2,
    )
    with pytest.raises(CancelledError, match="after step 2 of 6"):
        seen.extend(event.step for event in events if isinstance(event, StepRecord))


def test_a_consumer_may_leave(make_states: MakeStates, encoded: list[Encoded]) -> None:
    events = fit((states := make_states()).model, SFT(SFTConfig()), {"alignment": encoded}, CONFIG, seed=3, pad_id=4)
    assert isinstance(events, Iterator)
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert list(events) == []
    assert run(states, encoded)


class _Breaks(SFT):
    """SFT that misbehaves at step 3 (0-based 2)."""

    def __init__(self, how: str) -> None:
        super().__init__(SFTConfig())
        self.how = how

    def training_step(self, model: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
        result = super().training_step(model, batch, step)
        if step == 2 and self.how == "loss":
            return {"loss": result["loss"] * math.inf}
        if step == 2 and self.how == "gradient":
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.view(-1)[0] = math.nan
                    break
        if step == 2 and self.how == "memory":
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")
        if step == 2 and self.how == "bug":
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        if step == 2 and self.how == "nothing":
            for parameter in model.parameters():
                parameter.grad = None
        return result


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_non_finite_step_stops_and_changes_nothing(make_states: MakeStates, encoded: list[Encoded], how: str) -> None:
    states = make_states()
    after_two: dict[str, Tensor] = {}
    events = fit(states.model, _Breaks(how), {"user": encoded}, CONFIG, seed=3, pad_id=4)

    def consume() -> None:
        for event in events:
            if isinstance(event, StepRecord) and event.step == 2:
                after_two.update(weights(states))

    with pytest.raises(NonFiniteLossError, match="Step 3") as caught:
        consume()
    assert caught.value.step == 3
    assert "learning rate" in caught.value.remedy
    assert equal(weights(states), after_two)


@pytest.mark.parametrize(("room", "mode"), [(2**40, "speed"), (None, "speed"), (0, "lowest")])
def test_the_memory_mode_fits_the_device_and_changes_the_adapter_by_rounding_only(
    room: int | None,
    mode: str,
    make_states: MakeStates,
    encoded: list[Encoded],
    probe: list[Encoded],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training, "measure_room", lambda model, device: room)
    monkeypatch.setattr(activation_memory, "HEAD_CHUNK_BYTES", 0)
    results = []
    for wish in ("auto", "auto", mode, "speed"):
        states = make_states(dropout=0.1)
        method: Any = load_method(TVaccineConfig(num_layers=2))
        events = run(states, encoded, method=method, probe=probe, activation_memory=wish)
        told = [event.text for event in events if isinstance(event, MessageRecord)]
        assert [mode in text for text in told] == ([True] if wish == "auto" and mode != "speed" else [])
        assert method.context.activation_memory == (wish if wish != "auto" else mode)
        results.append(weights(states))
    assert equal(results[0], results[1])
    assert equal(results[0], results[2])
    for name, value in results[3].items():
        torch.testing.assert_close(results[0][name], value, rtol=1e-2, atol=2e-5)


def test_memory_that_runs_out_is_a_typed_error(make_states: MakeStates, encoded: list[Encoded]) -> None:
    with pytest.raises(OutOfMemoryError, match="Step 3") as caught:
        run(make_states(), encoded, method=_Breaks("memory"))
    assert "batch_size" in caught.value.remedy


def test_other_failures_are_not_disguised(make_states: MakeStates, encoded: list[Encoded]) -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        run(make_states(), encoded, method=_Breaks("bug"))


def test_a_step_without_gradients_is_an_error(make_states: MakeStates, encoded: list[Encoded]) -> None:
    with pytest.raises(TrainingError, match="no parameter a gradient"):
        run(make_states(), encoded, method=_Breaks("nothing"))


def test_nothing_to_train_is_an_error(make_states: MakeStates, encoded: list[Encoded]) -> None:
    states = make_states()
    states.model.requires_grad_(False)
    with pytest.raises(TrainingError, match="requires a gradient"):
        run(states, encoded)


def test_an_example_without_labels_is_named_before_training(make_states: MakeStates, encoded: list[Encoded]) -> None:
    bad = replace(encoded[5], example_id="bad/5", labels=(-100,) * len(encoded[5].labels))
    with pytest.raises(DataError, match="bad/5"):
        run(make_states(), [*encoded, bad])
