"""Resumable checkpoints: one folder each, `tensors.safetensors` + `checkpoint.json`, never a pickle.

A checkpoint is written under another name and renamed when it is complete, so a process killed at any moment leaves the
previous checkpoint whole. Nothing waits for the disk (a busy disk can take seconds): a file torn by a power failure is
found by its checksum, and the checkpoint before it is used. The last two are kept.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tvaccine_core.errors import TrainingError
from tvaccine_core.whole_folders import replace_folder

VERSION = 1
NUM_KEPT = 2
TENSORS, META = "tensors.safetensors", "checkpoint.json"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint that was read."""

    step: int
    """Optimiser steps done."""
    elapsed_s: float
    tensors: dict[str, Tensor]
    skipped: tuple[str, ...]
    """Why newer checkpoints were not used, one sentence each; empty if the newest was good."""


def save_checkpoint(
    folder: Path, *, step: int, elapsed_s: float, fingerprint: str, tensors: Mapping[str, Tensor]
) -> Path:
    """Write `folder/step-<step>` and remove all but the last two.

    Raises:
        TrainingError: it cannot be written (disk full, no permission); earlier checkpoints are unchanged.
    """
    final = folder / f"step-{step:08d}"
    try:
        with replace_folder(final) as made:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, made / TENSORS)
            meta = {
                "version": VERSION,
                "step": step,
                "elapsed_s": elapsed_s,
                "fingerprint": fingerprint,
                "sha256": _sha256(made / TENSORS),
            }
            (made / META).write_text(json.dumps(meta, indent=2), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"The checkpoint of step {step} cannot be written to {folder}: {error}",
            remedy="Free disk space or choose another data directory, then resume: earlier checkpoints are intact.",
        ) from error
    for old in _steps(folder)[:-NUM_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def load_checkpoint(folder: Path, fingerprint: str) -> Checkpoint | None:
    """The newest readable checkpoint in `folder`, or None if there is none.

    Raises:
        TrainingError: every checkpoint is damaged, or the checkpoints are of other settings or data.
    """
    skipped: list[str] = []
    for path in reversed(_steps(folder)):
        try:
            meta = json.loads((path / META).read_text(encoding="utf-8"))
            if meta["version"] != VERSION:
                raise ValueError(f"version {meta['version']}, this is version {VERSION}")
            if meta["sha256"] != _sha256(path / TENSORS):
                raise ValueError(f"{TENSORS} is not the file that was written")
            found = meta["fingerprint"], int(meta["step"]), float(meta["elapsed_s"])
            tensors = load_file(path / TENSORS)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            skipped.append(f"Checkpoint {path.name} is damaged and was not used: {error}")
            continue
        if found[0] != fingerprint:
            raise TrainingError(
                f"The checkpoints in {folder} were made with other settings or data.",
                remedy="Resume with the settings of the first start, or start again without resuming.",
            )
        return Checkpoint(step=found[1], elapsed_s=found[2], tensors=tensors, skipped=tuple(skipped))
    if skipped:
        raise TrainingError(
            f"No checkpoint in {folder} can be read. {' '.join(skipped)}",
            remedy="Start again without resuming.",
        )
    return None


def last_step(folder: Path) -> int:
    """Step of the newest checkpoint in `folder`, by its name; 0 if there is none."""
    steps = _steps(folder)
    return _step_of(steps[-1]) if steps else 0


def discard_checkpoints(folder: Path, after: int = 0) -> None:
    """Remove the checkpoints in `folder` after step `after`; with 0 the whole folder, if it exists."""
    if not after:
        shutil.rmtree(folder, ignore_errors=True)
    for path in _steps(folder):
        if _step_of(path) > after:
            shutil.rmtree(path, ignore_errors=True)


def _steps(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(folder.glob("step-*"))


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
