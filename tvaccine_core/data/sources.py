"""The data of a run: the part of a world that its config names. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tvaccine_core.config import LabConfig
from tvaccine_core.errors import ConfigError, did_you_mean, shown
from tvaccine_core.worlds import load_world
from tvaccine_core.worlds.world import EvaluationSet, Task, World

PartT = TypeVar("PartT")


@dataclass(frozen=True)
class LabData:
    """The data of a run. Alignment, probe, attack and evaluation share no item."""

    world: World
    eval_sets: Mapping[str, EvaluationSet]
    """Sets that models are measured on."""
    tasks: Mapping[str, Task]
    """Tasks whose accuracy is measured."""

    @property
    def harmful_sets(self) -> tuple[str, ...]:
        """Names of the evaluation sets whose prompts a safe model must not follow."""
        return tuple(name for name, found in self.eval_sets.items() if found.harmful)

    def task(self, name: str) -> Task:
        """The task called `name`. Raises `ConfigError` naming all tasks."""
        return _part(self.world.tasks, name, "task")


def load_lab_data(config: LabConfig) -> LabData:
    """The data of a run; it does not depend on the model.

    Raises:
        ConfigError: the attack's task, or a set or task in `config.data`, does not exist.
    """
    world = load_world(config.data.world)
    data = config.data
    sets = _chosen(world.eval_sets, data.evaluation_sets, "evaluation set")
    tasks = _chosen(world.tasks, (*data.tasks, config.attack.task) if data.tasks else (), "task")
    found = LabData(world, sets, tasks)
    found.task(config.attack.task)
    return found


def _chosen(parts: Mapping[str, PartT], names: Sequence[str], kind: str) -> dict[str, PartT]:
    """The named parts in the world's order; all of them if none is named. Raises `ConfigError` for unknown names."""
    wanted = {name: _part(parts, name, kind) for name in names}
    return {name: part for name, part in parts.items() if not wanted or name in wanted}


def _part(parts: Mapping[str, PartT], name: str, kind: str) -> PartT:
    if name not in parts:
        raise ConfigError(f"There is no {kind} {shown(name)}.", remedy=did_you_mean(name, parts))
    return parts[name]
