"""What became of the requests: outcomes of every model before and after the attack, and what it still knows."""

from collections.abc import Mapping, Sequence
from html import escape

import gradio as gr

from app import markup, panes, text
from app.components import news_block, section
from app.page import Glance, Page
from app.services import OUTCOMES, EvalRecord, Outcome
from app.views import RunView

LABELLED_FROM = 9.0
"""Percent of a bar from which a part of it has room for its number."""


def build(page: Page) -> None:
    """Place and wire the part."""
    gr.HTML(section(text.OUTCOMES_TITLE, text.OUTCOMES_NOTE), apply_default_css=False)
    page.show(news_block("outcomes"), lambda glance: glance.stamp("eval", "state", "jobs_made"), draw)


def draw(glance: Glance) -> str:
    """One group of bars per set whose judge tells outcomes; nothing before the first measurement."""
    view = glance.view
    if view is None:
        return ""
    sets = list(dict.fromkeys(record.eval_set for record in view.evals.values() if record.outcomes))
    if not sets:
        return ""
    rows = states_shown(view, glance.attack)
    groups = "".join(group(view, where, rows) for where in sets)
    return warnings(view, rows) + legend() + f'<div class="lab-outcomes">{groups}</div>'


def states_shown(view: RunView, attack_id: str | None) -> list[tuple[str, str, str | None]]:
    """(state, title, colour) in the order of the story: the base, then each defence before and after."""
    found: list[tuple[str, str, str | None]] = [(panes.BASE, text.BASE_TITLE, None)]
    for defence in view.defences:
        look = view.looks[defence]
        for when, state in view.states_of(defence, attack_id).items():
            found.append((state, f"{look.title}, {text.WHEN_SHORT[when]}", look.colour))
    return found


def warnings(view: RunView, rows: Sequence[tuple[str, str, str | None]]) -> str:
    """For each model that cannot, rather than will not: that it is so, and by how much."""
    said: list[str] = []
    for state, title, _ in rows:
        if view.cannot(state):
            numbers = {
                f"{name}_{who}": pooled.percent
                for who, of in (("now", state), ("base", panes.BASE))
                for name in ("known", "completed")
                if (pooled := view.pooled(of, name)) is not None
            }
            said.append(markup.notice(text.cannot(title, numbers), "warning"))
    return "".join(said)


def legend() -> str:
    """The outcomes by colour, in the order in which they stand in a bar."""
    keys = "".join(
        f'<span><i data-outcome="{outcome.replace(" ", "-")}"></i>{escape(text.OUTCOMES[outcome])}</span>'
        for outcome in OUTCOMES
    )
    return f'<div class="lab-key">{keys}</div>'


def group(view: RunView, where: str, rows: Sequence[tuple[str, str, str | None]]) -> str:
    """The bars of one set."""
    lines = "".join(
        line(title, colour, record, hollow=bool(view.cannot(state)))
        for state, title, colour in rows
        if (record := view.final(state, where)) is not None and record.outcomes
    )
    return f"<section><h3>{escape(text.set_title(where))}</h3>{lines}</section>"


def line(title: str, colour: str | None, record: EvalRecord, *, hollow: bool) -> str:
    """One model on one set: its bar, HS where the set has one, and what it still knows."""
    hs = record.scores.get("harmful_score")
    numbers = [text.OUTCOME_HS.format(percent=hs.percent)] if hs else []
    numbers += [
        text.OUTCOME_KNOWLEDGE[name].format(percent=record.scores[name].percent)
        for name in ("known", "completed")
        if name in record.scores
    ]
    mark = f' data-cannot="" title="{escape(text.CANNOT_SHORT)}"' if hollow else ""
    return (
        f'<div class="lab-outcome" style="--method:{colour or "var(--lab-muted)"}">'
        f'<span class="lab-method">{escape(title)}</span>{bar(record.outcomes)}'
        f"<small{mark}>{escape(', '.join(numbers))}</small></div>"
    )


def bar(outcomes: Mapping[Outcome, int]) -> str:
    """Counts as parts of a whole; the words are for who does not see colours."""
    total = sum(outcomes.values())
    shares = [(outcome, 100 * outcomes.get(outcome, 0) / total) for outcome in OUTCOMES]
    told = ", ".join(f"{text.OUTCOMES[outcome]} {share:.0f} %" for outcome, share in shares if share)
    parts = "".join(
        f'<span data-outcome="{outcome.replace(" ", "-")}" style="--share:{share:.2f}%">'
        f"{f'{share:.0f}' if share >= LABELLED_FROM else ''}</span>"
        for outcome, share in shares
        if share
    )
    label = escape(f"{told}; n {total}")
    return f'<span class="lab-stack" role="img" aria-label="{label}" title="{label}">{parts}</span>'
