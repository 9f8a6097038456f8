"""The remedy for a job that ran out of memory, from its memory plan."""

from __future__ import annotations

from typing import Any

from tvaccine_core.config import AlignmentConfig, AttackConfig, Defence, LabConfig, parse_config
from tvaccine_core.plan.advice import advise, judge_fit
from tvaccine_core.plan.planner import plan_run


def memory_remedy(config: LabConfig, kind: str, params: dict[str, Any], device: str, memory_gib: float) -> str:
    """The memory that a job needs, compared with its device's, and the changes that would make it fit.

    Args:
        config: the run's config.
        kind: the job's kind; `align` is planned with its method, `attack` with SFT and the attack's settings.
        params: the job's parameters.
        device: `cuda` or `cpu`.
        memory_gib: total memory of the device.

    Raises:
        ModelError: the model's config cannot be found or built.
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
    """`config` with the job's defence only and, for an attack, the attack's optimisation and adapter."""
    if kind == "attack":
        attack = parse_config(AttackConfig, params["attack"])
        stage = AlignmentConfig(adapter=attack.adapter, optimisation=attack.optimisation)
        return config.model_copy(update={"defences": (Defence(),), "alignment": stage})
    keys = config.aligned_keys()
    named = [defence for defence in config.defences if keys[defence.name] == params.get("aligned")]
    return config.model_copy(update={"defences": tuple(named[:1] or config.defences[:1])})
