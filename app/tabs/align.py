"""Align: the same data, several methods side by side, watched layer by layer."""

from collections.abc import Callable, Hashable
from html import escape
from statistics import median
from typing import Any

import gradio as gr

from app import charts, layer_charts, markup, text
from app.components import chooser, figure, heading, news_block, section
from app.draft import Draft, methods_in
from app.looks import aligned_looks
from app.page import Glance, Memory, Page, remembered, run_of
from app.services import LayerScoreRecord, RunBusyError, capabilities_of, method_info, scoring_keys
from app.views import RunView, Track

LAYERS_OF = "layers-of"
"""The chooser of the method whose layers are shown."""
DOMINANT_SHARE = 0.5
"""A layer with a larger share of the probability than this dominates."""
LOSS_EVERY_S = 2.0
"""One more step hardly changes a curve, but the whole curve is sent and drawn again."""


def build(page: Page, draft: Draft) -> None:
    """Place and wire the screen."""
    gr.HTML(heading(text.STEPS[2], text.WHY[2]), apply_default_css=False)
    with gr.Row(elem_classes="lab-split"):
        with gr.Column(elem_classes=["lab-controls", "lab-begin"], min_width=0):
            start = gr.Button(text.START_ALIGN, variant="primary", elem_id="start-align")
            with gr.Row(elem_classes="lab-buttons"):
                stop = gr.Button(text.STOP, elem_id="stop-align", interactive=False)
                resume = gr.Button(text.RESUME, elem_id="resume-align", interactive=False)
            gr.HTML(f'<p class="lab-note">{text.NEW_RUN_NOTE}</p>', apply_default_css=False)
        with gr.Column(elem_classes="lab-main", min_width=0):
            cards = news_block("align-cards")
            said = news_block("align-messages")
            gr.HTML(section(text.HEATMAP_TITLE, text.HEATMAP_NOTE), apply_default_css=False)
            which = chooser(LAYERS_OF)
            dominance = news_block("dominance")
            heatmap = figure("heatmap")
            with gr.Column(min_width=0, visible=False) as measured:
                gr.HTML(section(text.LAYER_VALUES_TITLE), apply_default_css=False)
                values = figure("layer-values")
            with gr.Row(elem_classes="lab-pair"):
                with gr.Column(min_width=0):
                    gr.HTML(section(text.LOSS_TITLE), apply_default_css=False)
                    loss = figure("loss")
                with gr.Column(min_width=0):
                    gr.HTML(section(text.BARS_TITLE), apply_default_css=False)
                    bars = figure("bars")
        with gr.Column(elem_classes=["lab-controls", "lab-settings"], min_width=0):
            groups = draft.place_align()

    def start_alignment(memory: Memory, *values: Any) -> Memory:
        config = draft.read(*values)
        try:
            run_id = page.lab.start_alignment(config, text.run_name(config))
            gr.Info(text.STARTED_ALIGN, duration=4)
        except RunBusyError as busy:  # pressed twice, or by two people: the run has started already
            run_id = busy.run_id
            gr.Info(text.ALREADY_ALIGNING.format(name=escape(page.lab.run(run_id).name)), duration=8)
        return remembered(memory, run=run_id, attack=None)

    def stop_alignment(memory: Memory) -> None:
        gr.Info(text.STOPPING if page.lab.stop(run_of(memory), ("align", "baseline")) else text.NOTHING_TO_STOP)

    def resume_alignment(memory: Memory) -> None:
        gr.Info(text.RESUMED if page.lab.resume(run_of(memory), ("align", "baseline")) else text.NOTHING_TO_RESUME)

    def show_groups(chosen: list[str]) -> list[Any]:
        used = methods_in(chosen)
        return [gr.Group(visible=name in used) for name, _ in groups]

    page.act(start.click, start_alignment, [page.memory, *draft.inputs], [page.memory], trigger_mode="once")
    page.act(stop.click, stop_alignment, [page.memory])
    page.act(resume.click, resume_alignment, [page.memory])
    page.on(draft.chosen.change, show_groups, [draft.chosen], [group for _, group in groups])

    page.show(cards, jobs_and("align"), draw_cards)
    page.show(said, lambda glance: glance.stamp("message", "jobs_made"), draw_messages)
    page.show(heatmap, lambda glance: glance.stamp("layers"), draw_heatmap)
    page.show(which, lambda glance: glance.stamp("layers", "jobs_made"), draw_choice)
    page.show(measured, has_values, lambda glance: gr.Column(visible=has_values(glance)))
    page.show(values, lambda glance: glance.stamp("layers"), draw_values)
    page.show(bars, lambda glance: glance.stamp("layers"), draw_bars)
    page.show(dominance, lambda glance: glance.stamp("layers"), draw_dominance)
    page.show(loss, lambda glance: glance.stamp("align"), draw_loss, every_s=LOSS_EVERY_S)
    page.show(
        stop, lambda glance: can_stop(glance, "align"), lambda glance: gr.Button(interactive=can_stop(glance, "align"))
    )
    page.show(
        resume,
        lambda glance: can_resume(glance, "align"),
        lambda glance: gr.Button(interactive=can_resume(glance, "align")),
    )


