"""Runs: all runs of this lab; reopen, compare, download, repeat, delete."""

from collections.abc import Hashable
from html import escape
from typing import Any
from urllib.parse import quote

import gradio as gr

from app import markup, text
from app.arguments import choice_of, text_of
from app.components import go_js, heading, markup_block, news_block, section
from app.draft import Draft
from app.page import Glance, Memory, Page, remembered
from app.services import ConfigError, RunNotFoundError, RunRow, TVaccineError, flatten, title_of

TABLE_EVERY_S = 2.0
"""In a full room the list of runs changes all the time."""


def build(page: Page, draft: Draft) -> None:
    """Place and wire the screen."""
    gr.HTML(heading(text.STEPS[5], text.WHY[5]), apply_default_css=False)
    picked = gr.State(None)
    with gr.Row(elem_classes=["lab-split", "lab-split-even"]):
        with gr.Column(elem_classes="lab-main", min_width=0):
            table = news_block("runs-table")
        with gr.Column(elem_classes="lab-main", min_width=0, visible=False, elem_id="run-detail") as detail:
            about = markup_block(elem_id="run-about")
            with gr.Row(elem_classes="lab-buttons"):
                reopen = gr.Button(text.OPEN, variant="primary", elem_id="open-run")
                delete = gr.Button(text.DELETE, elem_id="delete-run")
            with gr.Group(visible=False, elem_id="delete-confirm") as confirm:
                question = markup_block()
                with gr.Row(elem_classes="lab-buttons"):
                    yes = gr.Button(text.DELETE_YES, variant="stop", elem_id="delete-yes")
                    no = gr.Button(text.DELETE_NO, elem_id="delete-no")
            with gr.Row(elem_classes="lab-ask"):
                name = gr.Textbox(label=text.RUN_NAME, elem_id="run-name", max_length=120, scale=8)
                rename = gr.Button(text.RENAME, elem_id="rename-run", scale=1, min_width=96)
            gr.HTML(section(text.EXPORT_TITLE), apply_default_css=False)
            export = markup_block(elem_id="export")
            gr.HTML(section(text.COMMAND_TITLE), apply_default_css=False)
            command = markup_block(elem_id="command")
            gr.HTML(section(text.DIFF_TITLE), apply_default_css=False)
            other = gr.Dropdown(choices=[], label=text.DIFF_WITH, elem_id="diff-with", interactive=True)
            diff = markup_block(elem_id="diff")

    details = [picked, detail, about, name, export, command, other, diff, confirm]

    def pick(event: gr.EventData) -> list[Any]:
        return show_run(choice_of(event))

    def show_run(run_id: str) -> list[Any]:
        run = page.lab.run(run_id)
        others = [(run_title(row), row.id) for row in page.lab.runs() if row.id != run_id]
        return [
            run_id,
            gr.Column(visible=True),
            about_run(run),
            run.name,
            export_links(page, run),
            command_lines(page, run),
            gr.Dropdown(choices=others, value=None),
            markup.notice(text.DIFF_EMPTY),
            gr.Group(visible=False),
        ]

    def open_run(memory: Memory, run_id: str | None) -> list[Any]:
        config = page.lab.run(known(run_id)).config
        gr.Info(text.OPENED.format(name=escape(page.lab.run(known(run_id)).name)), duration=3)
        return [remembered(memory, run=run_id, attack=None), *draft.fill(config)]

    def ask_delete(run_id: str | None) -> list[Any]:
        run = page.lab.run(known(run_id))
        return [gr.Group(visible=True), markup.notice(text.DELETE_ASK.format(name=run.name), "warning")]

    def keep_run() -> gr.Group:
        return gr.Group(visible=False)

    def delete_run(memory: Memory, run_id: str | None) -> list[Any]:
        run = page.lab.run(known(run_id))
        page.lab.delete_run(run.id)
        page.news.forget(run.id)
        gr.Info(text.DELETED.format(name=escape(run.name)), duration=4)
        changes = {"run": None, "attack": None} if remembered(memory)["run"] == run.id else {}
        return [remembered(memory, **changes), None, gr.Column(visible=False), gr.Group(visible=False)]

    def rename_run(run_id: str | None, title: str) -> list[Any]:
        page.lab.store.rename_run(known(run_id), text_of(title, text.RUN_NAME))
        return show_run(known(run_id))

    def show_diff(run_id: str | None, other_id: str | None) -> str:
        if not other_id:
            return markup.notice(text.DIFF_EMPTY)
        return diff_table(page.lab.run(known(run_id)), page.lab.run(other_id))

    page.on(table.choose, pick, [], details)
    page.act(reopen.click, open_run, [page.memory, picked], [page.memory, *draft.outputs]).success(
        None, None, None, js=go_js(2), api_visibility="private"
    )
    page.on(delete.click, ask_delete, [picked], [confirm, question])
    page.on(no.click, keep_run, [], [confirm])
    page.act(yes.click, delete_run, [page.memory, picked], [page.memory, picked, detail, confirm])
    page.act(rename.click, rename_run, [picked, name], details)
    page.on(other.change, show_diff, [picked, other], [diff])
    page.show(table, runs_key, draw_runs, every_s=TABLE_EVERY_S)


