"""Cost of one alignment step, by method and memory mode, against SFT's step and the plain two-pass way.

One model and one batch (see `step_model`), one process. Every step takes its turn in every round, in rotated order, so
that a slower machine slows all of them. A time ratio is the median of the rounds' ratios, given with the smallest and
largest. Before anything is timed, the gradients of T-Vaccine's step in each mode must agree, tensor by tensor, with
those of the released-style step.

There are two counts of memory (see `memory`). One is the peak of tensors that autograd holds, without parameters. The
other is the peak of all living tensors that the step made, with recomputed activations, gradients and temporaries.

Counting the arithmetic bounds the possible gain. Let f be the share of layers from the lowest drawn layer up, and u the
share of undrawn layers among these (of all layers). A forward pass costs 1, a backward pass through frozen weights also
1, and the head is left out. Then the released step costs 2(1 + f + u), ours 1 + 3f.

A sweep repeats it on other shapes: depth, width, length and number of drawn layers vary in turn.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers

from tvaccine_core import machine
from tvaccine_core.bench.step_model import (
    OFF,
    PLAIN,
    RELEASED,
    STEP_NAMES,
    StepBenchSettings,
    Steps,
    floor_by_count,
    threads_of,
)
from tvaccine_core.passes.memory import MODES
from tvaccine_core.records import Record

PERIODS = (1, 2, 5, 10, 100)
"""Values of `perturb_every` whose mean step is reported."""

SWEEP_STEPS = tuple(name for name in STEP_NAMES if name != PLAIN and name not in OFF.values())
"""The steps that are measured on the shapes of a sweep."""


class StepCost(Record):
    """Time and memory of one kind of step."""

    median_s: float
    minimum_s: float
    maximum_s: float
    peak_saved_bytes: int
    """Unique non-parameter storages held by autograd, at their peak."""
    peak_live_bytes: int
    """Storages made in the step and alive at once, with gradients, recomputed activations and temporaries."""
    over_released_time_ratio: float
    over_released_time_ratio_min: float
    over_released_time_ratio_max: float
    over_released_saved_activation_ratio: float
    over_released_live_memory_ratio: float
    over_sft_time_ratio: float
    """Time over that of SFT's step in mode `speed`."""


class PeriodCost(Record):
    """Mean over a perturbed step and the plain steps until the next, from the medians of both kinds."""

    perturb_every: int
    over_sft_time_ratio: float


class FastPathsCost(Record):
    """A step in mode `speed` with the fast paths, over the same step with the model's own modules."""

    fast_s: float
    plain_s: float
    time_ratio: float
    time_ratio_min: float
    time_ratio_max: float


class SweepPoint(Record):
    """The steps on one other shape."""

    varies: str
    """The setting in which it differs from the first shape."""
    settings: StepBenchSettings
    floor_by_count_time_ratio: float
    worst_gradient_error: float
    steps: dict[str, StepCost]


class StepBenchReport(Record):
    """One run of the benchmark."""

    settings: StepBenchSettings
    threads: int
    processor: str
    torch_version: str
    transformers_version: str
    num_gradients: int
    """Tensors with a gradient after the released step."""
    worst_gradient_error: float
    """Largest relative L2 difference between two gradients that must be equal."""
    steps: dict[str, StepCost]
    """Step (see `step_model`) -> its cost."""
    floor_by_count_time_ratio: float
    periods: dict[str, tuple[PeriodCost, ...]]
    """Method -> its mean step for several values of `perturb_every`."""
    fast_paths: dict[str, FastPathsCost]
    """Method -> time with its fast paths and without."""
    exact_over_released_time_ratio: float
    """T-Vaccine's step in mode `speed` over the released-style step."""
    exact_over_released_time_ratio_min: float
    exact_over_released_time_ratio_max: float
    exact_over_released_saved_activation_ratio: float
    exact_over_released_live_memory_ratio: float
    tvaccine_over_sft_time_ratio: float
    tvaccine_over_sft_time_ratio_min: float
    tvaccine_over_sft_time_ratio_max: float
    tvaccine_over_sft_saved_activation_ratio: float
    tvaccine_over_sft_live_memory_ratio: float
    released_over_sft_time_ratio: float
    released_over_sft_time_ratio_min: float
    released_over_sft_time_ratio_max: float
    released_over_sft_saved_activation_ratio: float
    released_over_sft_live_memory_ratio: float
    sweep: tuple[SweepPoint, ...] = ()


RATIOS = (
    ("exact_over_released", "tvaccine speed", RELEASED),
    ("tvaccine_over_sft", "tvaccine speed", "sft speed"),
    ("released_over_sft", RELEASED, "sft speed"),
)


