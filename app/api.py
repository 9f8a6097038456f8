"""The lab for scripts: named endpoints with plain arguments, beside the page's private events.

client = gradio_client.Client("http://127.0.0.1:7860")
run = client.predict("sandbox-intact", ["sft", "tvaccine"], api_name="/start_alignment")
"""

import time
from typing import Any, get_args

from gradio.events import api

from app import text
from app.arguments import Count, Name, Names, Share, Text, checked
from app.guard import guarded
from app.markup import verdict_word
from app.page import Page
from app.panes import by_state, states_of
from app.services import PRESETS, ConfigError, JobKind, StoreError, new_owner, shown, with_defences

ANSWER_WAIT_S = 300.0


def add_endpoints(page: Page) -> None:
    """Add the endpoints to the Blocks being built."""
    lab = page.lab

    def list_runs() -> list[dict[str, str]]:
        """Every run, newest first: id, name, status."""
        return [{"id": run.id, "name": run.name, "status": run.status} for run in lab.runs()]

    def start_alignment(preset: Name, defences: Names) -> str:
        """Start a run from a preset (with its own defences if `defences` is empty); returns the run's id."""
        if preset not in PRESETS:
            raise ConfigError(f"There is no preset {shown(preset)}.", remedy=f"Choose one of: {', '.join(PRESETS)}.")
        config = PRESETS[preset].config
        return lab.start_alignment(with_defences(config, defences) if defences else config)

    def start_attack(run_id: Name, harmful_ratio: Share, num_samples: Count) -> str:
        """Attack every aligned model of a run, with the run's other attack settings. Returns the attack's id."""
        attack = lab.run(run_id).config.attack.model_copy(
            update={"harmful_ratio": harmful_ratio, "num_samples": num_samples}
        )
        return lab.start_attack(run_id, attack)

    def stop(run_id: Name) -> int:
        """Stop all work of a run; returns the number of jobs that were asked to stop."""
        return lab.stop(run_id, get_args(JobKind))

    def run_status(run_id: Name) -> dict[str, Any]:
        """Jobs with their progress, and the newest scores of every model."""
        view = page.views.view(run_id, fresh=True)
        attacks = (None, *view.attack_ids)
        states = {state for d in view.defences for a in attacks for state in view.states_of(d, a).values()}
        return {
            "status": view.run.status,
            "jobs": [
                {"work": job.title, "state": job.state, "done": job.done, "total": job.total, "error": job.error}
                for job in view.jobs
                if job.kind != "generate"
            ],
            "scores": {
                f"{state} {where} {name}": score.percent
                for state in ("base", *sorted(states))
                for where in view.eval_sets
                if (record := view.final(state, where))
                for name, score in record.scores.items()
            },
        }

    def ask(run_id: Name, prompt: Text) -> list[dict[str, str]]:
        """Ask every model of a run one prompt; waits for the answers: state, hash, text, verdict."""
        view = page.views.view(run_id, fresh=True)
        owner = new_owner()
        states = states_of(view, view.choose_attack(None), with_base=True)
        job_id = lab.ask(run_id, prompt, states, owner, view.config.evaluation.max_new_tokens)
        deadline = time.monotonic() + ANSWER_WAIT_S
        while time.monotonic() < deadline:
            question = lab.store.job(job_id)
            if not question.active:
                break
            time.sleep(0.1)
        else:
            lab.store.cancel(job_id)
            raise StoreError(text.NO_ANSWER, remedy=text.NO_WORKER_REMEDY.format(home="…"))
        if question.state != "done":
            raise StoreError(question.error or text.PANE_STOPPED, remedy=question.remedy or "")
        found = by_state(lab.answer_records(question))
        return [
            {"state": state, "hash": record.state_hash, "text": record.text, "verdict": verdict_word(record.verdict)}
            for state, record in found.items()
        ]

    for endpoint in (list_runs, start_alignment, start_attack, stop, run_status, ask):
        api(guarded(checked(endpoint), lab.store.home), api_name=endpoint.__name__, concurrency_limit=8)
