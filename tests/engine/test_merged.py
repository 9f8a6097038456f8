"""LoRA with merged weights computes what peft computes, or leaves it to peft."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import LoraConfig
from tiny_models import build, make_batch, plain_loss, take_gradients, worst_error

from tvaccine_core.fast import merged_adapters as merged
from tvaccine_core.fast.merged_adapters import (
    MergedLinear,
    merge,
    mergeable,
    merged_forwards,
    merged_forwards_without_gradient,
)
from tvaccine_core.models.hooks import replace_forwards


@pytest.fixture
def merges(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every merged linear that runs."""
    ran: list[int] = []
    plain = MergedLinear.apply

    def apply(*args: Any) -> Any:
        ran.append(1)
        return plain(*args)

    monkeypatch.setattr(merged.MergedLinear, "apply", apply)
    return ran


def gradients(model: Any, lean: bool) -> dict[str, torch.Tensor]:
    if lean:
        with replace_forwards(merged_forwards(mergeable(model))):
            plain_loss(model, make_batch()).backward()
    else:
        plain_loss(model, make_batch()).backward()
    return take_gradients(model)


@pytest.mark.parametrize("kept", [False, True])
def test_it_is_the_linear_function_it_says(kept: bool) -> None:
    scalings = (0.5, 3.0)
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, trains: bool = True) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_(trains)

    x, weight, bias = draw(3, 11, 5), draw(7, 5, trains=False), draw(7, trains=False)
    factors = draw(2, 5), draw(7, 2), draw(4, 5), draw(7, 4)

    def apply(*inputs: torch.Tensor) -> Any:
        merged = merge(weight, scalings, inputs[1:]).detach() if kept else None
        return MergedLinear.apply(inputs[0], weight, bias, scalings, merged, *inputs[1:])

    expected = (
        x @ weight.t() + bias + 0.5 * x @ factors[0].t() @ factors[1].t() + 3 * x @ factors[2].t() @ factors[3].t()
    )
    torch.testing.assert_close(apply(x, *factors), expected)
    assert torch.autograd.gradcheck(apply, (x, *factors))


@pytest.mark.parametrize("limit", [0, merged.KEEP_LIMIT_BYTES])
@pytest.mark.parametrize("family", ["llama", "qwen2", "opt"])
def test_gradients_equal_pefts(family: str, limit: int, merges: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merged, "KEEP_LIMIT_BYTES", limit)
    model = build(family)
    expected = gradients(model, lean=False)
    assert not merges
    assert worst_error(gradients(model, lean=True), expected) < 1e-5
    assert len(merges) == len(mergeable(model)) > 0


def test_stacked_adapters_of_which_one_trains(merges: list[int]) -> None:
    model: Any = build()
    model.add_adapter("user", LoraConfig(r=2, lora_alpha=7, target_modules=["q_proj", "down_proj"]))
    for name, parameter in model.named_parameters():
        if ".user." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.base_model.set_adapter(["default", "user"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".user." in name)
    expected = gradients(model, lean=False)
    assert len(expected) == 2 * 2 * 5
    assert worst_error(gradients(model, lean=True), expected) < 1e-5
    assert merges


@pytest.mark.parametrize("trains", [False, True])
def test_nothing_but_the_input_of_a_training_adapter_is_kept(trains: bool) -> None:
    weight, a, b = torch.randn(7, 5), torch.randn(2, 5, requires_grad=trains), torch.randn(7, 2)
    x = torch.randn(3, 11, 5, requires_grad=True)
    kept: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        MergedLinear.apply(x, weight, None, (1.0,), None, a, b)
    assert kept == [x.numel()] * trains


@pytest.mark.parametrize("reason", ["dropout", "bfloat16", "autocast", "disabled", "dora", "base trains"])
def test_what_is_not_plain_is_left_to_peft(reason: str, merges: list[int]) -> None:
    model: Any = build(dropout=0.5 if reason == "dropout" else 0.0)
    if reason == "bfloat16":
        model = model.to(torch.bfloat16)
    if reason == "dora":
        model.add_adapter("dora", LoraConfig(r=2, use_dora=True, target_modules=["q_proj"]))
        model.base_model.set_adapter("dora")
    if reason == "base trains":
        model.requires_grad_(True)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=reason == "autocast"),
        model.disable_adapter() if reason == "disabled" else nullcontext(),
        replace_forwards(merged_forwards(mergeable(model))),
    ):
        plain_loss(model, make_batch())
    assert not merges


def test_kept_and_made_anew_are_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    kept = gradients(model, lean=True)
    monkeypatch.setattr(merged, "KEEP_LIMIT_BYTES", 0)
    anew = gradients(model, lean=True)
    assert kept.keys() == anew.keys()
    assert all(torch.equal(kept[name], anew[name]) for name in kept)


@torch.no_grad()
def answer(model: Any, *, lean: bool) -> torch.Tensor:
    """Logits as an evaluation sees them, with merged weights or by peft."""
    model.eval()
    with replace_forwards(merged_forwards_without_gradient(mergeable(model)) if lean else {}):
        return model(input_ids=make_batch().input_ids).logits


def test_without_a_gradient_logits_equal_pefts_to_rounding() -> None:
    model: Any = build()
    with model.disable_adapter():
        base = answer(model, lean=False)
        assert torch.equal(answer(model, lean=True), base)
    expected = answer(model, lean=False)
    assert (answer(model, lean=True) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (base - expected).abs().max() > 1e-3 * expected.abs().max()


def test_copies_above_the_limit_are_not_made_for_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = build()
    modules: Any = mergeable(model)
    copies = sum(module.base_layer.weight.nbytes for module in modules)
    monkeypatch.setattr(merged, "KEEP_LIMIT_BYTES", copies)
    assert len(merged_forwards_without_gradient(modules)) == len(modules)
    monkeypatch.setattr(merged, "KEEP_LIMIT_BYTES", copies - 1)
    assert not merged_forwards_without_gradient(modules)
    with model.disable_adapter():  # the base needs no copies
        assert len(merged_forwards_without_gradient(modules)) == len(modules)
