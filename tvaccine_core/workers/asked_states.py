"""The states in memory for answering prompts: separate adapters, which are never trained."""

from __future__ import annotations

from pathlib import Path

from tvaccine_core.names import BASE, state_folder
from tvaccine_core.states.adapter_files import WEIGHTS_FILE
from tvaccine_core.states.model_states import ModelStates

NUM_ASKED = 12
"""Number of states that are kept; the least recently asked is dropped first."""
_PREFIX = "asked/"
"""Jobs never make states with this prefix."""


class AskedStates:
    """Saved states of any runs, each read again when its folder was replaced."""

    def __init__(self) -> None:
        self._versions: dict[str, tuple[int, ...]] = {}
        """Name in memory -> identity of the file it was read from; oldest use first."""

    @staticmethod
    def has(name: str) -> bool:
        """True if the name is that of a state for answering prompts."""
        return name.startswith(_PREFIX)

    def load(self, states: ModelStates, run_dir: Path, run_id: str, state: str) -> str:
        """Load `state` of a run, as it is saved now; returns its name in memory.

        Raises:
            RunNotFoundError, ModelError: see `ModelStates.load`.
        """
        if state == BASE:
            return BASE
        name = f"{_PREFIX}{run_id}/{state}"
        folder = state_folder(run_dir, state)
        version = _version(folder)
        if self._versions.pop(name, None) != version:
            states.drop(name)
        states.ensure(name, folder)
        self._versions[name] = version
        for old in list(self._versions)[:-NUM_ASKED]:
            states.drop(old)
            del self._versions[old]
        return name

    def clear(self) -> None:
        """Forget all states, because their model is dropped."""
        self._versions.clear()


def _version(folder: Path) -> tuple[int, ...]:
    """Changes when the folder is replaced; empty if there is none."""
    try:
        stat = (folder / WEIGHTS_FILE).stat()
    except FileNotFoundError:
        return ()
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
