"""A model's config without its weights: from a folder, the hub, or built-in sizes; and the memory of GPUs by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

from tvaccine_core.config import ModelConfig
from tvaccine_core.errors import ConfigError, ModelError
from tvaccine_core.json_files import file_size
from tvaccine_core.models.files import (
    check_folder,
    check_id,
    check_weights,
    code_is_off,
    explain,
    model_folder,
    needs_code,
    weight_files,
)


def _sizes(family: str, layers: int, hidden: int, inner: int, heads: int, kv_heads: int, vocabulary: int, **more: Any) -> dict[str, Any]:  # fmt: skip  # noqa: E501
    return {
        "model_type": family,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "ffn_dim" if family == "opt" else "intermediate_size": inner,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocabulary,
        **more,
    }


BUILT_IN: dict[str, dict[str, Any]] = {
    "llama-2-7b": _sizes("llama", 32, 4096, 11008, 32, 32, 32000, max_position_embeddings=4096),
    "llama-2-13b": _sizes("llama", 40, 5120, 13824, 40, 40, 32000, max_position_embeddings=4096),
    "llama-3.1-8b": _sizes("llama", 32, 4096, 14336, 32, 8, 128256, max_position_embeddings=131072),
    "vicuna-7b": _sizes("llama", 32, 4096, 11008, 32, 32, 32000, max_position_embeddings=4096),
    "tinyllama-1.1b": _sizes("llama", 22, 2048, 5632, 32, 4, 32000),
    "mistral-7b": _sizes("mistral", 32, 4096, 14336, 32, 8, 32000, max_position_embeddings=32768),
    "qwen2-7b": _sizes("qwen2", 28, 3584, 18944, 28, 4, 152064),
    "qwen2.5-0.5b": _sizes("qwen2", 24, 896, 4864, 14, 2, 151936, tie_word_embeddings=True),
    "qwen2.5-1.5b": _sizes("qwen2", 28, 1536, 8960, 12, 2, 151936, tie_word_embeddings=True),
    "qwen2.5-7b": _sizes("qwen2", 28, 3584, 18944, 28, 4, 152064),
    "gemma-2-2b": _sizes("gemma2", 26, 2304, 9216, 8, 4, 256000, head_dim=256),
    "gemma-2-9b": _sizes("gemma2", 42, 3584, 14336, 16, 8, 256000, head_dim=256),
    "phi-3-mini": _sizes("phi3", 32, 3072, 8192, 32, 32, 32064, pad_token_id=32000),
    "opt-1.3b": _sizes("opt", 24, 2048, 8192, 32, 32, 50272, word_embed_proj_dim=2048),
    "opt-2.7b": _sizes("opt", 32, 2560, 10240, 32, 32, 50272, word_embed_proj_dim=2560),
    "pythia-2.8b": _sizes("gpt_neox", 32, 2560, 10240, 32, 32, 50304),
}
"""Sizes of well-known models, from their published config.json, so that they can be planned without a network."""

GPUS_GIB: dict[str, float] = {
    "RTX 3060": 12,
    "RTX 3080": 10,
    "RTX 3090": 24,
    "RTX 4060": 8,
    "RTX 4060 Ti": 16,
    "RTX 4070": 12,
    "RTX 4080": 16,
    "RTX 4090": 24,
    "RTX 5070": 12,
    "RTX 5080": 16,
    "RTX 5090": 32,
    "RTX A6000": 48,
    "T4": 15,
    "L4": 22.5,
    "A10": 22.5,
    "V100": 16,
    "L40S": 45,
    "A100": 40,
    "A100 80GB": 80,
    "H100": 80,
    "H200": 141,
}
"""Memory of well-known cards in GiB, as their makers state it, or less if error correction takes a part."""


def find_gpu(name: str) -> tuple[str, float]:
    """Name and GiB of a card, in any spelling. Raises `ConfigError` naming the known cards."""
    wanted = _letters(name.lower().replace("nvidia", "").replace("geforce", ""))
    for known, gib in GPUS_GIB.items():
        if _letters(known.lower()) in (wanted, f"rtx{wanted}"):
            return known, gib
    raise ConfigError(
        f"There is no GPU {name!r} in the table.",
        remedy=f"Give its memory with --memory-gib, or one of: {', '.join(GPUS_GIB)}.",
    )


def _letters(text: str) -> str:
    return "".join(letter for letter in text if letter.isalnum())


def read_shape(model: ModelConfig) -> tuple[PretrainedConfig, str]:
    """The config of `model`, and its origin in words. No weights are read or downloaded.

    Raises:
        ModelError: there is no config, or it cannot be read.
    """
    built_in = BUILT_IN.get(model.name.lower())
    if built_in is not None:
        return built_in_shape(model.name), f"built-in sizes of {model.name.lower()}"
    folder = model_folder(model.name)
    if folder is not None and file_size(folder / "config.json", f"config.json of {model.name}") is None:
        raise ModelError(
            f"There is no config.json in {model.name}, and no built-in model is called that.",
            remedy=f"Give a model's folder, a Hugging Face id, or one of: sandbox, {', '.join(BUILT_IN)}.",
        )
    if folder is not None:
        settings = check_folder(folder, model.name)
        if weight_files(folder, model.name):
            check_weights(folder, model.name, settings, code=model.trust_remote_code)
    else:
        check_folder(_fetch_config(model.name), model.name)
    try:
        shape = AutoConfig.from_pretrained(folder or model.name, trust_remote_code=model.trust_remote_code)
    except Exception as error:  # a config can be wrong in many ways, and its own code may raise anything
        if needs_code(error) and not model.trust_remote_code:
            raise code_is_off(model.name) from error
        raise ModelError(
            f"config.json of {model.name} cannot be used: {explain(error, model.name, folder)}",
            remedy="Use a decoder-only model that transformers knows, or download or copy config.json again.",
        ) from error
    return shape, f"config.json of {model.name}"


def _fetch_config(name: str) -> Path:
    """The folder in the hub's cache with the config.json of `name`, which is fetched if necessary."""
    check_id(name)
    try:
        return Path(hf_hub_download(name, "config.json")).parent
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise _no_config(name, error) from error


def built_in_shape(name: str) -> PretrainedConfig:
    """The config of a well-known model. Raises `ModelError` naming the known models."""
    if name.lower() not in BUILT_IN:
        raise ModelError(f"There is no built-in model {name!r}.", remedy=f"Choose one of: {', '.join(BUILT_IN)}.")
    settings = dict(BUILT_IN[name.lower()])
    return CONFIG_MAPPING[settings.pop("model_type")](**settings)


def _no_config(name: str, error: Exception) -> ModelError:
    stem = name.rsplit("/", 1)[-1].lower().removesuffix("-hf")
    alike = [known for known in BUILT_IN if stem.startswith(known) or known.startswith(stem)]
    instead = f"the built-in sizes: {', '.join(alike or BUILT_IN)}"
    if isinstance(error, GatedRepoError) or "gated" in str(error).lower():
        return ModelError(
            f"{name} is gated: its owner asks you to accept terms before you may read its config.",
            remedy=f"Accept them at https://huggingface.co/{name} and log in (hf auth login), or plan with {instead}.",
        )
    return ModelError(
        f"The config of {name} is not in the local cache and the Hugging Face hub did not give it: "
        f"{explain(error, name, None)}",
        remedy=f"Check the spelling, go online once, give a folder with its config.json, or plan with {instead}.",
    )