def known(run_id: str | None) -> str:
    """The run picked. Raises `RunNotFoundError` if there is none."""
    if not run_id:
        raise RunNotFoundError(text.RUN_GONE, remedy=text.RUN_GONE_REMEDY)
    return run_id


def runs_key(glance: Glance) -> Hashable:
    """Changes with the list of runs, their names and states, and the open run."""
    return (glance.runs_revision, glance.stamp())


def draw_runs(glance: Glance) -> str:
    """The runs, newest first."""
    runs = glance.lab.runs()
    if not runs:
        return markup.notice(text.RUNS_EMPTY)
    shown = glance.view.run.id if glance.view else None
    rows = "".join(run_row(run, run.id == shown) for run in runs)
    return (
        '<div class="lab-scroll"><table class="lab-table lab-runs"><thead><tr><th>Run</th><th>Started</th>'
        f"<th>State</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def run_row(run: RunRow, is_open: bool) -> str:
    """A row of the table; its name picks it."""
    marks = [text.IS_RECORDED] * run.recorded + [text.IS_OPEN] * is_open
    mark = "".join(f' <span class="lab-mark">{words}</span>' for words in marks)
    return (
        f'<tr{" class=lab-chosen" if is_open else ""}><td><button type="button" class="lab-row" '
        f'data-choice="{escape(run.id)}">{escape(run.name)}</button>{mark}</td>'
        f'<td class="lab-dim">{run.created_at:%Y-%m-%d %H:%M} UTC</td>'
        f'<td><span class="lab-state" data-state="{run.status}">{text.RUN_WORDS[run.status]}</span></td></tr>'
    )


def run_title(run: RunRow) -> str:
    """A run in a list of choices."""
    return f"{run.name} ({run.created_at:%Y-%m-%d %H:%M})"


def about_run(run: RunRow) -> str:
    """A few facts about the run."""
    try:
        config = run.config
    except TVaccineError as error:  # made by another version: it can still be deleted
        return markup.notice(f"{error} {error.remedy}", "warning")
    return f'<h2 class="lab-section">{escape(run.name)}</h2>' + markup.facts(
        [
            ("Id", run.id),
            ("Defences", ", ".join(title_of(defence) for defence in config.defences)),
            ("Alignment", f"{config.alignment.optimisation.steps:,} steps, seed {config.seed}"),
            ("Model", config.model.name),
        ]
    )


def export_links(page: Page, run: RunRow) -> str:
    """Links to the downloads; each file is made when it is clicked."""
    base = f"lab/runs/{run.id}"
    links = [(f"{base}/{file}", words) for file, words in text.EXPORTS.items()]
    states = page.lab.states(run.id)
    links += [(f"{base}/export.zip?state={quote(state)}", text.EXPORT_ADAPTER.format(state=state)) for state in states]
    anchors = "".join(f'<a class="lab-chip" href="{href}" download>{escape(words)}</a>' for href, words in links)
    note = "" if states else f'<p class="lab-note">{text.EXPORT_NONE}</p>'
    return f'<div class="lab-chips">{anchors}</div>{note}'


def command_lines(page: Page, run: RunRow) -> str:
    """The commands that repeat the run from its exported config."""
    try:
        commands = text.commands(run.id, page.lab.repeatable(run.id)[1])
    except ConfigError:  # made by another version, as the page says above
        return ""
    return f'<p class="lab-note">{text.COMMAND_NOTE}</p><pre class="lab-code">{escape(commands)}</pre>'


def diff_table(first: RunRow, second: RunRow) -> str:
    """Settings in which two runs differ."""
    left, right = flatten(first.config), flatten(second.config)
    rows = "".join(
        f'<tr><th scope="row">{escape(path)}</th><td>{escape(left.get(path, "–"))}</td>'
        f"<td>{escape(right.get(path, '–'))}</td></tr>"
        for path in dict.fromkeys([*left, *right])
        if left.get(path) != right.get(path)
    )
    if not rows:
        return markup.notice(text.DIFF_NONE)
    return (
        f'<div class="lab-scroll"><table class="lab-table"><thead><tr><th>Setting</th><th>{escape(first.name)}</th>'
        f"<th>{escape(second.name)}</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )
