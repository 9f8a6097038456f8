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
from tvaccine_core.bench import step_model
from tvaccine_core.bench.memory import LiveTensors, SavedActivations
from tvaccine_core.bench.released import ReleasedStep, llama
from tvaccine_core.bench.step import StepBenchReport, spread, sweep_settings
from tvaccine_core.bench.step_model import STEP_NAMES, StepBenchSettings
from tvaccine_core.errors import TrainingError
from tvaccine_core.fast.merged_adapters import MergedLinear

TINY = StepBenchSettings(layers=4, hidden=32, vocab=61, batch=3, length=11, drawn=(1, 3), repeats=2, threads=1)
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
    """With a sweep of one of the shapes that there would be, and no rounds to warm up."""
    some = [next(iter(sweep_settings(TINY)))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_model, "WARM_UP_ROUNDS", 0)
        patch.setattr(bench, "sweep_settings", lambda settings: some)
        said: list[str] = []
        report = bench.run(TINY, sweep=True, say=said.append)
    assert [line.split(",")[0] for line in said] == ["4 layers x 32", "2 layers x 32"]
    return report


def test_gradients_of_both_two_pass_steps_agree(report: StepBenchReport) -> None:
    assert report.num_gradients == 2 * 7 * len(TINY.drawn)
    assert report.worst_gradient_error <= step_model.GRADIENT_TOLERANCE


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
    for name in STEP_NAMES:
        assert f"{name:<20}{report.steps[name].median_s:>10.3f}" in text


def test_fast_and_plain_steps_of_each_method_stand_side_by_side(report: StepBenchReport) -> None:
    assert list(report.fast_paths) == ["sft", "vaccine", "tvaccine"]
    text = bench.render(report)
    for method, cost in report.fast_paths.items():
        assert cost.fast_s == report.steps[f"{method} speed"].median_s
        assert cost.plain_s == report.steps[f"{method} off"].median_s
        assert cost.time_ratio_min <= cost.time_ratio <= cost.time_ratio_max
        assert f"{method:<20}{cost.fast_s:>10.3f}{cost.plain_s:>10.3f}{cost.time_ratio:>8.3f}" in text


def test_a_step_with_the_fast_paths_off_runs_the_models_own_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = step_model.Steps(TINY)
    monkeypatch.setattr(MergedLinear, "apply", None)
    for name in step_model.OFF.values():
        assert steps.gradients(name)
    with pytest.raises(TypeError):
        steps.run("sft speed")


def test_every_step_is_in_the_table_with_its_ratios(report: StepBenchReport) -> None:
    assert tuple(report.steps) == STEP_NAMES
    for cost in report.steps.values():
        assert cost.over_released_time_ratio_min <= cost.over_released_time_ratio <= cost.over_released_time_ratio_max
    released = report.steps["released"]
    assert released.over_released_time_ratio == released.over_released_live_memory_ratio == 1
    exact = report.steps["tvaccine speed"]
    assert exact.over_released_time_ratio == report.exact_over_released_time_ratio
    assert exact.over_sft_time_ratio == report.tvaccine_over_sft_time_ratio
    saved = [report.steps[f"tvaccine {mode}"].peak_saved_bytes for mode in ("speed", "balanced", "lowest")]
    assert saved == sorted(saved, reverse=True)
    assert len(set(saved)) == 3
    assert report.steps["tvaccine plain"].peak_saved_bytes < report.steps["tvaccine speed"].peak_saved_bytes * 1.01


def test_a_longer_period_costs_the_mean_of_its_steps(report: StepBenchReport) -> None:
    medians = {name: cost.median_s for name, cost in report.steps.items()}
    ratios = {
        method: {cost.perturb_every: cost.over_sft_time_ratio for cost in costs}
        for method, costs in report.periods.items()
    }
    assert ratios["vaccine"][1] == pytest.approx(medians["vaccine speed"] / medians["sft speed"])
    assert ratios["vaccine"][100] == pytest.approx(0.01 * ratios["vaccine"][1] + 0.99)
    mean = (medians["tvaccine speed"] + 4 * medians["tvaccine plain"]) / 5
    assert ratios["tvaccine"][5] == pytest.approx(mean / medians["sft speed"])


