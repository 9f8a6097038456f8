"""What to tell a job that ran out of memory: its plan, and what to change by it."""

from __future__ import annotations

from typing import Any

from tvaccine_core.config import AlignmentConfig, AttackConfig, Defence, LabConfig, parse_config
from tvaccine_core.plan.advice import advise, judge_fit
from tvaccine_core.plan.planner import plan_run


def memory_remedy(config: LabConfig, kind: str, params: dict[str, Any], device: str, memory_gib: float) -> str:
    """What a job of a run would hold, against the memory of its device, and what would make it fit.

    Args:
        config: of the run.
        kind: of the job; an `align` job's plan is its method's, an `attack` job's is SFT's on its own settings.
        params: of the job.
        device: `cuda` or `cpu`.
        memory_gib: of the device, all of it.

    Raises:
        ModelError: the model's config cannot be had or built.
    """
    (plan,) = plan_run(_as_planned(config, kind, params), device=device, memory_gib=memory_gib)
    needs = f"it needs {plan.peak_bytes / 1e9:.1f} GB, most in its phase `{plan.worst.phase}`, of {memory_gib:.1f} GiB"
    verdict = judge_fit(plan.peak_bytes, memory_gib)
    if verdict == "fits":
        return f"By its plan it fits: {needs}. So something else holds memory: close it, or use fewer workers."
    if verdict == "tight":
        needs += ", which leaves too little for the device's own use"
    return f"By its plan {needs}. Try {'; '.join(advise(plan, memory_gib))}."


def _as_planned(config: LabConfig, kind: str, params: dict[str, Any]) -> LabConfig:
    """`config` with the one defence, and for an attack the optimisation and the adapter, that the job works with."""
    if kind == "attack":
        attack = parse_config(AttackConfig, params["attack"])
        stage = AlignmentConfig(adapter=attack.adapter, optimisation=attack.optimisation)
        return config.model_copy(update={"defences": (Defence(),), "alignment": stage})
    keys = config.aligned_keys()
    named = [defence for defence in config.defences if keys[defence.name] == params.get("aligned")]
    return config.model_copy(update={"defences": tuple(named[:1] or config.defences[:1])})
