"""The step bench: its counters on cases worked by hand, its released-style step by what it must do, its report."""

import json
from collections import Counter
from functools import partial

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.utils.checkpoint import checkpoint

from tvaccine_core.bench import released as released_module
from tvaccine_core.bench import step as bench
from tvaccine_core.bench.memory import LiveTensors, SavedActivations
from tvaccine_core.bench.released import ReleasedStep, llama
from tvaccine_core.bench.step import StepBenchReport, StepBenchSettings
from tvaccine_core.errors import TrainingError

TINY = StepBenchSettings(layers=4, hidden=32, vocab=61, batch=3, length=11, drawn=(1, 3), repeats=3, threads=1)
FLOAT = 4


def test_saved_activations_counts_unique_storages_and_leaves_parameters_out() -> None:
    weight = nn.Parameter(torch.ones(5, 7))
    x = torch.ones(3, 5, requires_grad=True)
    with SavedActivations([weight]) as saved:
        a = x @ weight  # saves x (3, 5) and the weight
        b = a.exp()  # saves its result (3, 7)
        c = b * b  # saves b twice: the same storage
        total = c.sum()  # saves nothing
        assert saved.now_bytes == (3 * 5 + 3 * 7) * FLOAT
        total.backward()
    assert saved.now_bytes == 0
    assert saved.peak_bytes == (3 * 5 + 3 * 7) * FLOAT
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (2 * b * b).detach() @ weight.detach().T)


def test_saved_activations_counts_a_view_as_its_storage() -> None:
    x = torch.ones(6, 5, requires_grad=True)
    with SavedActivations([]) as saved:
        b = x.exp()
        loss = b[:2].square().sum() + b[3:].square().sum()  # both save views of b
        assert saved.now_bytes == 6 * 5 * FLOAT
        loss.backward()
    assert saved.now_bytes == 0


def test_saved_activations_goes_down_when_a_graph_is_dropped_unused() -> None:
    x = torch.ones(3, 5, requires_grad=True)
    with SavedActivations([]) as saved:
        b = x.exp()
        assert saved.now_bytes == 3 * 5 * FLOAT
        del b
        assert saved.now_bytes == 0


def test_saved_activations_sees_a_checkpoint_by_its_input() -> None:
    def three(x: torch.Tensor) -> torch.Tensor:
        return x.exp().exp().exp()

    x = torch.zeros(3, 5, requires_grad=True)
    with SavedActivations([]) as plain:
        three(x).sum().backward()
    with SavedActivations([]) as checkpointed:
        checkpoint(three, x, use_reentrant=False).sum().backward()
    assert plain.peak_bytes == 3 * 3 * 5 * FLOAT
    assert checkpointed.peak_bytes == 3 * 5 * FLOAT


def test_live_tensors_counts_what_operations_make_until_it_is_freed() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    x = torch.ones(8, 4)
    with LiveTensors() as live:
        a = x @ weight  # (8, 4)
        view = a.view(-1)  # nothing new
        assert live.now_bytes == 8 * 4 * FLOAT
        total = (a * 2).sum()  # a temporary (8, 4) and a scalar
        assert live.now_bytes == (8 * 4 + 1) * FLOAT
        assert live.peak_bytes == (8 * 4 + 8 * 4 + 1) * FLOAT
        del a, view
        total.backward()
        assert weight.grad is not None
        assert live.now_bytes == (1 + 4 * 4) * FLOAT


def test_live_tensors_does_not_count_an_operation_in_place() -> None:
    with LiveTensors() as live:
        a = torch.ones(8, 4)
        a.add_(1).mul_(2)
        assert live.peak_bytes == 8 * 4 * FLOAT


@pytest.fixture(scope="module")
def report() -> StepBenchReport:
    return bench.run(TINY)


def test_gradients_of_both_two_pass_steps_agree(report: StepBenchReport) -> None:
    assert report.num_gradients == 2 * 7 * len(TINY.drawn)
    assert report.worst_gradient_error <= bench.GRADIENT_TOLERANCE


def test_report_names_its_ratios_and_survives_json(report: StepBenchReport) -> None:
    data = json.loads(report.model_dump_json())
    ratios = {key: value for key, value in data.items() if "ratio" in key}
    assert {
        "exact_over_released_time_ratio",
        "tvaccine_over_sft_time_ratio",
        "released_over_sft_time_ratio",
        "exact_over_released_saved_activation_ratio",
        "tvaccine_over_sft_saved_activation_ratio",
    } <= ratios.keys()
    assert all(value > 0 for value in ratios.values())
    for name in ("exact_over_released", "tvaccine_over_sft", "released_over_sft"):
        low, middle, high = (ratios[f"{name}_time_ratio{end}"] for end in ("_min", "", "_max"))
        assert low <= middle <= high
    assert StepBenchReport.model_validate(data) == report


