"""What a sweep consists of: a file's settings, its cells, and the runs that hold them.

A *cell* is one defence under one attack, with one combination of the varied settings. Cells that differ only in defence
or attack share a run, and so its aligned models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator

from tvaccine_core.config import PRESETS, STAGES, AttackConfig, Config, Defence, LabConfig, parse_config
from tvaccine_core.config.assign import Assignment, assign
from tvaccine_core.errors import ConfigError, cut, did_you_mean, shown
from tvaccine_core.methods import defence_of
from tvaccine_core.safe_yaml import read_file, read_yaml

MAX_CELLS = 20_000
REMEDY = "A sweep has: name, preset (or config), set, defences, vary. See docs/SWEEPS.md."


class Sweep(Config):
    """A sweep's file."""

    name: str = Field(title="Name", min_length=1, max_length=60, description="Part of the name of its runs.")
    preset: str = Field(title="Preset", default="sandbox-intact", description="Where its settings begin.")
    config: dict[str, Any] | None = Field(
        title="Config", default=None, description="A whole config in place of a preset, as `runs export` writes it."
    )
    set: dict[str, Any] = Field(
        title="Set", default_factory=dict, description="Settings for all cells: dotted path -> value."
    )
    defences: tuple[str | dict[str, Any], ...] = Field(
        title="Defences", default=(), description="Defences compared, in short or as mappings. Default: the preset's."
    )
    vary: dict[str, tuple[Any, ...]] = Field(
        title="Vary", default_factory=dict, description="Dotted path -> values; every combination is made."
    )

    @field_validator("name")
    @classmethod
    def _one_blank(cls, name: str) -> str:
        return " ".join(name.split()) or name

    @field_validator("vary")
    @classmethod
    def _varies(cls, vary: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        vary = {".".join(part.strip() for part in path.split(".")): values for path, values in vary.items()}
        for path, values in vary.items():
            if not values:
                raise ValueError(f"{path} has no values")
            if path.split(".")[0] == "defences":
                raise ValueError("Defences are listed under `defences`, each with its settings")
        return vary

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a sweep's YAML file. Raises `ConfigError` if it cannot be read or is not a sweep."""
        return cls.read(read_file(path, remedy="Give the path of a sweep's YAML file."), cut(str(path), 200))

    @classmethod
    def read(cls, text: str, what: str = "The sweep") -> Self:
        """Read a sweep from YAML. Raises `ConfigError`; `what` begins its message."""
        data = read_yaml(text, what, remedy=REMEDY)
        if not isinstance(data, dict):
            raise ConfigError(f"{what} must be a mapping of settings.", remedy=REMEDY)
        return parse_config(cls, data)


@dataclass(frozen=True)
class Cell:
    """One defence under one attack."""

    varied: Mapping[str, Any]
    """Dotted path -> value, in the order of the file."""
    config: LabConfig
    """Of the run: all defences of the sweep, and this cell's attack."""
    defence: Defence

    @property
    def attack(self) -> AttackConfig:
        """The cell's attack."""
        return self.config.attack

    @property
    def key(self) -> str:
        """The cell's content: equal for cells that would measure the same, in any sweep and any run."""
        return cell_key(self.config, self.defence, self.attack)


def cells_of(sweep: Sweep, most: int = MAX_CELLS) -> list[Cell]:
    """Every cell, the last varied setting changing fastest, defences together.

    Args:
        most: cells allowed.

    Raises:
        ConfigError: no such preset, setting or defence, a value that is not allowed, or too many cells.
    """
    begin = _begin(sweep)
    total = max(1, len(begin.defences))
    for values in sweep.vary.values():
        total *= len(values)
    if total > most:
        remedy = "Vary fewer settings, or fewer values."
        if most < MAX_CELLS:
            remedy += " The command line takes more: python -m tvaccine_core sweep FILE.yaml"
        raise ConfigError(f"The sweep has {total:,} cells; {most:,} are allowed.", remedy=remedy)
    cells: list[Cell] = []
    for values in product(*sweep.vary.values()):
        varied = dict(zip(sweep.vary, values, strict=True))
        config = assign(begin, _assignments(varied))
        cells += [Cell(varied, config, defence) for defence in config.defences]
    return cells


def by_run(cells: Sequence[Cell]) -> list[list[Cell]]:
    """Cells that share a run, in order."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        found.setdefault(run_key(cell.config), []).append(cell)
    return list(found.values())


def run_key(config: LabConfig) -> str:
    """Names everything in `config` but its defences and its attack."""
    return _digest(_setting(config))


def cell_key(config: LabConfig, defence: Defence, attack: AttackConfig) -> str:
    """Names everything that decides what a cell measures; names of defences do not."""
    stages = {stage: defence.method(stage).model_dump(mode="json") for stage in STAGES}
    return _digest([_setting(config), stages, attack.model_dump(mode="json")])


def _setting(config: LabConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude={"defences", "attack"})


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _begin(sweep: Sweep) -> LabConfig:
    """The config before anything is varied."""
    if sweep.config is not None:
        config = parse_config(LabConfig, sweep.config)
    elif sweep.preset in PRESETS:
        config = PRESETS[sweep.preset].config
    else:
        raise ConfigError(f"There is no preset {shown(sweep.preset)}.", remedy=did_you_mean(sweep.preset, PRESETS))
    if sweep.defences:
        chosen = [
            defence_of(config, spec).model_dump(mode="json") if isinstance(spec, str) else spec
            for spec in sweep.defences
        ]
        config = parse_config(LabConfig, {**config.model_dump(mode="json"), "defences": chosen})
    return assign(config, _assignments(sweep.set))


def _assignments(settings: Mapping[str, Any]) -> Iterator[Assignment]:
    for path, value in settings.items():
        yield Assignment(path, value, f"{path}={json.dumps(value, default=str)}")
