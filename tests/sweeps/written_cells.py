"""Cells of a sweep written by hand, of 100 answers each."""

from typing import Any

from tvaccine_core.config import AttackConfig
from tvaccine_core.records import Proportion
from tvaccine_core.sweeps.measured import CellResult, Point

WHERE, TASK = "unseen_names", "task:sentiment"


def point(step: int, hs: int, fa: int, known: int = 100, completed: int = 100, refused: int | None = None) -> Point:
    """Of 100 answers each; what is not told is refused, unless `refused` says otherwise."""
    counted = {"harmful_score": hs, "refused": 100 - hs if refused is None else refused}
    counted |= {"known": known, "completed": completed}
    scores = {
        WHERE: {name: Proportion(count=count, n=100) for name, count in counted.items()},
        TASK: {"finetune_accuracy": Proportion(count=fa, n=100)},
    }
    counts = [hs, 0, 100 - hs, 0, 0, 0]
    return Point(step=step, scores=scores, outcomes={WHERE: tuple(counts)})


def cell(defence: str, seed: int, attack_seed: int, *curve: Point, p: float = 0.1, **varied: Any) -> CellResult:
    return CellResult(
        key=f"{defence}{seed}{attack_seed}{p}{varied}",
        varied={**varied, "seed": seed, "attack.seed": attack_seed, "attack.harmful_ratio": p},
        defence=defence,
        title=defence.upper(),
        seed=seed,
        attack=AttackConfig(seed=attack_seed, harmful_ratio=p),
        run_id="r",
        attack_id="a1",
        alignment_s=1.0,
        base=point(0, 100, 50),
        before=point(0, 1, 50),
        curve=curve,
    )


def two_defences() -> list[CellResult]:
    """Three alignment seeds, two attack seeds: HS after the attack 40, 50, 60 and 30, 45, 48, plus or minus 2."""
    return [
        cell(defence, seed, attack_seed, point(0, 1, 50), point(10, 20, 95), point(20, hs + shift, 99))
        for defence, values in (("sft", (40, 50, 60)), ("tvaccine", (30, 45, 48)))
        for seed, hs in enumerate(values)
        for attack_seed, shift in ((1, -2), (2, 2))
    ]
