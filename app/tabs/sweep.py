"""Sweep: many experiments from one file, as a table that fills while they are made."""

import logging
from collections import OrderedDict
from collections.abc import Hashable
from html import escape
from typing import Any

import gradio as gr

from app import markup, text
from app.arguments import choice_of, text_of
from app.components import chooser, go_js, heading, markup_block, news_block, section
from app.draft import Draft
from app.findings import grid
from app.page import Glance, Memory, Page, remembered
from app.services import (
    ConfigError,
    LabConfig,
    StoreError,
    SweepRow,
    SweepView,
    read_yaml,
    settings_paths,
    shown,
    sweep_files,
    sweep_text,
    title_of,
    without_places,
)

FROM_RUN = ""
"""The source that is no file."""
MEASURE = "sweep-measure"
TABLE_EVERY_S = 2.0
SWEEPS_IN_MEMORY = 4

log = logging.getLogger(__name__)


def build(page: Page, draft: Draft) -> None:
    """Place and wire the screen."""
    gr.HTML(heading(text.STEPS[6], text.WHY[6]), apply_default_css=False)
    files = sweep_files()
    begin = page.glance(None).config
    paths = [(f"{title} ({path})", path) for title, path in settings_paths(begin)]
    with gr.Row(elem_classes="lab-split"):
        with gr.Column(elem_classes=["lab-controls", "lab-begin"], min_width=0):
            gr.HTML(section(text.SWEEP_NEW), apply_default_css=False)
            source = gr.Dropdown(
                [(text.SWEEP_FROM_RUN, FROM_RUN), *((f"{name}.yaml", name) for name in files)],
                value=FROM_RUN,
                label=text.SWEEP_SOURCE,
                elem_id="sweep-source",
            )
            with gr.Group(elem_id="sweep-vary") as vary:
                first = gr.Dropdown(paths, value="attack.harmful_ratio", label=text.SWEEP_PATH, elem_id="sweep-path")
                values = gr.Textbox("0, 0.05, 0.1", label=text.SWEEP_VALUES, info=text.SWEEP_VALUES_HINT)
                second = gr.Dropdown(
                    [(text.SWEEP_NO_PATH, ""), *paths], value="", label=text.SWEEP_SECOND_PATH, elem_id="sweep-second"
                )
                second_values = gr.Textbox(label=text.SWEEP_VALUES, visible=False, elem_id="sweep-second-values")
                seeds = gr.Textbox("0, 1", label=text.SWEEP_SEEDS, elem_id="sweep-seeds")
                write = gr.Button(text.SWEEP_WRITE, elem_id="sweep-write")
            file = gr.Textbox(
                sweep_text(begin, name_of(begin), {"seed": [0, 1], "attack.harmful_ratio": [0, 0.05, 0.1]}),
                label=text.SWEEP_FILE,
                info=text.SWEEP_FILE_HINT,
                lines=12,
                max_lines=24,
                elem_id="sweep-file",
            )
            with gr.Row(elem_classes="lab-buttons"):
                check = gr.Button(text.SWEEP_CHECK, elem_id="sweep-check")
                start = gr.Button(text.SWEEP_START, variant="primary", elem_id="sweep-start")
            plan = markup_block(elem_id="sweep-plan")
        with gr.Column(elem_classes="lab-main", min_width=0):
            rows = news_block("sweep-list")
            about = news_block("sweep-about")
            with gr.Row(elem_classes="lab-buttons", visible=False, elem_id="sweep-buttons") as buttons:
                stop = gr.Button(text.SWEEP_STOP, elem_id="sweep-stop")
                go_on = gr.Button(text.SWEEP_GO_ON, elem_id="sweep-go-on")
                forget = gr.Button(text.SWEEP_FORGET, elem_id="sweep-forget")
            gr.HTML(section(text.SWEEP_TABLE, text.SWEEP_TABLE_NOTE), apply_default_css=False)
            which = chooser(MEASURE)
            table = news_block("sweep-table")
            cells = news_block("sweep-cells")

    def show_source(name: object) -> list[Any]:
        if name == FROM_RUN:
            return [gr.Group(visible=True), gr.skip(), ""]
        if not isinstance(name, str) or name not in files:
            raise ConfigError(text.SWEEP_NO_FILE.format(name=shown(name)), remedy=text.SWEEP_NO_FILE_REMEDY)
        return [gr.Group(visible=False), files[name], ""]

    def show_second(path: object) -> gr.Textbox:
        return gr.Textbox(visible=bool(path))

    def write_file(*values: Any) -> list[Any]:
        config = draft.read(*values[len(given) :])
        return [sweep_text(config, name_of(config), varied(config, *values[: len(given)])), ""]

    def check_file(written: str) -> str:
        return markup.notice(text.sweep_plan(page.lab.sweeps.plan(text_of(written, text.SWEEP_FILE))))

    def start_sweep(memory: Memory, written: str) -> Memory:
        sweep_id = page.lab.sweeps.start(text_of(written, text.SWEEP_FILE))
        gr.Info(text.SWEEP_STARTED, duration=4)
        return remembered(memory, sweep=sweep_id)

    def show_sweep(memory: Memory, event: gr.EventData) -> Memory:
        return remembered(memory, sweep=choice_of(event))

    def stop_sweep(memory: Memory) -> None:
        page.lab.sweeps.stop(shown_sweep(page, memory).id)
        gr.Info(text.SWEEP_STOPPING, duration=6)

    def let_go_on(memory: Memory) -> None:
        page.lab.sweeps.go_on(shown_sweep(page, memory).id)
        gr.Info(text.SWEEP_GOES_ON, duration=4)

    def forget_sweep(memory: Memory) -> Memory:
        page.lab.sweeps.forget(shown_sweep(page, memory).id)
        gr.Info(text.SWEEP_FORGOTTEN, duration=4)
        return remembered(memory, sweep=None)

    def open_cell(memory: Memory, event: gr.EventData) -> list[Any]:
        result = page.lab.sweeps.view(shown_sweep(page, memory).id).results.get(choice_of(event))
        if result is None:
            raise StoreError(text.SWEEP_CELL_GONE, remedy=text.SWEEP_CELL_REMEDY)
        config = page.lab.run(result.run_id).config
        words = ", ".join(filter(None, (result.title, text.settings_words(result.varied))))
        gr.Info(escape(text.SWEEP_OPENED.format(cell=words)), duration=6)
        return [remembered(memory, run=result.run_id, attack=result.attack_id), *draft.fill(config)]

    given = [first, values, second, second_values, seeds]
    page.on(source.input, show_source, [source], [vary, file, plan])
    page.on(second.input, show_second, [second], [second_values])
    page.on(write.click, write_file, [*given, *draft.inputs], [file, plan])
    page.on(check.click, check_file, [file], [plan])
    page.act(start.click, start_sweep, [page.memory, file], [page.memory], trigger_mode="once")
    page.act(rows.choose, show_sweep, [page.memory], [page.memory])
    page.act(stop.click, stop_sweep, [page.memory])
    page.act(go_on.click, let_go_on, [page.memory])
    page.act(forget.click, forget_sweep, [page.memory], [page.memory])
    for part in (table, cells):
        page.act(part.choose, open_cell, [page.memory], [page.memory, *draft.outputs]).success(
            None, None, None, js=go_js(4), api_visibility="private"
        )

    drawn = Drawn(page)
    page.show(rows, list_key, draw_list)
    page.show(about, sweep_key, drawn.about, every_s=TABLE_EVERY_S)
    page.show(which, sweep_key, drawn.measures, every_s=TABLE_EVERY_S)
    page.show(table, sweep_key, drawn.table, every_s=TABLE_EVERY_S)
    page.show(cells, sweep_key, drawn.cells, every_s=TABLE_EVERY_S)
    page.show(buttons, state_of, lambda glance: gr.Row(visible=glance.sweep is not None))
    page.show(stop, state_of, lambda glance: gr.Button(interactive=state_of(glance) == "running"))
    page.show(go_on, can_go_on, lambda glance: gr.Button(interactive=can_go_on(glance)))


