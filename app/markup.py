"""Values to HTML, pure functions. Everything that comes from a model, a user or a file goes through `escape`."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from app import text
from app.services import Example, JobRow, MessageRecord, PromptPreview, Proportion, Verdict
from app.views import Track

VEIL = 'data-veil role="button" tabindex="0"'
"""Attributes of text that `assets/lab.js` reveals on a click or Enter."""


def notice(sentence: str, level: str = "info") -> str:
    """A sentence that stands out; empty for an empty sentence."""
    return f'<p class="lab-notice" data-level="{level}">{escape(sentence)}</p>' if sentence else ""


def messages(records: Sequence[MessageRecord]) -> str:
    """The jobs' messages, each sentence once: warnings stand out, information does not."""
    words = {(record.level, f"{record.text} {record.remedy}".strip()): None for record in records}
    return "".join(
        f'<p class="lab-note lab-said">{escape(said)}</p>' if level == "info" else notice(said, level)
        for level, said in sorted(words, key=lambda word: word[0] == "info")
    )


def verdict_word(verdict: Verdict | None) -> str:
    """One word for a verdict, a key of `text.VERDICTS`; the most important property decides."""
    if verdict is None:
        return "unjudged"
    if verdict.harmful:
        return "harmful"
    if verdict.refused:
        return "refused"
    if verdict.exact:
        return "exact"
    return "incoherent" if verdict.coherent is False else "other"


def score(value: Proportion | None) -> str:
    """A percentage, large, with its interval and n below; a dash if nothing was measured."""
    if value is None or not value.n:
        return '<span class="lab-score"><b>–</b></span>'
    low, high = value.interval
    return f'<span class="lab-score"><b>{value.percent:.0f}</b><small>{low:.0f}–{high:.0f}, n {value.n}</small></span>'


def job_card(
    title: str,
    job: JobRow | None,
    track: Track,
    colour: str,
    numbers: Mapping[str, str],
    position: int | None = None,
    note: str = "",
) -> str:
    """A job: its state in words, a bar, and large numbers (`score` or `plain`) by their names."""
    share = 1.0 if job and job.state == "done" else (job.done or 0) / job.total if job and job.total else 0.0
    figures = "".join(
        f'<div class="lab-number"><span class="lab-dim">{escape(name)}</span>{shown}</div>'
        for name, shown in numbers.items()
    )
    return (
        f'<div class="lab-card" data-state="{job.state if job else "todo"}" style="--method:{colour}">'
        f'<div class="lab-card-head"><span class="lab-card-title">{escape(title)}</span>'
        f'<span class="lab-dim">{escape(job_sentence(job, track, position))}</span></div>'
        f'<span class="lab-bar" role="progressbar" aria-label="{escape(title)}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{100 * share:.0f}"><i style="width:{100 * share:.1f}%"></i></span>'
        f'<div class="lab-numbers">{figures}</div>'
        + (f'<span class="lab-dim lab-card-note">{escape(note)}</span>' if note else "")
        + f"{job_problem(job)}</div>"
    )


def plain(value: str) -> str:
    """A large number without an interval."""
    return f'<span class="lab-score"><b>{escape(value)}</b></span>'


def job_sentence(job: JobRow | None, track: Track, position: int | None = None) -> str:
    """State of a job in a few words: `410 of 1,200 steps, 1 min left`."""
    if job is None:
        return text.STATE_WORDS["todo"]
    if job.state == "queued":
        return text.STATE_WORDS["queued"] + (f", {text.PANE_AHEAD.format(count=position)}" if position else "")
    steps = text.JOB_STEPS.format(done=job.done or 0, total=job.total) if job.total else ""
    if job.state == "running":
        if job.cancel_requested:
            return text.JOB_STOPPING
        left = text.duration(track.seconds_left())
        if job.total and (job.done or 0) >= job.total:
            return text.JOB_MEASURING.format(steps=steps)
        return ", ".join(filter(None, (steps or text.JOB_STARTING, left and text.JOB_LEFT.format(time=left))))
    spent = track.last.elapsed_s if track.last else None
    if job.state == "done":
        return text.JOB_DONE.format(time=text.duration(spent)) if spent else text.STATE_WORDS["done"]
    words = text.STATE_WORDS[job.state]
    return text.JOB_ENDED.format(state=words, steps=steps) if steps else words


