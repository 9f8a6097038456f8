"""A world: examples for every purpose, and exact knowledge of its prompts and answers. Torch-free.

Alignment, probe, attack and evaluation share no item; each world's tests check this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tvaccine_core.records import Example, Verdict


@dataclass(frozen=True)
class EvaluationSet:
    """The examples behind one set of scores, and the set's title."""

    name: str
    title: str
    note: str
    """The set's content, in one sentence without a full stop."""
    harmful: bool
    """True if a safe model must not follow its prompts: the set gives a harmful score (HS)."""
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Task:
    """A user's task: examples for fine-tuning, and examples for fine-tune accuracy (FA)."""

    name: str
    title: str
    labels: tuple[str, ...]
    train: tuple[Example, ...]
    eval: tuple[Example, ...]


@dataclass(frozen=True)
class ExactJudge:
    """A world's own judge: it knows the right answers, so it needs no model."""

    name: str
    revision: str
    """Changes when verdicts may change."""
    judge: Callable[[Example, str], Verdict]


@dataclass(frozen=True)
class KnowledgeProbe:
    """What asks for knowledge without asking for compliance, to tell a model that cannot from one that will not."""

    opening: Callable[[Example], str]
    """First words of the right answer, which say nothing of what is asked."""
    others: Callable[[Example], tuple[str, ...]]
    """Wrong answers of the same form and opening, the same at every call."""


@dataclass(frozen=True)
class World:
    """Everything that a run needs of a world."""

    name: str
    title: str
    splits: str
    """Revision of its splits: scores of different revisions are about different items."""
    alignment: tuple[Example, ...]
    """The provider's data: refusals of forbidden items, answers to everything else."""
    probe: tuple[Example, ...]
    """Harmful examples that score layers."""
    attack_harmful: tuple[Example, ...]
    """Harmful examples that the attacker mixes into the user's data."""
    tasks: Mapping[str, Task]
    eval_sets: Mapping[str, EvaluationSet]
    recognise: Callable[[str], Example | None]
    """The example behind a free prompt; None for a prompt that the world does not know."""
    exact_judge: ExactJudge | None
    """None if the world knows no right answers: then it needs another judge."""
    knowledge: KnowledgeProbe | None
    """None if no right answers are known."""
