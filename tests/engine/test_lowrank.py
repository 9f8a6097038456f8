"""LoRA linears that keep one input compute what peft computes, and keep no more than they say."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from peft import LoraConfig
from tiny_models import build, make_batch, plain_loss, take_gradients, worst_error
from torch import Tensor, nn

from tvaccine_core.bench.memory import SavedActivations
from tvaccine_core.fast import lean_adapters as lowrank
from tvaccine_core.fast.lean_adapters import LowRankSum, adapted_linears, lean_adapters


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with every low-rank sum that runs."""
    ran: list[int] = []
    plain = LowRankSum.apply

    def apply(*args: Any) -> Any:
        ran.append(1)
        return plain(*args)

    monkeypatch.setattr(lowrank.LowRankSum, "apply", apply)
    return ran


def gradients(model: nn.Module, lean: bool) -> dict[str, Tensor]:
    with lean_adapters(adapted_linears(model), []) if lean else nullcontext():
        plain_loss(model, make_batch()).backward()
    return take_gradients(model)


def half(**settings: Any) -> nn.Module:
    """A base in bfloat16 with adapters in float32, as `adapters` sets them up."""
    model = build(**settings).to(torch.bfloat16)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data.float()
    return model


def test_it_is_the_function_it_says_with_and_without_dropout() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    x, y = draw(3, 11, 5), draw(3, 11, 7)
    factors = draw(2, 5), draw(7, 2), draw(4, 5), draw(7, 4)

    def apply(*inputs: Tensor) -> Any:
        return LowRankSum.apply(inputs[0], inputs[1], (0.5, 3.0), ((0.0, 0), (0.4, 9)), *inputs[2:])

    kept = lowrank._dropped(torch.ones(33, 5, dtype=torch.float64), (0.4, 9)).view(3, 11, 5)
    assert kept.unique().tolist() == [0.0, pytest.approx(1 / 0.6)]
    expected = y + 0.5 * x @ factors[0].t() @ factors[1].t() + 3 * (x * kept) @ factors[2].t() @ factors[3].t()
    torch.testing.assert_close(apply(x, y, *factors), expected)
    assert torch.autograd.gradcheck(apply, (x, y, *factors))


def test_dropout_keeps_as_many_as_it_should_and_their_mean() -> None:
    dropped = lowrank._dropped(torch.ones(400, 500), (0.1, 3))
    assert float((dropped == 0).float().mean()) == pytest.approx(0.1, abs=0.005)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.005)
    assert not torch.equal(dropped, lowrank._dropped(torch.ones(400, 500), (0.1, 4)))


@pytest.mark.parametrize("family", ["llama", "opt", "gpt_neox"])
def test_gradients_equal_pefts_in_float32(family: str, sums: list[int]) -> None:
    model = build(family)
    expected = gradients(model, lean=False)
    assert not sums
    assert worst_error(gradients(model, lean=True), expected) < 1e-5
    assert len(sums) == len(adapted_linears(model)) > 0


def test_a_bfloat16_base_gets_the_gradients_of_pefts_form_rounded_once() -> None:
    """Of one linear, whose input and outer gradient are given, adapters' gradients are exact to float32."""
    model: Any = half()
    linear = model.get_base_model().model.layers[1].self_attn.q_proj
    x = torch.randn(3, 11, 32).bfloat16().requires_grad_()
    outer = torch.randn(3, 11, 32).bfloat16()
    results = []
    for lean in (False, True):
        with lean_adapters([linear], []) if lean else nullcontext():
            out = linear(x)
            out.backward(outer)
        results.append((out.detach(), x.grad, take_gradients(linear)))
        x.grad = None
    (plain_out, plain_x, plain), (lean_out, lean_x, lean) = results
    torch.testing.assert_close(lean_out, plain_out, rtol=2**-7, atol=1e-6)
    torch.testing.assert_close(lean_x, plain_x, rtol=2**-6, atol=2**-6)
    assert all(gradient.dtype == torch.float32 for gradient in lean.values())
    assert worst_error(lean, plain) < 1e-6


def test_a_bfloat16_model_trains_as_under_peft(sums: list[int]) -> None:
    model = half()
    expected = gradients(model, lean=False)
    ours = gradients(model, lean=True)
    assert sums
    reference = gradients(build(), lean=False)
    assert worst_error(ours, reference) < 1.2 * worst_error(expected, reference) < 0.2


@pytest.mark.parametrize(("dropout", "trains", "kept"), [(0.0, True, 1), (0.3, True, 1), (0.3, False, 0)])
def test_one_input_is_kept_in_its_own_precision_where_an_adapter_trains(
    dropout: float, trains: bool, kept: int
) -> None:
    model: Any = half(dropout=dropout)
    attention = model.get_base_model().model.layers[0].self_attn
    linears = [attention.q_proj, attention.k_proj, attention.v_proj]
    for parameter in attention.parameters():
        parameter.requires_grad_(trains and parameter.requires_grad)
    x = torch.randn(3, 11, 32).bfloat16().requires_grad_()
    held = []
    for lean in (False, True):
        with (
            SavedActivations(model.parameters()) as saved,
            lean_adapters(linears, []) if lean else nullcontext(),
        ):
            outputs = [linear(x) for linear in linears]
            held.append(saved.now_bytes)
            del outputs
    assert held[1] == kept * x.nbytes
    if trains:
        assert held[0] >= 3 * 2 * x.nbytes, "peft: three float32 copies"


def test_the_same_masks_are_drawn_again_from_the_same_state(sums: list[int]) -> None:
    model = build(dropout=0.4)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(gradients(model, lean=True))
    assert sums
    assert worst_error(results[1], results[0]) == 0
    assert worst_error(results[2], results[0]) > 0.01


def test_a_frozen_adapter_in_eval_mode_does_not_drop_out() -> None:
    model: Any = build(dropout=0.0)
    model.add_adapter("user", LoraConfig(r=2, lora_alpha=7, lora_dropout=0.5, target_modules=["q_proj", "down_proj"]))
    for name, parameter in model.named_parameters():
        if ".user." in name:
            nn.init.normal_(parameter, std=0.1)
    model.base_model.set_adapter(["default", "user"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".default." in name)
    for name, module in model.named_modules():
        if name.endswith("lora_dropout.user"):
            module.eval()
    expected = gradients(model, lean=False)
    assert worst_error(gradients(model, lean=True), expected) < 1e-5


@pytest.mark.parametrize("reason", ["autocast", "disabled", "dora", "lora bias", "base trains", "mixed precision"])
def test_what_is_another_function_is_left_to_peft(reason: str, sums: list[int]) -> None:
    model: Any = build()
    if reason in ("dora", "lora bias"):
        special = {"use_dora": True} if reason == "dora" else {"lora_bias": True}
        model.add_adapter("special", LoraConfig(r=2, target_modules=["q_proj"], **special))
        model.base_model.set_adapter("special")
    if reason == "base trains":
        model.requires_grad_(True)
    if reason == "mixed precision":
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data = parameter.data.double()
    with (
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=reason == "autocast"),
        model.disable_adapter() if reason == "disabled" else nullcontext(),
        lean_adapters(adapted_linears(model), []),
        pytest.raises(RuntimeError) if reason == "mixed precision" else nullcontext(),
    ):
        plain_loss(model, make_batch())
    assert not sums
