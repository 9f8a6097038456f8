"""Settings of every stage that trains: the adapter, the optimiser and its schedule."""

from typing import Literal, Self

from pydantic import Field, model_validator

from tvaccine_core.config.base import ADVANCED, Config

ALL_LINEAR = "all-linear"
"""Stands for every linear module of the decoder layers, whatever a family calls them."""
LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class AdapterConfig(Config):
    """Low-rank adapter (LoRA, arXiv:2106.09685), trained in float32."""

    r: int = Field(
        title="Adapter rank r", default=8, ge=1, le=256, description="Rank of the adapter.", json_schema_extra=ADVANCED
    )
    alpha: float = Field(
        title="Adapter scale α",
        default=16,
        gt=0,
        le=1024,
        description="Scale of the adapter: alpha / r.",
        json_schema_extra=ADVANCED,
    )
    dropout: float = Field(
        title="Adapter dropout",
        default=0.0,
        ge=0,
        lt=1,
        description="Dropout in the adapter.",
        json_schema_extra=ADVANCED,
    )
    target_modules: tuple[str, ...] = Field(
        title="Adapted modules",
        default=(ALL_LINEAR,),
        min_length=1,
        description="Linear modules that get an adapter, by name; `all-linear`: all in the decoder layers.",
        json_schema_extra=ADVANCED,
    )

    @model_validator(mode="after")
    def _all_stands_alone(self) -> Self:
        if ALL_LINEAR in self.target_modules and len(self.target_modules) > 1:
            raise ValueError(f"{ALL_LINEAR} stands alone, or leave it out and name the modules")
        return self


class OptimisationConfig(Config):
    """AdamW (arXiv:1711.05101) and its schedule."""

    steps: int = Field(title="Steps", default=1200, ge=1, le=1_000_000, description="Optimiser steps.")
    batch_size: int = Field(title="Batch size", default=16, ge=1, le=4096, description="Examples per micro-batch.")
    accumulation: int = Field(
        title="Accumulation",
        default=1,
        ge=1,
        le=1024,
        description="Micro-batches added up before a step.",
        json_schema_extra=ADVANCED,
    )
    learning_rate: float = Field(
        title="Learning rate",
        default=4e-3,
        gt=0,
        le=1,
        description="Peak learning rate.",
        json_schema_extra={"step": 1e-4},
    )
    schedule: Literal["cosine", "constant"] = Field(
        title="Schedule", default="cosine", description="Learning rate after the warm-up.", json_schema_extra=ADVANCED
    )
    warmup_ratio: float = Field(
        title="Warm-up share",
        default=0.1,
        ge=0,
        le=1,
        description="Share of the steps that warm the learning rate up.",
        json_schema_extra=ADVANCED,
    )
    weight_decay: float = Field(
        title="Weight decay", default=0.0, ge=0, le=10, description="AdamW weight decay.", json_schema_extra=ADVANCED
    )
    max_grad_norm: float = Field(
        title="Gradient clipping",
        default=1.0,
        gt=0,
        le=1e6,
        description="Gradients are clipped to this global L2 norm.",
        json_schema_extra=ADVANCED,
    )
    max_length: int = Field(
        title="Longest example, tokens",
        default=200,
        ge=8,
        le=32768,
        description="Longer examples are cut to this number of tokens.",
        json_schema_extra=ADVANCED,
    )
    checkpoint_every: int = Field(
        title="Steps between checkpoints",
        default=200,
        ge=0,
        description="Steps between resumable checkpoints; 0 for none.",
        json_schema_extra=ADVANCED,
    )
