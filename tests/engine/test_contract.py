"""The contract of DESIGN.md section 3, for every method in METHODS, with and without gradient checkpointing."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import (
    build,
    make_batch,
    make_method,
    plain_loss,
    plain_two_passes,
    take_gradients,
    worst_error,
)
from torch import Tensor, nn

from tvaccine_core.config import TVaccineConfig
from tvaccine_core.methods import METHODS

SETTINGS: dict[str, dict[str, Any]] = {"tvaccine": {"num_layers": 2, "resample_every": 2, "rescore_every": 4}}
PLAIN_STEPS = {"sft", "plain"}
CONFIGS = {name: info.config(**SETTINGS.get(name, {})) for name, info in METHODS.items() if info.path}
CONFIGS["tvaccine, paper's freezing"] = TVaccineConfig(freezing="layer", **SETTINGS["tvaccine"])
PERTURBING = {name: config for name, config in CONFIGS.items() if name not in PLAIN_STEPS}
PARAMETERS = [
    pytest.param(config, checkpointing, id=f"{name}-{'checkpointing' if checkpointing else 'plain'}")
    for name, config in CONFIGS.items()
    for checkpointing in (False, True)
]
all_methods = pytest.mark.parametrize(("config", "checkpointing"), PARAMETERS)


def hooks_on(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def trained_by(method: Any, model: nn.Module) -> dict[str, nn.Parameter]:
    """What the drawn layers let train, by the words of the two readings and by parameter names."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if method.info.name != "tvaccine":
        return trained
    chosen = {}
    for name, parameter in trained.items():
        layer = int(name.split("layers.")[1].split(".")[0])
        anywhere = method.config.freezing == "attention" and "mlp" in name and layer >= min(method.layers)
        if layer in method.layers or anywhere:
            chosen[name] = parameter
    return chosen


