"""The subject of one viewer: the run that their browser remembers, in its present state."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from app import text
from app.services import PRESETS, Lab, LabConfig, RunNotFoundError, new_owner
from app.views import RunView

Memory = dict[str, Any]
"""A browser's memory: `run`, `attack` (the attack shown), `base` (the fifth pane) and `owner` (the visitor)."""

LONGEST_NAME = 64
"""Characters of a name that a browser remembers."""

NOTHING: Memory = {"run": None, "attack": None, "base": False, "owner": None}


@dataclass(frozen=True)
class Glance:
    """The run and attack that one viewer looks at now."""

    lab: Lab
    view: RunView | None
    attack: str | None
    """The attack shown; None if the run has none."""
    memory: Memory
    """The memory of this viewer's browser; only drawings of their own may depend on it."""
    runs_revision: int = 0
    """Changes with the list of runs; only set for news."""

    @property
    def config(self) -> LabConfig:
        """The run's config; the first preset's while no run is open."""
        return self.view.config if self.view else next(iter(PRESETS.values())).config

    @property
    def missed(self) -> str | None:
        """The run that the viewer's browser remembers but that no longer exists."""
        return self.memory["run"] if self.view is None else None

    def stamp(self, *topics: str) -> Hashable:
        """Changes whenever one of the run's `topics` does, or another run or attack is shown."""
        return (self.attack, self.view.stamp(*topics) if self.view else None)


def remembered(memory: Memory | None, **changes: Any) -> Memory:
    """A browser's memory with `changes`; a browser without a name gets one. A malformed memory counts as empty."""
    found = (memory if isinstance(memory, dict) else {}) | changes
    names = {key: name if _is_name(name := found.get(key)) else None for key in ("run", "attack", "owner")}
    return names | {"base": found.get("base") is True, "owner": names["owner"] or new_owner()}


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and value.isascii() and value.isprintable()


def run_of(memory: Memory | None) -> str:
    """The run that a browser looks at. Raises `RunNotFoundError` if there is none."""
    run_id = remembered(memory)["run"]
    if run_id is None:
        raise RunNotFoundError(text.NO_RUN_OPEN, remedy=text.NO_RUN_REMEDY)
    return run_id
