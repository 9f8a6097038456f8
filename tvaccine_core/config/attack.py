"""The user's stage: the data of the fine-tuning, and its strength."""

from typing import Literal

from pydantic import Field

from tvaccine_core.config.base import ADVANCED, Config
from tvaccine_core.config.training import AdapterConfig, OptimisationConfig


class AttackConfig(Config):
    """The user's stage: fine-tuning on a mixture in which a share of the samples is harmful."""

    harmful_ratio: float = Field(
        title="Harmful ratio p",
        default=0.1,
        ge=0,
        le=1,
        description="p: share of the user's samples that are harmful.",
        json_schema_extra={"step": 0.01},
    )
    num_samples: int = Field(
        title="Samples n", default=400, ge=1, le=1_000_000, description="n: samples the user uploads."
    )
    task: str = Field(
        title="User's task", default="sentiment", min_length=1, description="What the user's other samples teach."
    )
    adapter_mode: Literal["new", "single"] = Field(
        title="Adapter",
        default="new",
        description="`new`: a fresh adapter on the frozen aligned adapter. `single`: train the aligned one further.",
        json_schema_extra=ADVANCED,
    )
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    optimisation: OptimisationConfig = Field(
        default_factory=lambda: OptimisationConfig(steps=200, batch_size=10, learning_rate=1e-3)
    )
    eval_every: int = Field(
        title="Steps between measurements",
        default=25,
        ge=0,
        description="Steps between measurements along the attack; 0 measures the end only.",
        json_schema_extra=ADVANCED,
    )
    seed: int = Field(
        title="Seed",
        default=1,
        ge=0,
        description="Seed of the attack's data, order and adapter.",
        json_schema_extra=ADVANCED,
    )
