"""The lab's sweeps: read, checked, queued, and what their cells measured so far. Torch-free."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tvaccine_core.config import PRESETS, Config, Defence, LabConfig, ModelConfig, parse_config
from tvaccine_core.errors import ConfigError
from tvaccine_core.methods import defence_of
from tvaccine_core.results import RunScores, collect
from tvaccine_core.safe_yaml import write_yaml
from tvaccine_core.store import Store, SweepRow
from tvaccine_core.sweeps.drive import check_cells, places, runs_of, withdraw
from tvaccine_core.sweeps.measured import CellResult, results_of
from tvaccine_core.sweeps.plan import Cell, Sweep, by_run, cells_of

SWEEP_FILES = Path(__file__).parents[2] / "assets" / "sweeps"
MAX_CELLS = 400
"""Cells of a sweep that the page starts; the command line takes more."""
MAX_WAITING = 8
"""Sweeps that run or wait at the same time."""
KEPT_RUNS = 256
"""Runs whose scores stay in memory."""


@dataclass(frozen=True)
class SweepPlan:
    """What a sweep would make."""

    name: str
    cells: int
    runs: int
    made: int
    """Cells that some run has already."""


@dataclass(frozen=True)
class SweepView:
    """A sweep and what it has measured so far."""

    row: SweepRow
    cells: Sequence[Cell]
    results: Mapping[str, CellResult]
    """By the cell's key; only finished cells."""


class LabSweeps:
    """The sweeps of one store. Threads may share it.

    Args:
        permit: raises `ConfigError` if visitors may not load a model.
    """

    def __init__(self, store: Store, permit: Callable[[ModelConfig], None]) -> None:
        self._store = store
        self._permit = permit
        self._scores: dict[str, tuple[int, RunScores]] = {}

    def rows(self) -> list[SweepRow]:
        """Every sweep, newest first."""
        return self._store.sweeps.all()

    def plan(self, text: str) -> SweepPlan:
        """What the sweep written in `text` would make.

        Raises:
            ConfigError, DataError, ModelError: it is no sweep, some cell cannot work, it is too large for the page, or
                visitors may not load its model.
        """
        sweep, cells = self._read(text)
        ready = places(self._store)
        keys = {cell.key for cell in cells}
        return SweepPlan(sweep.name, len(keys), len(by_run(cells)), len(keys & set(ready)))

    def start(self, text: str) -> str:
        """Let the sweep be made; an equal one goes on instead. Returns its id. Raises as `plan` does."""
        sweep, cells = self._read(text)
        if sum(row.state == "running" for row in self.rows()) >= MAX_WAITING:
            raise ConfigError(
                f"{MAX_WAITING} sweeps are running or waiting already.", remedy="Stop one, or wait until one is done."
            )
        return self._store.sweeps.add(sweep.name, sweep.model_dump(mode="json"), len({cell.key for cell in cells}))

    def stop(self, sweep_id: str) -> None:
        """Let a sweep stop after its current steps. Raises `StoreError` if there is none of that id."""
        row = self._store.sweeps.get(sweep_id)
        if row.state == "running":
            self._store.sweeps.set_state(sweep_id, "stopped")
            sweep = parse_config(Sweep, row.spec)
            withdraw(self._store, sweep, runs_of(self._store, sweep))

    def go_on(self, sweep_id: str) -> None:
        """Let a stopped sweep go on, or make again what failed. Raises as `plan` does."""
        permit_all(_cells(self._store.sweeps.get(sweep_id).spec_json), self._permit)
        self._store.sweeps.set_state(sweep_id, "running")

    def forget(self, sweep_id: str) -> None:
        """Take a sweep off the list; its runs stay. Raises `StoreError` if there is none of that id."""
        self._store.sweeps.delete(sweep_id)

    def view(self, sweep_id: str) -> SweepView:
        """A sweep and its results so far.

        Raises:
            StoreError: there is none of that id.
            ConfigError: it was made by another version.
        """
        row = self._store.sweeps.get(sweep_id)
        cells = _cells(row.spec_json)
        found = results_of(self._store, cells, scores_of=self._scores_of)
        return SweepView(row, cells, {result.key: result for result in found})

    def _scores_of(self, store: Store, run_id: str) -> RunScores:
        """What a run measured, collected again only if the run has changed."""
        revision = store.revisions(run_id).run
        known = self._scores.get(run_id)
        if known is None or known[0] != revision:
            if len(self._scores) >= KEPT_RUNS:
                self._scores.clear()
            known = self._scores[run_id] = (revision, collect(store, run_id))
        return known[1]

    def _read(self, text: str) -> tuple[Sweep, list[Cell]]:
        sweep = Sweep.read(text)
        cells = cells_of(sweep, MAX_CELLS)
        permit_all(cells, self._permit)
        check_cells(cells)
        return sweep, cells


def permit_all(cells: Sequence[Cell], permit: Callable[[ModelConfig], None]) -> None:
    """Ask `permit` about every model of a sweep."""
    for model in {cell.config.model.model_dump_json(): cell.config.model for cell in cells}.values():
        permit(model)


@lru_cache(maxsize=16)
def _cells(spec_json: str) -> list[Cell]:
    return cells_of(parse_config(Sweep, json.loads(spec_json)))


def sweep_files() -> dict[str, str]:
    """The sweeps that ship with the lab: name -> text."""
    return {path.stem: path.read_text(encoding="utf-8") for path in sorted(SWEEP_FILES.glob("*.yaml"))}


def sweep_text(config: LabConfig, name: str, vary: Mapping[str, Sequence[Any]]) -> str:
    """A sweep's file that varies settings of `config`, written as the nearest preset and what differs from it."""
    data = dict(_leaves(config.model_dump(mode="json", exclude={"defences"})))
    differing: dict[str, dict[str, Any]] = {}
    for preset, item in PRESETS.items():
        other = dict(_leaves(item.config.model_dump(mode="json", exclude={"defences"})))
        differing[preset] = {path: value for path, value in data.items() if other[path] != value}
    preset = min(differing, key=lambda name: len(differing[name]))
    spec: dict[str, Any] = {"name": name, "preset": preset}
    if changed := {path: value for path, value in differing[preset].items() if path not in vary}:
        spec["set"] = changed
    spec["defences"] = [_spelled(PRESETS[preset].config, defence) for defence in config.defences]
    spec["vary"] = {path: list(values) for path, values in vary.items()}
    return write_yaml(spec)


def _spelled(begin: LabConfig, defence: Defence) -> Any:
    """A defence in short if a sweep that begins with `begin` reads it so, else all its settings."""
    short = defence.short
    return short if short and defence_of(begin, short) == defence else defence.model_dump(mode="json")


def settings_paths(config: Config, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Title and dotted path of every setting but the defences'."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from settings_paths(value, f"{prefix}{name}.")
        elif name != "defences":
            yield field.title or name, f"{prefix}{name}"


def _leaves(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in data.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
