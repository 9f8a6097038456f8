"""Compare: one prompt to every model, before and after the attack; then the scores, and where the model drifted."""

import time
from collections.abc import Hashable, Iterator
from typing import Any

import gradio as gr

from app import charts, markup, own_text, panes, text
from app import study as recorded
from app.arguments import choice_of, one_of, text_of
from app.components import answer_panes, figure, heading, markup_block, news_block, section
from app.draft import is_own
from app.looks import Look
from app.page import Glance, Memory, Page, remembered, run_of
from app.services import (
    PRESETS,
    DataError,
    JobRow,
    Lab,
    LabConfig,
    Proportion,
    StoreError,
    StudySummary,
    is_harmless,
    study,
    suggestions,
)
from app.tabs.attack import task_set
from app.views import RunView

STREAM_EVERY_S = 0.12
PATIENCE_S = 600.0
"""A question that nothing answers is left after so long; its job goes on."""
STUDY_SETS = ("aligned_names", "unseen_names")


def build(page: Page) -> None:
    """Place and wire the screen."""
    gr.HTML(heading(text.STEPS[4], text.WHY[4]), apply_default_css=False)
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
    gr.HTML(section(text.SCORES_TITLE), apply_default_css=False)
    table = news_block("scores-table")
    with gr.Row(elem_classes="lab-pair"):
        with gr.Column(min_width=0):
            scores = figure("scores")
        with gr.Column(min_width=0):
            gr.HTML(section(text.DRIFT_TITLE, text.DRIFT_NOTE), apply_default_css=False)
            drift = figure("drift")
    not_shown = news_block("not-shown")
    build_study(page)

    def ask_all(memory: Memory, question: str) -> Iterator[Any]:
        memory, question = remembered(memory), text_of(question, "The prompt")
        view = page.views.view(run_of(memory), fresh=True)
        states = panes.states_of(view, view.choose_attack(memory["attack"]), memory["base"])
        if not any(state != panes.BASE for state in states):
            raise StoreError(text.NO_MODEL, remedy=text.NO_MODEL_REMEDY)
        page.lab.ask(view.run.id, question, states, memory["owner"], view.config.evaluation.max_new_tokens)
        yield memory, gr.skip()
        for value in follow(page, memory):
            yield gr.skip(), value

    def reattach(memory: Memory) -> Iterator[Any]:
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
    page.on_loaded(reattach, [page.memory], [shown], **asking)

    page.show(shown, panes_key, lambda glance: pane_value(page.lab, glance), own=True)
    page.show(with_base, lambda glance: glance.memory["base"], lambda glance: bool(glance.memory["base"]), own=True)
    page.show(table, lambda glance: glance.stamp("eval", "state", "jobs_made"), draw_table)
    page.show(
        scores, lambda glance: glance.stamp("eval", "jobs_made"), lambda glance: charts.score_bars(bar_rows(glance))
    )
    page.show(drift, lambda glance: glance.stamp("drift", "jobs_made"), draw_drift)
    page.show(not_shown, lambda glance: glance.stamp(), draw_not_shown)
    page.show(suggested, lambda glance: glance.stamp(), lambda glance: suggestion_chips(config_of(glance)))


def build_study(page: Page) -> None:
    """The recorded study over seeds: what one run cannot say."""
    gr.HTML(section(recorded.STUDY_TITLE), apply_default_css=False, elem_id="study-title")
    try:
        summary = study()
    except DataError as error:
        markup_block(markup.notice(recorded.STUDY_MISSING.format(problem=error, remedy=error.remedy)))
        return
    ratios = summary.ratios
    first = min(ratios, key=lambda ratio: abs(ratio - 0.1))

    def draw(ratio: float) -> list[Any]:
        ratio = one_of(ratio, ratios, recorded.STUDY_RATIO)
        return [study_words(summary, ratio), *(recorded.study_curves(summary, ratio, where) for where in STUDY_SETS)]

    words, *specs = draw(first)
    chosen = gr.Radio([(f"p = {ratio:g}", ratio) for ratio in ratios], value=first, label=recorded.STUDY_RATIO)
    shown = [markup_block(words, elem_id="study-words")]
    with gr.Row(elem_classes="lab-pair"):
        for where, spec in zip(STUDY_SETS, specs, strict=True):
            with gr.Column(min_width=0):
                shown.append(figure(f"study-{where}", spec))
    page.on(chosen.input, draw, [chosen], shown)


