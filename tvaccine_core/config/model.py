"""The base model, its storage, and its device."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tvaccine_core.config.base import ADVANCED, Config

ActivationMemory = Literal["auto", "speed", "balanced", "lowest"]

YOUR_MODEL = "your-model"
"""Stands for a model without a name yet, and is the name of its preset."""


class ModelConfig(Config):
    """The model, its storage in memory, and its device."""

    name: str = Field(
        title="Model", default="sandbox", min_length=1, description="`sandbox`, a folder, or a Hugging Face model id."
    )
    quantization: Literal["none", "int8", "nf4"] = Field(
        title="Quantisation", default="none", description="Storage of the frozen base weights."
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        title="Precision",
        default="float32",
        description="Precision of the base when it is not quantised.",
        json_schema_extra=ADVANCED,
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        title="Device", default="auto", description="Where the model runs."
    )
    trust_remote_code: bool = Field(
        title="Trust remote code",
        default=False,
        description="Run the Python code that comes with a model. It can do whatever you can on this machine: only for "
        "authors you trust, after you have read it. Most models need no code.",
        json_schema_extra=ADVANCED,
    )
    shard: bool = Field(
        default=False,
        description="Divide the frozen base among the processes of a launcher (FSDP2), for a model that does not fit "
        "one GPU. Slower: every pass gathers each layer's weights from all processes.",
        json_schema_extra=ADVANCED,
    )
    activation_memory: ActivationMemory = Field(
        default="auto",
        description="How much training keeps for the backward pass: everything (`speed`), every second layer "
        "(`balanced`), next to nothing (`lowest`), or what fits the device (`auto`). Gradients are the same.",
        json_schema_extra=ADVANCED,
    )

    fast_paths: bool = Field(
        title="Fast paths",
        default=True,
        description="Let the lab's faster forms of adapters, norms and attention replace the model's where they give "
        "the same. Off: the model's own modules run, on every token, and take longer.",
        json_schema_extra=ADVANCED,
    )

    @model_validator(mode="before")
    @classmethod
    def _read_gradient_checkpointing(cls, data: Any) -> Any:
        """Configs exported before `activation_memory` existed have `gradient_checkpointing`, true or false."""
        if not isinstance(data, dict) or not isinstance(data.get("gradient_checkpointing"), bool):
            return data
        rest = {key: value for key, value in data.items() if key != "gradient_checkpointing"}
        return {"activation_memory": "lowest", **rest} if data["gradient_checkpointing"] else rest

    @model_validator(mode="after")
    def _only_whole_numbers_are_divided(self) -> Self:
        if self.shard and (self.quantization != "none" or self.device == "mps"):
            raise ValueError("shard needs quantization none, and a CPU or CUDA GPUs")
        return self
