"""Facts about a model from its name and files, before it is loaded. Torch-free, so that the page can ask at once.

A name is `sandbox`, a folder, or a Hugging Face id. For an id only the local cache is read, never the network. Only
safetensors count as weights. Cost: reading the headers of the weight files, some milliseconds.

Errors name a model as its user does, and a file by its name inside; they never say where the cache lies.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import safe_open

from tvaccine_core.config import YOUR_MODEL, ModelConfig
from tvaccine_core.errors import ModelError
from tvaccine_core.json_files import AGAIN, MIB, file_size, look_at, read_json
from tvaccine_core.models.sizes import Shapes, check_agreement, check_sizes, list_some, num_layers
from tvaccine_core.worlds.sandbox.base import SANDBOX_BASE

MAX_NAME = 1000
"""Characters of a model's name."""
MAX_SHARDS = 10_000
MAX_HEADER = 16 * MIB
"""Bytes of a weight file's header. 16 MiB name some 150,000 tensors; reading a header takes 20 times its size."""
MAX_BYTES = {
    "*.safetensors": None,
    "*.safetensors.index.json": 64 * MIB,
    "config.json": 4 * MIB,
    "generation_config.json": 4 * MIB,
    "tokenizer.json": 64 * MIB,
    "tekken.json": 64 * MIB,
    "vocab.json": 64 * MIB,
    "vocab.txt": 64 * MIB,
    "merges.txt": 64 * MIB,
    "*.model": 64 * MIB,
    "*.tiktoken": 64 * MIB,
    "tokenizer*.json": 16 * MIB,
    "added_tokens.json": 16 * MIB,
    "special_tokens_map.json": 16 * MIB,
    "processor_config.json": 4 * MIB,
    "preprocessor_config.json": 4 * MIB,
    "adapter_config.json": 4 * MIB,
    "chat_template.json": MIB,
    "*.jinja": MIB,
    "*.py": 16 * MIB,
    "requirements.txt": MIB,
}
"""Files that loading a model opens, and how many bytes each may have; the first pattern that matches a name counts. The
largest published index has 15 MB, the largest tokenizer.json 34 MB."""
TEMPLATES = "additional_chat_templates"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"

CODE_REMEDY = (
    "Read the code, and only if you trust its authors turn on model.trust_remote_code: on the command line by "
    "--set model.trust_remote_code=true, on the page where the lab was started with --trust-remote-code. Or use a "
    "model that transformers knows."
)


@dataclass(frozen=True)
class ModelFacts:
    """Facts from a model's files. Nothing is known yet of a hub model that is not in the local cache."""

    folder: Path | None
    """The folder of its files on this machine."""
    architecture: str = ""
    """Its class in transformers; empty if unknown."""
    num_layers: int | None = None
    weights_bytes: int = 0
    has_tokenizer: bool = False
    """True if there is a `tokenizer.json` to preview prompts with."""


def model_folder(name: str) -> Path | None:
    """The local folder that `name` means, or None for a hub id. Raises `ModelError` if it can be neither."""
    if name == "sandbox":
        return SANDBOX_BASE
    if len(name) > MAX_NAME:
        raise ModelError(
            f"A model's name has at most {MAX_NAME:,} characters; {name[:40]!r}… has {len(name):,}.", remedy=_NAMES
        )
    if _UNFIT.search(name):
        raise ModelError(f"{name[:80]!a} holds a character that no model's name may hold.", remedy=_NAMES)
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:
        raise ModelError(f"{name!r} begins with a user that this machine does not know.", remedy=_NAMES) from error
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    looks_local = looks_local or look_at(path, f"{name!r}") is not None
    return path if looks_local or (os.sep != "/" and os.sep in name) else None


_UNFIT = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
"""Control characters, and halves of surrogate pairs, which no database and no page can hold."""
_NAMES = "Give a folder on the machine where the lab runs, or a Hugging Face model id, owner/name."


def check_model(config: ModelConfig) -> ModelFacts:
    """Find a model's faults without loading it and without the network.

    Raises:
        ModelError: no model is named; the folder or its config.json is missing or damaged, or holds no decoder-only
            model; safetensors are missing, damaged, or do not fit the config; the id is not possible; the model is not
            in the local cache, and the lab is offline.
    """
    name = config.name
    folder = model_folder(name)
    if folder is not None:
        settings = check_folder(folder, name)
        check_weights(folder, name, settings, code=config.trust_remote_code)
        return _facts(folder, name, settings)
    check_id(name)
    cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        folder = Path(cached).parent
        return _facts(folder, name, check_folder(folder, name))
    if constants.HF_HUB_OFFLINE:
        raise not_cached(name, "HF_HUB_OFFLINE is set")
    return ModelFacts(folder=None)


