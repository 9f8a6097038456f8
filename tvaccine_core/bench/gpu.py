"""Costs of real sizes on a GPU: peak memory and seconds of SFT, Vaccine and T-Vaccine steps, beside `plan`'s numbers.

The model has a well-known shape and random weights. It is built on the device one tensor at a time, so that nothing is
downloaded and an NF4 model needs no more memory than when it is loaded. A step's time and memory do not depend on the
weights' values. T-Vaccine draws its layers from the bottom, the worst draw.

Memory is the peak of the CUDA allocator; on a CPU it is counted by `plan`'s tracker, and nothing is reserved.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from importlib.metadata import version
from itertools import pairwise
from typing import Any, Literal

import bitsandbytes as bnb
import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PretrainedConfig

from tvaccine_core.config import (
    AlignmentConfig,
    AlignmentMethod,
    Config,
    Defence,
    EvaluationConfig,
    LabConfig,
    ModelConfig,
    OptimisationConfig,
    SFTConfig,
    TVaccineConfig,
    VaccineConfig,
)
from tvaccine_core.errors import OutOfMemoryError
from tvaccine_core.methods import capabilities_of, load_method, worst_case_of
from tvaccine_core.models.load import LoadedModel, load_model, pick_device
from tvaccine_core.passes.memory import Mode
from tvaccine_core.plan.dry_run import make_rows
from tvaccine_core.plan.fake_model import ALIGNED, describe_model, storages, word_tokenizer
from tvaccine_core.plan.planner import plan_run, workload_of
from tvaccine_core.plan.shapes import read_shape
from tvaccine_core.plan.tracker import Tracker
from tvaccine_core.records import Record, StepRecord
from tvaccine_core.states.model_states import ModelStates
from tvaccine_core.training.fit import fit

Storage = Literal["bfloat16", "nf4"]

_BNB: Any = bnb.nn
"""Typed loosely: bitsandbytes does not declare its exports."""


class GpuBenchSettings(Config):
    """The model and its work."""

    shape: str = Field(default="llama-2-7b", min_length=1, description="Built-in name, folder or hub id.")
    random_weights: bool = Field(default=True, description="Random weights; else those of the folder or hub id.")
    storages: tuple[Storage, ...] = Field(default=("bfloat16", "nf4"), min_length=1, description="bfloat16, nf4.")
    device: Literal["cuda", "cpu"] = Field(default="cuda", description="cpu: for small shapes, to try the bench.")
    batch: int = Field(default=10, ge=1, le=4096, description="Rows of the batch.")
    length: int = Field(default=200, ge=8, le=32768, description="Tokens per row, all with labels.")
    activation_memory: Mode = Field(default="speed", description="How much is kept for the backward passes.")
    num_layers: int = Field(default=8, ge=1, le=512, description="Layers that T-Vaccine draws.")
    steps: int = Field(default=6, ge=2, le=1000, description="Steps per method; the first is not timed.")


class GpuCost(Record):
    """Time and memory of one method's steps on one kind of storage."""

    storage: Storage
    method: str
    peak_allocated_bytes: int | None
    """None if it ran out of memory."""
    peak_reserved_bytes: int | None
    """Memory that the allocator took from the device; None on a CPU."""
    step_s: float | None
    """Median."""
    planned_bytes: int
    """Prediction of `plan` for the step."""
    error: str | None


class GpuBenchReport(Record):
    """One run of the benchmark."""

    settings: GpuBenchSettings
    device: str
    device_memory_bytes: int | None
    counted_by: Literal["max_memory_allocated", "tracker"]
    versions: dict[str, str]
    costs: tuple[GpuCost, ...]


