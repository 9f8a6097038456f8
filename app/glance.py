"""What one viewer looks at: the run their browser remembers, as it is now."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from app import text
from app.services import Lab, RunNotFoundError, new_owner
from app.views import RunView

Memory = dict[str, Any]
"""What a browser remembers: `run`, `attack` (the one shown), `base` (the fifth pane) and `owner` (the visitor)."""

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

    def stamp(self, *topics: str) -> Hashable:
        """Changes whenever one of the run's `topics` does, or another run or attack is shown."""
        return (self.attack, self.view.stamp(*topics) if self.view else None)


def remembered(memory: Memory | None, **changes: Any) -> Memory:
    """A browser's memory with `changes`; a browser without a name gets one."""
    base = NOTHING | (memory or {})
    return base | {"owner": base["owner"] or new_owner()} | changes


def run_of(memory: Memory | None) -> str:
    """The run a browser looks at. Raises `RunNotFoundError` if it looks at none."""
    run_id = (memory or {}).get("run")
    if not run_id:
        raise RunNotFoundError(text.NO_RUN_OPEN, remedy=text.NO_RUN_REMEDY)
    return str(run_id)
