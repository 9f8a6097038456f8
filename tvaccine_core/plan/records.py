"""The results of a plan. Torch-free, JSON-safe."""

from __future__ import annotations

from typing import Literal, get_args

from tvaccine_core.records import Record

Part = Literal["weights", "adapters", "optimiser", "gradients", "activations", "head", "workspace", "cache"]
PARTS: tuple[Part, ...] = get_args(Part)
"""Uses of memory: the frozen base; the adapters; AdamW's moments; gradients of adapters; tensors kept for the backward
pass; tensors as wide as the vocabulary; short-lived tensors; keys and values of generated tokens."""

Phase = Literal["load", "step", "score", "evaluate"]


class PhasePeak(Record):
    """The most memory that a phase holds at once."""

    phase: Phase
    peak_bytes: int
    parts: dict[Part, int]
    """Sums up to `peak_bytes`."""


class MemoryPlan(Record):
    """The memory that one method needs."""

    model: str
    source: str
    """The origin of the model's config, in words."""
    method: str
    quantization: str
    dtype: str
    """Type of unquantised weights and of the arithmetic."""
    device: str
    activation_memory: str
    """How much is kept for the backward passes: `speed`, `balanced` or `lowest`."""
    batch_size: int
    length: int
    """Tokens per training row, and per prompt in evaluations."""
    labelled: int
    """Labelled tokens per row."""
    probe_batch_size: int
    """Rows per scoring; 0 if the method scores nothing."""
    evaluation_batch_size: int
    new_tokens: int
    num_layers: int
    num_parameters: int
    exact: bool
    """True: every layer was run; False: extrapolated from shallower models of the same shape."""
    phases: tuple[PhasePeak, ...]
    assumptions: tuple[str, ...]

    @property
    def worst(self) -> PhasePeak:
        """The phase that needs the most memory."""
        return max(self.phases, key=lambda phase: phase.peak_bytes)

    @property
    def peak_bytes(self) -> int:
        """Bytes at the run's worst moment; a GPU's own context and gaps in its allocator are extra."""
        return self.worst.peak_bytes

    def phase(self, name: Phase) -> PhasePeak | None:
        """The phase of that name, None if the method has none."""
        return next((phase for phase in self.phases if phase.phase == name), None)


class TimeEstimate(Record):
    """How long a method's training takes, estimated from a few steps on this machine."""

    method: str
    device: str
    timed_steps: int
    step_s: float
    """Median."""
    scoring_s: float
    """Seconds per scoring of the layers; 0 if there is none."""
    steps: int
    """Steps of the whole training."""
    total_s: float
    """Training without evaluations."""


class PlanReport(Record):
    """The output of the command `plan`."""

    plans: tuple[MemoryPlan, ...]
    memory_gib: float | None
    verdicts: dict[str, str]
    """Method -> `fits`, `tight` or `does not fit`; empty without a memory to fit."""
    times: tuple[TimeEstimate, ...] = ()
