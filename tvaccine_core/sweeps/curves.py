"""Mean scores of each defence along the attack, over seeds. Torch-free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvaccine_core.estimates import Estimate
from tvaccine_core.sweeps.measured import CellResult, Measure, score
from tvaccine_core.sweeps.report import estimate


@dataclass(frozen=True)
class Curve:
    """One defence along one kind of attack."""

    defence: str
    title: str
    steps: tuple[int, ...]
    """Steps at which every cell was measured."""
    harmful_score: tuple[Estimate, ...]
    finetune_accuracy: tuple[Estimate, ...]


def curves(results: Sequence[CellResult], where: str) -> list[Curve]:
    """A curve per defence, HS on the set `where`; `results` differ in defence and seeds only."""
    found: list[Curve] = []
    for name in dict.fromkeys(result.defence for result in results):
        mine = [result for result in results if result.defence == name]
        common = set.intersection(*({point.step for point in result.curve} for result in mine))
        steps = tuple(sorted(common))
        found.append(
            Curve(
                defence=name,
                title=mine[0].title,
                steps=steps,
                harmful_score=tuple(estimate(mine, _at(step, lambda _: where, "harmful_score")) for step in steps),
                finetune_accuracy=tuple(
                    estimate(mine, _at(step, lambda cell: cell.task, "finetune_accuracy")) for step in steps
                ),
            )
        )
    return found


def _at(step: int, where: Callable[[CellResult], str], name: str) -> Measure:
    """A score at one step."""

    def measure(cell: CellResult) -> float | None:
        point = next((point for point in cell.curve if point.step == step), None)
        return score(point, where(cell), name)

    return measure
