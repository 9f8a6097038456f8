"""Choose: a preset or the visitor's own model, its cost, and the data that the models will see."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from app import markup, text
from app.arguments import choice_of, one_of, row_of
from app.components import go_js, heading, markup_block, section
from app.draft import Draft, is_own, preset_of
from app.fit import fit_view, predict
from app.looks import aligned_looks
from app.page import Page
from app.services import (
    PRESETS,
    YOUR_MODEL,
    Example,
    Lab,
    LabConfig,
    ModelConfig,
    ModelError,
    TVaccineError,
    check_layers,
    check_model,
    data_of,
    mixture,
    preview_example,
    provided,
)

ROWS = 40
"""Rows of a data set on the page: enough to see what it is."""


def build(page: Page, draft: Draft) -> None:
    """Place and wire the screen."""
    start = PRESETS[next(iter(PRESETS))].config
    gr.HTML(heading(text.STEPS[1], text.WHY[1]), apply_default_css=False)
    with gr.Row(elem_classes="lab-split"):
        with gr.Column(elem_classes=["lab-controls", "lab-begin"], min_width=0):
            draft.place_model()
            model = markup_block(elem_id="model-status")
            with gr.Row(visible=False) as asks:
                fit = gr.Button(text.FIT, elem_id="will-it-fit", min_width=120)
                how_long = gr.Button(text.TIME, elem_id="how-long", min_width=120)
            fits = markup_block(elem_id="fit")
            cost = markup_block(cost_view(page.lab, start), elem_id="cost")
            onward = gr.Button(text.CONTINUE, variant="primary", elem_id="to-align")
            world = markup_block(world_note(start), elem_id="world-note")
        with gr.Column(elem_classes="lab-main", min_width=0):
            gr.HTML(section(text.DATA_TITLE, text.DATA_NOTE), apply_default_css=False)
            warning = markup_block(data_warning(start), elem_id="data-warning")
            with gr.Row(elem_classes="lab-tools-row"):
                part = gr.Radio(
                    choices=[(title, name) for name, title in text.DATA_PARTS.items()],
                    value="alignment",
                    show_label=False,
                    container=False,
                    elem_id="data-part",
                )
            chosen = gr.State(None)
            rows = markup_block(rows_view(start, "alignment", None), elem_id="data-rows")
            gr.HTML(section(text.TEMPLATE_TITLE), apply_default_css=False)
            template = markup_block(template_of(start, "alignment", 0), elem_id="template")

    def choose_preset(name: str) -> list[Any]:
        offered = [str(value) for _, value in draft.preset.choices]
        return draft.fill(PRESETS[one_of(name, offered, text.PRESET)].config)

    def show_config(name: str, index: int | None, *values: Any) -> list[Any]:
        config = draft.read(*values)
        return [
            model_view(config.model),
            gr.Row(visible=is_own(config.model) and draft.model is not None),
            "",
            cost_view(page.lab, config),
            world_note(config),
            data_warning(config),
            rows_view(config, name, index),
            template_of(config, name, index or 0),
        ]

    def show_model(name: str, index: int | None, *values: Any) -> list[Any]:
        config = draft.read(*values)
        return [model_view(config.model), "", cost_view(page.lab, config), template_of(config, name, index or 0)]

    def show_plan(probe: bool, *values: Any) -> Iterator[str]:
        yield markup.notice(text.TIME_WORKING if probe else text.FIT_WORKING)
        try:
            config = draft.read(*values)
            page.lab.permit(config.model)
            facts = check_model(config.model)
            check_layers(config, facts)
            if probe and not facts.weights_bytes:
                raise ModelError(text.TIME_REMOTE, remedy=text.TIME_REMOTE_REMEDY)
            yield fit_view(predict(config, probe=probe))
        except TVaccineError as error:
            yield markup.notice(f"{error} {error.remedy}", "error")

    def show_fit(*values: Any) -> Iterator[str]:
        yield from show_plan(False, *values)

    def show_time(*values: Any) -> Iterator[str]:
        yield from show_plan(True, *values)

    def go_on(*values: Any) -> None:
        model = draft.read_model(*values)
        page.lab.permit(model)
        check_model(model)

    def show_part(name: str, *values: Any) -> list[Any]:
        config = draft.read(*values)
        return [rows_view(config, name, None), template_of(config, name, 0), None]

    def show_row(event: gr.EventData, name: str, *values: Any) -> list[Any]:
        config = draft.read(*values)
        index = row_of(choice_of(event), min(ROWS, len(examples_of(config, name))))
        return [rows_view(config, name, index), template_of(config, name, index), index]

    page.on(draft.preset.input, choose_preset, [draft.preset], draft.outputs)
    looked_at = [part, chosen, *draft.inputs]
    page.on(draft.base.change, show_config, looked_at, [model, asks, fits, cost, world, warning, rows, template])
    shown = [rows, template, chosen]
    page.on(part.input, show_part, [part, *draft.inputs], shown)
    page.on(rows.choose, show_row, [part, *draft.inputs], shown)
    for trigger in draft.model_triggers:
        page.on(trigger, show_model, looked_at, [model, fits, cost, template])
    if draft.model is not None:  # every click starts a process: not for every visitor
        page.on(fit.click, show_fit, draft.inputs, [fits], trigger_mode="once")
        page.on(how_long.click, show_time, draft.inputs, [fits], trigger_mode="once")
    page.on(onward.click, go_on, draft.model_inputs).success(None, None, None, js=go_js(2), api_visibility="private")


def examples_of(config: LabConfig, part: str) -> Sequence[Example]:
    """The examples of a part of the data, as training or evaluation will read them.

    Raises:
        ConfigError: there is no such part or task.
        DataError: the attack asks for more samples than there are.
    """
    data = data_of(config)
    match one_of(part, text.DATA_PARTS, text.DATA_TITLE):
        case "alignment":
            return provided(config)
        case "attack":
            return mixture(config, config.attack)
        case "probe":
            return data.world.probe
        case _:
            shares = [
                examples[: ROWS // 4]
                for examples in (
                    *(found.examples for found in data.eval_sets.values()),
                    data.task(config.attack.task).eval,
                )
            ]
            return [example for share in shares for example in share]


def rows_view(config: LabConfig, part: str, chosen: int | None) -> str:
    """The first rows of a part, and how many of all are harmful."""
    examples = examples_of(config, part)
    harmful = sum(example.harmful for example in examples)
    note = f"{text.DATA_PART_NOTES[part]} {text.rows_shown(min(ROWS, len(examples)), len(examples), harmful, part)}"
    return f'<p class="lab-note">{note}</p>' + markup.example_rows(list(enumerate(examples[:ROWS])), chosen)


def template_of(config: LabConfig, part: str, index: int) -> str:
    """Template and loss mask of a row, or of the first row if `index` is too large; or why it cannot be shown."""
    if config.model.name == YOUR_MODEL:
        return markup.notice(text.TEMPLATE_UNNAMED)
    examples = examples_of(config, part)
    example = examples[index if index < len(examples) else 0]
    try:
        shown = preview_example(config, example)
    except TVaccineError as error:
        return markup.notice(f"{error} {error.remedy}", "warning")
    if shown is None:
        return markup.notice(text.TEMPLATE_LATER)
    return f'<p class="lab-note">{text.TEMPLATE_NOTE.format(template=shown.template)}</p>' + markup.template_view(
        shown, example.harmful
    )


def model_view(config: ModelConfig) -> str:
    """Facts about the visitor's own model before it is loaded, or its fault."""
    if not is_own(config):
        return ""
    if config.name == YOUR_MODEL:
        return markup.notice(text.MODEL_UNNAMED)
    trust = markup.notice(text.MODEL_TRUSTED, "warning") if config.trust_remote_code else ""
    try:
        facts = check_model(config)
    except TVaccineError as error:
        return markup.notice(f"{error} {error.remedy}", "error") + trust
    if facts.folder is None:
        return markup.notice(text.MODEL_REMOTE) + trust
    return markup.notice(text.model_found(facts.architecture, facts.num_layers, facts.weights_bytes)) + trust


