"""The first examples by the fast paths and by the model's own modules: told once, and acted on where they differ."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from tvaccine_core.config import OptimisationConfig, SFTConfig, TVaccineConfig
from tvaccine_core.data.prompts import Encoded
from tvaccine_core.fast import merged_adapters as merged
from tvaccine_core.methods import load_method
from tvaccine_core.passes import self_check
from tvaccine_core.records import Event, MessageRecord, StepRecord
from tvaccine_core.states.model_states import ModelStates
from tvaccine_core.training.fit import fit

MakeStates = Callable[..., ModelStates]
CONFIG = OptimisationConfig(steps=2, batch_size=4, learning_rate=1e-2, checkpoint_every=0)


class OwnLlama(LlamaForCausalLM):
    """Of a class that the lab has not met."""


@pytest.fixture(autouse=True)
def nothing_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_check, "_met", set())


@pytest.fixture
def own(make_states: MakeStates) -> Callable[..., ModelStates]:
    def make(dropout: float = 0.0, dtype: torch.dtype = torch.float32) -> ModelStates:
        states = make_states(dropout)
        states.loaded.model.__class__ = OwnLlama
        for parameter in states.loaded.model.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
        return states

    return make


def train(
    states: ModelStates, encoded: list[Encoded], config: Any = None, **options: Any
) -> tuple[list[Event], dict[str, Tensor]]:
    """Events and adapter after two steps."""
    method = load_method(config or SFTConfig())
    events = list(
        fit(states.model, method, {"alignment": encoded}, CONFIG, seed=3, pad_id=states.loaded.pad_id, **options)
    )
    weights = {name: p.detach().clone() for name, p in states.model.named_parameters() if ".mine." in name}
    return events, weights


def messages(events: list[Event]) -> list[MessageRecord]:
    return [event for event in events if isinstance(event, MessageRecord)]


def losses(events: list[Event]) -> list[float]:
    return [event.loss for event in events if isinstance(event, StepRecord)]


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def double_merged(weight: Tensor, scalings: Any, factors: Any) -> Tensor:
    return 2 * weight


def wrong_backward(ctx: Any, *gradients: Tensor) -> Any:
    first, *rest = plain_backward(ctx, *gradients)
    return (first, *(None if grad is None else 1.02 * grad for grad in rest))


plain_backward = merged.MergedLinear.backward


def refuse(*args: Any) -> Tensor:
    raise ValueError("no such product")


@pytest.mark.parametrize(
    ("where", "wrong", "words"),
    [
        ((merged, "merge"), double_merged, ("the loss by", "OwnLlama", "relatively")),
        ((merged.MergedLinear, "backward"), staticmethod(wrong_backward), ("lora_B", "2.0e-02")),
        ((merged, "merge"), refuse, ("no such product", "OwnLlama")),
    ],
    ids=["loss", "gradient", "error"],
)
@pytest.mark.parametrize("config", [SFTConfig(), TVaccineConfig(num_layers=2, layer_choice="uniform")], ids=str)
def test_a_wrong_fast_path_is_told_and_not_taken(
    own: MakeStates,
    encoded: list[Encoded],
    where: tuple[Any, str],
    wrong: Any,
    words: tuple[str, ...],
    config: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain_events, plain = train(own(), encoded, config, fast_paths=False)
    assert not messages(plain_events)
    monkeypatch.setattr(*where, wrong)
    for _ in range(2):  # the second time as well
        events, weights = train(own(), encoded, config)
        (message,) = messages(events)
        assert message.level == "warning"
        assert all(word in message.text for word in words), message.text
        assert "fast_paths" in message.remedy
        assert equal(weights, plain)
        assert losses(events) == losses(plain_events)


@pytest.mark.parametrize(("dropout", "dtype"), [(0.0, torch.float32), (0.3, torch.float32), (0.0, torch.bfloat16)])
def test_agreement_is_told_once_and_changes_nothing(
    own: MakeStates, encoded: list[Encoded], dropout: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_state = torch.get_rng_state()
    events, weights = train(own(dropout, dtype), encoded)
    assert torch.equal(torch.get_rng_state(), random_state)
    (message,) = messages(events)
    assert message.level == "info"
    assert "OwnLlama" in message.text
    assert "lora_" in message.text
    again, same = train(own(dropout, dtype), encoded)
    assert not messages(again), "met before"
    assert equal(weights, same), "the comparison leaves no trace"
    monkeypatch.setattr(self_check, "_signature", lambda passes, model: "another")
    assert messages(train(own(dropout, dtype), encoded)[0]), "another config is another model"


def test_a_model_that_the_suite_knows_costs_nothing(
    make_states: MakeStates, encoded: list[Encoded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_check, "_try", refuse)
    events, _ = train(make_states(), encoded)
    assert not messages(events)
    states = make_states()
    torch.nn.Module.to(states.loaded.model, torch.bfloat16)
    with pytest.raises(ValueError, match="no such product"):  # another precision is compared
        train(states, encoded)


def test_what_does_not_fit_is_not_compared(own: MakeStates, encoded: list[Encoded], monkeypatch: Any) -> None:
    """Without fast paths a pass holds more; a model must not lose them for that."""
    expected = train(own(), encoded)[1]
    plain = self_check._try

    def full(passes: Any, model: Any, tokens: Any) -> Any:
        return RuntimeError("CUDA out of memory") if passes.fast is self_check.PLAIN else plain(passes, model, tokens)

    monkeypatch.setattr(self_check, "_met", set())
    monkeypatch.setattr(self_check, "_try", full)
    events, weights = train(own(), encoded)
    assert "out of memory" in messages(events)[0].text
    assert equal(weights, expected)


def test_only_modules_that_are_there_are_known() -> None:
    from importlib import import_module

    for name in self_check.KNOWN:
        import_module(name)
