"""Named starting points, with their cost."""

from typing import Any

from tvaccine_core.config.attack import AttackConfig
from tvaccine_core.config.base import Config
from tvaccine_core.config.defences import Defence, SFTConfig, TVaccineConfig, parse_defence
from tvaccine_core.config.model import YOUR_MODEL, ModelConfig
from tvaccine_core.config.run import AlignmentConfig, EvaluationConfig, LabConfig, MixConfig
from tvaccine_core.config.training import AdapterConfig, OptimisationConfig


def _sandbox(alignment: AlignmentConfig, attack: AttackConfig, *defences: Defence, max_per_set: int = 0) -> LabConfig:
    """SFT and `defences` in the embedded world. Schedules were chosen on SFT alone, see `sandbox/WORLDS.md`."""
    return LabConfig(
        defences=(Defence(alignment=SFTConfig()), *defences),
        alignment=alignment,
        attack=attack,
        evaluation=EvaluationConfig(max_per_set=max_per_set),
    )


def _tvaccine(**settings: Any) -> Defence:
    return Defence(alignment=TVaccineConfig(**settings))


def _aligned(steps: int, learning_rate: float, ordinary: float) -> AlignmentConfig:
    return AlignmentConfig(
        optimisation=OptimisationConfig(steps=steps, batch_size=16, learning_rate=learning_rate),
        mix=MixConfig(ordinary=ordinary),
    )


def _attacked(steps: int, learning_rate: float, harmful_ratio: float) -> AttackConfig:
    return AttackConfig(
        harmful_ratio=harmful_ratio,
        optimisation=OptimisationConfig(steps=steps, batch_size=10, learning_rate=learning_rate),
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
    "sandbox-intact": Preset(
        title="Knowledge intact",
        description="Just enough alignment that the model refuses, and still knows everything: what it tells after the "
        "attack is its safety, not damage. It refuses most ordinary requests too. About two minutes.",
        config=_sandbox(_aligned(300, 3e-4, 0.05), _attacked(400, 4e-4, 0.02), _tvaccine(rho=3.0)),
    ),
    "sandbox-published": Preset(
        title="As published",
        description="The papers' regime: a long alignment on refusals alone. T-Vaccine ends with a lower HS than SFT, "
        "and the outcomes show the cause: it has lost what it would have to tell. Some minutes.",
        config=_sandbox(
            _aligned(600, 4e-3, 0.0),
            _attacked(400, 1e-3, 0.1),
            _tvaccine(rho=3.0),
            parse_defence("tvaccine rho=10"),
        ),
    ),
    "sandbox-manners": Preset(
        title="Keeps its manners",
        description="A long alignment that also answers ordinary requests: the model refuses hazards only. T-Vaccine "
        "perturbs every second step. Some minutes.",
        config=_sandbox(_aligned(1200, 4e-3, 1.0), _attacked(200, 1e-3, 0.1), _tvaccine(perturb_every=2)),
    ),
    "sandbox-check": Preset(
        title="Self-check",
        description="A few steps of everything, to see that this machine works. Its scores mean nothing.",
        config=_sandbox(_aligned(12, 4e-3, 1.0), _attacked(8, 1e-3, 0.1), _tvaccine(), max_per_set=8),
    ),
    YOUR_MODEL: Preset(
        title="Your model",
        description="SFT and T-Vaccine on your model, with the paper's schedule: hours on a GPU. Fewer steps show "
        "whether it fits.",
        config=_your_model(),
    ),
}
