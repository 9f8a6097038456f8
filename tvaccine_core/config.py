"""Every setting of the lab, once: validation, CLI options, UI controls, YAML and the docs come from these fields.

A field's `description` is what a user reads beside its control; `json_schema_extra` may hold `advanced` (folded away),
`step` (of a slider or number) and `choices` (titles for a Literal's values).
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tvaccine_core.errors import ConfigError, cut
from tvaccine_core.safe_yaml import read_file, read_yaml, write_yaml
from tvaccine_core.validation import Config, ConfigT, parse_config

__all__ = ["PRESETS", "Config", "ConfigT", "LabConfig", "Preset", "parse_config"]

ADVANCED: dict[str, Any] = {"advanced": True}

ActivationMemory = Literal["auto", "speed", "balanced", "lowest"]

ALL_LINEAR = "all-linear"
"""Stands for every linear module of the decoder layers, whatever a family calls them."""
YOUR_MODEL = "your-model"
"""Stands for a model that is still to be named, and names the preset for it."""
LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


YAML_REMEDY = "Export a run and edit that file."


class ModelConfig(Config):
    """Which model, how it is stored in memory, and where it runs."""

    name: str = Field(default="sandbox", min_length=1, description="`sandbox`, a folder, or a Hugging Face model id.")
    quantization: Literal["none", "int8", "nf4"] = Field(
        default="none", description="Storage of the frozen base weights."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="Precision of the base when it is not quantised.", json_schema_extra=ADVANCED
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(default="auto", description="Where the model runs.")
    trust_remote_code: bool = Field(
        default=False,
        description="Run the Python code that comes with a model. It can do whatever you can on this machine: only for "
        "authors you trust, after reading it. Most models need none.",
        json_schema_extra=ADVANCED,
    )
    shard: bool = Field(
        default=False,
        description="Divide the frozen base among the processes of a launcher (FSDP2), for a model that does not fit "
        "one GPU. Slower: every pass gathers each layer's weights from all.",
        json_schema_extra=ADVANCED,
    )
    activation_memory: ActivationMemory = Field(
        default="auto",
        description="What training keeps for the backward pass: everything (`speed`), every second layer (`balanced`), "
        "next to nothing (`lowest`), or what fits the device (`auto`). Gradients are the same.",
        json_schema_extra=ADVANCED,
    )
    fast_paths: bool = Field(
        default=True,
        description="Let the lab's own forms of adapters, norms and attention stand in for the model's where they give "
        "the same. Off: the model's own modules run, on every token, and take longer.",
        json_schema_extra=ADVANCED,
    )

    @model_validator(mode="before")
    @classmethod
    def _read_gradient_checkpointing(cls, data: Any) -> Any:
        """Configs exported before `activation_memory` existed say `gradient_checkpointing`, true or false."""
        if not isinstance(data, dict) or not isinstance(data.get("gradient_checkpointing"), bool):
            return data
        rest = {key: value for key, value in data.items() if key != "gradient_checkpointing"}
        return {"activation_memory": "lowest", **rest} if data["gradient_checkpointing"] else rest

    @model_validator(mode="after")
    def _only_whole_numbers_are_divided(self) -> Self:
        if self.shard and (self.quantization != "none" or self.device == "mps"):
            raise ValueError("shard needs quantization none, and a CPU or CUDA GPUs")
        return self


class AdapterConfig(Config):
    """Low-rank adapter (LoRA, arXiv:2106.09685), trained in float32."""

    r: int = Field(default=8, ge=1, le=256, description="Rank of the adapter.", json_schema_extra=ADVANCED)
    alpha: float = Field(
        default=16, gt=0, le=1024, description="Scale of the adapter: alpha / r.", json_schema_extra=ADVANCED
    )
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout in the adapter.", json_schema_extra=ADVANCED)
    target_modules: tuple[str, ...] = Field(
        default=(ALL_LINEAR,),
        min_length=1,
        description="Linear modules that get an adapter, by name; `all-linear`: every one in the decoder layers.",
        json_schema_extra=ADVANCED,
    )

    @model_validator(mode="after")
    def _all_stands_alone(self) -> Self:
        if ALL_LINEAR in self.target_modules and len(self.target_modules) > 1:
            raise ValueError(f"{ALL_LINEAR} stands alone, or leave it out and name the modules")
        return self


class OptimisationConfig(Config):
    """AdamW (arXiv:1711.05101) and its schedule."""

    steps: int = Field(default=1200, ge=1, le=1_000_000, description="Optimiser steps.")
    batch_size: int = Field(default=16, ge=1, le=4096, description="Examples a micro-batch.")
    accumulation: int = Field(
        default=1, ge=1, le=1024, description="Micro-batches added up before a step.", json_schema_extra=ADVANCED
    )
    learning_rate: float = Field(
        default=4e-3, gt=0, le=1, description="Peak learning rate.", json_schema_extra={"step": 1e-4}
    )
    schedule: Literal["cosine", "constant"] = Field(
        default="cosine", description="Learning rate after the warm-up.", json_schema_extra=ADVANCED
    )
    warmup_ratio: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of the steps that warm the learning rate up.",
        json_schema_extra=ADVANCED,
    )
    weight_decay: float = Field(default=0.0, ge=0, le=10, description="AdamW weight decay.", json_schema_extra=ADVANCED)
    max_grad_norm: float = Field(
        default=1.0,
        gt=0,
        le=1e6,
        description="Gradients are clipped to this global L2 norm.",
        json_schema_extra=ADVANCED,
    )
    max_length: int = Field(
        default=200, ge=8, le=32768, description="Tokens an example is cut to.", json_schema_extra=ADVANCED
    )
    checkpoint_every: int = Field(
        default=200, ge=0, description="Steps between resumable checkpoints; 0 for none.", json_schema_extra=ADVANCED
    )


class SFTConfig(Config):
    """Supervised fine-tuning on the alignment data: the undefended twin."""

    name: Literal["sft"] = "sft"


class VaccineConfig(Config):
    """Vaccine (arXiv:2402.01109): perturb the hidden states of every layer."""

    name: Literal["vaccine"] = "vaccine"
    rho: float = Field(
        default=1.0,
        ge=0,
        le=50,
        description="Perturbation intensity: L2 radius, joint over layers, tokens and batch.",
        json_schema_extra={"step": 0.1},
    )
    perturb_every: int = Field(
        default=1,
        ge=1,
        description="Steps from one perturbed step to the next (tau); those between descend the plain loss, and are "
        "cheaper.",
        json_schema_extra=ADVANCED,
    )


class TVaccineConfig(Config):
    """T-Vaccine (arXiv:2410.09760): perturb and train the safety-critical layers, freeze the rest."""

    name: Literal["tvaccine"] = "tvaccine"
    rho: float = Field(
        default=1.0,
        ge=0,
        le=50,
        description="Perturbation intensity: L2 radius, joint over layers, tokens and batch.",
        json_schema_extra={"step": 0.1},
    )
    perturb_every: int = Field(
        default=1,
        ge=1,
        description="Steps from one perturbed step to the next (tau); those between descend the plain loss, and are "
        "cheaper.",
        json_schema_extra=ADVANCED,
    )
    num_layers: int = Field(
        default=4, ge=1, le=512, description="Layers drawn, perturbed and trained at a time (gamma)."
    )
    resample_every: int = Field(
        default=20, ge=1, description="Steps between draws of layers.", json_schema_extra=ADVANCED
    )
    rescore_every: int = Field(default=200, ge=1, description="Steps between scorings of the layers.")
    layer_choice: Literal["sampled", "top_k", "uniform", "first", "last", "all"] = Field(
        default="sampled",
        description="How layers are chosen: drawn by their scores, or an ablation.",
        json_schema_extra=ADVANCED,
    )
    freezing: Literal["attention", "layer"] = Field(
        default="attention",
        description="`attention`: the released code, only attention adapters are frozen by layer. "
        "`layer`: the paper, everything outside the drawn layers is frozen.",
        json_schema_extra=ADVANCED,
    )
    probe_batch_size: int = Field(
        default=16, ge=1, le=1024, description="Harmful examples a scoring uses.", json_schema_extra=ADVANCED
    )


MethodConfig = Annotated[SFTConfig | VaccineConfig | TVaccineConfig, Field(discriminator="name")]


class AlignmentConfig(Config):
    """The provider's stage: teach the model to refuse."""

    methods: tuple[MethodConfig, ...] = Field(
        default=(SFTConfig(), TVaccineConfig()), min_length=1, description="Methods aligned side by side."
    )
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    optimisation: OptimisationConfig = Field(default_factory=OptimisationConfig)

    @model_validator(mode="after")
    def _methods_differ(self) -> Self:
        names = [method.name for method in self.methods]
        if len(set(names)) < len(names):
            raise ValueError(f"each method may appear once, got {', '.join(names)}")
        return self


