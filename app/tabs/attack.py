"""Attack: the user's fine-tune with harmful samples among their data, on every aligned model."""

from html import escape
from typing import Any

import gradio as gr

from app import charts, markup, text
from app.components import figure, heading, markup_block, news_block, section
from app.draft import Draft
from app.page import Glance, Memory, Page, remembered, run_of
from app.services import PRESETS, AttackConfig, ConfigError, JobKind, RunBusyError
from app.services import task_set as set_of_task
from app.tabs.align import can_resume, can_stop, jobs_and
from app.views import RunView

ATTACK_KINDS: tuple[JobKind, ...] = ("attack", "repair")


def build(page: Page, draft: Draft) -> None:
    """Place and wire the screen."""
    gr.HTML(heading(text.STEPS[3], text.WHY[3]), apply_default_css=False)
    with gr.Row(elem_classes="lab-split"):
        with gr.Column(elem_classes=["lab-controls", "lab-begin"], min_width=0):
            start = gr.Button(text.START_ATTACK, variant="primary", elem_id="start-attack", interactive=False)
            with gr.Row(elem_classes="lab-buttons"):
                stop = gr.Button(text.STOP, elem_id="stop-attack", interactive=False)
                resume = gr.Button(text.RESUME, elem_id="resume-attack", interactive=False)
            meaning = markup_block(meaning_of(next(iter(PRESETS.values())).config.attack), elem_id="meaning")
        with gr.Column(elem_classes="lab-main", min_width=0):
            which = gr.Dropdown(
                choices=[], label=text.ATTACK_SHOWN, elem_id="attack-shown", visible=False, interactive=True
            )
            cards = news_block("attack-cards")
            said = news_block("attack-messages")
            gr.HTML(section(text.CURVES_TITLE, text.CURVES_NOTE), apply_default_css=False)
            curves = figure("curves")
        with gr.Column(elem_classes=["lab-controls", "lab-settings"], min_width=0):
            draft.place_attack()

    def start_attack(memory: Memory, *values: Any) -> Memory:
        run_id = run_of(memory)
        try:
            attack_id = page.lab.start_attack(run_id, draft.read(*values).attack)
        except RunBusyError as busy:  # pressed twice: the attack has started already
            if not busy.attack_id:
                raise
            gr.Info(text.ALREADY_ATTACKING.format(attack=busy.attack_id), duration=8)
            return remembered(memory, attack=busy.attack_id)
        view = page.views.view(run_id, fresh=True)
        names = ", ".join(view.looks[name].title for name in view.attacked_defences(attack_id))
        gr.Info(text.STARTED_ATTACK.format(defences=escape(names)), duration=4)
        return remembered(memory, attack=attack_id)

    def stop_attack(memory: Memory) -> None:
        gr.Info(text.STOPPING if page.lab.stop(run_of(memory), ATTACK_KINDS) else text.NOTHING_TO_STOP)

    def resume_attack(memory: Memory) -> None:
        gr.Info(text.RESUMED if page.lab.resume(run_of(memory), ATTACK_KINDS) else text.NOTHING_TO_RESUME)

    def show_meaning(base: str, *values: Any) -> str:
        try:
            return meaning_of(draft.read_attack(base, *values))
        except ConfigError as error:  # while somebody types; the same error stops the start
            return markup.notice(str(error), "warning")

    def show_attack(memory: Memory, attack_id: str | None) -> Memory:
        return remembered(memory, attack=attack_id)

    page.act(start.click, start_attack, [page.memory, *draft.inputs], [page.memory], trigger_mode="once")
    page.act(stop.click, stop_attack, [page.memory])
    page.act(resume.click, resume_attack, [page.memory])
    page.act(which.input, show_attack, [page.memory, which], [page.memory])
    for control in draft.attack.components:
        page.on(control.change, show_meaning, [draft.base, *draft.attack.components], [meaning])  # pyright: ignore[reportAttributeAccessIssue] - every control has `change`

    page.show(cards, jobs_and("attack", "eval"), draw_cards)
    page.show(said, lambda glance: glance.stamp("message", "jobs_made"), draw_messages)
    page.show(curves, lambda glance: glance.stamp("eval", "jobs_made"), draw_curves)
    page.show(which, lambda glance: glance.stamp("jobs_made"), draw_choice)
    page.show(start, can_start, lambda glance: gr.Button(interactive=can_start(glance)))
    page.show(
        stop,
        lambda glance: can_stop(glance, "attack"),
        lambda glance: gr.Button(interactive=can_stop(glance, "attack")),
    )
    page.show(
        resume,
        lambda glance: can_resume(glance, "attack"),
        lambda glance: gr.Button(interactive=can_resume(glance, "attack")),
    )


