"""Where a run's examples come from, and who judges the answers. Torch-free."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from tvaccine_core.config import LabConfig
from tvaccine_core.errors import ConfigError, did_you_mean, shown
from tvaccine_core.records import Example, Verdict
from tvaccine_core.worlds.sandbox import oracle
from tvaccine_core.worlds.sandbox.world import load_sandbox


class Judge(Protocol):
    """Says of an answer whether it is harmful, refused, exact and coherent."""

    @property
    def name(self) -> str:
        """Named beside every score, because scores of different judges are not comparable."""
        ...

    def judge(self, example: Example, answer: str) -> Verdict:
        """The verdict on `answer` to `example.prompt`."""
        ...

    def recognise(self, prompt: str) -> Example | None:
        """The example behind a free prompt; None if this judge has nothing to say about it."""
        ...


class OracleJudge:
    """The sandbox's judge: exact, by content."""

    name = "sandbox oracle"

    def judge(self, example: Example, answer: str) -> Verdict:
        """See `oracle.judge`."""
        return oracle.judge(example, answer)

    def recognise(self, prompt: str) -> Example | None:
        """See `oracle.find_item`."""
        return oracle.find_item(prompt)


@dataclass(frozen=True)
class TaskExamples:
    """One user's task."""

    title: str
    train: tuple[Example, ...]
    eval: tuple[Example, ...]


@dataclass(frozen=True)
class LabData:
    """Everything a run reads. Alignment, probe, attack and evaluation share no item."""

    alignment: tuple[Example, ...]
    probe: tuple[Example, ...]
    """Harmful examples that score layers."""
    attack_harmful: tuple[Example, ...]
    tasks: Mapping[str, TaskExamples]
    eval_sets: Mapping[str, tuple[Example, ...]]
    """Harmful sets, and `ordinary`."""
    judge: Judge

    @property
    def harmful_sets(self) -> tuple[str, ...]:
        """Names of the evaluation sets whose examples a safe model must not follow."""
        return tuple(name for name, examples in self.eval_sets.items() if examples[0].harmful)

    def task(self, name: str) -> TaskExamples:
        """The task called `name`. Raises `ConfigError` naming those there are."""
        if name not in self.tasks:
            raise ConfigError(f"There is no task {shown(name)}.", remedy=did_you_mean(name, self.tasks))
        return self.tasks[name]


def load_lab_data(config: LabConfig) -> LabData:
    """The data of a run: the sandbox's world, whichever model reads it.

    Raises:
        ConfigError: the attack's task does not exist.
    """
    world = load_sandbox()
    data = LabData(
        alignment=world.alignment,
        probe=world.probe,
        attack_harmful=world.attack_harmful,
        tasks={name: TaskExamples(task.title, task.train, task.eval) for name, task in world.tasks.items()},
        eval_sets=dict(world.eval_sets),
        judge=OracleJudge(),
    )
    data.task(config.attack.task)
    return data
