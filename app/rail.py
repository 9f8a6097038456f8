"""The rail: each step with its state and progress, and the run that is open."""

from collections.abc import Hashable
from typing import Any

from app import text
from app.page import Glance, Page
from app.services import JobRow
from app.views import RunView, progress_of

ORDER = ("running", "queued", "failed", "interrupted", "cancelled", "done")
"""State of several jobs together: the first of these states that one of them has."""


def build(page: Page) -> None:
    """Let the rail show the state of the run; it shows no run until the page knows which."""
    page.rail.value = {"nobody": rail_value(page.glance(None))}
    page.show(page.rail, rail_key, rail_value)


def rail_key(glance: Glance) -> Hashable:
    """Changes with the run's name and with the state of its steps, and with the sweep's."""
    return (glance.view.run.name if glance.view else "", glance.stamp("jobs", "state"), glance.sweep)


def rail_value(glance: Glance) -> dict[str, Any]:
    """The value that `lab.rail` draws."""
    view = glance.view
    aligned = [job for job in (view.align_job(key) for key in view.config.alignments()) if job] if view else []
    attacked = (
        [
            job
            for defence in view.attacked_defences(glance.attack)
            for job in (view.attack_job(glance.attack, defence), view.repair_job(glance.attack, defence))
            if job
        ]
        if view and glance.attack
        else []
    )
    steps = [
        {"state": "done" if view else "todo", "share": 0.0, "note": ""},
        work_step(view, aligned),
        work_step(view, attacked),
        {"state": "ready" if view and view.states else "todo", "share": 0.0, "note": ""},
        {"state": "todo", "share": 0.0, "note": ""},
        sweep_step(glance),
        {"state": "ready", "share": 0.0, "note": ""},
    ]
    for (number, name), step in zip(text.STEPS.items(), steps, strict=True):
        step |= {"id": number, "name": name}
    return {
        "title": text.TITLE,
        "steps": steps,
        "run": {"id": view.run.id, "name": view.run.name} if view else None,
        "words": {
            "theme": text.THEME,
            "theme_hint": text.THEME_HINT,
            "reveal": text.REVEAL,
            "reveal_hint": text.REVEAL_HINT,
            "link": text.COPY_LINK,
            "copied": text.LINK_COPIED,
            "no_run": text.NO_RUN,
        },
    }


def sweep_step(glance: Glance) -> dict[str, Any]:
    """State of the sweep shown."""
    row = glance.sweep
    if row is None:
        return {"state": "todo", "share": 0.0, "note": ""}
    state = {"running": "running", "stopped": "cancelled", "done": "failed" if row.problems else "done"}[row.state]
    share = row.done / max(1, row.total)
    note = f"{100 * share:.0f} %" if state == "running" else text.STATE_WORDS[state]
    return {"state": state, "share": share, "note": note}


def work_step(view: RunView | None, jobs: list[JobRow]) -> dict[str, Any]:
    """State of a step whose work is `jobs`, its progress, and a few words."""
    if view is None or not jobs:
        return {"state": "todo", "share": 0.0, "note": ""}
    state = next(state for state in ORDER if any(job.state == state for job in jobs))
    share, left = progress_of(view, jobs)
    note = text.STATE_WORDS[state]
    if state == "running":
        note = f"{100 * share:.0f} %" + (f", {text.duration(left)} left" if left is not None else "")
    return {"state": state, "share": share, "note": note}
