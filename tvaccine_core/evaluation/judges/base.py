"""What a judge and a scorer of accuracy are asked, and how they are named. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tvaccine_core.records import Example, Verdict
from tvaccine_core.worlds.world import World

Asked = tuple[Example, str]
"""An example and the answer that a model gave to its prompt."""


class Judge(Protocol):
    """Gives verdicts on answers. Name and revision stand beside every score: scores of two judges do not compare."""

    @property
    def name(self) -> str:
        """As people read it."""
        ...

    @property
    def revision(self) -> str:
        """Changes when a verdict may."""
        ...

    @property
    def batch_size(self) -> int:
        """Answers that it takes at once."""
        ...

    def judge(self, asked: Sequence[Asked]) -> list[Verdict]:
        """One verdict for each answer, in order; at most `batch_size` at once. A model is loaded at the first call."""
        ...


class AccuracyScorer(Protocol):
    """Says which answers of a task are right: fine-tune accuracy (FA) is their share."""

    @property
    def name(self) -> str:
        """As people read it."""
        ...

    @property
    def revision(self) -> str:
        """Changes when an answer may count otherwise."""
        ...

    def correct(self, asked: Sequence[Asked]) -> list[bool]:
        """For each answer, in order: is it the example's answer?"""
        ...


@dataclass(frozen=True)
class JudgeInfo:
    """A judge one can choose."""

    title: str
    note: str
    """How it judges, and where it is wrong, in one or two sentences."""
    make: Callable[[World], Judge]
    """Cheap: loads nothing. Raises `ConfigError` for a world that it cannot judge."""