def run(
    settings: StepBenchSettings, *, sweep: bool = False, say: Callable[[str], None] = lambda line: None
) -> StepBenchReport:
    """Build, compare gradients, count memory, time; with `sweep` also on the shapes of `sweep_settings`.

    `say` is told of every shape before it is measured.

    Raises:
        TrainingError: gradients that must be equal are not.
    """
    with threads_of(settings.threads) as threads, torch.random.fork_rng():
        say(_shape(settings))
        worst, num_gradients, times, memory = _measure(settings, STEP_NAMES)
        points = tuple(_sweep(settings, say)) if sweep else ()
    ratios: dict[str, Any] = {}
    for key, upper, lower in RATIOS:
        for part, value in _ratios(times, memory, upper, lower).items():
            ratios[f"{key}_{part}"] = value
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    plain = {"vaccine": medians["sft speed"], "tvaccine": medians[PLAIN]}
    return StepBenchReport(
        settings=settings,
        threads=threads,
        processor=machine.processor(),
        torch_version=torch.__version__,
        transformers_version=transformers.__version__,
        num_gradients=num_gradients,
        worst_gradient_error=worst,
        steps=_costs(times, memory),
        floor_by_count_time_ratio=floor_by_count(settings.layers, settings.drawn),
        periods={
            method: tuple(
                PeriodCost(
                    perturb_every=period,
                    over_sft_time_ratio=(medians[f"{method} speed"] + (period - 1) * between)
                    / (period * medians["sft speed"]),
                )
                for period in PERIODS
            )
            for method, between in plain.items()
        },
        fast_paths={fast.partition(" ")[0]: _fast_paths_cost(times, fast, plain) for fast, plain in OFF.items()},
        sweep=points,
        **ratios,
    )