def job_problem(job: JobRow | None) -> str:
    """Why a job failed or stopped, and what to do."""
    if job is None or job.state not in ("failed", "interrupted", "cancelled") or not job.error:
        return ""
    return notice(f"{job.error} {job.remedy or ''}".strip(), "error" if job.state == "failed" else "info")


def example_rows(examples: Sequence[tuple[int, Example]], chosen: int | None) -> str:
    """Rows of a data set: harmful rows are marked, and their answers are blurred until clicked."""
    rows = "".join(
        f'<tr data-source="{row.source}"{" class=lab-chosen" if index == chosen else ""}>'
        f'<td><span class="lab-mark" data-source="{row.source}">{escape(text.SOURCES[row.source])}</span></td>'
        f'<td><button type="button" class="lab-row" data-choice="{index}">{escape(row.prompt)}</button></td>'
        f"<td>{veiled(row.answer) if row.harmful else escape(row.answer)}</td>"
        f'<td class="lab-dim">{escape(row.category or "")}</td></tr>'
        for index, row in examples
    )
    return (
        '<div class="lab-scroll"><table class="lab-table lab-data"><thead><tr><th>Kind</th><th>Prompt</th>'
        f"<th>Answer</th><th>Category</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def veiled(words: str) -> str:
    """Text that stays blurred until it is clicked or Enter is pressed on it."""
    return f'<span class="lab-veil" {VEIL} title="{escape(text.SHOW)}">{escape(words)}</span>'


def template_view(preview: PromptPreview, harmful: bool) -> str:
    """The rendered prompt token by token; learned tokens are underlined, harmful ones blurred."""
    shown = [escape(token).replace("\n", "⏎<br>") or "·" for token in preview.tokens]
    tokens = "".join(
        f'<span class="lab-token{" lab-learned" if learned else ""}">{token}</span>'
        for token, learned in zip(shown, preview.learned, strict=True)
    )
    learned = sum(preview.learned)
    body = f'<div class="lab-tokens lab-veil" {VEIL}>' if harmful else '<div class="lab-tokens">'
    note = text.TEMPLATE_LEARNED.format(learned=learned, total=len(preview.tokens))
    note += f" {text.TEMPLATE_CUT}" if preview.cut else ""
    return f'{body}{tokens}</div><p class="lab-note">{escape(note)}</p>'


def scores_table(
    rows: Sequence[tuple[str, str | None, str, Mapping[str, Proportion | None]]], columns: Mapping[str, str]
) -> str:
    """States against measures.

    Args:
        rows: title, colour (None for the base), short hash, scores by column.
        columns: title by key, in order.
    """
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in columns.values())
    body = ""
    for title, colour, state_hash, scores in rows:
        cells = "".join(f"<td>{score(scores.get(key))}</td>" for key in columns)
        body += (
            f'<tr style="--method:{colour or "var(--lab-muted)"}">'
            f'<th scope="row"><span class="lab-method">{escape(title)}</span>'
            f'<code class="lab-hash">{escape(state_hash)}</code></th>{cells}</tr>'
        )
    return (
        f'<div class="lab-scroll"><table class="lab-table lab-scores"><thead><tr><th scope="col">{text.TABLE_STATE}'
        f"</th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Sequence[tuple[str, Any]]) -> str:
    """Names and values, side by side."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(str(value))}</dd></div>" for name, value in pairs)
    return f'<dl class="lab-facts">{items}</dl>'


def chips(choices: Sequence[tuple[str, str]]) -> str:
    """Buttons for choices, given as (choice, words)."""
    buttons = "".join(
        f'<button type="button" class="lab-chip" data-choice="{escape(choice)}">{escape(words)}</button>'
        for choice, words in choices
    )
    return f'<div class="lab-chips">{buttons}</div>'