class AttackConfig(Config):
    """The user's stage: fine-tuning on a mixture in which a share of the samples is harmful."""

    harmful_ratio: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="p: share of the user's samples that are harmful.",
        json_schema_extra={"step": 0.01},
    )
    num_samples: int = Field(default=400, ge=1, le=1_000_000, description="n: samples the user uploads.")
    task: str = Field(default="sentiment", min_length=1, description="What the user's other samples teach.")
    adapter_mode: Literal["new", "single"] = Field(
        default="new",
        description="`new`: a fresh adapter on the frozen aligned one. `single`: go on training the aligned adapter.",
        json_schema_extra=ADVANCED,
    )
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    optimisation: OptimisationConfig = Field(
        default_factory=lambda: OptimisationConfig(steps=200, batch_size=10, learning_rate=1e-3)
    )
    eval_every: int = Field(
        default=25,
        ge=0,
        description="Steps between measurements along the attack; 0 measures the end only.",
        json_schema_extra=ADVANCED,
    )
    seed: int = Field(
        default=1, ge=0, description="Seed of the attack's data, order and adapter.", json_schema_extra=ADVANCED
    )


class EvaluationConfig(Config):
    """How answers are generated and judged."""

    batch_size: int = Field(
        default=128, ge=1, le=4096, description="Prompts generated at once.", json_schema_extra=ADVANCED
    )
    max_new_tokens: int = Field(default=24, ge=1, le=4096, description="Longest answer, in tokens.")
    max_per_set: int = Field(
        default=0,
        ge=0,
        description="Use only the first so many examples of each set; 0 for all.",
        json_schema_extra=ADVANCED,
    )