def study_words(summary: StudySummary, ratio: float) -> str:
    """What the study is, and what it found at this harmful ratio."""
    note = recorded.STUDY_NOTE.format(
        seeds=summary.num_alignment_seeds,
        attacks=summary.num_attack_seeds,
        alignment=summary.alignment,
        samples=summary.num_samples,
        steps=summary.steps,
    )
    return f'<p class="lab-note">{note}</p>' + markup.notice(recorded.study_finding(summary, ratio))


def config_of(glance: Glance) -> LabConfig:
    """The run's config; the first preset's while no run is open."""
    return glance.view.config if glance.view else next(iter(PRESETS.values())).config


# Questions and answers


def panes_key(glance: Glance) -> Hashable:
    """Changes with the models there are and with the visitor's question."""
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
        bool(question and is_harmless(config_of(glance), question.params["prompt"])),
        lab.queue_position(question.id) if question and question.state == "queued" else None,
    )


def follow(page: Page, memory: Memory) -> Iterator[dict[str, Any]]:
    """The panes while the visitor's question is answered, at every change, until it has ended or a new one came."""
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
    """Prompts to try, named by the set they come from."""
    chips = [(prompt, f"{text.set_title(where)}: {prompt}") for where, prompt in suggestions(config)]
    return f'<p class="lab-note">{text.SUGGESTED}</p>{markup.chips(chips)}'


# Scores


def table_columns(view: RunView, task: str) -> dict[str, str]:
    """Measures of the table: title by `set/score`."""
    columns = {f"{where}/harmful_score": text.measure_of(where) for where in view.harmful_sets}
    columns[f"{task}/finetune_accuracy"] = text.measure_of(task)
    columns |= {"ordinary/exact": text.TABLE_ORDINARY, "ordinary/over_refusal": text.TABLE_OVER_REFUSAL}
    columns |= {f"{where}/coherent": text.TABLE_COHERENT for where in view.harmful_sets[:1]}
    return columns


def score_of(view: RunView, state: str, column: str) -> Proportion | None:
    """The last measurement of a state for a column of the table."""
    where, _, measure = column.rpartition("/")
    record = view.final(state, where)
    return record.scores.get(measure) if record else None


def draw_table(glance: Glance) -> str:
    """Every state of the run against every measure."""
    view = glance.view
    if view is None or not view.evals:
        return markup.notice(text.SCORES_EMPTY)
    columns = table_columns(view, task_set(view, glance.attack))
    rows: list[tuple[str, str | None, str, dict[str, Proportion | None]]] = []
    states: list[tuple[str, str | None, str]] = [(panes.BASE, None, text.BASE_TITLE)]
    for defence in view.defences:
        look = view.looks[defence]
        for when, state in view.states_of(defence, glance.attack).items():
            states.append((state, look.colour, f"{look.title}, {text.WHEN_SHORT[when]}"))
    for state, colour, title in states:
        if any(name == state for name, _, _ in view.evals):
            known = view.states.get(state)
            scores = {column: score_of(view, state, column) for column in columns}
            rows.append((title, colour, known.state_hash[: panes.SHORT_HASH] if known else "", scores))
    judge = next(iter(view.evals.values())).judge
    caption = text.TABLE_CAPTION.format(judge=judge, seed=view.config.seed)
    warning = markup.notice(own_text.DATA, "warning") if is_own(view.config.model) else ""
    return warning + markup.scores_table(rows, columns) + f'<p class="lab-note">{caption}</p>'


def bar_rows(glance: Glance) -> list[tuple[Look, str, dict[str, Proportion]]]:
    """HS by set and FA of each defence, before and after the attack shown."""
    view = glance.view
    if view is None:
        return []
    task = task_set(view, glance.attack)
    columns = {where: f"{where}/harmful_score" for where in view.harmful_sets}
    columns[task] = f"{task}/finetune_accuracy"
    rows = []
    for defence in view.defences:
        for when, state in view.states_of(defence, glance.attack).items():
            found = {where: score_of(view, state, column) for where, column in columns.items()}
            rows.append(
                (view.looks[defence], when, {where: score for where, score in found.items() if score is not None})
            )
    return rows


def draw_drift(glance: Glance) -> charts.Spec:
    """Drift of each attacked model from its aligned one."""
    view = glance.view
    if view is None or glance.attack is None:
        return charts.drift({}, {})
    states = {defence: view.states_of(defence, glance.attack)["after"] for defence in view.defences}
    found = {defence: view.drift[state] for defence, state in states.items() if state in view.drift}
    return charts.drift(found, view.looks)


def draw_not_shown(glance: Glance) -> str:
    """What this page cannot tell."""
    own = is_own(config_of(glance).model)
    return f'<p class="lab-note">{text.NOT_SHOWN.format(size=text.OTHER_SIZE if own else text.SANDBOX_SIZE)}</p>'
