"""Findings: what many runs together say, recorded and shipped with the lab."""

from html import escape

import gradio as gr

from app import text
from app.components import heading, markup_block
from app.findings import attack_map, recorded, study
from app.page import Page


def build(page: Page) -> None:
    """Place and wire the screen."""
    gr.HTML(heading(text.STEPS[7], text.WHY[7]), apply_default_css=False)
    lines = "".join(f"<li>{escape(line)}</li>" for line in text.FINDINGS)
    markup_block(f'<ol class="lab-lines">{lines}</ol>', elem_id="findings")
    recorded.build_map(page)
    recorded.build_study(page)
    attack_map.build(page)
    study.build(page)
