"""The answer panes: pure functions from a run, a question and its answers to the value of `Panes`."""

from collections.abc import Mapping, Sequence
from typing import Any

from app import text
from app.looks import looks_of
from app.markup import verdict_word
from app.services import (
    PRESETS,
    AnswerRecord,
    JobRow,
    aligned_state,
    attacked_state,
    needs_repair,
    repaired_state,
)
from app.views import RunView

BASE = "base"
SHORT_HASH = 8
WHENS = ("before", "after", "repaired")


def states_of(view: RunView, attack_id: str | None, with_base: bool) -> list[str]:
    """Names of the states that can answer now, in the order of their panes."""
    wanted = [BASE] if with_base else []
    by_defence = [view.states_of(defence, attack_id) for defence in view.defences]
    wanted += [states[when] for when in WHENS for states in by_defence if when in states]
    return [state for state in dict.fromkeys(wanted) if state == BASE or state in view.states]


def panes_value(
    view: RunView | None,
    attack_id: str | None,
    with_base: bool,
    question: JobRow | None = None,
    answers: Mapping[str, AnswerRecord] | None = None,
    harmless: bool = False,
    ahead: int | None = None,
) -> dict[str, Any]:
    """Panes of a run: one column per defence; a row before the attack, a row after it, a row after repairs; the base
    above if wanted.

    Args:
        view: None while no run is open.
        attack_id: the attack whose states fill the second row.
        with_base: also show the base.
        question: the visitor's own question, whose answers are shown.
        answers: the answers so far, by state.
        harmless: the prompt is known to ask for nothing harmful; its answers are never blurred while they stream.
        ahead: number of questions and jobs before this question.
    """
    config = view.config if view else next(iter(PRESETS.values())).config
    looks, keys = looks_of(config.defences), config.aligned_keys()
    asked = set(question.params["states"]) if question else set()
    panes: list[dict[str, Any]] = []
    if with_base:
        panes.append(_pane(text.BASE_TITLE, BASE, "", "--lab-muted", view, question, answers, asked, harmless, ahead))
        panes[0]["wide"] = True
    repairs = any(needs_repair(defence) for defence in config.defences)
    for when in WHENS if repairs else WHENS[:2]:
        for defence in config.defences:
            look = looks[defence.name]
            title = f"{look.title}, {text.WHEN_SHORT[when]}"
            state = {
                "before": aligned_state(keys[defence.name]),
                "after": attacked_state(defence.name, attack_id or "-"),
                "repaired": repaired_state(defence.name, attack_id or "-"),
            }[when]
            panes.append(_pane(title, state, when, look.colour, view, question, answers, asked, harmless, ahead))
            if any(pane["id"] == state for pane in panes[:-1]):
                panes[-1]["id"] = f"{state} of {defence.name}"  # two defences may share one aligned state
            if when == "repaired" and not needs_repair(defence):
                panes[-1] |= {"text": text.PANE_NO_REPAIR, "hint": True, "streaming": False}
    return {
        "columns": len(config.defences),
        "question": question.id if question else "",
        "prompt": question.params["prompt"] if question else "",
        "panes": panes,
    }


def _pane(
    title: str,
    state: str,
    when: str,
    colour: str,
    view: RunView | None,
    question: JobRow | None,
    answers: Mapping[str, AnswerRecord] | None,
    asked: set[str],
    harmless: bool,
    ahead: int | None,
) -> dict[str, Any]:
    """One pane. `hint` marks the lab's own words, which are not an answer."""
    known = view.states.get(state) if view else None
    pane: dict[str, Any] = {"id": state, "state": state, "title": title, "colour": colour, "when": when}
    pane |= hashes(known.state_hash if known else "")
    answer = (answers or {}).get(state)
    if answer is not None and question is not None:
        # The hash comes from the worker that produced the text, so it proves which weights did.
        pane |= hashes(answer.state_hash)
        word = verdict_word(answer.verdict) if answer.done else "pending"
        stopped = not answer.done and not question.active
        return pane | {
            "text": answer.text,
            "done": answer.done,
            "streaming": not answer.done and question.active,
            "verdict": "" if stopped else word,
            "verdict_text": text.PANE_STOPPED if stopped else text.VERDICTS[word],
            "veil": veil_of(answer, harmless),
        }
    if known is None and state != BASE:
        return pane | {"text": text.PANE_MISSING[when], "hint": True}
    if question is None or state not in asked:
        return pane | {"text": text.PANE_IDLE, "hint": True}
    return pane | {"text": waiting(question, ahead), "hint": True, "streaming": question.active}


def hashes(state_hash: str) -> dict[str, str]:
    """A hash as a pane shows it: short, and whole on hover."""
    return {"hash": state_hash[:SHORT_HASH], "hash_title": state_hash}


def veil_of(answer: AnswerRecord, harmless: bool) -> str:
    """Why an answer is blurred; empty if it is not. An unjudged answer counts as harmful."""
    if answer.verdict is not None:
        return text.BLURRED if answer.verdict.harmful else ""
    if harmless:
        return ""
    return text.BLURRED_UNJUDGED if answer.done else text.BLURRED_PENDING


def waiting(question: JobRow, ahead: int | None) -> str:
    """Why a pane has no text yet."""
    match question.state:
        case "queued":
            return text.PANE_AHEAD.format(count=ahead) if ahead else text.PANE_QUEUED
        case "running":
            return text.VERDICTS["pending"]
        case "failed":
            return f"{text.PANE_FAILED}: {question.error or ''} {question.remedy or ''}".strip()
        case _:
            return text.PANE_STOPPED


def by_state(records: Sequence[AnswerRecord]) -> dict[str, AnswerRecord]:
    """The newest record of each state; records come in order."""
    return {record.state: record for record in records}
