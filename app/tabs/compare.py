"""Compare: one prompt to every model, before and after the attack; then the scores, and where the model drifted."""

import gradio as gr

from app import text
from app.compare import asking, drift, outcomes, scores
from app.components import heading, news_block
from app.draft import is_own
from app.page import Glance, Page


def build(page: Page) -> None:
    """Place and wire the screen."""
    gr.HTML(heading(text.STEPS[4], text.WHY[4]), apply_default_css=False)
    asking.build(page)
    outcomes.build(page)
    scores.build(page)
    with gr.Row(elem_classes="lab-pair"):
        with gr.Column(min_width=0):
            scores.build_bars(page)
        with gr.Column(min_width=0):
            drift.build(page)
    page.show(news_block("not-shown"), lambda glance: glance.stamp(), draw_not_shown)


def draw_not_shown(glance: Glance) -> str:
    """A note on the limits of this page's results."""
    own = is_own(glance.config.model)
    return f'<p class="lab-note">{text.NOT_SHOWN.format(size=text.OTHER_SIZE if own else text.SANDBOX_SIZE)}</p>'
