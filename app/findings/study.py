"""Curves of a recorded sweep over seeds: HS and FA along the attack, for a chosen harmful ratio."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from app import markup, text
from app.arguments import one_of
from app.components import figure, markup_block, section
from app.findings.recorded import findings, study_curves
from app.page import Page
from app.services import CellResult, DataError, recorded

SWEEP = "manners"


def build(page: Page) -> None:
    """Place and wire the part."""
    gr.HTML(section(text.STUDY_TITLE), apply_default_css=False, elem_id="study-title")
    try:
        results = recorded(SWEEP)
    except DataError as error:
        markup_block(markup.notice(text.STUDY_MISSING.format(problem=error, remedy=error.remedy)))
        return
    ratios = sorted({result.attack.harmful_ratio for result in results})
    sets = results[0].harmful_sets

    def draw(ratio: float) -> list[Any]:
        ratio = one_of(ratio, ratios, text.STUDY_RATIO)
        part = [result for result in results if result.attack.harmful_ratio == ratio]
        return [study_words(part), *(study_curves(part, where) for where in sets)]

    first = min(ratios, key=lambda ratio: abs(ratio - 0.1))
    words, *specs = draw(first)
    chosen = gr.Radio([(f"p = {ratio:g}", ratio) for ratio in ratios], value=first, label=text.STUDY_RATIO)
    shown = [markup_block(words, elem_id="study-words")]
    with gr.Row(elem_classes="lab-pair"):
        for where, spec in zip(sets, specs, strict=True):
            with gr.Column(min_width=0):
                shown.append(figure(f"study-{where}", spec))
    page.on(chosen.input, draw, [chosen], shown)


def study_words(results: Sequence[CellResult]) -> str:
    """What was recorded, and how each defence compares with the first."""
    note = text.STUDY_NOTE.format(
        seeds=len({result.seed for result in results}),
        attacks=len({result.attack.seed for result in results}),
        samples=results[0].attack.num_samples,
        steps=results[0].attack.optimisation.steps,
    )
    return f'<p class="lab-note">{note}</p>' + "".join(markup.notice(words) for words in findings(results))
