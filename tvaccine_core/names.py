"""How model states, their folders and evaluation sets are spelt. Nothing else in the lab spells them."""

from pathlib import Path

BASE = "base"
TASK_PREFIX = "task:"


def aligned_state(key: str) -> str:
    """The state that the provider's stages give; `key` is one of `LabConfig.aligned_keys`."""
    return f"aligned/{key}"


def attacked_state(defence: str, attack_id: str) -> str:
    """The state that attack `attack_id` on a defence gives."""
    return f"attacked/{defence}/{attack_id}"


def repaired_state(defence: str, attack_id: str) -> str:
    """The state that the defence's repair gives after attack `attack_id`."""
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
    """The task whose accuracy an evaluation set yields; empty for any other set."""
    return eval_set.removeprefix(TASK_PREFIX) if eval_set.startswith(TASK_PREFIX) else ""