def can_start(glance: Glance) -> bool:
    """True if there is, or will be, an aligned model to attack."""
    view = glance.view
    jobs = [view.align_job(key) for key in view.config.alignments()] if view and not glance.recorded else []
    return bool(jobs) and all(
        job is not None and job.state in ("queued", "running", "interrupted", "done") for job in jobs
    )


def meaning_of(attack: AttackConfig) -> str:
    """What the settings mean, in plain words."""
    sentence = text.consequence(
        round(attack.harmful_ratio * attack.num_samples),
        attack.num_samples,
        attack.task,
        attack.optimisation.steps,
        attack.optimisation.batch_size * attack.optimisation.accumulation,
    )
    return markup.notice(f"{sentence} {text.ADAPTER_MODES[attack.adapter_mode]}")


def draw_choice(glance: Glance) -> Any:
    """The attacks of the run, with the shown attack selected; hidden while there is nothing to choose."""
    view = glance.view
    ids = view.attack_ids if view else ()
    titles = [(attack_title(view, attack_id), attack_id) for attack_id in ids] if view else []
    return gr.Dropdown(choices=titles, value=glance.attack, visible=len(ids) > 1)


def attack_title(view: RunView, attack_id: str) -> str:
    """`a2: p 0.2, n 400, sentiment, 200 steps`."""
    attack = view.attack_config(attack_id)
    return (
        f"{attack_id}: p {attack.harmful_ratio:g}, n {attack.num_samples}, {attack.task}, "
        f"{attack.optimisation.steps} steps, lr {attack.optimisation.learning_rate:g}"
    )


def draw_cards(glance: Glance) -> str:
    """One card per attacked defence: state, time left, and the newest HS and FA; those of its repair in the note."""
    view = glance.view
    if view is None or not (can_start(glance) or glance.recorded):
        return markup.notice(text.NO_ALIGNED)
    if glance.attack is None:
        return ""
    task = task_set(view, glance.attack)
    cards = []
    for defence in view.attacked_defences(glance.attack):
        job = view.attack_job(glance.attack, defence)
        waiting = glance.lab.queue_position(job.id) if job and job.state == "queued" else None
        newest = {where: view.curve(defence, glance.attack, where)[-1:] for where in (*view.harmful_sets, task)}
        numbers = {
            text.measure_of(where): markup.score(record.scores.get(measure_in(where, task)))
            for where, records in newest.items()
            for record in records
        }
        step = max((record.step for records in newest.values() for record in records), default=0)
        note = text.AT_STEP.format(step=step) if numbers else ""
        repair = view.repair_job(glance.attack, defence)
        if repair is not None:
            said = text.REPAIR_NOTE.format(state=text.STATE_WORDS[repair.state])
            note = " ".join(filter(None, (note, said, repair.error, repair.remedy)))
        look = view.looks[defence]
        cards.append(markup.job_card(look.title, job, view.track(job), look.colour, numbers, waiting, note))
    return f'<div class="lab-cards">{"".join(cards)}</div>'


def draw_messages(glance: Glance) -> str:
    """Messages of the attack shown: model, device, template, warnings."""
    view = glance.view
    if view is None or glance.attack is None:
        return ""
    jobs = [view.attack_job(glance.attack, defence) for defence in view.attacked_defences(glance.attack)]
    return markup.messages([record for job in jobs for record in view.track(job).messages])


def measure_in(where: str, task: str) -> str:
    """The score that matters on a set."""
    return "finetune_accuracy" if where == task else "harmful_score"


def task_set(view: RunView, attack_id: str | None) -> str:
    """The evaluation set that gives the FA of an attack."""
    attack = view.attack_config(attack_id) if attack_id else view.config.attack
    return set_of_task(attack.task)


def draw_curves(glance: Glance) -> charts.Spec:
    """HS on each harmful set and FA along the attack shown."""
    view = glance.view
    if view is None:
        return charts.empty(text.CURVES_EMPTY, 400)
    task = task_set(view, glance.attack)
    steps = view.attack_config(glance.attack).optimisation.steps if glance.attack else 1
    curves = {
        defence: {where: view.curve(defence, glance.attack, where) for where in (*view.harmful_sets, task)}
        for defence in view.defences
    }
    if glance.attack is None:
        return charts.empty(text.CURVES_EMPTY, 400)
    states = {record.state for by_set in curves.values() for records in by_set.values() for record in records}
    cannot = {state for state in states if view.cannot(state)}
    return charts.attack_curves(curves, task, steps, view.looks, cannot)
