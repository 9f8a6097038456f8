"""Findings: what many runs together say, recorded and shipped with the lab."""

from html import escape

import gradio as gr

from app import markup, text
from app.components import heading, markup_block
from app.findings import attack_map, lines, recorded, study
from app.page import Page
from app.services import DataError


def build(page: Page) -> None:
    """Place and wire the screen."""
    gr.HTML(heading(text.STEPS[7], text.WHY[7]), apply_default_css=False)
    try:
        said = "".join(f"<li>{escape(line)}</li>" for line in lines.lines())
        markup_block(f'<ol class="lab-lines">{said}</ol>', elem_id="findings")
    except DataError as error:
        markup_block(markup.notice(text.STUDY_MISSING.format(problem=error, remedy=error.remedy)))
    recorded.build_map(page)
    recorded.build_study(page)
    attack_map.build(page)
    study.build(page)
