"""The interfaces of a judge and of a scorer of accuracy. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tvaccine_core.records import Example, Verdict
from tvaccine_core.worlds.world import World

Asked = tuple[Example, str]
"""An example and the answer that a model gave to its prompt."""


class Judge(Protocol):
    """Gives verdicts on answers. Every score has its name and revision: scores of two judges do not compare."""

    @property
    def name(self) -> str:
        """As people read it."""
        ...

    @property
    def revision(self) -> str:
        """Changes when verdicts may change."""
        ...

    @property
    def batch_size(self) -> int:
        """Most answers per call."""
        ...

    def judge(self, asked: Sequence[Asked]) -> list[Verdict]:
        """One verdict per answer, in order, for at most `batch_size` answers. A model is loaded at the first call."""
        ...


class AccuracyScorer(Protocol):
    """Says which answers of a task are right: fine-tune accuracy (FA) is their share."""

    @property
    def name(self) -> str:
        """As people read it."""
        ...

    @property
    def revision(self) -> str:
        """Changes when an answer may count differently."""
        ...

    def correct(self, asked: Sequence[Asked]) -> list[bool]:
        """For each answer, in order: True if it is the example's answer."""
        ...


@dataclass(frozen=True)
class JudgeInfo:
    """A judge that users can choose."""

    title: str
    note: str
    """How it judges, and where it is wrong, in one or two sentences."""
    make: Callable[[World], Judge]
    """Cheap: loads nothing. Raises `ConfigError` for a world that it cannot judge."""
