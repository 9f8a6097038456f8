"""A bar above every screen while a recorded run is shown: what it is, and the two ways on."""

import gradio as gr

from app import text
from app.components import go_js, markup_block
from app.page import Memory, Page, remembered
from app.services import RunBusyError, StoreError


def build(page: Page) -> None:
    """Place and wire the bar."""
    with gr.Row(visible=False, elem_id="recorded-bar") as bar:
        markup_block(f"<p><b>{text.RECORDED_RUN}</b> {text.RECORDED_RUN_NOTE}</p>", elem_id="recorded-words")
        live = gr.Button(text.RUN_LIVE, variant="primary", elem_id="run-live", min_width=120, scale=0)
        own = gr.Button(text.MAKE_IT_YOURS, elem_id="make-it-yours", min_width=120, scale=0)

    def run_live(memory: Memory) -> Memory:
        glance = page.glance(memory)
        if glance.view is None or not glance.recorded:
            raise StoreError(text.NO_RUN_OPEN, remedy=text.NO_RUN_REMEDY)
        config = glance.config
        try:
            run_id = page.lab.start_alignment(config, text.LIVE_NAME.format(name=plain_name(glance.view.run.name)))
        except RunBusyError as busy:  # pressed twice: it is opened
            return remembered(memory, run=busy.run_id, attack=None)
        attack = glance.view.attack_config(glance.attack) if glance.attack else config.attack
        page.lab.start_attack(run_id, attack)
        gr.Info(text.LIVE_STARTED, duration=6)
        return remembered(memory, run=run_id, attack=None)

    page.act(live.click, run_live, [page.memory], [page.memory], trigger_mode="once").success(
        None, None, None, js=go_js(2), api_visibility="private"
    )
    own.click(None, None, None, js=go_js(1), api_visibility="private")
    page.show(bar, lambda glance: glance.recorded, lambda glance: gr.Row(visible=glance.recorded))


def plain_name(name: str) -> str:
    """A recorded run's name without the word that says so."""
    return name.partition(": ")[2] or name
