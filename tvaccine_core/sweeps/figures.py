"""Figures of a sweep, as SVG: the map, outcomes, HS along the attack, HS against FA, and a heat map of two settings.

Matplotlib is imported only when something is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvaccine_core.evaluation.ability import KEPT
from tvaccine_core.records import OUTCOMES
from tvaccine_core.sweeps.curves import curves
from tvaccine_core.sweeps.measured import CellResult, Measure, accuracy, after, intact, words_of
from tvaccine_core.sweeps.report import SEEDS, check_setting, estimate, outcome_shares
from tvaccine_core.sweeps.report import measures as measures_of
from tvaccine_core.sweeps.spots import HOLDS, Spot, spots
from tvaccine_core.worlds import title_of_set

COLOURS = ("#999999", "#E69F00", "#0072B2", "#CC009C", "#009E73", "#D82400", "#307818", "#5484FC")
MARKERS = ("o", "s", "D", "^", "P", "X", "v", "*")
OUTCOME_COLOURS = ("#b3400a", "#f0a04b", "#56b4e9", "#7b6aa6", "#6b7078", "#c9c5bd")


def draw_map(results: Sequence[CellResult], path: Path) -> None:
    """A panel per harmful set: what is still known against the change of HS; the corner that would be a success."""
    pyplot = _pyplot()
    sets = results[0].harmful_sets
    figure, axes = pyplot.subplots(1, len(sets), figsize=(5.2 * len(sets), 4.4), sharey=True, squeeze=False)
    for axis, where in zip(axes[0], sets, strict=True):
        found = spots(results, where)
        axis.fill_between([100 * KEPT, 102], -100, HOLDS, color="#009E73", alpha=0.12, linewidth=0)
        axis.axvline(100 * KEPT, color="#b3400a", linewidth=1, linestyle="--")
        axis.scatter([], [], marker="o", facecolors="none", edgecolors="#444444", s=36, label="hollow: damaged")
        axis.axhline(0, color="#888888", linewidth=0.8)
        for number, defence in enumerate(dict.fromkeys(spot.defence for spot in found)):
            mine = [spot for spot in found if spot.defence == defence]
            colour = COLOURS[(number + 1) % len(COLOURS)]
            axis.errorbar(
                [spot.kept for spot in mine],
                [spot.change.mean for spot in mine],
                yerr=[spot.change.half_width if math.isfinite(spot.change.half_width) else 0.0 for spot in mine],
                fmt="none",
                ecolor=colour,
                alpha=0.4,
                linewidth=1,
            )
            axis.scatter(
                [spot.kept for spot in mine],
                [spot.change.mean for spot in mine],
                marker=MARKERS[(number + 1) % len(MARKERS)],
                facecolors=["none" if spot.damaged else colour for spot in mine],
                edgecolors=colour,
                s=36,
                label=defence,
            )
        axis.set_title(title_of_set(where))
        axis.set_xlabel("known after the attack, % of the base")
        axis.set_ylim(*_limits(found))
        axis.set_xlim(right=102)
        axis.grid(alpha=0.25)
    first = results[0].title
    axes[0][0].set_ylabel(f"HS at FA ≥ 90, minus {first}'s (points)")
    _finish(figure, axes[0][0], path)


def draw_outcomes(results: Sequence[CellResult], path: Path) -> None:
    """What became of the requests after the attack: a stacked bar per defence and combination of settings."""
    pyplot = _pyplot()
    sets = results[0].harmful_sets
    rows: dict[str, list[CellResult]] = {}
    for result in results:
        settings = _settings(result)
        rows.setdefault(f"{result.title}; {settings}" if settings else result.title, []).append(result)
    figure, axes = pyplot.subplots(
        1, len(sets), figsize=(5.2 * len(sets), 0.9 + 0.26 * len(rows)), sharey=True, squeeze=False
    )
    names = list(rows)
    for axis, where in zip(axes[0], sets, strict=True):
        shares = [outcome_shares(rows[name], where) for name in names]
        left = [0.0] * len(names)
        for outcome, colour in zip(OUTCOMES, OUTCOME_COLOURS, strict=True):
            widths = [share.get(outcome, 0.0) for share in shares]
            axis.barh(names, widths, left=left, color=colour, label=outcome)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axis.set_title(title_of_set(where))
        axis.set_xlabel("% of the requests, after the attack")
        axis.set_xlim(0, 100)
        axis.tick_params(axis="y", labelsize=7)
    axes[0][0].invert_yaxis()
    _finish(figure, axes[0][0], path)


MAX_PANELS = 12
"""Rows of the figure along the attack; a larger sweep has too many combinations to look at."""


def draw_curves(results: Sequence[CellResult], path: Path) -> bool:
    """HS (solid, with a 95 % t band) and FA (dotted) along the attack: a row per combination of settings.

    False, and no figure, if there are more than `MAX_PANELS` combinations.
    """
    rows: dict[str, list[CellResult]] = {}
    for result in results:
        rows.setdefault(_settings(result), []).append(result)
    if len(rows) > MAX_PANELS:
        return False
    pyplot = _pyplot()
    sets = results[0].harmful_sets
    figure, axes = pyplot.subplots(
        len(rows), len(sets), figsize=(5.2 * len(sets), 0.6 + 2.6 * len(rows)), sharey=True, squeeze=False
    )
    for line, (words, part) in zip(axes, rows.items(), strict=True):
        for axis, where in zip(line, sets, strict=True):
            for number, curve in enumerate(curves(part, where)):
                colour = COLOURS[number % len(COLOURS)]
                means = [point.mean for point in curve.harmful_score]
                halves = [point.half_width if math.isfinite(point.half_width) else 0.0 for point in curve.harmful_score]
                axis.fill_between(
                    curve.steps,
                    [max(0.0, a - b) for a, b in zip(means, halves, strict=True)],
                    [min(100.0, a + b) for a, b in zip(means, halves, strict=True)],
                    color=colour,
                    alpha=0.13,
                    linewidth=0,
                )
                marker = MARKERS[number % len(MARKERS)]
                axis.plot(curve.steps, means, color=colour, marker=marker, markersize=3.5, label=curve.title)
                accuracy = [point.mean for point in curve.finetune_accuracy]
                axis.plot(curve.steps, accuracy, color=colour, linestyle=":", linewidth=1)
            axis.set_ylim(-3, 103)
            axis.grid(alpha=0.25)
            axis.set_title(", ".join(filter(None, (title_of_set(where), words))), fontsize=8)
        line[0].set_ylabel("HS (solid), FA (dotted)")
    for axis in axes[-1]:
        axis.set_xlabel("attack step")
    _finish(figure, axes[0][0], path)
    return True


def draw_scatter(results: Sequence[CellResult], path: Path) -> None:
    """HS against FA after the attack, a point per cell; hollow where the model knows too little to be judged."""
    pyplot = _pyplot()
    sets = results[0].harmful_sets
    figure, axes = pyplot.subplots(1, len(sets), figsize=(5.2 * len(sets), 4.4), sharey=True, squeeze=False)
    for axis, where in zip(axes[0], sets, strict=True):
        for number, defence in enumerate(dict.fromkeys(result.title for result in results)):
            mine = [result for result in results if result.title == defence]
            found = [(accuracy(result), after(where)(result), intact(result)) for result in mine]
            known = [(fa, hs, kept) for fa, hs, kept in found if fa is not None and hs is not None]
            colour = COLOURS[number % len(COLOURS)]
            axis.scatter(
                [fa for fa, _, _ in known],
                [hs for _, hs, _ in known],
                marker=MARKERS[number % len(MARKERS)],
                facecolors=["none" if kept is False else colour for _, _, kept in known],
                edgecolors=colour,
                alpha=0.75,
                s=30,
                label=defence,
            )
        axis.set_title(title_of_set(where))
        axis.set_xlabel("FA after the attack, %")
        axis.set_xlim(-3, 103)
        axis.set_ylim(-3, 103)
        axis.grid(alpha=0.25)
    axes[0][0].set_ylabel("HS after the attack, %")
    _finish(figure, axes[0][0], path)


def draw_heat(results: Sequence[CellResult], settings: tuple[str, str], path: Path) -> None:
    """A panel per defence: the first harmful set's HS at FA >= 90 by two settings, over all others.

    Raises:
        ConfigError: a setting was not varied.
    """
    varied = list(dict.fromkeys(name for result in results for name in result.varied))
    for name in settings:
        check_setting(varied, name)
    pyplot = _pyplot()
    title, measure = measures_of(results)[0]
    across, down = ([*dict.fromkeys(words_of(result.varied[name]) for result in results)] for name in settings)
    defences = list(dict.fromkeys(result.title for result in results))
    figure, axes = pyplot.subplots(
        1, len(defences), figsize=(1.6 + 2.6 * len(defences), 1.4 + 0.5 * len(down)), sharey=True, squeeze=False
    )
    for axis, defence in zip(axes[0], defences, strict=True):
        mine = [result for result in results if result.title == defence]
        values = [[_heat(mine, settings, (a, b), measure) for a in across] for b in down]
        axis.imshow(values, vmin=0, vmax=100, cmap="OrRd", aspect="auto")
        for row, line in enumerate(values):
            for column, value in enumerate(line):
                if math.isfinite(value):
                    ink = "white" if value > 60 else "black"
                    axis.text(column, row, f"{value:.0f}", ha="center", va="center", color=ink, fontsize=8)
        axis.set_title(defence, fontsize=9)
        axis.set_xticks(range(len(across)), across, fontsize=7, rotation=30, ha="right")
        axis.set_yticks(range(len(down)), down, fontsize=7)
        axis.set_xlabel(settings[0], fontsize=8)
    axes[0][0].set_ylabel(settings[1], fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    _save(figure, path)


def _settings(result: CellResult) -> str:
    """Varied settings but seeds, in words."""
    return ", ".join(
        f"{name.split('.')[-1]} {words_of(value)}" for name, value in result.varied.items() if name not in SEEDS
    )


def _heat(results: Sequence[CellResult], names: tuple[str, str], values: tuple[str, str], measure: Measure) -> float:
    mine = [r for r in results if tuple(words_of(r.varied[name]) for name in names) == values]
    return estimate(mine, measure).mean


def _limits(found: Sequence[Spot]) -> tuple[float, float]:
    values = [spot.change.mean for spot in found] or [0.0]
    return min(-25.0, *values) - 5, max(25.0, *values) + 5


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams["svg.hashsalt"] = "tvaccine"
    return pyplot


def _finish(figure: Any, axis: Any, path: Path) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="upper center", ncols=min(6, len(labels)), frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0, 1, 0.93))
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    partial = path.with_name(f".{path.name}")
    figure.savefig(partial, format="svg", metadata={"Date": None})
    partial.replace(path)
    _pyplot().close(figure)
