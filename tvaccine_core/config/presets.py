"""Named starting points, with their cost."""

from typing import Any

from tvaccine_core.config.attack import AttackConfig
from tvaccine_core.config.base import Config
from tvaccine_core.config.defences import AlignmentMethod, Defence, SFTConfig, TVaccineConfig, VaccineConfig
from tvaccine_core.config.model import YOUR_MODEL, ModelConfig
from tvaccine_core.config.run import AlignmentConfig, EvaluationConfig, LabConfig
from tvaccine_core.config.training import AdapterConfig, OptimisationConfig


def _preset(alignment_steps: int, attack_steps: int, *methods: AlignmentMethod, max_per_set: int = 0) -> LabConfig:
    """The schedule fixed on SFT alone (see `sandbox/WORLDS.md`), SFT and `methods`."""
    return LabConfig(
        defences=tuple(Defence(alignment=method) for method in (SFTConfig(), *methods)),
        alignment=AlignmentConfig(optimisation=OptimisationConfig(steps=alignment_steps)),
        attack=AttackConfig(optimisation=OptimisationConfig(steps=attack_steps, batch_size=10, learning_rate=1e-3)),
        evaluation=EvaluationConfig(max_per_set=max_per_set),
    )


def _your_model() -> LabConfig:
    """The paper's schedule (arXiv:2410.09760): 4,000 steps of 10 at 1e-3, gamma 8, rho 3; its attack, 2,000 at 1e-5.

    Evaluation is ours: a real tokenizer needs more tokens per answer, and a real model more memory per prompt.
    """
    common: dict[str, Any] = {"batch_size": 10, "weight_decay": 0.1}
    return LabConfig(
        model=ModelConfig(name=YOUR_MODEL, quantization="nf4", dtype="bfloat16"),
        defences=(Defence(alignment=SFTConfig()), Defence(alignment=TVaccineConfig(rho=3.0, num_layers=8))),
        alignment=AlignmentConfig(
            adapter=AdapterConfig(r=8, alpha=4, dropout=0.1),
            optimisation=OptimisationConfig(steps=4000, learning_rate=1e-3, **common),
        ),
        attack=AttackConfig(
            num_samples=1000,
            adapter=AdapterConfig(r=8, alpha=1, dropout=0.1),
            optimisation=OptimisationConfig(steps=2000, learning_rate=1e-5, **common),
            eval_every=500,
        ),
        evaluation=EvaluationConfig(batch_size=32, max_new_tokens=48),
    )


class Preset(Config):
    """A named starting point, with its cost."""

    title: str
    description: str
    config: LabConfig


PRESETS: dict[str, Preset] = {
    "sandbox-quick": Preset(
        title="Sandbox, quick",
        description="SFT and T-Vaccine in the embedded world: a few minutes. T-Vaccine perturbs every second step.",
        config=_preset(1200, 200, TVaccineConfig(perturb_every=2)),
    ),
    "sandbox-full": Preset(
        title="Sandbox, full",
        description="SFT, Vaccine and T-Vaccine, perturbing at every step, like the recorded study: twice as long.",
        config=_preset(1200, 200, VaccineConfig(), TVaccineConfig()),
    ),
    "sandbox-check": Preset(
        title="Sandbox, self-check",
        description="A few steps of everything, to see that this machine works. Its scores mean nothing.",
        config=_preset(12, 8, TVaccineConfig(), max_per_set=8),
    ),
    YOUR_MODEL: Preset(
        title="Your model",
        description="SFT and T-Vaccine on your model, with the paper's schedule: hours on a GPU. Fewer steps show "
        "whether it fits.",
        config=_your_model(),
    ),
}
