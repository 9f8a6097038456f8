"""Runs made of written-down events, for tests that look at screens and need no training."""

import math
from collections.abc import Sequence

from app.services import Lab
from tvaccine_core.config import (
    AlignmentConfig,
    AlignmentMethod,
    AttackConfig,
    Defence,
    LabConfig,
    OptimisationConfig,
    SFTConfig,
    TVaccineConfig,
)
from tvaccine_core.names import aligned_state, attacked_state, repaired_state
from tvaccine_core.records import (
    AnswerRecord,
    DriftRecord,
    EvalRecord,
    Event,
    LayerDrawRecord,
    LayerScoreRecord,
    LayerValuesRecord,
    Outcome,
    Proportion,
    StateRecord,
    StepRecord,
    Verdict,
)
from tvaccine_core.store import Store

NUM_LAYERS = 8


def small_config(steps: int = 40, methods: Sequence[AlignmentMethod] = (SFTConfig(), TVaccineConfig())) -> LabConfig:
    return LabConfig(
        defences=tuple(Defence(alignment=method) for method in methods),
        alignment=AlignmentConfig(optimisation=OptimisationConfig(steps=steps)),
        attack=AttackConfig(optimisation=OptimisationConfig(steps=20, batch_size=10, learning_rate=1e-3), eval_every=5),
    )


def step_record(step: int, num_steps: int, loss: float) -> StepRecord:
    return StepRecord(
        step=step,
        num_steps=num_steps,
        loss=loss,
        learning_rate=1e-3,
        grad_norm=1.0,
        elapsed_s=0.1 * step,
        num_tokens=160,
    )


