"""One LoRA adapter as plain tensors, its content hash, and its folder as peft reads and writes it.

safetensors + JSON; equal adapters give equal files byte for byte. The folder loads with plain
`PeftModel.from_pretrained(base, folder)`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, TaskType
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tvaccine_core.errors import ModelError, RunNotFoundError
from tvaccine_core.whole_folders import replace_folder

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."


@dataclass(frozen=True, eq=False)
class PlainAdapter:
    """An adapter taken out of its model."""

    tensors: Mapping[str, Tensor]
    """On the CPU, by their names in peft's files."""
    rank: int
    alpha: float

    @property
    def modules(self) -> set[str]:
        """Names of the modules that it adapts, in the Hugging Face model."""
        return {key.rsplit(".lora_", 1)[0].removeprefix(_PREFIX) for key in self.tensors}

    @property
    def target_modules(self) -> list[str]:
        """Last parts of the names of the modules that it adapts, sorted."""
        return sorted({name.rsplit(".", 1)[-1] for name in self.modules})


def named_factors(module_name: str, a: Tensor, b: Tensor) -> dict[str, Tensor]:
    """A (r, in) and B (out, r) of one linear, by their names in peft's files."""
    return {
        f"{_PREFIX}{module_name}.lora_A.weight": a.detach(),
        f"{_PREFIX}{module_name}.lora_B.weight": b.detach(),
    }


def make_lora_config(rank: int, alpha: float, target_modules: Sequence[str], *, dropout: float = 0.0) -> LoraConfig:
    """peft's config of a plain LoRA."""
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # pyright: ignore[reportArgumentType]  peft takes any number
        lora_dropout=dropout,
        target_modules=list(target_modules),
        bias="none",
        task_type=TaskType.CAUSAL_LM,
    )


def hash_adapter(adapter: PlainAdapter, base_key: str) -> str:
    """SHA-256 over the base, the scaling, and every tensor's name, shape, type and bytes, sorted by name."""
    digest = hashlib.sha256(f"{base_key}/{adapter.rank}/{float(adapter.alpha)!r}".encode())
    for name in sorted(adapter.tensors):
        tensor = adapter.tensors[name]
        digest.update(f"{name}/{tuple(tensor.shape)}/{tensor.dtype}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_adapter(folder: Path, adapter: PlainAdapter, *, base_key: str, base_name: str) -> str:
    """Write `folder`, which is replaced as a whole when the new one is complete; returns the hash.

    Raises:
        ModelError: it cannot be written.
    """
    digest = hash_adapter(adapter, base_key)
    # One metadata entry only: safetensors writes several entries in any order, and the bytes would differ.
    identity = json.dumps({"base_key": base_key, "state_hash": digest}, sort_keys=True)
    config = make_lora_config(adapter.rank, adapter.alpha, adapter.target_modules)
    config.inference_mode = True
    config.base_model_name_or_path = base_name
    try:
        with replace_folder(folder) as made:
            save_file(dict(adapter.tensors), made / WEIGHTS_FILE, metadata={"tvaccine": identity})
            config.save_pretrained(str(made))
            plain = json.loads((made / CONFIG_FILE).read_text(encoding="utf-8"))
            plain["target_modules"] = sorted(plain["target_modules"])  # peft keeps a set, whose order is random
            (made / CONFIG_FILE).write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"The adapter cannot be written to {folder}: {error}",
            remedy="Free disk space or choose another data directory, then resume.",
        ) from error
    return digest


def read_adapter(folder: Path, *, base_key: str) -> PlainAdapter:
    """Read an adapter that `write_adapter` wrote, or peft for a plain LoRA.

    Raises:
        RunNotFoundError: there is no adapter in `folder`.
        ModelError: it is damaged, of another base, or not a plain LoRA.
    """
    if not (folder / CONFIG_FILE).is_file() or not (folder / WEIGHTS_FILE).is_file():
        raise RunNotFoundError(f"There is no saved model state in {folder}.", remedy="Run the job that makes it first.")
    try:
        config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as weights:
            identity = json.loads((weights.metadata() or {}).get("tvaccine", "{}"))
            tensors = {key: weights.get_tensor(key) for key in weights.keys()}  # noqa: SIM118  not a dict
        adapter = PlainAdapter(tensors, rank=int(config["r"]), alpha=float(config["lora_alpha"]))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ModelError(
            f"The adapter in {folder} is damaged: {error}", remedy="Run the job that makes it again."
        ) from error
    plain = all(key.endswith((".lora_A.weight", ".lora_B.weight")) for key in tensors)
    if not plain or config.get("use_dora") or config.get("use_rslora") or config.get("rank_pattern"):
        raise ModelError(
            f"The adapter in {folder} is not a plain LoRA of one rank.", remedy="Export it as a plain LoRA."
        )
    if identity.get("base_key", base_key) != base_key:
        raise ModelError(
            f"The adapter in {folder} was trained on another base model or quantisation than the one in memory.",
            remedy="Load the model that it was trained on.",
        )
    if identity.get("state_hash", digest := hash_adapter(adapter, base_key)) != digest:
        raise ModelError(
            f"The adapter in {folder} is not the one that was saved: its hash differs.",
            remedy="Run the job that makes it again.",
        )
    return adapter