def sweep_settings(settings: StepBenchSettings) -> Iterator[tuple[str, StepBenchSettings]]:
    """The shapes of a sweep, each with the setting that varies; drawn layers are evenly spread."""
    layers, drawn = settings.layers, len(settings.drawn)
    for count in sorted({max(drawn, layers // 4), max(drawn, layers // 2)} - {layers}):
        yield "layers", _with(settings, layers=count, drawn=spread(count, drawn))
    for hidden in sorted({max(64, settings.hidden // 6 * 2), settings.hidden // 3 * 4} - {settings.hidden}):
        yield "hidden", _with(settings, hidden=hidden // 8 * 8)
    for length in (max(4, settings.length // 2), settings.length * 2):
        yield "length", _with(settings, length=length)
    for count in sorted({1, min(layers, drawn * 2), layers}):
        yield "drawn", _with(settings, drawn=spread(layers, count))


def spread(layers: int, count: int) -> tuple[int, ...]:
    """`count` of `layers`, each in the middle of one of `count` equal parts."""
    return tuple((2 * index + 1) * layers // (2 * count) for index in range(count))


def _with(settings: StepBenchSettings, **changes: Any) -> StepBenchSettings:
    return StepBenchSettings.model_validate({**settings.model_dump(), "repeats": settings.sweep_repeats, **changes})


def _shape(settings: StepBenchSettings) -> str:
    return (
        f"{settings.layers} layers x {settings.hidden}, batch {settings.batch} x {settings.length}, "
        f"{len(settings.drawn)} drawn, {settings.repeats} rounds"
    )


def _sweep(settings: StepBenchSettings, say: Callable[[str], None]) -> Iterator[SweepPoint]:
    for varies, other in sweep_settings(settings):
        say(_shape(other))
        worst, _, times, memory = _measure(other, SWEEP_STEPS)
        yield SweepPoint(
            varies=varies,
            settings=other,
            floor_by_count_time_ratio=floor_by_count(other.layers, other.drawn),
            worst_gradient_error=worst,
            steps=_costs(times, memory),
        )


def _measure(
    settings: StepBenchSettings, names: Sequence[str]
) -> tuple[float, int, dict[str, list[float]], dict[str, tuple[int, int]]]:
    """Worst gradient error, number of the released step's gradients, and every step's seconds and bytes."""
    steps = Steps(settings)
    worst = steps.compare(names)
    num_gradients = len(steps.gradients(RELEASED))
    memory = {name: steps.memory(name) for name in names}
    return worst, num_gradients, steps.rounds(names), memory


def _ratios(
    times: Mapping[str, list[float]], memory: Mapping[str, tuple[int, int]], upper: str, lower: str
) -> dict[str, float]:
    by_round = [a / b for a, b in zip(times[upper], times[lower], strict=True)]
    return {
        "time_ratio": statistics.median(by_round),
        "time_ratio_min": min(by_round),
        "time_ratio_max": max(by_round),
        "saved_activation_ratio": memory[upper][0] / memory[lower][0],
        "live_memory_ratio": memory[upper][1] / memory[lower][1],
    }


def _costs(times: Mapping[str, list[float]], memory: Mapping[str, tuple[int, int]]) -> dict[str, StepCost]:
    costs = {}
    for name, seconds in times.items():
        ratios: dict[str, Any] = {
            f"over_released_{part}": value for part, value in _ratios(times, memory, name, RELEASED).items()
        }
        costs[name] = StepCost(
            median_s=statistics.median(seconds),
            minimum_s=min(seconds),
            maximum_s=max(seconds),
            peak_saved_bytes=memory[name][0],
            peak_live_bytes=memory[name][1],
            over_sft_time_ratio=_ratios(times, memory, name, "sft speed")["time_ratio"],
            **ratios,
        )
    return costs


def _fast_paths_cost(times: Mapping[str, list[float]], fast: str, plain: str) -> FastPathsCost:
    by_round = [a / b for a, b in zip(times[fast], times[plain], strict=True)]
    return FastPathsCost(
        fast_s=statistics.median(times[fast]),
        plain_s=statistics.median(times[plain]),
        time_ratio=statistics.median(by_round),
        time_ratio_min=min(by_round),
        time_ratio_max=max(by_round),
    )


def render(report: StepBenchReport) -> str:
    """The report as plain text."""
    settings = report.settings
    noun = "thread" if report.threads == 1 else "threads"
    lines = [
        f"{settings.layers} layers x {settings.hidden}, vocabulary {settings.vocab}, batch {settings.batch} x "
        f"{settings.length}, half the labels masked, drawn layers {', '.join(map(str, settings.drawn))}",
        f"{report.processor}, {report.threads} {noun}, torch {report.torch_version}, "
        f"transformers {report.transformers_version}, {settings.repeats} rounds",
        f"{report.num_gradients} gradients agree, worst relative difference {report.worst_gradient_error:.1e}",
        "",
        f"{'':<26}{'':>7}{'over released':>39}{'MiB':>18}",
        f"{'step':<20}{'median s':>10}{'/ sft':>8}{'time':>8}{'min':>7}{'max':>7}{'saved':>8}{'live':>7}"
        f"{'saved':>9}{'live':>9}",
    ]
    for name, cost in report.steps.items():
        lines.append(
            f"{name:<20}{cost.median_s:>10.3f}{cost.over_sft_time_ratio:>8.3f}{cost.over_released_time_ratio:>8.3f}"
            f"{cost.over_released_time_ratio_min:>7.3f}{cost.over_released_time_ratio_max:>7.3f}"
            f"{cost.over_released_saved_activation_ratio:>8.3f}{cost.over_released_live_memory_ratio:>7.3f}"
            f"{cost.peak_saved_bytes / 2**20:>9.1f}{cost.peak_live_bytes / 2**20:>9.1f}"
        )
    lines.append(
        f"{'floor by count':<20}{report.floor_by_count_time_ratio:>26.3f}  (layers alone, no head or adapters)"
    )
    lines += ["", f"{'perturb_every, / sft':<20}" + "".join(f"{period:>8}" for period in PERIODS)]
    for method, costs in report.periods.items():
        lines.append(f"{method:<20}" + "".join(f"{cost.over_sft_time_ratio:>8.3f}" for cost in costs))
    lines += ["", f"{'fast paths':<20}{'fast, s':>10}{'plain, s':>10}{'ratio':>8}{'min':>7}{'max':>7}"]
    for method, cost in report.fast_paths.items():
        lines.append(
            f"{method:<20}{cost.fast_s:>10.3f}{cost.plain_s:>10.3f}{cost.time_ratio:>8.3f}"
            f"{cost.time_ratio_min:>7.3f}{cost.time_ratio_max:>7.3f}"
        )
    if report.sweep:
        lines += ["", *_render_sweep(report.sweep)]
    return "\n".join(lines)


def _render_sweep(points: Sequence[SweepPoint]) -> Iterator[str]:
    """One line per shape: time and saved bytes over the released step's, and seconds of SFT's step."""
    yield f"{'':<44}{'time / released':>36}{'saved / released':>24}"
    yield (
        f"{'varies':<8}{'shape':<26}{'drawn':>6}{'sft s':>8}{'floor':>8}"
        f"{'vaccine':>9}{'speed':>7}{'balanced':>10}{'lowest':>8}{'speed':>7}{'balanced':>10}{'lowest':>8}"
    )
    for point in points:
        shape = point.settings
        text = f"{shape.layers} x {shape.hidden}, {shape.batch} x {shape.length}"
        exact = [point.steps[f"tvaccine {mode}"] for mode in MODES]
        times = [point.steps["vaccine speed"], *exact]
        yield (
            f"{point.varies:<8}{text:<26}{len(shape.drawn):>6}{point.steps['sft speed'].median_s:>8.3f}"
            f"{point.floor_by_count_time_ratio:>8.3f}"
            + "".join(
                f"{cost.over_released_time_ratio:>{width}.3f}" for cost, width in zip(times, (9, 7, 10, 8), strict=True)
            )
            + "".join(
                f"{cost.over_released_saved_activation_ratio:>{width}.3f}"
                for cost, width in zip(exact, (7, 10, 8), strict=True)
            )
        )
