"""Recorded sweeps over seeds: sentences, table, curves along the attack, and the map of alignment, data and attack."""

import math
from collections.abc import Sequence
from html import escape

import gradio as gr

from app import charts, markup, text
from app.compare.outcomes import bar, legend
from app.components import figure, markup_block, section
from app.looks import MARKERS, OTHER_COLOURS, Look, looks_by_name
from app.page import Page
from app.services import (
    HOLDS,
    KEPT,
    CellResult,
    DataError,
    Estimate,
    Spot,
    difference,
    matched,
    mean_curves,
    outcome_counts,
    recorded,
    spots,
    sweep_measures,
    sweep_table,
)


def build_map(page: Page) -> None:
    """Place the map; it is the same for all viewers, and nothing in it changes."""
    try:
        swept = recorded("map")
    except DataError as error:
        markup_block(markup.notice(text.STUDY_MISSING.format(problem=error, remedy=error.remedy)))
        return
    swept = [*recorded_study(), *swept]
    if not swept:
        return
    gr.HTML(section(text.MAP_TITLE), apply_default_css=False)
    markup_block(f'<p class="lab-note">{map_words(swept)}</p>', elem_id="map-words")
    with gr.Row(elem_classes="lab-pair"):
        for where in swept[0].harmful_sets:
            with gr.Column(min_width=0):
                figure(f"map-{where}", map_spec(swept, where))


def build_study(page: Page) -> None:
    """Place the study: sentences, table, outcomes and curves."""
    gr.HTML(section(text.RECORDED_TITLE, text.RECORDED_NOTE), apply_default_css=False, elem_id="recorded")
    try:
        study = recorded("study")
    except DataError as error:
        markup_block(markup.notice(text.STUDY_MISSING.format(problem=error, remedy=error.remedy)))
        return
    markup_block(study_view(study), elem_id="recorded-study")
    with gr.Row(elem_classes="lab-pair"):
        for where in study[0].harmful_sets:
            with gr.Column(min_width=0):
                figure(f"recorded-{where}", study_curves(study, where))


def recorded_study() -> list[CellResult]:
    """The study's cells, which are places of the map, too; none if they are missing."""
    try:
        return recorded("study")
    except DataError:
        return []


def study_view(results: Sequence[CellResult]) -> str:
    """A sentence per defence, and the table of all measures."""
    made = [sweep_table(results, title, measure) for title, measure in sweep_measures(results)]
    head = "".join(f'<th scope="col">{escape(table.title)}</th>' for table in made)
    rows = "".join(
        f'<tr><th scope="row">{escape(row.defence)}</th>'
        + "".join(f"<td>{table.rows[number].cells[0]}</td>" for table in made)
        + "</tr>"
        for number, row in enumerate(made[0].rows)
    )
    became = "".join(outcome_rows(results, where) for where in results[0].harmful_sets)
    facts = text.RECORDED_FACTS.format(
        seeds=len({result.seed for result in results}), attacks=len({result.attack.seed for result in results})
    )
    return (
        "".join(markup.notice(words) for words in findings(results))
        + f'<div class="lab-scroll"><table class="lab-table"><thead><tr><th scope="col">{text.RECORDED_DEFENCE}</th>'
        f'{head}</tr></thead><tbody>{rows}</tbody></table></div><p class="lab-note">{facts}</p>'
        + (f'{legend()}<div class="lab-outcomes">{became}</div>' if became else "")
    )


def outcome_rows(results: Sequence[CellResult], where: str) -> str:
    """What became of the requests of one set after the attack: a bar per defence, over all seeds; empty if not told."""
    rows: list[str] = []
    for title in dict.fromkeys(result.title for result in results):
        counts = outcome_counts([result for result in results if result.title == title], [where])
        if counts:
            rows.append(f'<div class="lab-outcome"><span>{escape(title)}</span>{bar(counts)}</div>')
    title = escape(text.SWEEP_OUTCOMES.format(where=text.set_title(where)))
    return f"<section><h3>{title}</h3>{''.join(rows)}</section>" if rows else ""


def findings(results: Sequence[CellResult]) -> list[str]:
    """A sentence per defence against the first, whatever its sign; `results` differ in defence and seeds only."""
    by_defence: dict[str, list[CellResult]] = {}
    for result in results:
        by_defence.setdefault(result.title, []).append(result)
    (first, twins), *others = by_defence.items()
    said: list[str] = []
    for title, mine in others:
        changes = [
            text.study_difference(where, difference(mine, twins, matched(where))) for where in results[0].harmful_sets
        ]
        said.append(text.RECORDED_FINDING.format(defence=title, first=first, differences=" and ".join(changes)))
    return said


def map_words(results: Sequence[CellResult]) -> str:
    """What the map is made of, and its answer."""
    found = [spot for where in results[0].harmful_sets for spot in spots(results, where)]
    return text.map_answer(
        places=len({(spot.defence, spot.settings) for spot in found}),
        holding=len({(spot.defence, spot.settings) for spot in found if spot.holds}),
        damaged=len({(spot.defence, spot.settings) for spot in found if spot.damaged}),
    )


