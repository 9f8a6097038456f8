"""Gradients as values, and gradients at moved weights: exact, of the same network, and without a trace."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sam import SAM, plain_sam
from test_passes import nf4_llama
from tiny_models import build, make_batch, make_method, plain_loss, take_gradients
from torch import Tensor, nn

from tvaccine_core.config import SFTConfig, TVaccineConfig
from tvaccine_core.errors import ModelError, TrainingError
from tvaccine_core.fast import merged_adapters as merged
from tvaccine_core.methods.base import MethodContext
from tvaccine_core.passes import memory as activation_memory
from tvaccine_core.passes.memory import Mode
from tvaccine_core.passes.passes import Passes
from tvaccine_core.passes.perturbation import scale_to_radius, sum_over_processes, total_norm

RHO = 0.3
MODES: tuple[Mode, ...] = ("speed", "balanced", "lowest")


def passes_of(model: nn.Module, mode: Mode = "speed") -> Passes:
    return make_method(SFTConfig(), model, activation_memory=mode)[0].passes


def scope_of(passes: Passes, seed: int = 0) -> Any:
    return passes.scope(torch.Generator().manual_seed(seed))


def flat(tensors: dict[Any, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten().double() for tensor in tensors.values()])


def error(ours: dict[Any, Tensor], theirs: dict[Any, Tensor]) -> float:
    """Relative L2 error over all tensors together."""
    assert len(ours) == len(theirs) > 0
    return float((flat(ours) - flat(theirs)).norm() / flat(theirs).norm())


def sam_step(model: nn.Module, mode: Mode, seed: int = 5) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Gradients by name, and metrics."""
    method = SAM(RHO)
    context = MethodContext(
        torch.Generator().manual_seed(seed), lambda value: value, lambda event: None, activation_memory=mode
    )
    method.setup(model, context)
    metrics = method.training_step(model, make_batch(), 0)
    return take_gradients(model), metrics


def reference(model: nn.Module, seed: int = 5) -> tuple[dict[str, Tensor], Tensor]:
    """SAM by plain autograd on a copy, with the masks that a scope with a generator of this seed draws."""
    drawn = int(torch.randint(2**62, (), generator=torch.Generator().manual_seed(seed)))
    with torch.random.fork_rng(devices=[]):
        return plain_sam(copy.deepcopy(model), make_batch().prepare(), RHO, drawn)


BASES: dict[str, Callable[..., Any]] = {
    "llama": lambda **settings: build(attention="sdpa", **settings).double(),
    "gemma2": lambda **settings: build("gemma2", **settings).double(),
    "opt": lambda **settings: build("opt", **settings).double(),
    "nf4": lambda dropout=0.0: nf4_llama(dropout).double(),
}
"""In float64, so that rounding hides nothing. With dropout, and in NF4, adapters are not merged but `lowrank`."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_memory, "HEAD_CHUNK_BYTES", 0)
    monkeypatch.setattr(activation_memory, "MIN_CHUNK_ROWS", 4)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("base", BASES)
def test_sharpness_aware_minimisation_equals_plain_autograd(base: str, dropout: float, mode: Mode) -> None:
    model = BASES[base](dropout=dropout)
    expected, loss = reference(model)
    ours, metrics = sam_step(model, mode)
    assert ours.keys() == expected.keys()
    assert error(ours, expected) < 1e-6
    torch.testing.assert_close(metrics["loss"], loss, rtol=1e-6, atol=0)
    assert float(metrics["moved_loss"]) > float(metrics["loss"])


@pytest.mark.parametrize("mode", MODES)
def test_it_does_under_the_models_own_checkpointing(mode: Mode) -> None:
    expected, _ = reference(build(dropout=0.3).double())
    ours, _ = sam_step(build(dropout=0.3, checkpointing=True).double(), mode)
    assert error(ours, expected) < 1e-6


def test_in_float32_it_is_as_near_to_the_truth_as_plain_autograd() -> None:
    """All fast paths at once: merged adapters, short attention and lean norms take float32."""
    model = build(attention="sdpa", num_key_value_heads=4)
    truth, _ = reference(copy.deepcopy(model).double())
    plain, _ = reference(model)
    ours, _ = sam_step(model, "speed")
    kinds = {type(module).__name__ for module in passes_of(model).fast.forwards}
    assert kinds == {"LlamaRMSNorm", "LlamaAttention"}
    assert error(ours, truth) < 2 * error(plain, truth) < 1e-5


def test_a_weight_that_is_changed_by_hand_inside_a_scope_is_found_not_overlooked() -> None:
    """Merged adapters are read once a scope: without a refresh the loss would be the old weights'."""
    passes, tokens = passes_of(build()), make_batch().prepare()
    with scope_of(passes):
        passes.gradients(tokens, passes.parameters)
        with torch.no_grad():
            passes.parameters[0].add_(0.1)
        with pytest.raises(TrainingError, match="changed while a step was using them") as caught:
            passes.gradients(tokens, passes.parameters)
    assert "Passes.moved" in caught.value.remedy