def world_note(config: LabConfig) -> str:
    """What the sandbox is; empty for other models."""
    return "" if is_own(config.model) else markup.notice(text.SANDBOX_NOTE)


def data_warning(config: LabConfig) -> str:
    """The meaning of scores for a model that was not trained on the town."""
    return markup.notice(text.OWN_DATA, "warning") if is_own(config.model) else ""


def cost_view(lab: Lab, config: LabConfig) -> str:
    """The cost of a run, from earlier runs on this machine if there are any."""
    steps = config.alignment.optimisation.steps
    paces = [lab.seconds_a_step(method.name, config) for method in config.alignments().values()]
    known = [pace for pace in paces if pace is not None]
    time = text.COST_UNKNOWN
    if len(known) == len(paces):
        lanes = min(len(known), max(1, os.cpu_count() or 1), 2)
        time = text.COST_KNOWN.format(time=text.duration(steps * max(max(known), sum(known) / lanes)))
    preset = preset_of(config)
    description = f'<p class="lab-note">{PRESETS[preset].description}</p>' if preset else ""
    return description + markup.facts(
        [
            (text.COST_TIME, time),
            (text.COST_WORK, text.cost_of_work([look.title for look in aligned_looks(config).values()], steps)),
            (text.COST_ATTACK, f"{config.attack.optimisation.steps:,} steps each"),
            (text.COST_DEVICE, text.device(config.model.device, os.cpu_count() or 1)),
        ]
    )
