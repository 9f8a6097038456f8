"""Where the attack moved the models: embedding drift by layer."""

import gradio as gr

from app import charts, text
from app.components import figure, section
from app.page import Glance, Page


def build(page: Page) -> None:
    """Place and wire the part."""
    gr.HTML(section(text.DRIFT_TITLE, text.DRIFT_NOTE), apply_default_css=False)
    page.show(figure("drift"), lambda glance: glance.stamp("drift", "jobs_made"), draw)


def draw(glance: Glance) -> charts.Spec:
    """Drift of each attacked model from its aligned model."""
    view = glance.view
    if view is None or glance.attack is None:
        return charts.drift({}, {})
    states = {defence: view.states_of(defence, glance.attack)["after"] for defence in view.defences}
    found = {defence: view.drift[state] for defence, state in states.items() if state in view.drift}
    return charts.drift(found, view.looks)
