"""The page's machinery with every screen on it, not served."""

import gradio as gr

import app
from app.page import Page
from app.services import PRESETS, Lab
from app.tabs import align, attack, choose, compare, findings, runs, sweep


def build_page(lab: Lab) -> Page:
    """A page on `lab`. Takes half a second: a module's tests may share one."""
    with gr.Blocks():
        page = Page(lab)
        draft = app.Draft(PRESETS["sandbox-check"].config)
        choose.build(page, draft)
        align.build(page, draft)
        attack.build(page, draft)
        compare.build(page)
        runs.build(page, draft)
        sweep.build(page, draft)
        findings.build(page)
        app.rail.build(page)
    return page