def check_id(name: str) -> None:
    """Raise `ModelError` if `name` cannot be a model on the hub, or is not filled in yet."""
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
    """The error for a hub model that is not in the cache and cannot be fetched."""
    return ModelError(
        f"{name} is not in the local cache, and the Hugging Face hub cannot be reached: {why}.",
        remedy="Go online once, or download the model elsewhere and give its folder. "
        "HF_HOME says where the cache lies; `hf cache list` shows what it holds.",
    )


def check_folder(folder: Path, name: str) -> dict[str, Any]:
    """The settings in a folder's config.json, with all sizes checked.

    Args:
        folder: the model's folder.
        name: the user's name for the model.

    Raises:
        ModelError: config.json is missing, cannot be read, or is not that of a decoder-only model; a file beside it is
            not a regular file, or is too large.
    """
    if file_size(folder / "config.json", f"config.json of {name}") is None:
        raise _no_config(folder, name)
    check_files(folder, name)
    settings = read_json(folder / "config.json", f"config.json of {name}", MAX_BYTES["config.json"] or 0)
    if not isinstance(settings, dict) or settings.get("is_encoder_decoder"):
        raise ModelError(
            f"The model {name} is not a decoder-only language model.",
            remedy="Give a causal language model, as AutoModelForCausalLM loads it.",
        )
    for key, kinds, what in _KINDS_OF_SETTINGS:
        if not isinstance(settings.get(key), kinds | None):
            raise ModelError(
                f"config.json of {name} is damaged: {key} is {repr(settings[key])[:80]}, not {what}.", remedy=AGAIN
            )
    architectures = settings.get("architectures") or []
    if not all(isinstance(architecture, str) for architecture in architectures):
        raise ModelError(
            f"config.json of {name} is damaged: architectures holds {repr(architectures)[:80]}, not names.",
            remedy=AGAIN,
        )
    if settings.get("transformers_weights") is not None:  # it may name pickled ones
        raise ModelError(
            f"config.json of {name} names a weight file of its own (transformers_weights), which is not read.",
            remedy=f"Call the weights {WEIGHTS}, and remove transformers_weights from config.json.",
        )
    check_sizes(settings, name)
    return settings


_KINDS_OF_SETTINGS: tuple[tuple[str, type, str], ...] = (
    ("architectures", list, "a list of names"),
    ("model_type", str, "a name"),
    ("text_config", dict, "an object"),
    ("auto_map", dict, "an object"),
)


def check_files(folder: Path, name: str) -> None:
    """Raise `ModelError` if a file in `folder` that loading may open is not a regular file, or is too large.

    An adapter's files beside the model are refused too: loading would add that adapter to the model, unasked.
    """
    names = _names(folder, f"The folder of {name}")
    if TEMPLATES in names and _is_folder(folder / TEMPLATES, f"{TEMPLATES} of {name}"):
        names += [f"{TEMPLATES}/{inside}" for inside in _names(folder / TEMPLATES, f"{TEMPLATES} of {name}")]
    for found in names:
        pattern = next((pattern for pattern in MAX_BYTES if fnmatchcase(found, pattern)), None)
        if pattern is not None:
            file_size(folder / found, f"{found} of {name}", MAX_BYTES[pattern])
    if "adapter_config.json" in names:
        raise ModelError(
            f"The folder of {name} holds an adapter beside the model: adapter_config.json.",
            remedy="Merge it into the model, or move the files of the adapter elsewhere.",
        )


def _names(folder: Path, called: str) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise ModelError(
            f"{called} cannot be read: {error.strerror}.",
            remedy="Check that the user who runs the lab may read it.",
        ) from error


def _is_folder(path: Path, called: str) -> bool:
    found = look_at(path, called)
    return found is not None and stat.S_ISDIR(found.st_mode)


def _no_config(folder: Path, name: str) -> ModelError:
    if not _is_folder(folder, name):
        return ModelError(
            f"There is no folder {name}.",
            remedy="Check the path, on the machine where the lab runs; or give a Hugging Face model id, owner/name.",
        )
    if file_size(folder / "adapter_config.json", f"adapter_config.json of {name}") is not None:
        return ModelError(
            f"{name} holds an adapter, not a model: config.json is missing.",
            remedy="Give the model that the adapter was trained on.",
        )
    remedy = "Give a folder as `save_pretrained` writes it, or a Hugging Face model id."
    if folder == SANDBOX_BASE:
        remedy = "Build it: python -m tvaccine_core sandbox build --seed 0"
    return ModelError(f"There is no model in {name}: config.json is missing.", remedy=remedy)


