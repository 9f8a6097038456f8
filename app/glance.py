"""What one viewer looks at: the run their browser remembers, as it is now."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from app import text
from app.services import PRESETS, Lab, LabConfig, RunNotFoundError, new_owner
from app.views import RunView

Memory = dict[str, Any]
"""What a browser remembers: `run`, `attack` (the one shown), `base` (the fifth pane) and `owner` (the visitor)."""

LONGEST_NAME = 64
"""Characters of a name that a browser remembers."""

NOTHING: Memory = {"run": None, "attack": None, "base": False, "owner": None}


@dataclass(frozen=True)
class Glance:
    """What one viewer looks at now."""

    lab: Lab
    view: RunView | None
    attack: str | None
    """The attack shown; None if the run has none."""
    memory: Memory
    """What this viewer's browser remembers; only drawings of their own may depend on it."""
    runs_revision: int = 0
    """Changes with the list of runs; known to news only."""

    @property
    def config(self) -> LabConfig:
        """The run's config; the first preset's while no run is open."""
        return self.view.config if self.view else next(iter(PRESETS.values())).config

    @property
    def missed(self) -> str | None:
        """The run that the viewer's browser remembers and that is gone."""
        return self.memory["run"] if self.view is None else None

    def stamp(self, *topics: str) -> Hashable:
        """Changes whenever one of the run's `topics` does, or another run or attack is shown."""
        return (self.attack, self.view.stamp(*topics) if self.view else None)


def remembered(memory: Memory | None, **changes: Any) -> Memory:
    """A browser's memory with `changes`; a browser without a name gets one. What is no memory counts as none."""
    found = (memory if isinstance(memory, dict) else {}) | changes
    names = {key: name if _is_name(name := found.get(key)) else None for key in ("run", "attack", "owner")}
    return names | {"base": found.get("base") is True, "owner": names["owner"] or new_owner()}


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and value.isascii() and value.isprintable()


def run_of(memory: Memory | None) -> str:
    """The run a browser looks at. Raises `RunNotFoundError` if it looks at none."""
    run_id = remembered(memory)["run"]
    if run_id is None:
        raise RunNotFoundError(text.NO_RUN_OPEN, remedy=text.NO_RUN_REMEDY)
    return run_id
