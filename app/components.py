"""The page's own components: `gr.HTML` with a fixed template, its data drawn by `assets/lab.js`.

The template never changes, so nodes stay while values change: a figure keeps its zoom, a pane its revealed text.
(Functions, not subclasses: at every update Gradio makes a component anew from its own constructor's arguments.)
"""

from html import escape
from typing import Any, TypeGuard

import gradio as gr

from app.services import METHODS


def scripted(script: str) -> str:
    """`script` for a component's `js_on_load`, run when `assets/lab.js` is loaded: Gradio does not wait for it."""
    return (
        f"const begin = () => {{ {script}; }};"
        " if (window.lab) begin(); else document.addEventListener('lab-ready', begin, { once: true });"
    )


CHOICES = "lab.choices(element, (choice) => trigger('choose', {choice}))"


def figure(elem_id: str, value: dict[str, Any] | None = None) -> gr.HTML:
    """A plotly figure whose value is a spec of `app.charts`. Without a value it comes with the news (`app.news`)."""
    source = "props, watch" if value is not None else f"...lab.live('{elem_id}')"
    return gr.HTML(
        value or {},
        html_template='<div class="lab-figure"></div>',
        js_on_load=scripted(f"lab.figure(element, {source})"),
        apply_default_css=False,
        elem_id=elem_id,
    )


def news_block(elem_id: str) -> gr.HTML:
    """Markup of `app.markup` that comes with the news (`app.news`). A click on `data-choice` raises `choose`."""
    return gr.HTML(
        html_template='<div class="lab-news"></div>',
        js_on_load=scripted(f"lab.markup(element, ...lab.live('{elem_id}')); {CHOICES}"),
        apply_default_css=False,
        elem_id=elem_id,
    )


def chooser(elem_id: str) -> gr.HTML:
    """A choice among several values of the news: those made as `{"of": elem_id, "by": {id: value}}`, with the same ids.

    The value has a `label` and `options` (`id`, `title`, `colour`); nothing is shown for fewer than two. The choice is
    the reader's own: their page keeps it and asks nobody.
    """
    return gr.HTML(
        html_template='<div class="lab-chooser" role="group"></div>',
        js_on_load=scripted(f"lab.chooser(element, '{elem_id}', ...lab.live('{elem_id}'))"),
        apply_default_css=False,
        elem_id=elem_id,
    )


def is_news(component: object) -> TypeGuard[gr.HTML]:
    """True for components that are drawn from the news of the run."""
    return isinstance(component, gr.HTML) and "lab.live(" in (component.js_on_load or "")


def answer_panes(elem_id: str) -> gr.HTML:
    """Streaming answers side by side; the value is made by `app.panes`.

    Event `follow`: once per question, when a value with `follow` arrives.
    """
    return gr.HTML(
        {},
        html_template='<div class="lab-panes"></div>',
        js_on_load=scripted("lab.panes(element, props, watch, {follow: () => trigger('follow')})"),
        apply_default_css=False,
        elem_id=elem_id,
    )


def step_rail() -> gr.HTML:
    """The steps with their state, which comes with the news of the run. The value names the run for the page's script.

    Events: `go` when a step is chosen (`window.labStep`); `look` when a step is chosen or the reader is back, so that
    the run must be read again, but not before the page knows which run its address names; `gone`, once, when the run
    that is shown no longer exists.

    Not placed yet, so that other components can refer to it.
    """
    return gr.HTML(
        {},
        html_template='<div class="lab-rail"></div>',
        js_on_load=scripted(
            "lab.rail(element, props, watch, ...lab.live('rail'), "
            "{go: () => trigger('go'), look: () => trigger('look'), gone: () => trigger('gone')})"
        ),
        apply_default_css=False,
        elem_id="rail",
        render=False,
    )


def markup_block(value: str = "", elem_id: str | None = None) -> gr.HTML:
    """Markup made in Python (`app.markup`, which escapes). A click on `data-choice` raises `choose`."""
    return gr.HTML(
        value,
        js_on_load=scripted(CHOICES),
        apply_default_css=False,
        elem_id=elem_id,
    )


def heading(name: str, why: str) -> str:
    """A screen's title and the line that says what it is for."""
    return f'<h1 class="lab-title">{escape(name)}</h1><p class="lab-why">{escape(why)}</p>'


def section(name: str, note: str = "") -> str:
    """Title of a part of a screen."""
    return f'<h2 class="lab-section">{escape(name)}</h2>' + (f'<p class="lab-note">{escape(note)}</p>' if note else "")


def method_label(method: str) -> gr.HTML:
    """A method's name with its colour, above its settings."""
    return gr.HTML(method_chip(method), apply_default_css=False, padding=True)


def method_chip(method: str) -> str:
    """A method's name with its colour."""
    info = METHODS[method]
    return f'<span class="lab-method" style="--method:{info.colour}">{escape(info.title)}</span>'


def go_js(step: int) -> str:
    """Script that opens a step at once, without a request to the server."""
    return f"() => {{ document.dispatchEvent(new CustomEvent('lab-go', {{detail: {step}}})) }}"
