"""What can be known of a model from its name and files, before it is loaded. Torch-free: the page asks this at once.

A name is `sandbox`, a folder, or a Hugging Face id; of an id, what the local cache holds is looked at and the network
is not asked. Only safetensors count as weights. Cost: the headers of the weight files, some milliseconds.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from tvaccine_core.config import YOUR_MODEL, ModelConfig
from tvaccine_core.errors import ModelError
from tvaccine_core.sandbox.base import SANDBOX_BASE


@dataclass(frozen=True)
class ModelFacts:
    """What the files of a model say. Of a hub model that is not in the local cache, nothing is known yet."""

    folder: Path | None
    """Where its files lie on this machine."""
    architecture: str = ""
    """Its class in transformers; empty if unknown."""
    num_layers: int | None = None
    weights_bytes: int = 0
    has_tokenizer: bool = False
    """True if there is a `tokenizer.json` to preview prompts with."""


def model_folder(name: str) -> Path | None:
    """The local folder that `name` means, or None for a hub id."""
    if name == "sandbox":
        return SANDBOX_BASE
    path = Path(name).expanduser()
    looks_local = path.is_absolute() or name.startswith((".", "~")) or path.exists() or name.count("/") > 1
    return path if looks_local or (os.sep != "/" and os.sep in name) else None


def check_model(config: ModelConfig) -> ModelFacts:
    """Find what can be found wrong with a model without loading it or asking the network.

    Raises:
        ModelError: no model is named; the folder or its config.json is missing or damaged, or holds something else
            than a decoder-only model; no safetensors, or damaged ones; the id cannot be one; offline, and not in the
            local cache.
    """
    name = config.name
    folder = model_folder(name)
    if folder is not None:
        settings = check_folder(folder)
        check_weights(folder)
        return _facts(folder, settings)
    check_id(name)
    cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        folder = Path(cached).parent
        return _facts(folder, check_folder(folder))
    if constants.HF_HUB_OFFLINE:
        raise not_cached(name, "HF_HUB_OFFLINE is set")
    return ModelFacts(folder=None)


def check_id(name: str) -> None:
    """Raise `ModelError` if `name` cannot be a model on the hub, or is none yet."""
    if name == YOUR_MODEL:
        raise ModelError(
            "No model is named yet.",
            remedy="Give its folder or its Hugging Face id: on the page at Choose, on the command line by "
            "--set model.name=…",
        )
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ModelError(
            f"{name!r} is neither a folder here nor a Hugging Face model id.",
            remedy="An id is owner/name, of letters, digits and . _ - ; a path begins with /, ./ or ~.",
        ) from error


def not_cached(name: str, why: str) -> ModelError:
    """The error for a hub model that is not here and cannot be fetched."""
    return ModelError(
        f"{name} is not in the local cache, and the Hugging Face hub cannot be reached: {why}.",
        remedy="Go online once, or download the model elsewhere and give its folder. "
        f"The cache is {constants.HF_HUB_CACHE}; HF_HOME moves it.",
    )


def check_folder(folder: Path) -> dict[str, Any]:
    """The settings in a folder's config.json.

    Raises:
        ModelError: there is none, it cannot be read, or it is not that of a decoder-only model.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise _no_config(folder)
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged: {error}", remedy="Download or copy this file again.") from error
    if not isinstance(settings, dict) or settings.get("is_encoder_decoder"):
        raise ModelError(
            f"The model in {folder} is not a decoder-only language model.",
            remedy="Give a causal language model, as AutoModelForCausalLM loads it.",
        )
    return settings


def _no_config(folder: Path) -> ModelError:
    if not folder.is_dir():
        return ModelError(
            f"There is no folder {folder}.",
            remedy="Check the path, on the machine where the lab runs; or give a Hugging Face model id, owner/name.",
        )
    if (folder / "adapter_config.json").is_file():
        return ModelError(
            f"{folder} holds an adapter, not a model: config.json is missing.",
            remedy="Give the model that the adapter was trained on.",
        )
    remedy = "Give a folder as `save_pretrained` writes it, or a Hugging Face model id."
    if folder == SANDBOX_BASE:
        remedy = "Build it: python -m tvaccine_core sandbox build --seed 0"
    return ModelError(f"There is no model in {folder}: config.json is missing.", remedy=remedy)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a folder."""
    return sorted(folder.glob("*.safetensors"))


def check_weights(folder: Path) -> None:
    """Open the header of every weight file: a truncated one is found in milliseconds, not after minutes of loading.

    Raises:
        ModelError: there are no safetensors, one is damaged, or one that the index names is missing.
    """
    files = weight_files(folder)
    if not files:
        raise ModelError(
            f"There are no safetensors weights in {folder}.",
            remedy="Convert the model: load it once with transformers and call "
            "`model.save_pretrained(folder, safe_serialization=True)`. Pickled weights are never read.",
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file() and not (folder / "model.safetensors").is_file():
        try:
            listed = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelError(f"{index} is damaged: {error}", remedy="Download or copy this file again.") from error
        if absent := sorted(listed - {path.name for path in files}):
            raise ModelError(
                f"{len(absent)} of {len(listed)} weight files are missing in {folder}, {absent[0]} for one.",
                remedy="Download or copy the missing files.",
            )
    for path in files:
        try:
            with safe_open(path, framework="np") as weights:  # "pt" would load torch
                weights.keys()
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path} is damaged or incomplete: {error}", remedy="Download or copy this file again."
            ) from error


def _facts(folder: Path, settings: dict[str, Any]) -> ModelFacts:
    names = settings.get("architectures") or [""]
    text = settings.get("text_config") if isinstance(settings.get("text_config"), dict) else settings
    assert isinstance(text, dict)
    layers = next((text[key] for key in ("num_hidden_layers", "n_layer") if isinstance(text.get(key), int)), None)
    return ModelFacts(
        folder=folder,
        architecture=str(names[0]),
        num_layers=layers,
        weights_bytes=sum(path.stat().st_size for path in weight_files(folder)),
        has_tokenizer=(folder / "tokenizer.json").is_file(),
    )