@pytest.mark.parametrize("limit", [0, merged.KEEP_LIMIT_BYTES])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_graph_that_outlives_a_move_is_found_not_overlooked(
    dropout: float, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merged, "KEEP_LIMIT_BYTES", limit)
    passes, tokens = passes_of(build(dropout=dropout)), make_batch().prepare()
    with scope_of(passes):
        loss = passes.loss(tokens)
        with (
            passes.moved({passes.parameters[0]: torch.ones_like(passes.parameters[0])}),
            pytest.raises(TrainingError, match="changed while a step was using them"),
        ):
            torch.autograd.grad(loss, passes.parameters)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_moved_by_nothing_is_the_same_network_and_after_it_masks_go_on(dropout: float, mode: Mode) -> None:
    passes, tokens = passes_of(build(dropout=dropout), mode), make_batch().prepare()
    with scope_of(passes):
        passes.gradients(make_batch(1).prepare(), passes.parameters)
        here = passes.gradients(tokens, passes.parameters)
        with passes.moved({}):
            there = passes.gradients(tokens, passes.parameters)
        later = passes.gradients(tokens, passes.parameters)
    assert torch.equal(here[0], there[0])
    assert error(there[1], here[1]) == 0
    assert torch.equal(here[0], later[0]) == (not dropout)


def test_moves_may_follow_one_another_and_lie_in_each_other() -> None:
    model = build().double()
    passes, tokens = passes_of(model), make_batch().prepare()
    shifts = {parameter: torch.full_like(parameter, 0.1) for parameter in passes.parameters}

    def loss_here() -> Tensor:
        return passes.gradients(tokens, passes.parameters)[0]

    with scope_of(passes):
        losses = [loss_here()]
        for _ in range(2):
            with passes.moved(shifts):
                losses.append(loss_here())
                with passes.moved(shifts):
                    losses.append(loss_here())
                losses.append(loss_here())
            losses.append(loss_here())
    here, once, twice = losses[:3]
    assert all(torch.equal(*pair) for pair in zip(losses, [here, *[once, twice, once, here] * 2], strict=True))
    with torch.no_grad():
        torch.testing.assert_close(here, plain_loss(model, make_batch()), check_dtype=False)
        for expected in (once, twice):
            for parameter, shift in shifts.items():
                parameter += shift
            torch.testing.assert_close(expected, plain_loss(model, make_batch()), check_dtype=False)


def test_weights_are_bit_for_bit_what_they_were_whatever_happens() -> None:
    model = build(dropout=0.3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    passes, tokens = passes_of(model), make_batch().prepare()
    first, last = passes.parameters[0], passes.parameters[-1]
    state = torch.get_rng_state()
    with scope_of(passes), pytest.raises(RuntimeError, match="must match"), passes.moved(
        {first: torch.full_like(first, 0.1), last: torch.ones(1, 2, 3)}
    ):  # fmt: skip
        raise AssertionError("never inside")
    handle = passes.anatomy.head.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), scope_of(passes), passes.moved({first: first * 1e6}):
        passes.gradients(tokens, passes.parameters)
    handle.remove()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not [name for name, module in model.named_modules() if "forward" in module.__dict__]
    with scope_of(passes):
        again = passes.gradients(tokens, passes.parameters)
    with scope_of(passes_of(model)):
        fresh = passes.gradients(tokens, passes.parameters)
    assert error(again[1], fresh[1]) == 0


