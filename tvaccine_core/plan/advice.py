"""Whether a plan fits a memory, and what to change if it does not. Torch-free."""

from __future__ import annotations

from typing import Literal

from tvaccine_core.plan.records import MemoryPlan, PhasePeak

GIB = 2**30
CONTEXT_BYTES = int(0.6 * GIB)
"""Memory that a GPU's driver and kernels take before the first tensor."""
SLACK = 0.03
"""Share that gaps in PyTorch's allocator may add."""

Verdict = Literal["fits", "tight", "does not fit"]

PUBLISHED_GB = {"vaccine": 34, "tvaccine": 23}
"""Memory in GB that the T-Vaccine paper (arXiv:2410.09760) reports for Llama-2-7B in bfloat16, approximately."""
PUBLISHED_FOR_PARAMETERS = 6_738_415_616


def judge_fit(peak_bytes: int, memory_gib: float) -> Verdict:
    """`tight`: the tensors fit, but not with a GPU's context and the allocator's gaps."""
    memory = memory_gib * GIB
    if peak_bytes * (1 + SLACK) + CONTEXT_BYTES <= memory:
        return "fits"
    return "tight" if peak_bytes <= memory else "does not fit"


def published_gb(plan: MemoryPlan) -> float | None:
    """The paper's number for the same method and model in bfloat16; None if there is none."""
    same = plan.num_parameters == PUBLISHED_FOR_PARAMETERS and (plan.quantization, plan.dtype) == ("none", "bfloat16")
    return PUBLISHED_GB.get(plan.method) if same else None


def advise(plan: MemoryPlan, memory_gib: float) -> tuple[str, ...]:
    """Changes that make `plan` fit `memory_gib`, the most helpful first; empty if it fits."""
    advice: list[str] = []
    over = [phase for phase in plan.phases if judge_fit(phase.peak_bytes, memory_gib) != "fits"]
    if over and plan.quantization == "none":
        saved = plan.phases[0].parts["weights"] * (0.72 if plan.dtype == "bfloat16" else 0.86) / 1e9
        advice.append(f"quantization nf4 saves about {saved:.0f} GB of weights")
    if plan.activation_memory != "lowest" and any(phase.phase in ("step", "score") for phase in over):
        advice.append("activation_memory lowest: slower steps, the least memory")
    for phase in over:
        advice += _smaller_batch(plan, phase, memory_gib)
    if over and not advice:
        advice.append("a smaller model, or a larger GPU")
    return tuple(advice)


def _smaller_batch(plan: MemoryPlan, phase: PhasePeak, memory_gib: float) -> list[str]:
    fixed = sum(phase.parts[part] for part in ("weights", "adapters", "optimiser", "gradients"))
    room = (memory_gib * GIB - CONTEXT_BYTES) / (1 + SLACK) - fixed
    by_rows = phase.peak_bytes - fixed
    names = {
        "step": ("batch_size (raise accumulation by as much)", plan.batch_size),
        "score": ("probe_batch_size", plan.probe_batch_size),
        "evaluate": ("evaluation.batch_size", plan.evaluation_batch_size),
    }
    if phase.phase not in names or room <= 0:
        return []
    name, rows = names[phase.phase]
    fitting = int(rows * room / by_rows)
    return [f"{name} {fitting} instead of {rows}"] if 1 <= fitting < rows else []
