"""What a plan says. Torch-free, JSON-safe."""

from __future__ import annotations

from typing import Literal, get_args

from tvaccine_core.records import Record

Part = Literal["weights", "adapters", "optimiser", "gradients", "activations", "head", "workspace", "cache"]
PARTS: tuple[Part, ...] = get_args(Part)
"""What memory is for: the frozen base; the adapters; AdamW's moments; gradients of adapters; what the backward pass
needs; what is as wide as the vocabulary; what lives for an operation or two; keys and values of generated tokens."""

Phase = Literal["load", "step", "score", "evaluate"]


class PhasePeak(Record):
    """The most memory that a phase holds at once."""

    phase: Phase
    peak_bytes: int
    parts: dict[Part, int]
    """Sums up to `peak_bytes`."""


class MemoryPlan(Record):
    """What one method needs."""

    model: str
    source: str
    """Where the model's config came from."""
    method: str
    quantization: str
    dtype: str
    """Of what is not quantised, and of the arithmetic."""
    device: str
    activation_memory: str
    """What is kept for the backward passes: `speed`, `balanced` or `lowest`."""
    batch_size: int
    length: int
    """Tokens of a training row, and of a prompt in evaluations."""
    labelled: int
    """Tokens of a row that are learned."""
    probe_batch_size: int
    """Rows of a scoring; 0 if the method has none."""
    evaluation_batch_size: int
    new_tokens: int
    num_layers: int
    num_parameters: int
    exact: bool
    """True: every layer was run through; False: extrapolated from shallower models of the same shape."""
    phases: tuple[PhasePeak, ...]
    assumptions: tuple[str, ...]

    @property
    def worst(self) -> PhasePeak:
        """The phase that needs most."""
        return max(self.phases, key=lambda phase: phase.peak_bytes)

    @property
    def peak_bytes(self) -> int:
        """What the run needs at its worst moment; a GPU's own context and gaps in its allocator come on top."""
        return self.worst.peak_bytes

    def phase(self, name: Phase) -> PhasePeak | None:
        """The phase of that name, None if the method has none."""
        return next((phase for phase in self.phases if phase.phase == name), None)


class TimeEstimate(Record):
    """How long a method's training takes, by a few steps on this machine."""

    method: str
    device: str
    timed_steps: int
    step_s: float
    """Median."""
    scoring_s: float
    """A scoring of the layers; 0 if there is none."""
    steps: int
    """Of the whole training."""
    total_s: float
    """Training without evaluations."""


class PlanReport(Record):
    """What the command `plan` writes."""

    plans: tuple[MemoryPlan, ...]
    memory_gib: float | None
    verdicts: dict[str, str]
    """Method -> `fits`, `tight` or `does not fit`; empty without a memory to fit."""
    times: tuple[TimeEstimate, ...] = ()