def jobs_and(*topics: str) -> Any:
    """Key of components that also show the state of jobs."""

    def key(glance: Glance) -> Hashable:
        return glance.stamp("jobs", *topics)

    return key


def can_stop(glance: Glance, kind: str) -> bool:
    """True while a job of this kind is queued or running and was not asked to stop yet."""
    jobs = glance.view.jobs if glance.view else ()
    return any(job.kind == kind and job.active and not job.cancel_requested for job in jobs)


def can_resume(glance: Glance, kind: str) -> bool:
    """True if the newest attempt at some work of this kind failed or was stopped."""
    return any(job.state in ("failed", "cancelled", "interrupted") for job in newest(glance.view, kind))


def newest(view: RunView | None, kind: str) -> list[Any]:
    """The newest job of each piece of work of a kind."""
    if view is None:
        return []
    found = {}
    for job in view.jobs:
        if job.kind == kind:
            found[tuple(str(job.params.get(name)) for name in ("attack_id", "defence", "aligned"))] = job
    return list(found.values())


def measuring_keys(view: RunView) -> list[str]:
    """Keys of the aligned states whose alignment reported a number per layer."""
    return [key for key in view.config.alignments() if view.track(view.align_job(key)).values]


def layer_keys(view: RunView) -> list[str]:
    """Keys of the aligned states that have something to show per layer; the ones that score layers come first."""
    return list(dict.fromkeys([*scoring_keys(view.config), *measuring_keys(view)]))


def has_values(glance: Glance) -> bool:
    """True if an alignment of the run reported a number per layer."""
    return bool(glance.view and measuring_keys(glance.view))


def by_alignment(view: RunView, draw: Callable[[RunView, str], Any]) -> dict[str, Any]:
    """What `draw` makes of each alignment that has something to show per layer. The reader's page shows one of them."""
    return {"of": LAYERS_OF, "by": {key: draw(view, key) for key in layer_keys(view)}}


def draw_choice(glance: Glance) -> dict[str, Any]:
    """The alignments whose layers can be shown."""
    keys = layer_keys(glance.view) if glance.view else []
    looks = aligned_looks(glance.view.config) if glance.view else {}
    options = [{"id": key, "title": looks[key].title, "colour": looks[key].colour} for key in keys]
    return {"label": text.LAYERS_OF, "options": options}


def draw_cards(glance: Glance) -> str:
    """One card per aligned state: the defences built on it, its job's state, time left, loss."""
    if glance.view is None:
        return markup.notice(text.ALIGN_EMPTY)
    cards = []
    looks = aligned_looks(glance.view.config)
    for key, method in glance.view.config.alignments().items():
        job = glance.view.align_job(key)
        waiting = glance.lab.queue_position(job.id) if job and job.state == "queued" else None
        track = glance.view.track(job)
        numbers = {text.LOSS: markup.plain(f"{track.last.loss:.3f}" if track.last else "–")}
        cost = method_info(method.name).cost
        cards.append(markup.job_card(looks[key].title, job, track, looks[key].colour, numbers, waiting, cost))
    return f'<div class="lab-cards">{"".join(cards)}</div>'