def test_a_sweep_varies_one_thing_at_a_time(report: StepBenchReport) -> None:
    shapes = list(sweep_settings(TINY))
    assert {varies for varies, _ in shapes} == {"layers", "hidden", "length", "drawn"}
    for varies, settings in shapes:
        changed = {key for key, value in settings.model_dump().items() if value != TINY.model_dump()[key]}
        assert varies in changed
        assert changed <= {varies, "drawn", "repeats"}
        assert settings.repeats == TINY.sweep_repeats
    assert [(point.varies, point.settings.layers) for point in report.sweep] == [("layers", 2)]
    for point in report.sweep:
        assert point.worst_gradient_error <= step_model.GRADIENT_TOLERANCE
        assert set(point.steps) == set(bench.SWEEP_STEPS)
    text = bench.render(report)
    assert "2 x 32, 3 x 11" in text


def test_the_shapes_of_the_default_sweep() -> None:
    shapes = [(varies, s.layers, s.hidden, s.length, s.drawn) for varies, s in sweep_settings(StepBenchSettings())]
    assert [shape[:4] for shape in shapes if shape[0] != "drawn"] == [
        ("layers", 4, 384, 128),
        ("layers", 8, 384, 128),
        ("hidden", 16, 128, 128),
        ("hidden", 16, 512, 128),
        ("length", 16, 384, 64),
        ("length", 16, 384, 256),
    ]
    assert [shape[4] for shape in shapes if shape[0] == "drawn"] == [
        (8,),
        (1, 3, 5, 7, 9, 11, 13, 15),
        tuple(range(16)),
    ]
    assert spread(8, 4) == (1, 3, 5, 7)


def test_undrawn_layers_are_recomputed_and_the_rest_run_twice() -> None:
    """Layer 0 lies under the lowest drawn layer: no gradient reaches it, so nothing is recomputed there."""
    model = step_model.build_model(TINY)
    released = ReleasedStep(model, TINY.drawn, TINY.rho)
    runs: Counter[int] = Counter()

    def count(index: int, module: nn.Module, inputs: object) -> None:
        runs[index] += 1

    layers = llama(model).model.layers
    handles = [
        layer.mlp.register_forward_pre_hook(partial(count, index)) for index, layer in enumerate(layers)
    ]  # inside the layer, so that recomputation is seen
    with released.prepared():
        released(step_model.build_batch(TINY))
    for handle in handles:
        handle.remove()
    assert runs == {0: 2, 1: 2, 2: 4, 3: 2}


def test_released_step_leaves_the_model_as_it_was() -> None:
    model = step_model.build_model(TINY)
    before = {name: (parameter.requires_grad, parameter.clone()) for name, parameter in model.named_parameters()}
    released = ReleasedStep(model, TINY.drawn, TINY.rho)
    with released.prepared():
        released(step_model.build_batch(TINY))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == before[name][0]
        assert torch.equal(parameter, before[name][1])
    assert not any(module._forward_hooks for module in model.modules())
    assert not any(layer.gradient_checkpointing for layer in llama(model).model.layers)


def test_released_step_is_plain_backward_at_rho_zero_and_not_above() -> None:
    model, batch = step_model.build_model(TINY), step_model.build_batch(TINY)
    model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss.backward()
    plain = {name: gradient.clone() for name, gradient in step_model.named_gradients(model).items()}

    def gradients(rho: float) -> dict[str, torch.Tensor]:
        model.zero_grad()
        released = ReleasedStep(model, TINY.drawn, rho)
        with released.prepared():
            released(batch)
        return step_model.named_gradients(model)

    at_zero = gradients(0.0)
    drawn = [name for name in plain if any(f"layers.{index}." in name for index in TINY.drawn)]
    assert sorted(at_zero) == sorted(drawn)
    assert step_model.compare_gradients(at_zero, {name: plain[name] for name in drawn}) <= 1e-5
    with pytest.raises(TrainingError, match="agree"):
        step_model.compare_gradients(gradients(TINY.rho), at_zero)


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
        step_model.compare_gradients(exact, {"a": torch.ones(3), "b": torch.zeros(3)})
    assert raised.value.remedy


def test_floor_by_count_worked_by_hand() -> None:
    """16 layers, lowest drawn 1: 1 + 3 * 15/16 = 61/16 against 2 * (1 + 15/16 + 11/16) = 84/16."""
    assert step_model.floor_by_count(16, (1, 4, 9, 13)) == pytest.approx(61 / 84)
    assert step_model.floor_by_count(8, tuple(range(8))) == 1


@pytest.mark.parametrize("drawn", [(0, 4), (1, 1), (-1,), ()])
def test_layers_that_are_not_there_are_refused(drawn: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError):
        StepBenchSettings(layers=4, drawn=drawn)


def test_threads_are_as_they_were_after_a_run() -> None:
    before = torch.get_num_threads()
    with step_model.threads_of(before + 1) as threads:
        assert threads == before + 1
    assert torch.get_num_threads() == before
