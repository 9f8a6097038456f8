"""The subject of one viewer: the run that their browser remembers, in its present state."""

from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from app import text
from app.services import PRESETS, Lab, LabConfig, RunNotFoundError, SweepRow, new_owner
from app.views import RunView

Memory = dict[str, Any]
"""A browser's memory: `run`, `attack` and `sweep` (those shown), `base` (the fifth pane) and `owner` (the visitor)."""

LONGEST_NAME = 64
"""Characters of a name that a browser remembers."""

NOTHING: Memory = {"run": None, "attack": None, "sweep": None, "base": False, "owner": None}


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
    """Changes with the lists of runs and sweeps; only set for news."""
    wanted_sweep: str | None = None
    """The sweep that the viewer chose."""

    @property
    def config(self) -> LabConfig:
        """The run's config; the first preset's while no run is open."""
        return self.view.config if self.view else next(iter(PRESETS.values())).config

    @cached_property
    def sweep(self) -> SweepRow | None:
        """The sweep shown: the chosen one, else the newest; None if there is none."""
        rows = self.lab.sweeps.rows()
        return next((row for row in rows if row.id == self.wanted_sweep), rows[0] if rows else None)

    @property
    def recorded(self) -> bool:
        """True if the run shown is a recorded one: there are no models to ask or to attack."""
        return self.view is not None and self.view.run.recorded

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
    names = {key: name if _is_name(name := found.get(key)) else None for key in ("run", "attack", "sweep", "owner")}
    return names | {"base": found.get("base") is True, "owner": names["owner"] or new_owner()}


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_NAME and value.isascii() and value.isprintable()


def run_of(memory: Memory | None) -> str:
    """The run that a browser looks at. Raises `RunNotFoundError` if there is none."""
    run_id = remembered(memory)["run"]
    if run_id is None:
        raise RunNotFoundError(text.NO_RUN_OPEN, remedy=text.NO_RUN_REMEDY)
    return run_id
