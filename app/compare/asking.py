"""One prompt to every model: the question, the streaming answers side by side, and prompts to try."""

import contextlib
import time
import zlib
from collections.abc import Hashable, Iterator
from dataclasses import replace
from typing import Any

import gradio as gr

from app import markup, panes, text
from app.arguments import choice_of, text_of
from app.components import answer_panes, news_block
from app.page import Glance, Memory, Page, remembered, run_of
from app.services import JobRow, Lab, LabConfig, StoreError, is_harmless, suggestions

STREAM_EVERY_S = 0.12
PATIENCE_S = 600.0
"""Seconds after which the page stops waiting for an answer; the job goes on."""


def build(page: Page) -> None:
    """Place and wire the part."""
    with gr.Row(elem_classes="lab-ask", elem_id="ask-row"):
        prompt = gr.Textbox(
            label=text.PROMPT,
            placeholder=text.PROMPT_HINT,
            elem_id="prompt",
            lines=1,
            max_lines=4,
            scale=8,
            max_length=2000,
        )
        ask = gr.Button(text.ASK, variant="primary", elem_id="ask", scale=1, min_width=96)
    suggested = news_block("suggested")
    with_base = gr.Checkbox(False, label=text.BASE_PANE, elem_id="with-base", container=False)
    shown = answer_panes("panes")

    def ask_all(memory: Memory, question: str) -> Iterator[Any]:
        memory, question = remembered(memory), text_of(question, "The prompt")
        glance = page.glance(memory, fresh=True)
        if glance.recorded:
            yield memory, recorded_value(page.lab, glance, question)
            return
        view = page.views.view(run_of(memory), fresh=True)
        states = panes.states_of(view, view.choose_attack(memory["attack"]), memory["base"])
        if not any(state != panes.BASE for state in states):
            raise StoreError(text.NO_MODEL, remedy=text.NO_MODEL_REMEDY)
        page.lab.ask(view.run.id, question, states, memory["owner"], view.config.evaluation.max_new_tokens)
        yield memory, gr.skip()
        for value in follow(page, memory):
            yield gr.skip(), value

    def follow_on(memory: Memory) -> Iterator[Any]:
        yield gr.skip()  # a generator that yields nothing would blank the panes
        yield from follow(page, memory)

    def choose_base(memory: Memory, base: bool) -> Memory:
        return remembered(memory, base=base is True)

    def take_suggestion(event: gr.EventData) -> str:
        return choice_of(event)

    asking: dict[str, Any] = {"concurrency_limit": 32, "trigger_mode": "multiple"}
    for trigger in (ask.click, prompt.submit):
        page.act(trigger, ask_all, [page.memory, prompt], [page.memory, shown], **asking)
    page.act(with_base.input, choose_base, [page.memory, with_base], [page.memory])
    page.on(suggested.choose, take_suggestion, [], [prompt])
    page.on(shown.follow, follow_on, [page.memory], [shown], **asking)

    page.show(shown, panes_key, lambda glance: refreshed(page.lab, glance), own=True)
    page.show(with_base, lambda glance: glance.memory["base"], lambda glance: bool(glance.memory["base"]), own=True)
    page.show(suggested, lambda glance: glance.stamp(), lambda glance: suggestion_chips(glance.config))


def panes_key(glance: Glance) -> Hashable:
    """Changes with the run's models and with the visitor's question."""
    question = own_question(glance)
    return (
        glance.stamp("state", "jobs_made"),
        glance.memory["base"],
        (question.id, question.state) if question else None,
    )


def own_question(glance: Glance) -> JobRow | None:
    """The visitor's newest question in this run; never another visitor's."""
    if glance.view is None or not glance.memory["owner"]:
        return None
    mine = [j for j in glance.view.jobs if j.kind == "generate" and j.params.get("owner") == glance.memory["owner"]]
    return mine[-1] if mine else None


def pane_value(lab: Lab, glance: Glance) -> dict[str, Any]:
    """The panes as they are now."""
    question = own_question(glance)
    return panes.panes_value(
        glance.view,
        glance.attack,
        bool(glance.memory["base"]),
        question,
        panes.by_state(lab.answer_records(question)) if question else None,
        bool(question and is_harmless(glance.config, question.params["prompt"])),
        lab.queue_position(question.id) if question and question.state == "queued" else None,
    )


def recorded_value(lab: Lab, glance: Glance, prompt: str) -> dict[str, Any]:
    """The panes of a recorded run, with its saved answers to an evaluation prompt.

    Raises:
        StoreError: it was never asked this.
    """
    assert glance.view is not None
    answers = lab.recorded_answers(glance.view.run.id, prompt.strip())
    if not answers:
        raise StoreError(text.RECORDED_UNASKED, remedy=text.RECORDED_REMEDY)
    question = replace(
        glance.view.jobs[0],
        id=f"recorded-{zlib.crc32(prompt.encode()):08x}",
        kind="generate",
        params={"prompt": prompt, "states": [answer.state for answer in answers]},
        state="done",
    )
    harmless = is_harmless(glance.config, prompt.strip())
    base = bool(glance.memory["base"])
    return panes.panes_value(glance.view, glance.attack, base, question, panes.by_state(answers), harmless)


def refreshed(lab: Lab, glance: Glance) -> dict[str, Any]:
    """The panes, which ask to be followed if the visitor's question is not answered yet: the page was reloaded.

    Those of a recorded run show the answers to the first prompt to try.
    """
    if glance.recorded:
        with contextlib.suppress(StoreError):
            return recorded_value(lab, glance, suggestions(glance.config)[0][1])
    question = own_question(glance)
    return pane_value(lab, glance) | {"follow": bool(question and question.active)}


def follow(page: Page, memory: Memory) -> Iterator[dict[str, Any]]:
    """The panes at every change while the visitor's question is answered, until it ends or a new question comes."""
    first = own_question(page.glance(memory, fresh=True))
    shown = None
    deadline = time.monotonic() + PATIENCE_S
    while first is not None and time.monotonic() < deadline:
        glance = page.glance(memory, fresh=True)
        question = own_question(glance)
        if question is None or question.id != first.id:
            return
        value = pane_value(page.lab, glance)
        if value != shown:
            yield value
            shown = value
        if not question.active:
            return
        time.sleep(STREAM_EVERY_S)


def suggestion_chips(config: LabConfig) -> str:
    """Prompts to try, named by their sets."""
    chips = [(prompt, f"{text.set_title(where)}: {prompt}") for where, prompt in suggestions(config)]
    return f'<p class="lab-note">{text.SUGGESTED}</p>{markup.chips(chips)}'
