"""How model states, their folders and evaluation sets are spelt. Nothing else in the lab spells them."""

from pathlib import Path

BASE = "base"
TASK_PREFIX = "task:"


def aligned_state(key: str) -> str:
    """The state after the provider's stages; `key` is one of `LabConfig.aligned_keys`."""
    return f"aligned/{key}"


def attacked_state(defence: str, attack_id: str) -> str:
    """The state of a defence after attack `attack_id`."""
    return f"attacked/{defence}/{attack_id}"


def repaired_state(defence: str, attack_id: str) -> str:
    """The state of a defence after attack `attack_id` and its repair."""
    return f"repaired/{defence}/{attack_id}"


def state_folder(run_dir: Path, state: str) -> Path:
    """Where the adapter of `state` is saved."""
    return run_dir / "states" / state


def checkpoint_folder(run_dir: Path, state: str) -> Path:
    """Where training of `state` keeps its checkpoints."""
    return run_dir / "checkpoints" / state


def task_set(task: str) -> str:
    """The evaluation set that yields the accuracy on a task."""
    return f"{TASK_PREFIX}{task}"


def task_of(eval_set: str) -> str:
    """The task whose accuracy an evaluation set gives; empty for other sets."""
    return eval_set.removeprefix(TASK_PREFIX) if eval_set.startswith(TASK_PREFIX) else ""