def run(settings: GpuBenchSettings, on_cost: Callable[[GpuCost], None] = lambda cost: None) -> GpuBenchReport:
    """Build the model, take steps, measure; `on_cost` is told of each method when it is done.

    Raises:
        ModelError: there is no such device or shape, or no weights although they are asked for.
    """
    device = pick_device(settings.device)
    costs: list[GpuCost] = []
    for storage in settings.storages:
        config = _config(settings, storage)
        planned = {plan.method: plan.phase("step") for plan in plan_run(config, device=device.type)}
        states = ModelStates(_load(settings, config.model, device))
        for method in config.alignments().values():
            phase = planned[method.name]
            assert phase is not None
            costs.append(_measure(states, config, method, storage, phase.peak_bytes))
            on_cost(costs[-1])
        del states
        _free(device)
    cuda = device.type == "cuda"
    return GpuBenchReport(
        settings=settings,
        device=torch.cuda.get_device_name(device) if cuda else "cpu",
        device_memory_bytes=torch.cuda.get_device_properties(device).total_memory if cuda else None,
        counted_by="max_memory_allocated" if cuda else "tracker",
        versions={
            **{name: version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")},
            "cuda": torch.version.cuda or "none",
        },
        costs=tuple(costs),
    )


def build_random(config: ModelConfig, shape: PretrainedConfig, device: torch.device) -> LoadedModel:
    """A model of `shape` with random weights, stored as `config` says; made on `device`, one tensor at a time."""
    model: Any = describe_model(config, shape, device.type)
    made: dict[int, tuple[Tensor, Tensor]] = {}  # tied tensors are made once

    def make(tensor: Tensor) -> Tensor:
        if id(tensor) not in made:
            empty = torch.empty_like(tensor, device=device)
            whole = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
            made[id(tensor)] = tensor, whole
        return made[id(tensor)][1]

    for module in model.modules():
        if isinstance(module, _BNB.Linear4bit):
            _quantise_random(module, device)
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.device.type == "meta":
                    tensors[name] = make(tensor)
        if not isinstance(module, _BNB.Linear4bit):
            with torch.no_grad():
                model._init_weights(module)
    model.requires_grad_(False)
    model.eval()
    return LoadedModel(model, word_tokenizer(), config, device, "random", None)


def _quantise_random(module: Any, device: torch.device) -> None:
    marked = module.weight
    weight = torch.empty(marked.shape, dtype=module.compute_dtype, device=device).normal_(std=0.02)
    module._parameters["weight"] = _BNB.Params4bit(
        weight,
        requires_grad=False,
        compress_statistics=marked.compress_statistics,
        quant_type=marked.quant_type,
        module=module,
    ).to(device)
    module.support_avx512bf16_for_cpu = False


def _config(settings: GpuBenchSettings, storage: Storage) -> LabConfig:
    methods = (SFTConfig(), VaccineConfig(), TVaccineConfig(num_layers=settings.num_layers))
    return LabConfig(
        model=ModelConfig(
            name=settings.shape,
            quantization="nf4" if storage == "nf4" else "none",
            dtype="bfloat16",
            device=settings.device,
            activation_memory=settings.activation_memory,
        ),
        defences=tuple(Defence(alignment=method) for method in methods),
        alignment=AlignmentConfig(
            optimisation=OptimisationConfig(
                steps=settings.steps,
                batch_size=settings.batch,
                max_length=settings.length,
                checkpoint_every=0,
                learning_rate=1e-4,
            ),
        ),
        evaluation=EvaluationConfig(batch_size=1, max_new_tokens=1),
    )


def _load(settings: GpuBenchSettings, config: ModelConfig, device: torch.device) -> LoadedModel:
    if not settings.random_weights:
        return load_model(config)
    return build_random(config, read_shape(config)[0], device)


def _measure(
    states: ModelStates, config: LabConfig, method: AlignmentMethod, storage: Storage, planned_bytes: int
) -> GpuCost:
    states.add(ALIGNED, config.alignment.adapter, config.seed)
    states.train(ALIGNED)
    device = states.loaded.device
    _free(device)
    cost = GpuCost(
        storage=storage,
        method=method.name,
        peak_allocated_bytes=None,
        peak_reserved_bytes=None,
        step_s=None,
        planned_bytes=planned_bytes,
        error=None,
    )
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        step_s, allocated = _steps(states, config, method)
    except OutOfMemoryError as error:
        cost = cost.model_copy(update={"error": str(error)})
    else:
        reserved = torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None
        cost = cost.model_copy(
            update={"step_s": step_s, "peak_allocated_bytes": allocated, "peak_reserved_bytes": reserved}
        )
    for parameter in states.model.parameters():
        parameter.grad = None
    states.drop(ALIGNED)
    return cost


def _steps(states: ModelStates, config: LabConfig, method: AlignmentMethod) -> tuple[float, int]:
    """Median seconds per step, without the first step, and peak bytes."""
    workload = workload_of(config)
    rows = make_rows(workload, workload.batch_size)
    worst = worst_case_of(method).settings

    def train(steps: int) -> list[float]:
        optimisation = config.alignment.optimisation.model_copy(update={"steps": steps})
        events = fit(
            states.model,
            load_method(worst),
            {stream: rows for stream in ("alignment", *capabilities_of(worst).needs)},
            optimisation,
            seed=0,
            pad_id=0,
            activation_memory=config.model.activation_memory,
            fast_paths=config.model.fast_paths,
        )
        return [event.elapsed_s for event in events if isinstance(event, StepRecord)]

    elapsed = train(config.alignment.optimisation.steps)
    step_s = statistics.median(after - before for before, after in pairwise(elapsed))
    device = states.loaded.device
    if device.type == "cuda":
        return step_s, torch.cuda.max_memory_allocated(device)
    model: Any = states.model
    tracker = Tracker(vocabulary=states.loaded.num_embeddings)
    tracker.own(storages(model), "weights")
    with tracker:
        train(2)
    return step_s, tracker.peak().num_bytes


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def render(report: GpuBenchReport) -> str:
    """The report as plain text."""
    settings = report.settings
    weights = "random weights" if settings.random_weights else "its own weights"
    memory = f", {report.device_memory_bytes / 2**30:.1f} GiB" if report.device_memory_bytes else ""
    lines = [
        f"{settings.shape} with {weights} on {report.device}{memory}; batch {settings.batch} x {settings.length}, "
        f"{settings.num_layers} layers drawn, activation memory {settings.activation_memory}",
        ", ".join(f"{name} {number}" for name, number in report.versions.items()),
        f"peak counted by {report.counted_by}; GB are 10^9 bytes",
        "",
        f"{'storage':<10}{'method':<10}{'step s':>9}{'peak GB':>10}{'reserved GB':>13}{'planned GB':>12}{'ratio':>11}",
    ]
    for cost in report.costs:
        if cost.peak_allocated_bytes is None or cost.step_s is None:
            lines.append(f"{cost.storage:<10}{cost.method:<10}  {cost.error}")
            continue
        reserved = "" if cost.peak_reserved_bytes is None else f"{cost.peak_reserved_bytes / 1e9:.2f}"
        lines.append(
            f"{cost.storage:<10}{cost.method:<10}{cost.step_s:>9.3f}{cost.peak_allocated_bytes / 1e9:>10.3f}"
            f"{reserved:>13}{cost.planned_bytes / 1e9:>12.3f}{cost.planned_bytes / cost.peak_allocated_bytes:>11.3f}"
        )
    return "\n".join(lines)