def state_of(glance: Glance) -> str:
    """State of the sweep shown; empty if there is none."""
    return glance.sweep.state if glance.sweep else ""


def can_go_on(glance: Glance) -> bool:
    """True if the sweep shown was stopped, or has cells that failed."""
    row = glance.sweep
    return row is not None and row.state != "running" and (row.state == "stopped" or bool(row.problems))


def shown_sweep(page: Page, memory: Memory) -> SweepRow:
    """The sweep that a browser shows. Raises `StoreError` if there is none."""
    row = page.glance(memory).sweep
    if row is None:
        raise StoreError(text.SWEEP_NONE, remedy=text.SWEEP_NO_FILE_REMEDY)
    return row


def name_of(config: LabConfig) -> str:
    """A sweep's name, from the defences that it compares."""
    return " and ".join(title_of(defence) for defence in config.defences)[:60]


def varied(config: LabConfig, first: Any, values: Any, second: Any, second_values: Any, seeds: Any) -> dict[str, list]:
    """What is varied, from the fields of the page: path -> values.

    Raises:
        ConfigError: no setting, no values, a setting twice, or text that is no list of values.
    """
    allowed = {path for _, path in settings_paths(config)}
    for path in (first, second or first):
        if not isinstance(path, str) or path not in allowed:
            raise ConfigError(text.SWEEP_NO_SETTING.format(path=shown(path)), remedy=text.SWEEP_NO_SETTING_REMEDY)
    given = {"seed": seeds, first: values}
    if first == second:
        raise ConfigError(text.SWEEP_TWICE, remedy=text.SWEEP_TWICE_REMEDY)
    if second:
        given[second] = second_values
    return {path: _values(path, words) for path, words in given.items()}