def weight_files(folder: Path, name: str) -> list[Path]:
    """The safetensors that loading reads: one file, or all files that an index lists; empty if there is neither.

    Raises:
        ModelError: the index is damaged, or lists files that are not in the folder.
    """
    if file_size(folder / WEIGHTS, f"{WEIGHTS} of {name}") is not None:
        return [folder / WEIGHTS]
    if file_size(folder / INDEX, f"{INDEX} of {name}") is None:
        return []
    index = read_json(folder / INDEX, f"{INDEX} of {name}", MAX_BYTES["*.safetensors.index.json"] or 0)
    listed = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(listed, dict) or not isinstance(index.get("metadata"), dict):
        raise ModelError(f"{INDEX} of {name} is damaged: it has no weight_map and metadata.", remedy=AGAIN)
    for tensor, file in listed.items():
        if not isinstance(file, str) or not fnmatchcase(file, "*.safetensors") or re.search(r"[/\\\0]", file):
            raise ModelError(
                f"{INDEX} of {name} is damaged: it says that {tensor[:80]!r} lies in {repr(file)[:80]}, which is no "
                "safetensors file of the same folder.",
                remedy=AGAIN,
            )
    names = sorted(set(listed.values()))
    if len(names) > MAX_SHARDS:
        raise ModelError(
            f"{INDEX} of {name} lists {len(names):,} weight files; at most {MAX_SHARDS:,} are read.", remedy=AGAIN
        )
    absent = [file for file in names if file_size(folder / file, f"{file[:80]} of {name}") is None]
    if absent:
        raise ModelError(
            f"{len(absent)} of {len(names)} weight files of {name} are missing: {list_some(absent)}.",
            remedy="Download or copy the missing files.",
        )
    return [folder / file for file in names]


def check_weights(folder: Path, name: str, settings: dict[str, Any], *, code: bool = False) -> Shapes:
    """Read the header of every weight file: a truncated file is found in milliseconds, not after minutes of loading.

    Args:
        folder: the model's folder.
        name: the user's name for the model.
        settings: its config.json.
        code: Python code that comes with the model will run; only that code knows what the config's numbers mean.

    Returns:
        The shape of every tensor.

    Raises:
        ModelError: there are no safetensors, a file is damaged, a file that the index names is missing, or the files
            do not belong to the config.
    """
    files = weight_files(folder, name)
    if not files:
        raise ModelError(
            f"There are no safetensors weights in {name}.",
            remedy="Convert the model: load it once with transformers and call "
            "`model.save_pretrained(folder, safe_serialization=True)`. Pickled weights are never read.",
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        shapes |= _read_shapes(path, f"{path.name} of {name}")
    if not (code and settings.get("auto_map")):
        check_agreement(settings, shapes, name)
    return shapes


def _read_shapes(path: Path, called: str) -> dict[str, tuple[int, ...]]:
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER:
            raise ValueError(f"its header would have {length / MIB:,.1f} MiB, of at most {MAX_HEADER / MIB:g} MiB")
        with safe_open(path, framework="np") as weights:  # "pt" would load torch
            return {tensor: tuple(weights.get_slice(tensor).get_shape()) for tensor in weights.keys()}  # noqa: SIM118
    except Exception as error:  # safetensors raises its own errors and Rust's
        words = str(error) if isinstance(error, ValueError) else explain(error, called, path)
        raise ModelError(f"{called} is damaged or incomplete: {words}", remedy=AGAIN) from error


def explain(error: BaseException, name: str, folder: Path | None) -> str:
    """A library's error about a model, in one line of bounded length, without paths that the user did not type."""
    words = " ".join(str(error).split()) or type(error).__name__
    for place in () if folder is None else (str(folder.absolute()), os.path.realpath(folder)):
        words = words.replace(place, name) if len(place) > 1 else words
    caches = (constants.HF_HUB_CACHE, constants.HF_HOME, sys.prefix, sys.base_prefix)
    for cache in filter(lambda cache: len(cache) > 1, caches):
        words = re.sub(re.escape(cache) + r"[^\s'\"`:;,)]*", "(a file of the installation)", words)
    return words if len(words) <= MAX_WORDS else f"{words[:MAX_WORDS]}…"


MAX_WORDS = 600
"""Characters that are shown of a library's own error."""


def needs_code(error: BaseException) -> bool:
    """True if `error` is transformers' refusal to run the Python code that comes with a model."""
    return "trust_remote_code" in str(error)


def code_is_off(name: str) -> ModelError:
    """The error for a model that cannot be used without its own Python code."""
    return ModelError(
        f"{name} comes with Python code of its own, which the lab does not run unasked.", remedy=CODE_REMEDY
    )


def _facts(folder: Path, name: str, settings: dict[str, Any]) -> ModelFacts:
    architectures = settings.get("architectures") or [""]
    sizes = [file_size(path, f"{path.name} of {name}") or 0 for path in sorted(folder.glob("*.safetensors"))]
    return ModelFacts(
        folder=folder,
        architecture=architectures[0],
        num_layers=num_layers(settings),
        weights_bytes=sum(sizes),
        has_tokenizer=file_size(folder / "tokenizer.json", f"tokenizer.json of {name}") is not None,
    )