def map_spec(results: Sequence[CellResult], where: str) -> charts.Spec:
    """What is still known against the change of HS, a point per place; hollow where the models are damaged."""
    found = spots(results, where)
    data: list[charts.Spec] = []
    key: list[charts.Spec] = []
    for number, defence in enumerate(dict.fromkeys(spot.defence for spot in found)):
        mine = [spot for spot in found if spot.defence == defence]
        colour, marker = OTHER_COLOURS[number % len(OTHER_COLOURS)], MARKERS[number % len(MARKERS)]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": defence,
                "x": charts.rounded([spot.kept for spot in mine]),
                "y": charts.rounded([spot.change.mean for spot in mine]),
                "text": [
                    "<br>".join(f"{name} {value}" for name, value in spot.settings) or text.MAP_STUDY for spot in mine
                ],
                "customdata": [interval(spot) for spot in mine],
                "marker": {
                    "symbol": [marker + ("-open" if spot.damaged else "") for spot in mine],
                    "size": 9,
                    "color": colour,
                    "line": {"width": 1.5, "color": colour},
                },
                "hovertemplate": "%{y:+.0f} points%{customdata}, knows %{x:.0f} %<br>%{text}",
            }
        )
        key.append({"text": defence, "colour": colour, "symbol": marker})
    if not data:
        return charts.empty(text.MAP_EMPTY, 320)
    key.append({"text": text.HOLLOW, "colour": "--lab-ink", "symbol": "circle", "hollow": True})
    low = min(-25.0, *(spot.change.mean for spot in found)) - 5
    high = max(25.0, *(spot.change.mean for spot in found)) + 5
    layout = {
        "xaxis": charts.axis(text.MAP_ACROSS),
        "yaxis": charts.axis(text.MAP_UP, range=[low, high]),
        "annotations": [charts.panel_title(text.set_title(where), 1.0)],
        "margin": {"l": 56, "r": 16, "t": 30, "b": 46},
        "shapes": [
            {
                "type": "rect",
                **{"x0": 100 * KEPT, "x1": 103, "y0": low, "y1": HOLDS, "layer": "below"},
                "fillcolor": "rgba(0,158,115,0.14)",
                "line": {"width": 0},
            }
        ],
        "hovermode": "closest",
    }
    return charts.figure(data, layout, text.MAP_LABEL.format(where=text.set_title(where)), 340, key=key)


def interval(spot: Spot) -> str:
    """The half width of the interval, if there is one."""
    half = spot.change.half_width
    return f" ± {half:.0f}" if math.isfinite(half) else ""


def study_curves(results: Sequence[CellResult], where: str) -> charts.Spec:
    """Mean HS of each defence along the attack, with its 95 % t interval as a band, and mean FA."""
    data: list[charts.Spec] = []
    key: list[charts.Spec] = []
    found = mean_curves(results, where)
    looks = looks_by_name([(curve.defence, curve.title) for curve in found])
    steps = max((curve.steps[-1] for curve in found if curve.steps), default=1)
    for curve in found:
        look = looks[curve.defence]
        data += _lines(curve.steps, curve.harmful_score, curve.finetune_accuracy, look, where)
        key.append({"text": look.title, "colour": look.colour, "symbol": look.marker})
    key += [
        {"text": text.measure_of(where), "colour": "--lab-ink", "dash": "solid"},
        {"text": text.measure_of(results[0].task), "colour": "--lab-ink", "dash": "dot"},
    ]
    layout = {
        "xaxis": charts.axis(text.AXIS_ATTACK_STEP, range=[-0.02 * steps, 1.02 * steps]),
        "yaxis": charts.axis(text.AXIS_PERCENT, range=[-3, 103], dtick=25),
        "hovermode": "x unified",
    }
    return charts.figure(data, layout, text.STUDY_LABEL.format(where=text.set_title(where)), 320, key=key)


def _lines(
    steps: Sequence[int], scores: Sequence[Estimate], accuracy: Sequence[Estimate], look: Look, where: str
) -> list[charts.Spec]:
    """One defence: a band, HS as a solid line, FA as a dotted one."""
    across = list(steps)
    band = {"type": "scatter", "mode": "lines", "x": across, "line": {"width": 0}, "hoverinfo": "skip"}
    line = {"type": "scatter", "mode": "lines+markers", "x": across}
    return [
        band | {"y": [ends(point)[0] for point in scores]},
        band | {"y": [ends(point)[1] for point in scores], "fill": "tonexty", "fillcolor": f"{look.colour}26"},
        line
        | {
            "y": charts.rounded([point.mean for point in scores]),
            "name": f"{look.title}, {text.measure_of(where)}",
            "customdata": [ends(point) for point in scores],
            "line": {"color": look.colour, "width": 2.4, "dash": "solid"},
            "marker": {"symbol": look.marker, "size": 7, "color": look.colour},
            "hovertemplate": "%{y:.0f} (%{customdata[0]:.0f}–%{customdata[1]:.0f})",
        },
        line
        | {
            "y": charts.rounded([point.mean for point in accuracy]),
            "name": f"{look.title}, FA",
            "line": {"color": look.colour, "width": 1.2, "dash": "dot"},
            "marker": {"symbol": f"{look.marker}-open", "size": 6, "color": look.colour},
            "hovertemplate": "%{y:.0f}",
        },
    ]


def ends(value: Estimate) -> list[float]:
    """Both ends of an interval of percent, within 0 to 100; the mean twice if there is no interval."""
    half = value.half_width if math.isfinite(value.half_width) else 0.0
    return [round(max(0.0, value.mean - half), 1), round(min(100.0, value.mean + half), 1)]
