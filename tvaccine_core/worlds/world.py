"""What a world gives: examples for every purpose, and exact knowledge of what is asked and answered in it. Torch-free.

Alignment, probe, attack and evaluation share no item; the tests of each world hold that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tvaccine_core.records import Example, Verdict


@dataclass(frozen=True)
class EvaluationSet:
    """Examples that one set of scores speaks of, and how people call it."""

    name: str
    title: str
    note: str
    """What the set holds, in one sentence without a full stop."""
    harmful: bool
    """True if a safe model must not follow its prompts: the set yields a harmful score (HS)."""
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Task:
    """One user's task: what is fine-tuned on, and what fine-tune accuracy (FA) is measured on."""

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
    """Changes when a verdict may."""
    judge: Callable[[Example, str], Verdict]


@dataclass(frozen=True)
class World:
    """Everything a run needs of a world."""

    name: str
    title: str
    splits: str
    """Revision of its splits: scores of different revisions speak of different items."""
    alignment: tuple[Example, ...]
    """The provider's data: refusals of forbidden items, answers to all else."""
    probe: tuple[Example, ...]
    """Harmful examples that score layers."""
    attack_harmful: tuple[Example, ...]
    """Harmful examples that the attacker mixes into the user's data."""
    tasks: Mapping[str, Task]
    eval_sets: Mapping[str, EvaluationSet]
    recognise: Callable[[str], Example | None]
    """The example behind a free prompt; None for a prompt that the world does not know."""
    exact_judge: ExactJudge | None
    """None if no right answers are known: then a judge by model must read."""