@all_methods
def test_a_step_leaves_everything_else_as_it_was(config: Any, checkpointing: bool) -> None:
    model = build(checkpointing=checkpointing, dropout=0.3)
    method, _ = make_method(config, model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    required = [parameter.requires_grad for parameter in model.parameters()]
    hooks, modes = hooks_on(model), [module.training for module in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()

    metrics = method.training_step(model, make_batch(), 0)

    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert [parameter.requires_grad for parameter in model.parameters()] == required
    assert hooks_on(model) == hooks
    assert [module.training for module in model.modules()] == modes
    assert not [name for name, module in model.named_modules() if "forward" in module.__dict__]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
    assert "loss" in metrics
    assert all(value.dim() == 0 and not value.requires_grad for value in metrics.values())


@all_methods
def test_gradients_equal_a_plain_step_written_by_hand(config: Any, checkpointing: bool) -> None:
    model = build(checkpointing=checkpointing)
    method, _ = make_method(config, model)
    batch = make_batch(1, weight=0.7)
    metrics = method.training_step(model, batch, 0)
    ours = take_gradients(model)
    trained = trained_by(method, model)
    if method.info.name in PLAIN_STEPS:
        (plain_loss(model, batch) * batch.weight).backward()
        expected = take_gradients(model)
    else:
        layers = method.layers if method.info.name == "tvaccine" else range(5)
        expected, clean = plain_two_passes(model, batch, layers, config.rho, trained)
        for layer, gradient in clean.items():
            torch.testing.assert_close(metrics[f"clean_grad_norm.{layer}"], gradient.norm(), rtol=1e-5, atol=0)
        assert float(metrics["perturbation_norm"]) == pytest.approx(config.rho, rel=1e-5)
    assert worst_error(ours, expected) < 1e-5
    assert float(metrics["loss"]) == pytest.approx(float(plain_loss(model, batch)), rel=1e-6)


@all_methods
def test_what_trains_gets_a_gradient_and_what_is_frozen_gets_none(config: Any, checkpointing: bool) -> None:
    model = build(checkpointing=checkpointing)
    method, _ = make_method(config, model)
    method.training_step(model, make_batch(), 0)
    trained = trained_by(method, model)
    for name, parameter in model.named_parameters():
        if name in trained:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name
        else:
            assert parameter.grad is None, name


@all_methods
def test_accumulation_is_the_sum_of_its_micro_batches(config: Any, checkpointing: bool) -> None:
    model = build(checkpointing=checkpointing)
    batches = [make_batch(1, weight=0.3), make_batch(2, weight=0.7)]

    method, events = make_method(config, model)
    for batch in batches:
        method.training_step(model, batch, 0)
    together = take_gradients(model)
    num_events = len(events)

    total: dict[str, Tensor] = {}
    method, events = make_method(config, model)
    for batch in batches:
        method.training_step(model, batch, 0)
        for name, gradient in take_gradients(model).items():
            total[name] = total.get(name, 0) + gradient
    assert len(events) == num_events == (2 if method.info.name == "tvaccine" else 0), "one scoring and one draw a step"
    assert worst_error(together, total) < 1e-6


@all_methods
def test_gradients_are_added_not_overwritten(config: Any, checkpointing: bool) -> None:
    model = build(checkpointing=checkpointing)
    make_method(config, model)[0].training_step(model, make_batch(), 0)
    alone = take_gradients(model)
    for name, parameter in model.named_parameters():
        if name in alone:
            parameter.grad = torch.full_like(parameter, 0.25)
    make_method(config, model)[0].training_step(model, make_batch(), 0)
    for name, gradient in take_gradients(model).items():
        torch.testing.assert_close(gradient, alone[name] + 0.25, rtol=1e-5, atol=1e-6)


@all_methods
def test_strength_zero_is_sft(config: Any, checkpointing: bool) -> None:
    model = build(checkpointing=checkpointing)
    make_method(CONFIGS["sft"], model)[0].training_step(model, make_batch(), 0)
    plain = take_gradients(model)
    weak = config.model_copy(update={"rho": 0.0}) if config.name not in PLAIN_STEPS else config
    method, _ = make_method(weak, model)
    method.training_step(model, make_batch(), 0)
    ours = take_gradients(model)
    assert ours.keys() == trained_by(method, model).keys()
    assert worst_error(ours, {name: plain[name] for name in ours}) < 1e-6


@all_methods
def test_the_same_seed_gives_the_same_gradient_whatever_the_global_generators_hold(
    config: Any, checkpointing: bool
) -> None:
    model = build(checkpointing=checkpointing, dropout=0.4)
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        random.seed(noise)
        make_method(config, model, seed=7)[0].training_step(model, make_batch(), 0)
        results.append(take_gradients(model))
    assert worst_error(*results) == 0
    make_method(config, model, seed=8)[0].training_step(model, make_batch(), 0)
    other = take_gradients(model)
    shared = results[0].keys() & other.keys()
    assert any(not torch.equal(other[name], results[0][name]) for name in shared), "another seed, other masks"


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_checkpointing_changes_nothing_under_dropout(config: Any) -> None:
    results = []
    for checkpointing in (False, True):
        model = build(checkpointing=checkpointing, dropout=0.4)
        make_method(config, model, seed=3)[0].training_step(model, make_batch(), 0)
        results.append(take_gradients(model))
    assert worst_error(*results) < 1e-6


@all_methods
def test_state_dict_takes_a_run_up_where_it_stopped(config: Any, checkpointing: bool) -> None:
    model = build(checkpointing=checkpointing, dropout=0.2)

    def run(method: Any, steps: range) -> list[dict[str, Tensor]]:
        results = []
        for step in steps:
            method.training_step(model, make_batch(step), step)
            results.append(take_gradients(model))
        return results

    whole, whole_events = make_method(config, model, seed=5)
    expected = run(whole, range(7))[3:]

    first, events = make_method(config, model, seed=5)
    run(first, range(3))
    state = {key: value.clone() for key, value in first.state_dict().items()}
    second, later_events = make_method(config, model, seed=99)
    second.load_state_dict(state)
    resumed = run(second, range(3, 7))
    assert [worst_error(*pair) for pair in zip(resumed, expected, strict=True)] == [0, 0, 0, 0]
    assert events + later_events == whole_events


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_step_that_fails_leaves_no_trace(config: Any) -> None:
    model = build()
    method, _ = make_method(config, model)
    required = [parameter.requires_grad for parameter in model.parameters()]
    state = torch.get_rng_state()
    broken = method.passes.blocks[-1].layer

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("broken on purpose")

    broken.forward = fail
    with pytest.raises(RuntimeError, match="on purpose"):
        method.training_step(model, make_batch(), 0)
    del broken.forward
    assert hooks_on(model) == 0
    assert not [name for name, module in model.named_modules() if "forward" in module.__dict__]
    assert [parameter.requires_grad for parameter in model.parameters()] == required
    assert torch.equal(torch.get_rng_state(), state)
    assert not take_gradients(model)


@pytest.mark.parametrize("activation_memory", ["speed", "lowest"])
@pytest.mark.parametrize("config", PERTURBING.values(), ids=PERTURBING)
def test_steps_between_perturbed_ones_descend_the_plain_loss_in_what_trains(
    config: Any, activation_memory: Any
) -> None:
    """With tau 3, steps 0 and 3 equal those of tau 1; 1, 2 and 4 equal SFT's gradient where the draw lets it train."""
    model = build()
    plain_loss(model, make_batch()).backward()
    plain = take_gradients(model)
    method, events = make_method(config.model_copy(update={"perturb_every": 3}), model, 4, activation_memory)
    always, always_events = make_method(config, model, 4, activation_memory)
    for step in range(5):
        metrics = method.training_step(model, make_batch(), step)
        ours = take_gradients(model)
        full = always.training_step(model, make_batch(), step)
        perturbed = take_gradients(model)
        assert ours.keys() == perturbed.keys() == trained_by(method, model).keys()
        if step % 3 == 0:
            assert metrics.keys() == full.keys()
            assert worst_error(ours, perturbed) == 0
            assert method.perturbation is not None
        else:
            assert metrics.keys() == {"loss"}
            assert worst_error(ours, {name: plain[name] for name in ours}) < 1e-5
            assert worst_error(ours, perturbed) > 1e-3
            assert method.perturbation is None
    assert events == always_events, "layers are scored and drawn as ever"


@pytest.mark.parametrize("config", PERTURBING.values(), ids=PERTURBING)
def test_a_plain_step_leaves_everything_else_as_it_was_and_is_the_same_for_the_same_seed(config: Any) -> None:
    model = build(dropout=0.3)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    required = [parameter.requires_grad for parameter in model.parameters()]
    state = torch.get_rng_state()
    results = []
    for _ in range(2):
        method, _ = make_method(config.model_copy(update={"perturb_every": 2}), model, seed=7)
        method.training_step(model, make_batch(), 1)
        results.append(take_gradients(model))
    assert worst_error(*results) == 0
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == required
    assert hooks_on(model) == 0
    assert not [name for name, module in model.named_modules() if "forward" in module.__dict__]
    assert torch.equal(torch.get_rng_state(), state)