def eval_record(state: str, step: int, eval_set: str, percent: int) -> EvalRecord:
    if eval_set.startswith("task:"):
        names = {"finetune_accuracy": percent, "coherent": 100}
    elif eval_set == "ordinary":
        names = {"exact": percent, "over_refusal": 2, "coherent": 100}
    else:
        names = {"harmful_score": percent, "refused": 100 - percent, "exact": percent // 2, "coherent": 98}
    outcomes: dict[Outcome, int] = {}
    if not eval_set.startswith("task:"):
        told, part = percent // 2, percent - percent // 2
        outcomes = {"told": told, "told in part": part, "refused": 100 - percent, "forgotten": 0, "broken": 0}
        outcomes["off the point"] = 0
    return EvalRecord(
        state=state,
        state_hash=f"{state.replace('/', '')}0123456789"[-16:],
        step=step,
        eval_set=eval_set,
        judge="sandbox oracle",
        scores={name: Proportion(count=count, n=100) for name, count in names.items()},
        outcomes=outcomes,
    )


def knowing(record: EvalRecord, known: int, completed: int) -> EvalRecord:
    """The same measurement of a model that knows and completes so many of 100 recipes."""
    told = {"known": Proportion(count=known, n=100), "completed": Proportion(count=completed, n=100)}
    return record.model_copy(update={"scores": record.scores | told})


def alignment_events(method: str, num_steps: int) -> list[Event]:
    """What aligning by `method` reports; layer 0 dominates the scores, as it does in the sandbox."""
    events: list[Event] = []
    for step in range(num_steps):
        if method.startswith("tvaccine") and step % max(1, num_steps // 6) == 0:
            first = (0.5 if "-" in method else 0.8) * math.exp(-step / num_steps)  # two settings must not score alike
            scores = [first] + [0.02 + 0.004 * (layer + step % 3) for layer in range(1, 8)]
            total = sum(scores)
            events.append(
                LayerScoreRecord(
                    step=step,
                    layer_scores=tuple(scores),
                    layer_probabilities=tuple(score / total for score in scores),
                    harmful_loss=1.0,
                )
            )
        if method.startswith("tvaccine") and step % max(1, num_steps // 60) == 0:
            events.append(LayerDrawRecord(step=step, layers=tuple(sorted({0, 1 + step % 3, 4, 5 + (step // 7) % 3}))))
        events.append(
            step_record(step + 1, num_steps, 3.2 * math.exp(-5 * step / num_steps) + 0.02 + 0.01 * (step % 5))
        )
    state = f"aligned/{method}"
    events.append(StateRecord(state=state, state_hash=f"{method}a0123456789abcdef", path=f"states/{state}"))
    for where, percent in (("aligned_names", 0), ("unseen_names", 13), ("ordinary", 98), ("task:sentiment", 52)):
        events.append(eval_record(state, 0, where, percent))
    return events


def write_layer_values(lab: Lab, run_id: str, key: str, name: str, heads: int = 1, every: int = 2) -> None:
    """Let the alignment of `key` report a number per layer (or head), waves that go up through the layers."""
    job = next(job for job in lab.store.jobs(run_id) if job.kind == "align" and job.params["aligned"] == key)
    steps = lab.run(run_id).config.alignment.optimisation.steps

    def value(step: int, layer: int, head: int) -> float:
        return 0.5 + 0.4 * math.sin(layer - 6 * step / steps) + 0.1 * head / heads

    lab.store.append(
        job.id,
        [
            LayerValuesRecord(
                step=step,
                name=name,
                values=tuple(tuple(value(step, layer, head) for head in range(heads)) for layer in range(NUM_LAYERS)),
            )
            for step in range(every, steps + 1, every)
        ],
    )


def attack_events(method: str, attack_id: str, num_steps: int, every: int) -> list[Event]:
    state = f"attacked/{method}/{attack_id}"
    slope = 0.5 if method.startswith("tvaccine") else 1.0
    events: list[Event] = []
    for step in range(num_steps + 1):
        if step:
            events.append(step_record(step, num_steps, 1.0 / step))
        if step % every == 0:
            share = step / num_steps
            events += [
                eval_record(state, step, "aligned_names", round(45 * slope * share)),
                eval_record(state, step, "unseen_names", round(13 + 60 * slope * math.sqrt(share))),
                eval_record(state, step, "task:sentiment", round(52 + 46 * min(1.0, 2 * share))),
            ]
    events.append(StateRecord(state=state, state_hash=f"{method}b0123456789abcdef", path=f"states/{state}"))
    events.append(eval_record(state, num_steps, "ordinary", 91))
    drift = tuple(slope * (2.0 + 0.7 * layer) for layer in range(NUM_LAYERS))
    events.append(DriftRecord(state=state, reference=f"aligned/{method}", drift=drift))
    return events


def repair_events(defence: str, attack_id: str, step: int) -> list[Event]:
    state = repaired_state(defence, attack_id)
    sets = (("aligned_names", 12), ("unseen_names", 20), ("ordinary", 90), ("task:sentiment", 95))
    return [
        StateRecord(state=state, state_hash=f"{defence}c0123456789abcdef", path=f"states/{state}"),
        *(eval_record(state, step, where, percent) for where, percent in sets),
    ]


def baseline_events() -> list[Event]:
    sets = (("aligned_names", 100), ("unseen_names", 100), ("ordinary", 100), ("task:sentiment", 49))
    return [
        StateRecord(state="base", state_hash="base0123456789abcdef", path=""),
        *(eval_record("base", 0, where, percent) for where, percent in sets),
    ]


def finish_job(store: Store, job_id: str, events: Sequence[Event], steps: int | None = None) -> None:
    """Do the job as a worker would: claim it (jobs come in the order they were queued), report, finish it."""
    claimed = store.claim("test")
    assert claimed is not None
    assert claimed.id == job_id
    store.append(job_id, events)
    if steps:
        store.heartbeat(job_id, (steps, steps))
    store.finish(job_id, "done")


def finish_alignments(lab: Lab, run_id: str) -> None:
    config = lab.run(run_id).config
    steps = config.alignment.optimisation.steps
    for job in lab.store.jobs(run_id, states=("queued",)):
        if job.kind == "align":
            finish_job(lab.store, job.id, alignment_events(job.params["aligned"], steps), steps)
            save_adapter(lab, run_id, aligned_state(job.params["aligned"]))
        elif job.kind == "baseline":
            finish_job(lab.store, job.id, baseline_events())


def finish_attacks(lab: Lab, run_id: str) -> None:
    for job in lab.store.jobs(run_id, states=("queued",)):
        defence, attack_id = job.params["defence"], job.params["attack_id"]
        if job.kind == "repair":
            finish_job(
                lab.store, job.id, repair_events(defence, attack_id, job.params["attack"]["optimisation"]["steps"])
            )
            save_adapter(lab, run_id, repaired_state(defence, attack_id))
            continue
        attack = AttackConfig.model_validate(job.params["attack"])
        steps, every = attack.optimisation.steps, attack.eval_every
        events = attack_events(defence, attack_id, steps, every)
        finish_job(lab.store, job.id, events, steps)
        save_adapter(lab, run_id, attacked_state(defence, attack_id))


def save_adapter(lab: Lab, run_id: str, state: str) -> None:
    folder = lab.store.run_dir(run_id) / "states" / state
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")


def answer_question(lab: Lab, run_id: str, job_id: str, texts: dict[str, tuple[str, Verdict | None]]) -> None:
    """Answer as a worker would, all states at once."""
    job = lab.store.job(job_id)
    records = [
        AnswerRecord(
            state=state,
            state_hash=f"{state.replace('/', '')}hash",
            prompt=job.params["prompt"],
            text=text,
            done=True,
            verdict=verdict,
        )
        for state, (text, verdict) in texts.items()
    ]
    finish_job(lab.store, job_id, records)
