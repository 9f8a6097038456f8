"""The recorded study over seeds, for questions that one run cannot answer."""

import math
from typing import Any

import gradio as gr

from app import charts, markup, text
from app.arguments import one_of
from app.components import figure, markup_block, section
from app.looks import method_look
from app.page import Page
from app.services import DataError, Estimate, StudySummary, study


def build(page: Page) -> None:
    """Place and wire the part."""
    gr.HTML(section(text.STUDY_TITLE), apply_default_css=False, elem_id="study-title")
    try:
        summary = study()
    except DataError as error:
        markup_block(markup.notice(text.STUDY_MISSING.format(problem=error, remedy=error.remedy)))
        return
    ratios = summary.ratios
    first = min(ratios, key=lambda ratio: abs(ratio - 0.1))

    def draw(ratio: float) -> list[Any]:
        ratio = one_of(ratio, ratios, text.STUDY_RATIO)
        return [study_words(summary, ratio), *(study_curves(summary, ratio, where) for where in summary.harmful_sets)]

    words, *specs = draw(first)
    chosen = gr.Radio([(f"p = {ratio:g}", ratio) for ratio in ratios], value=first, label=text.STUDY_RATIO)
    shown = [markup_block(words, elem_id="study-words")]
    with gr.Row(elem_classes="lab-pair"):
        for where, spec in zip(summary.harmful_sets, specs, strict=True):
            with gr.Column(min_width=0):
                shown.append(figure(f"study-{where}", spec))
    page.on(chosen.input, draw, [chosen], shown)


def study_words(summary: StudySummary, ratio: float) -> str:
    """A description of the study, and its finding at this harmful ratio."""
    note = text.STUDY_NOTE.format(
        seeds=summary.num_alignment_seeds,
        attacks=summary.num_attack_seeds,
        alignment=summary.alignment,
        samples=summary.num_samples,
        steps=summary.steps,
    )
    return f'<p class="lab-note">{note}</p>' + markup.notice(study_finding(summary, ratio))


def study_finding(summary: StudySummary, ratio: float) -> str:
    """The study's result for T-Vaccine against its twin, whatever its sign."""
    found = {where: summary.outcome("tvaccine", ratio, where) for where in summary.harmful_sets}
    differences = [
        text.study_difference(where, outcome.difference)
        for where, outcome in found.items()
        if outcome is not None and outcome.difference is not None and outcome.difference.n
    ]
    return text.STUDY_FINDING.format(differences=" and ".join(differences)) if differences else ""


def study_curves(summary: StudySummary, ratio: float, harmful_set: str) -> charts.Spec:
    """The recorded study: mean HS of each method along one attack, with its 95 % t interval as a band, and mean FA."""
    data: list[charts.Spec] = []
    key: list[charts.Spec] = []
    for curve in (curve for curve in summary.curves if curve.harmful_ratio == ratio):
        look = method_look(curve.method)
        colour, title = look.colour, look.title
        points = curve.harmful_score[harmful_set]
        steps = list(curve.steps)
        band = {"type": "scatter", "mode": "lines", "x": steps, "line": {"width": 0}, "hoverinfo": "skip"}
        data.append(band | {"y": [ends(point)[0] for point in points]})
        data.append(band | {"y": [ends(point)[1] for point in points], "fill": "tonexty", "fillcolor": f"{colour}26"})
        line = {"type": "scatter", "mode": "lines+markers", "x": steps}
        data.append(
            line
            | {
                "y": charts.rounded([point.mean for point in points]),
                "name": f"{title}, {text.measure_of(harmful_set)}",
                "customdata": [ends(point) for point in points],
                "line": {"color": colour, "width": 2.4, "dash": "solid"},
                "marker": {"symbol": look.marker, "size": 7, "color": colour},
                "hovertemplate": "%{y:.0f} (%{customdata[0]:.0f}–%{customdata[1]:.0f})",
            }
        )
        data.append(
            line
            | {
                "y": charts.rounded([point.mean for point in curve.finetune_accuracy]),
                "name": f"{title}, FA",
                "line": {"color": colour, "width": 1.2, "dash": "dot"},
                "marker": {"symbol": f"{look.marker}-open", "size": 6, "color": colour},
                "hovertemplate": "%{y:.0f}",
            }
        )
        key.append({"text": title, "colour": colour, "symbol": look.marker})
    key += [
        {"text": text.measure_of(harmful_set), "colour": "--lab-ink", "dash": "solid"},
        {"text": text.measure_of(f"task:{summary.task}"), "colour": "--lab-ink", "dash": "dot"},
    ]
    layout = {
        "xaxis": charts.axis(text.AXIS_ATTACK_STEP, range=[-0.02 * summary.steps, 1.02 * summary.steps]),
        "yaxis": charts.axis(text.AXIS_PERCENT, range=[-3, 103], dtick=25),
        "hovermode": "x unified",
    }
    return charts.figure(data, layout, text.STUDY_LABEL.format(where=text.set_title(harmful_set)), 320, key=key)


def ends(value: Estimate) -> list[float]:
    """Both ends of an interval of percent, within 0 to 100; the mean twice if there is no interval."""
    half = value.half_width if math.isfinite(value.half_width) else 0.0
    return [round(max(0.0, value.mean - half), 1), round(min(100.0, value.mean + half), 1)]