def draw_messages(glance: Glance) -> str:
    """Messages of the alignments: model, device, template, warnings."""
    view = glance.view
    jobs = [view.align_job(key) for key in view.config.alignments()] if view else []
    return markup.messages([record for job in jobs if view for record in view.track(job).messages])


def draw_heatmap(glance: Glance) -> charts.Spec | dict[str, Any]:
    """Layers x scorings of each alignment, in the same colours."""
    if glance.view is None:
        return charts.empty(text.HEATMAP_EMPTY, 360)
    if not layer_keys(glance.view):
        return charts.empty(text.HEATMAP_NOT_SCORED, 160)
    scoring = scoring_keys(glance.view.config)
    span = layer_charts.score_span([glance.view.track(glance.view.align_job(key)) for key in scoring])

    def draw(view: RunView, key: str) -> charts.Spec:
        if key not in scoring:
            return charts.empty(text.ALIGNMENT_NOT_SCORED, 160)
        every = capabilities_of(view.config.alignments()[key]).draw_every
        title = aligned_looks(view.config)[key].title
        track = view.track(view.align_job(key))
        return layer_charts.layer_heatmap(track, view.config.alignment.optimisation.steps, every, span, title)

    return by_alignment(glance.view, draw)


def draw_bars(glance: Glance) -> charts.Spec | dict[str, Any]:
    """The newest scoring of each alignment, in its colour."""
    if glance.view is None or not layer_keys(glance.view):
        return charts.empty(text.BARS_EMPTY, 240)

    def draw(view: RunView, key: str) -> charts.Spec:
        if key not in scoring_keys(view.config):
            return charts.empty(text.ALIGNMENT_NOT_SCORED, 240)
        return layer_charts.layer_bars(view.track(view.align_job(key)), aligned_looks(view.config)[key].colour)

    return by_alignment(glance.view, draw)


def draw_values(glance: Glance) -> charts.Spec | dict[str, Any]:
    """What each alignment measures in the layers."""
    if glance.view is None or not has_values(glance):
        return layer_charts.layer_values(Track())

    def draw(view: RunView, key: str) -> charts.Spec:
        if key not in measuring_keys(view):
            return charts.empty(text.ALIGNMENT_NOT_MEASURED, 160)
        return layer_charts.layer_values(view.track(view.align_job(key)), aligned_looks(view.config)[key].title)

    return by_alignment(glance.view, draw)


def draw_loss(glance: Glance) -> charts.Spec:
    """Loss of everything the run aligns."""
    view = glance.view
    if view is None:
        return charts.loss({}, {})
    tracks = {key: view.track(view.align_job(key)) for key in view.config.alignments()}
    return charts.loss(tracks, aligned_looks(view.config))


def draw_dominance(glance: Glance) -> str | dict[str, Any]:
    """A sentence for each alignment in which one layer holds most of the probability."""
    if glance.view is None:
        return ""

    def draw(view: RunView, key: str) -> str:
        scores = view.track(view.align_job(key)).scores
        return markup.notice(dominance_of(scores[max(scores)])) if scores else ""

    return by_alignment(glance.view, draw)


def dominance_of(record: LayerScoreRecord) -> str:
    """A sentence on the layer that dominates a scoring; empty if none does."""
    share = max(record.layer_probabilities)
    layer = record.layer_probabilities.index(share)
    others = [score for number, score in enumerate(record.layer_scores) if number != layer]
    if share <= DOMINANT_SHARE or not others or median(others) <= 0:
        return ""
    return text.DOMINATES.format(layer=layer, share=100 * share, ratio=record.layer_scores[layer] / median(others))
