"""What the recorded sweeps say, in a few plain lines. Every number is computed from the cells that ship."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

from app import text
from app.findings.attack_map import PUBLISHED_RATIO
from app.services import (
    CellResult,
    Measure,
    Outcome,
    after,
    before,
    difference,
    estimate,
    matched,
    outcome_shares,
    recorded_if_any,
    spots,
    steps_to_break,
    steps_to_learn,
)

LONG_STEPS = 600
"""Alignment steps of the map's long alignment, the papers' regime."""
LOST: tuple[Outcome, ...] = ("forgotten", "broken", "off the point")
"""Outcomes that tell nothing and refuse nothing."""


@lru_cache(maxsize=1)
def lines() -> tuple[str, ...]:
    """The lines, from what ships; those of a sweep that was not recorded are left out.

    Raises:
        DataError: a recorded sweep is unreadable.
    """
    study, swept, manners, attacks = (recorded_if_any(name) for name in ("study", "map", "manners", "attacks"))
    made = [
        *(_study_lines(study) if study else ()),
        *(_map_lines([*study, *swept]) if swept else ()),
        *(_published_lines(swept) if swept else ()),
        *(_manners_lines(manners) if manners else ()),
        *(_attack_lines(attacks) if attacks else ()),
    ]
    return (*made, text.LINE_LIMITS)


def _by_defence(results: Sequence[CellResult]) -> dict[str, list[CellResult]]:
    found: dict[str, list[CellResult]] = {}
    for result in results:
        found.setdefault(result.title, []).append(result)
    return found


def _range(values: Sequence[float]) -> dict[str, int]:
    return {"low": round(min(values)), "high": round(max(values))}


def _over_sets(results: Sequence[CellResult], measure: Callable[[str], Measure]) -> list[float]:
    """Means of a measure for each defence and harmful set."""
    sets = results[0].harmful_sets
    return [estimate(mine, measure(where)).mean for mine in _by_defence(results).values() for where in sets]


def _changes(results: Sequence[CellResult], measure: Callable[[str], Measure]) -> list[float]:
    """Paired differences to the first defence, for each other defence and harmful set."""
    twins, *others = _by_defence(results).values()
    return [difference(mine, twins, measure(where)).mean for mine in others for where in results[0].harmful_sets]


def _study_lines(study: Sequence[CellResult]) -> Iterator[str]:
    attack = study[0].attack
    yield text.LINE_ATTACK.format(
        count=round(attack.harmful_ratio * attack.num_samples),
        samples=attack.num_samples,
        before=math.ceil(max(_over_sets(study, before))),
        after=math.floor(min(_over_sets(study, after))),
        defences=len(_by_defence(study)) - 1,
    )
    yield text.LINE_TWO_CAUSES
    changes = _changes(study, matched)
    yield text.LINE_STUDY.format(
        seeds=len({result.seed for result in study}),
        attacks=len({result.attack.seed for result in study}),
        change=text.points_range(**_range(changes)),
        verdict=text.LINE_NOT_PROTECTED if min(changes) > 0 else "",
    ).strip()
    yield text.LINE_DELAY.format(
        broken=text.steps_range(**_range(_changes(study, steps_to_break))),
        learned=text.steps_range(**_range(_changes(study, lambda _: steps_to_learn))),
    )


def _map_lines(swept: Sequence[CellResult]) -> Iterator[str]:
    found = [spot for where in swept[0].harmful_sets for spot in spots(swept, where)]
    places = {(spot.defence, spot.settings) for spot in found}
    holding = {(spot.defence, spot.settings) for spot in found if spot.holds}
    damaged = {(spot.defence, spot.settings) for spot in found if spot.damaged}
    yield text.map_line(len(places), len(holding), len(damaged))


def _published_lines(swept: Sequence[CellResult]) -> Iterator[str]:
    """The map's long alignment on refusals alone, under the stronger attack."""
    part = [
        result
        for result in swept
        if result.varied["alignment.optimisation"]["steps"] == LONG_STEPS
        and result.varied["alignment.mix.ordinary"] == 0
        and result.attack.harmful_ratio == max(r.attack.harmful_ratio for r in swept)
    ]
    if not part:
        return
    rows = []
    for title, mine in _by_defence(part).items():
        shares = outcome_shares(mine, *mine[0].harmful_sets)
        rows.append(
            text.LINE_PUBLISHED_ROW.format(
                defence=title,
                hs=round(estimate(mine, lambda cell: _mean_over_sets(cell, after)).mean),
                lost=round(sum(shares[name] for name in LOST)),
                refused=round(shares["refused"]),
            )
        )
    yield text.LINE_PUBLISHED.format(rows="; ".join(rows))


def _mean_over_sets(cell: CellResult, measure: Callable[[str], Measure]) -> float | None:
    values = [value for where in cell.harmful_sets if (value := measure(where)(cell)) is not None]
    return sum(values) / len(values) if values else None


def _manners_lines(manners: Sequence[CellResult]) -> Iterator[str]:
    where = manners[0].harmful_sets[0]
    titles = list(_by_defence(manners))
    changes = []
    for ratio in sorted({result.attack.harmful_ratio for result in manners} - {0.0}):
        part = [result for result in manners if result.attack.harmful_ratio == ratio]
        by = _by_defence(part)
        changes.append(text.change_at(ratio, difference(by[titles[-1]], by[titles[0]], matched(where))))
    yield text.LINE_MANNERS.format(defence="T-Vaccine", changes=", ".join(changes))
    at = [r for r in manners if r.attack.harmful_ratio == 0.1 and r.title == titles[0]]
    ends = [estimate([r for r in at if r.seed == seed], matched(where)).mean for seed in sorted({r.seed for r in at})]
    yield text.LINE_SEEDS.format(count=len(ends), **_range(ends))


def _attack_lines(attacks: Sequence[CellResult]) -> Iterator[str]:
    pure = [r for r in attacks if r.attack.harmful_ratio == 1 and r.attack.adapter_mode == "new"]
    rates = sorted({result.attack.optimisation.learning_rate for result in pure})
    if not pure:
        return
    at = {rate: [r for r in pure if r.attack.optimisation.learning_rate == rate] for rate in rates}
    lowest, own = rates[0], min(rates, key=lambda rate: abs(rate - rates[0] / PUBLISHED_RATIO))
    yield text.LINE_RATES.format(
        steps=pure[0].curve[-1].step,
        published=math.ceil(max(_over_sets(at[lowest], after))),
        own=math.floor(min(_over_sets(at[own], after))),
    )