def _values(path: str, words: object) -> list[Any]:
    """`0, 0.05` -> [0, 0.05]."""
    found = read_yaml(f"[{text_of(words, text.SWEEP_VALUES)}]", path, remedy=text.SWEEP_VALUES_HINT)
    if not isinstance(found, list) or not found:
        raise ConfigError(text.SWEEP_VALUES_MISSING.format(path=path), remedy=text.SWEEP_VALUES_HINT)
    return found


def list_key(glance: Glance) -> Hashable:
    """Changes with the list of sweeps, their progress, and the sweep shown."""
    return (tuple(glance.lab.sweeps.rows()), glance.sweep and glance.sweep.id)


def sweep_key(glance: Glance) -> Hashable:
    """Changes when the sweep shown has made a cell, failed in one, or has another state."""
    row = glance.sweep
    return (row.id, row.state, row.done, row.problems) if row else None


def draw_list(glance: Glance) -> str:
    """The sweeps, newest first."""
    rows = glance.lab.sweeps.rows()
    if not rows:
        return markup.notice(text.SWEEP_NONE)
    shown_id = glance.sweep.id if glance.sweep else None
    lines = "".join(
        f'<tr{" class=lab-chosen" if row.id == shown_id else ""}><td><button type="button" class="lab-row" '
        f'data-choice="{escape(row.id)}">{escape(row.name)}</button></td>'
        f'<td class="lab-dim">{row.created_at:%Y-%m-%d %H:%M} UTC</td>'
        f"<td>{text.sweep_progress(row.done, row.total, row.seconds_left, row.state)}</td></tr>"
        for row in rows
    )
    return (
        f'<div class="lab-scroll lab-short"><table class="lab-table lab-runs"><thead><tr><th>{text.SWEEP_LIST}</th>'
        f"<th>Started</th><th>State</th></tr></thead><tbody>{lines}</tbody></table></div>"
    )


class Drawn:
    """Drawings of the sweep shown. Several viewers, and several drawings, share one reading of its results."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._read_before: OrderedDict[Hashable, tuple[SweepView, dict[str, tuple[str, str]]]] = OrderedDict()

    def _read(self, glance: Glance) -> tuple[SweepView, dict[str, tuple[str, str]]] | None:
        """The sweep shown and its tables; None if there is no sweep, or it was made by another version."""
        row, key = glance.sweep, sweep_key(glance)
        if row is None:
            return None
        if key not in self._read_before:
            try:
                view = self._page.lab.sweeps.view(row.id)
            except (ConfigError, StoreError) as error:
                log.warning("sweep %s cannot be shown: %s", row.id, error)
                return None
            self._read_before[key] = (view, grid.tables(view))
            while len(self._read_before) > SWEEPS_IN_MEMORY:
                self._read_before.popitem(last=False)
        return self._read_before[key]

    def about(self, glance: Glance) -> str:
        """Name, progress and problems."""
        row = glance.sweep
        if row is None:
            return ""
        share = 100 * row.done / max(1, row.total)
        words = text.sweep_progress(row.done, row.total, row.seconds_left, row.state)
        return (
            f'<div class="lab-card" data-state="{row.state}"><div class="lab-card-head">'
            f'<span class="lab-card-title">{escape(row.name)}</span><span class="lab-dim">{words}</span></div>'
            f'<span class="lab-bar" role="progressbar" aria-label="{escape(row.name)}" aria-valuemin="0" '
            f'aria-valuemax="100" aria-valuenow="{share:.0f}"><i style="width:{share:.1f}%"></i></span></div>'
            + "".join(markup.notice(self._placeless(problem), "warning") for problem in row.problems)
        )

    def _placeless(self, words: str) -> str:
        return without_places(words, self._page.lab.store.home)

    def measures(self, glance: Glance) -> dict[str, Any]:
        """The value of the chooser of measures."""
        found = self._read(glance)
        made = found[1] if found else {}
        options = [{"id": name, "title": title, "colour": "transparent"} for name, (title, _) in made.items()]
        return {"label": text.SWEEP_SHOWN, "options": options}

    def table(self, glance: Glance) -> Any:
        """The table, one for each measure."""
        found = self._read(glance)
        if found is None or not found[1]:
            return markup.notice(text.SWEEP_EMPTY) if glance.sweep else ""
        return {"of": MEASURE, "by": {name: drawn for name, (_, drawn) in found[1].items()}}

    def cells(self, glance: Glance) -> str:
        """Every cell."""
        found = self._read(glance)
        return grid.cell_rows(found[0]) if found else ""
