"""The lab's page, in Gradio, on the run store. It knows screens and nothing of torch."""

from pathlib import Path
from typing import Any

import gradio as gr
from gradio import themes
from starlette.middleware import Middleware

from app import rail, recorded_bar, text
from app.api import add_endpoints
from app.draft import Draft
from app.exports import routes
from app.news import News, news_route
from app.page import Page
from app.security import Access, Gate, access_for, outermost
from app.services import PRESETS, Lab, Permissions
from app.tabs import align, attack, choose, compare, findings, runs, sweep

FONT = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
FONT_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")
CACHE_S = 3600
"""Seconds after which handlers' files in Gradio's cache are deleted, and between two looks for such files."""


class LabBlocks(gr.Blocks):
    """The page, and the news that its script asks for beside Gradio."""

    news: News


def build_app(data_dir: Path, *, own_models: bool = True, remote_code: bool = False) -> LabBlocks:
    """The whole page on the run store in `data_dir`. Starts nothing.

    Args:
        data_dir: holds the runs.
        own_models: visitors may make this machine load any model. Not for pages that strangers can open.
        remote_code: visitors may also make it run a model's own Python code, with the server's rights.
    """
    lab = Lab(data_dir, Permissions(own_models, remote_code))
    with LabBlocks(
        title=text.TITLE, analytics_enabled=False, delete_cache=(CACHE_S, CACHE_S), fill_width=True
    ) as blocks:
        page = Page(lab)
        add_endpoints(page)  # first: the page's own events then take other names
        draft = Draft(next(iter(PRESETS.values())).config, lab.permissions)
        with gr.Row(elem_id="shell"):
            with gr.Column(elem_id="rail-column", min_width=0):
                page.rail.render()
            with gr.Column(elem_id="stage", min_width=0):
                recorded_bar.build(page)
                with gr.Walkthrough(selected=1, elem_id="steps") as walkthrough:
                    with gr.Step(text.STEPS[1], id=1):
                        choose.build(page, draft)
                    with gr.Step(text.STEPS[2], id=2):
                        align.build(page, draft)
                    with gr.Step(text.STEPS[3], id=3):
                        attack.build(page, draft)
                    with gr.Step(text.STEPS[4], id=4):
                        compare.build(page)
                    with gr.Step(text.STEPS[5], id=5):
                        runs.build(page, draft)
                    with gr.Step(text.STEPS[6], id=6):
                        sweep.build(page, draft)
                    with gr.Step(text.STEPS[7], id=7):
                        findings.build(page)
        rail.build(page)
        page.finish(blocks, walkthrough, draft)
        blocks.news = page.news
    return blocks


def launch_options(data_dir: Path, blocks: LabBlocks, access: Access | None = None) -> dict[str, Any]:
    """Options of `launch` beside host and port: theme, local files, the gate. Nothing leaves this machine.

    Args:
        data_dir: holds the runs.
        blocks: the page to launch.
        access: who may talk to the page; None: only this machine.
    """
    access = access_for("localhost") if access is None else access
    neutral = themes.colors.stone
    return {
        "theme": themes.Base(
            primary_hue=neutral, secondary_hue=neutral, neutral_hue=neutral, font=list(FONT), font_mono=list(FONT_MONO)
        ),
        "head": '<link rel="stylesheet" href="lab/lab.css"><script src="lab/lab.js"></script>',
        "app_kwargs": {
            "routes": [*routes(Lab(data_dir)), news_route(blocks.news, data_dir)],
            "middleware": [Middleware(Gate, access=access)],
            "lifespan": outermost(access),
        },
        "footer_links": ["api"],
        "run_history": False,
        "ssr_mode": False,
        "quiet": True,
    }
