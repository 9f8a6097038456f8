"""Recorded sweeps: the study where nothing is damaged, and the map of alignment, data and attack."""

import math
from collections.abc import Sequence
from html import escape

import gradio as gr

from app import charts, markup, text
from app.components import figure, markup_block, section
from app.looks import MARKERS, OTHER_COLOURS
from app.page import Page
from app.services import HOLDS, KEPT, CellResult, DataError, Spot, recorded, spots, sweep_measures, sweep_table


def build(page: Page) -> None:
    """Place the part; it is the same for all viewers, and nothing in it changes."""
    gr.HTML(section(text.RECORDED_TITLE, text.RECORDED_NOTE), apply_default_css=False, elem_id="recorded")
    try:
        study, swept = recorded("study"), recorded("map")
    except DataError as error:
        markup_block(markup.notice(text.STUDY_MISSING.format(problem=error, remedy=error.remedy)))
        return
    markup_block(study_view(study), elem_id="recorded-study")
    if not swept:  # the map is a sweep of many hours: it may not have been recorded yet
        return
    swept = [*study, *swept]
    gr.HTML(section(text.MAP_TITLE), apply_default_css=False)
    markup_block(f'<p class="lab-note">{map_words(swept)}</p>', elem_id="map-words")
    with gr.Row(elem_classes="lab-pair"):
        for where in swept[0].harmful_sets:
            with gr.Column(min_width=0):
                figure(f"map-{where}", map_spec(swept, where))


def study_view(results: Sequence[CellResult]) -> str:
    """A sentence per defence, and the table of all measures."""
    first, *others = dict.fromkeys(result.title for result in results)
    made = [sweep_table(results, title, measure) for title, measure in sweep_measures(results)]
    said: list[str] = []
    for number, title in enumerate(others, start=1):
        changes = [
            text.study_difference(where, table.rows[number].differences[0])
            for where, table in zip(results[0].harmful_sets, made[:: text.MEASURES_PER_SET], strict=False)
        ]
        said.append(text.RECORDED_FINDING.format(defence=title, first=first, differences=" and ".join(changes)))
    head = "".join(f'<th scope="col">{escape(table.title)}</th>' for table in made)
    rows = "".join(
        f'<tr><th scope="row">{escape(row.defence)}</th>'
        + "".join(f"<td>{table.rows[number].cells[0]}</td>" for table in made)
        + "</tr>"
        for number, row in enumerate(made[0].rows)
    )
    facts = text.RECORDED_FACTS.format(
        seeds=len({result.seed for result in results}), attacks=len({result.attack.seed for result in results})
    )
    return (
        "".join(markup.notice(words) for words in said)
        + f'<div class="lab-scroll"><table class="lab-table"><thead><tr><th scope="col">{text.RECORDED_DEFENCE}</th>'
        f'{head}</tr></thead><tbody>{rows}</tbody></table></div><p class="lab-note">{facts}</p>'
    )


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
        "yaxis": charts.axis(text.MAP_UP.format(where=text.set_title(where)), range=[low, high]),
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