def test_what_does_not_train_cannot_be_moved_nor_anything_outside_a_scope() -> None:
    model = build()
    passes = passes_of(model)
    frozen = next(parameter for parameter in model.parameters() if not parameter.requires_grad)
    with scope_of(passes), pytest.raises(ModelError, match="1 of 2 weights to move are not trained"), passes.moved(
        {passes.parameters[0]: torch.zeros_like(passes.parameters[0]), frozen: torch.zeros_like(frozen)}
    ):  # fmt: skip
        pass
    with pytest.raises(ModelError, match="outside a step's scope"), passes.moved({}):
        pass


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_the_plain_ones_and_leave_grad_as_it_is(mode: Mode) -> None:
    model = build().double()
    plain_loss(model, make_batch()).backward()
    expected = take_gradients(model)
    passes = passes_of(model, mode)
    names = {parameter: name for name, parameter in model.named_parameters()}
    wanted = passes.parameters[3:9]
    wanted[0].grad = torch.ones_like(wanted[0])
    with scope_of(passes):
        loss, found = passes.gradients(make_batch().prepare(), wanted)
    assert list(found) == wanted
    assert error(found, {parameter: expected[names[parameter]] for parameter in wanted}) < 1e-6
    assert loss.dim() == 0
    assert not loss.requires_grad
    assert torch.equal(take_gradients(model)[names[wanted[0]]], torch.ones_like(wanted[0]))
    assert all(parameter.requires_grad for parameter in passes.parameters)


def test_a_weight_that_the_loss_does_not_reach_has_a_zero_gradient() -> None:
    model = build()
    stray = nn.Parameter(torch.ones(3))
    model.get_base_model().register_parameter("stray", stray)  # pyright: ignore[reportCallIssue]
    passes = passes_of(model)
    factor = next(parameter for parameter in passes.parameters if parameter is not stray)
    for wanted in ([stray, factor], [stray]):
        with scope_of(passes):
            _, found = passes.gradients(make_batch().prepare(), wanted)
        assert list(found) == wanted
        assert found[stray].tolist() == [0, 0, 0]


@pytest.mark.parametrize("mode", MODES)
def test_a_perturbed_pass_at_moved_weights_takes_nothing_from_a_clean_pass_elsewhere(mode: Mode) -> None:
    """The layers under the floor have moved too, so what they returned is of no use."""
    model = build(dropout=0.3).double()
    passes, tokens = passes_of(model, mode), make_batch().prepare()
    layers, lower = (3, 4), list(passes.blocks[0].layer.parameters()) + list(passes.blocks[1].layer.parameters())
    frozen = [parameter for parameter in passes.parameters if any(parameter is other for other in lower)]
    shifts = {parameter: torch.full_like(parameter, 0.1) for parameter in passes.parameters}
    results = []
    for floor in (0, 2):
        with scope_of(passes):
            clean = passes.clean(tokens, layers, floor)
            with passes.moved(shifts):
                loss = passes.perturbed(tokens, clean, clean.gradients, frozen if not floor else (), 1.0)
        results.append((loss, take_gradients(model)))
    assert torch.equal(results[0][0], results[1][0])
    assert error(results[1][1], results[0][1]) < 1e-12


def test_gradients_of_processes_add_up_to_those_of_the_whole() -> None:
    mine = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[4.0]])}
    summed = sum_over_processes(mine, 0.25, lambda flat: flat + torch.tensor([1.0, 1.0, 3.0]))
    assert {name: tensor.tolist() for name, tensor in summed.items()} == {"a": [1.25, 1.5], "b": [[4.0]]}
    assert float(total_norm({"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])})) == pytest.approx(5)
    assert scale_to_radius({"a": torch.tensor([3.0])}, torch.tensor(3.0), 2.0)["a"].item() == pytest.approx(2)


def test_a_step_of_the_method_leaves_no_trace() -> None:
    model = build(dropout=0.3)
    before, state = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    first, _ = sam_step(model, "speed")
    again, _ = sam_step(model, "speed")
    assert error(first, again) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_method_may_move_weights_and_perturb_in_one_step() -> None:
    """A scope is left as it should be: T-Vaccine's step after a SAM step on the same model equals one before it."""
    model = build()

    def tvaccine() -> dict[str, Tensor]:
        make_method(TVaccineConfig(num_layers=2), model, seed=3)[0].training_step(model, make_batch(), 0)
        return take_gradients(model)

    before = tvaccine()
    sam_step(model, "speed")
    assert error(tvaccine(), before) == 0