class LabConfig(Config):
    """One run of the lab: a model, its alignment by several methods, and the attack all of them face."""

    seed: int = Field(default=0, ge=0, description="Seed of the alignment: data order, adapter, layer draws.")
    model: ModelConfig = Field(default_factory=ModelConfig)
    alignment: AlignmentConfig = Field(default_factory=AlignmentConfig)
    attack: AttackConfig = Field(default_factory=AttackConfig)
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig)

    def to_yaml(self) -> str:
        """This config as YAML that `from_yaml` reads back unchanged."""
        return write_yaml(self.model_dump(mode="json"))

    @classmethod
    def from_yaml(cls, text: str, what: str = "The config") -> Self:
        """Read a config; `what` begins an error's message.

        Raises:
            ConfigError: not YAML, or a key or value that is not allowed; the message names each.
        """
        data = read_yaml(text, what, remedy=YAML_REMEDY)
        if not isinstance(data, dict):
            raise ConfigError(f"{what} must be a mapping of settings.", remedy=YAML_REMEDY)
        return parse_config(cls, data)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a YAML file. Raises `ConfigError` if it cannot be read or is not a config."""
        return cls.from_yaml(read_file(path, remedy="Give the path of a YAML config."), cut(str(path), 200))


def _preset(alignment_steps: int, attack_steps: int, *methods: MethodConfig, max_per_set: int = 0) -> LabConfig:
    """The schedule fixed on SFT alone (see `sandbox/WORLDS.md`), SFT and `methods`."""
    return LabConfig(
        alignment=AlignmentConfig(
            methods=(SFTConfig(), *methods), optimisation=OptimisationConfig(steps=alignment_steps)
        ),
        attack=AttackConfig(optimisation=OptimisationConfig(steps=attack_steps, batch_size=10, learning_rate=1e-3)),
        evaluation=EvaluationConfig(max_per_set=max_per_set),
    )


def _your_model() -> LabConfig:
    """The paper's schedule (arXiv:2410.09760): 4,000 steps of 10 at 1e-3, gamma 8, rho 3; its attack, 2,000 at 1e-5.

    Evaluation is ours: a real tokenizer needs more tokens an answer, and a real model more memory a prompt.
    """
    common: dict[str, Any] = {"batch_size": 10, "weight_decay": 0.1}
    return LabConfig(
        model=ModelConfig(name=YOUR_MODEL, quantization="nf4", dtype="bfloat16"),
        alignment=AlignmentConfig(
            methods=(SFTConfig(), TVaccineConfig(rho=3.0, num_layers=8)),
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
    """A named starting point, with what it costs."""

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
        description="SFT, Vaccine and T-Vaccine, perturbing at every step, as the recorded study: twice as long.",
        config=_preset(1200, 200, VaccineConfig(), TVaccineConfig()),
    ),
    "sandbox-check": Preset(
        title="Sandbox, self-check",
        description="A few steps of everything, to see that this machine works. Its scores mean nothing.",
        config=_preset(12, 8, TVaccineConfig(), max_per_set=8),
    ),
    YOUR_MODEL: Preset(
        title="Your model",
        description="SFT and T-Vaccine on a model of yours, by the paper's schedule: hours on a GPU. Fewer steps show "
        "whether it fits.",
        config=_your_model(),
    ),
}
