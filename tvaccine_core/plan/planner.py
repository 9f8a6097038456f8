"""Will it fit: the memory of each method's run of a model, from the model's config alone.

A model without weights (`fake_model`) goes through the product's own steps (`dry_run`), and every storage is counted
(`tracker`). This file knows no family of models and no method, so it need not change with them.

Building a model takes time per layer. The layers of a deep model are alike, so its memory is linear in the number of
layers and in the number of drawn layers. It is computed from two or three shallow models of the same shape. Models with
few or small layers are run whole, because limits in bytes (of `merged_adapters`, for example) matter there.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PretrainedConfig

from tvaccine_core.config import AlignmentMethod, Config, LabConfig
from tvaccine_core.errors import ConfigError, ModelError
from tvaccine_core.methods import WorstCase, capabilities_of, worst_case_of
from tvaccine_core.passes.memory import ROOM_SHARE, Mode, choose_mode, measure_shape
from tvaccine_core.plan.dry_run import Moment, Workload, dry_run
from tvaccine_core.plan.fake_model import compute_dtype, describe_model, fake_states
from tvaccine_core.plan.records import PARTS, MemoryPlan, Part, Phase, PhasePeak
from tvaccine_core.plan.shapes import read_shape
from tvaccine_core.plan.tracker import Peak

WHOLE_UP_TO_LAYERS = 8
LARGE_LAYER_PARAMETERS = 2**24
"""A layer with fewer parameters is small."""
TENSORS_IN_FLIGHT = 4
"""Tensors that transformers reads at once, unquantised; each is quantised when it arrives."""

MOMENTS: dict[Moment, Phase] = {
    "passes": "step",
    "update": "step",
    "score": "score",
    "prompts": "evaluate",
    "tokens": "evaluate",
}


def plan_run(
    config: LabConfig,
    *,
    device: str = "cuda",
    labelled: int | None = None,
    memory_gib: float | None = None,
    whole: bool | None = None,
) -> list[MemoryPlan]:
    """The plan of every method of `config`, in its order. No weights are read or downloaded.

    Args:
        config: model, methods, adapter, batch size, `max_length` as the length of every row, evaluation.
        device: `cuda` or `cpu`; decides the precision of quantised models.
        labelled: labelled tokens per row; None: all tokens, the worst case.
        memory_gib: memory of the device, for `activation_memory: auto`; None: `auto` takes `speed`.
        whole: run every layer (True) or extrapolate (False); None: extrapolate a large model if that is exact.

    Raises:
        ModelError: the model's config cannot be found or built.
        ConfigError: a setting does not fit the model.
    """
    shape, source = read_shape(config.model)
    planner = _Planner(config, shape, device, workload_of(config, labelled), whole)
    return [planner.plan(method, source, memory_gib) for method in config.alignments().values()]


def workload_of(config: LabConfig, labelled: int | None = None) -> Workload:
    """The work that `config` gives a model. Raises `ConfigError` if a row cannot have this number of labels."""
    optimisation = config.alignment.optimisation
    length = optimisation.max_length
    if labelled is not None and not 1 <= labelled <= length:
        raise ConfigError(f"{labelled} tokens of {length} cannot be learned.", remedy=f"Give 1 to {length}.")
    return Workload(
        batch_size=optimisation.batch_size,
        length=length,
        labelled=labelled or length,
        evaluation_batch_size=config.evaluation.batch_size,
        new_tokens=config.evaluation.max_new_tokens,
    )


@dataclass(frozen=True)
class _Depth:
    """A shallower model: its number of drawn layers, of other layers, and its weight in the sum."""

    drawn: int
    undrawn: int
    weight: int


class _Planner:
    """Plans of one model and workload."""

    def __init__(
        self, config: LabConfig, shape: PretrainedConfig, device: str, workload: Workload, whole: bool | None
    ) -> None:
        self._config = config
        self._shape = shape
        self._device = device
        self._workload = workload
        self._whole = whole
        self._described = describe_model(config.model, shape, device)
        if not isinstance(getattr(shape, "num_hidden_layers", None), int):
            raise ModelError(
                f"The config of {config.model.name} does not say how many decoder layers the model has.",
                remedy="Plan with a decoder-only, text-only model such as Llama, Qwen, Mistral or Gemma.",
            )
        self._num_layers: int = shape.num_hidden_layers

    def plan(self, method: AlignmentMethod, source: str, memory_gib: float | None) -> MemoryPlan:
        wish = self._config.model.activation_memory
        workload = replace(self._workload, mode="speed" if wish == "auto" else wish)
        moments, exact = self._moments(method, workload)
        if wish == "auto" and memory_gib is not None:
            mode = self._choose_mode(moments["passes"], memory_gib)
            if mode != workload.mode:
                workload = replace(workload, mode=mode)
                moments, exact = self._moments(method, workload)
        phases: dict[Phase, PhasePeak] = {}
        for moment, peak in moments.items():
            name = MOMENTS[moment]
            if name not in phases or phases[name].peak_bytes < peak.num_bytes:
                phases[name] = PhasePeak(phase=name, peak_bytes=peak.num_bytes, parts=peak.parts)
        model = self._config.model
        return MemoryPlan(
            model=model.name,
            source=source,
            method=method.name,
            quantization=model.quantization,
            dtype=str(compute_dtype(model, self._device)).removeprefix("torch."),
            device=self._device,
            activation_memory=workload.mode,
            batch_size=workload.batch_size,
            length=workload.length,
            labelled=workload.labelled,
            probe_batch_size=capabilities_of(method).scoring_rows if "score" in phases else 0,
            evaluation_batch_size=workload.evaluation_batch_size,
            new_tokens=workload.new_tokens,
            num_layers=self._num_layers,
            num_parameters=sum(parameter.numel() for parameter in self._described.parameters()),
            exact=exact,
            phases=(self._load(phases["step"].parts["weights"]), *phases.values()),
            assumptions=self._assumptions(method),
        )

    def _choose_mode(self, passes: Peak, memory_gib: float) -> Mode:
        """The mode that `fit` chooses on a device with this memory, see `activation_memory`."""
        workload = self._workload
        resident = passes.parts["weights"] + 4 * passes.parts["adapters"]
        shape = measure_shape(
            self._described,
            batch_size=workload.batch_size,
            length=workload.length,
            num_labelled=workload.batch_size * min(workload.labelled, workload.length - 1),
        )
        return choose_mode("auto", shape, int(memory_gib * 2**30 * ROOM_SHARE) - resident)

    def _moments(self, method: AlignmentMethod, workload: Workload) -> tuple[dict[Moment, Peak], bool]:
        """The peak of each moment, and whether every layer was run."""
        case = worst_case_of(method)
        depths = None if self._whole else self._depths(case, workload.mode)
        if depths is None or (self._whole is None and self._is_small()):
            return self._dry_run(method, self._shape, workload), True
        sums: dict[Moment, dict[Part, int]] = {}
        for depth in depths:
            shallow = _with_layers(self._shape, depth.drawn + depth.undrawn)
            shallower = case.with_drawn(depth.drawn) if case.with_drawn and depth.drawn else method
            for moment, peak in self._dry_run(shallower, shallow, workload).items():
                parts = sums.setdefault(moment, dict.fromkeys(PARTS, 0))
                for part, num_bytes in peak.parts.items():
                    parts[part] += depth.weight * num_bytes
        return {moment: Peak(sum(parts.values()), parts) for moment, parts in sums.items()}, False

    def _is_small(self) -> bool:
        stacks = (module for module in self._described.modules() if isinstance(module, nn.ModuleList))
        largest = max((_num_parameters(layer) for stack in stacks for layer in stack), default=0)
        return self._num_layers <= WHOLE_UP_TO_LAYERS or largest < LARGE_LAYER_PARAMETERS

    def _dry_run(self, method: Config, shape: PretrainedConfig, workload: Workload) -> dict[Moment, Peak]:
        states = fake_states(self._config.model, shape, self._device, self._config.alignment.adapter)
        return dry_run(states, method, workload)

    def _depths(self, case: WorstCase, mode: Mode) -> list[_Depth] | None:
        """Shallower models whose weighted sum gives the whole model's memory; None if there are none."""
        if not case.grows_evenly:
            return None
        period = math.lcm(_period(self._shape), 2 if mode == "balanced" else 1)
        drawn, undrawn = case.drawn, self._num_layers - case.drawn
        base_drawn, base_undrawn = _base(drawn, period), _base(undrawn, period)
        while 0 < base_drawn + base_undrawn < 2:  # the first and the last layer differ from the others
            base_drawn, base_undrawn = (
                base_drawn + (period if base_drawn else 0),
                base_undrawn + (0 if base_drawn else period),
            )
        more_drawn, more_undrawn = (drawn - base_drawn) // period, (undrawn - base_undrawn) // period
        if undrawn < 0 or more_drawn < 0 or more_undrawn < 0:
            return None
        return [
            _Depth(base_drawn, base_undrawn, 1 - more_drawn - more_undrawn),
            *([_Depth(base_drawn + period, base_undrawn, more_drawn)] if more_drawn else []),
            *([_Depth(base_drawn, base_undrawn + period, more_undrawn)] if more_undrawn else []),
        ]

    def _load(self, weights: int) -> PhasePeak:
        """Loading: all weights, and the tensors that wait to be quantised or moved. Estimated, not counted."""
        largest = max(parameter.numel() for parameter in self._described.parameters())
        in_flight = TENSORS_IN_FLIGHT if self._config.model.quantization != "none" else 1
        parts: dict[Part, int] = dict.fromkeys(PARTS, 0)
        parts["weights"] = weights
        parts["workspace"] = in_flight * largest * compute_dtype(self._config.model, self._device).itemsize
        return PhasePeak(phase="load", peak_bytes=sum(parts.values()), parts=parts)

    def _assumptions(self, method: AlignmentMethod) -> tuple[str, ...]:
        said = [
            "every row has the full length, and every adapter that can train has its AdamW moments",
            "tensors only: a GPU's context (about 0.5 GiB) and gaps in PyTorch's allocator are extra",
        ]
        if assumption := worst_case_of(method).assumption:
            said.append(assumption)
        if self._workload.labelled == self._workload.length:
            said.append("every token has a label")
        if self._config.model.quantization == "int8":
            said.append("no activation is an outlier, which int8 would store separately")
        return tuple(said)


def _num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _base(count: int, period: int) -> int:
    """The fewest layers of a kind such that the rest is a multiple of `period`; at least one if there is any."""
    return count if count <= period else (count - 1) % period + 1


def _per_layer(shape: PretrainedConfig) -> Mapping[str, list[Any]]:
    """Settings of `shape` with one value per layer."""
    return {
        name: value
        for name, value in vars(shape).items()
        if isinstance(value, list) and len(value) == shape.num_hidden_layers
    }


def _period(shape: PretrainedConfig) -> int:
    """Number of layers after which the kinds of layers repeat."""
    periods = [1]
    for values in _per_layer(shape).values():
        found = next(
            period for period in range(1, len(values) + 1) if values[period:] == values[: len(values) - period]
        )
        periods.append(found)
    return math.lcm(*periods)


def _with_layers(shape: PretrainedConfig, count: int) -> PretrainedConfig:
    """The same model with its lowest `count` layers only."""
    shallow = copy.deepcopy(shape)
    for name, values in _per_layer(shape).items():
        setattr(shallow, name, values[:count])
    shallow.num_hidden_layers = count
    return shallow