def test_report_as_text_tells_shape_machine_and_ratios(report: StepBenchReport) -> None:
    text = bench.render(report)
    assert "4 layers x 32, vocabulary 61, batch 3 x 11" in text
    assert f"{report.exact_over_released_time_ratio:.3f}" in text
    assert "1 thread," in text
    assert len(text.splitlines()) == 14


def test_undrawn_layers_are_recomputed_and_the_rest_run_twice() -> None:
    """Layer 0 lies under the lowest drawn layer: no gradient reaches it, so nothing is recomputed there."""
    model = bench.build_model(TINY)
    released = ReleasedStep(model, TINY.drawn, TINY.rho)
    runs: Counter[int] = Counter()

    def count(index: int, module: nn.Module, inputs: object) -> None:
        runs[index] += 1

    layers = llama(model).model.layers
    handles = [
        layer.mlp.register_forward_pre_hook(partial(count, index)) for index, layer in enumerate(layers)
    ]  # inside the layer, so that recomputation is seen
    with released.prepared():
        released(bench.build_batch(TINY))
    for handle in handles:
        handle.remove()
    assert runs == {0: 2, 1: 2, 2: 4, 3: 2}


def test_released_step_leaves_the_model_as_it_was() -> None:
    model = bench.build_model(TINY)
    before = {name: (parameter.requires_grad, parameter.clone()) for name, parameter in model.named_parameters()}
    released = ReleasedStep(model, TINY.drawn, TINY.rho)
    with released.prepared():
        released(bench.build_batch(TINY))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == before[name][0]
        assert torch.equal(parameter, before[name][1])
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(layer.gradient_checkpointing for layer in llama(model).model.layers)


def test_released_step_is_plain_backward_at_rho_zero_and_not_above() -> None:
    model, batch = bench.build_model(TINY), bench.build_batch(TINY)
    model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss.backward()
    plain = {name: gradient.clone() for name, gradient in bench.named_gradients(model).items()}

    def gradients(rho: float) -> dict[str, torch.Tensor]:
        model.zero_grad()
        released = ReleasedStep(model, TINY.drawn, rho)
        with released.prepared():
            released(batch)
        return bench.named_gradients(model)

    at_zero = gradients(0.0)
    drawn = [name for name in plain if any(f"layers.{index}." in name for index in TINY.drawn)]
    assert sorted(at_zero) == sorted(drawn)
    assert bench.compare_gradients(at_zero, {name: plain[name] for name in drawn}) <= 1e-5
    with pytest.raises(TrainingError, match="agree"):
        bench.compare_gradients(gradients(TINY.rho), at_zero)


def test_a_step_with_other_gradients_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(released_module, "NORM_FLOOR", 10.0)  # the released-style step now perturbs less than ours
    with pytest.raises(TrainingError, match="must agree"):
        bench.run(TINY)


@pytest.mark.parametrize(
    ("exact", "message"),
    [
        ({"a": torch.ones(3)}, "Only one"),
        ({"a": torch.ones(3), "b": torch.zeros(3)}, "b nan"),
        ({"a": torch.ones(3) * 1.1, "b": torch.zeros(3)}, "a 1.0e-01"),
    ],
)
def test_gradients_that_are_missing_zero_or_off_are_refused(exact: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(TrainingError, match=message) as raised:
        bench.compare_gradients(exact, {"a": torch.ones(3), "b": torch.zeros(3)})
    assert raised.value.remedy


def test_floor_by_count_worked_by_hand() -> None:
    """16 layers, lowest drawn 1: 1 + 3 * 15/16 = 61/16 against 2 * (1 + 15/16 + 11/16) = 84/16."""
    assert bench.floor_by_count(16, (1, 4, 9, 13)) == pytest.approx(61 / 84)
    assert bench.floor_by_count(8, tuple(range(8))) == 1


@pytest.mark.parametrize("drawn", [(0, 4), (1, 1), (-1,), ()])
def test_layers_that_are_not_there_are_refused(drawn: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError):
        StepBenchSettings(layers=4, drawn=drawn)


def test_threads_are_as_they_were_after_a_run() -> None:
    before = torch.get_num_threads()
    with bench._threads(before + 1) as threads:
        assert threads == before + 1
    assert torch.get_num_threads() == before
