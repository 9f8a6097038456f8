"""A run's measurements, gathered from its events: for the command line, JSON files and sweeps. Torch-free.

HS and FA are percentages with n and a 95 % Wilson interval. Means over runs (seeds) are plain means of percentages.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from pydantic import Field

from tvaccine_core import __version__
from tvaccine_core.config import AttackConfig, Defence, LabConfig, parse_config
from tvaccine_core.evaluation.judges import judge_named
from tvaccine_core.methods import title_of
from tvaccine_core.names import BASE, aligned_state, attacked_state, repaired_state, task_of
from tvaccine_core.records import EvalRecord, Outcome, Proportion, Record, StepRecord
from tvaccine_core.store import JobRow, Store, StoredEvent


class Score(Record):
    """A proportion as percent, with the ends of its interval."""

    percent: float
    low: float
    high: float
    count: int
    n: int


class StateScores(Record):
    """One model state, measured at one attack step."""

    state: str
    state_hash: str
    step: int
    judge: str
    scores: dict[str, dict[str, Score]]
    """Evaluation set -> score -> value."""
    outcomes: dict[str, dict[Outcome, int]] = Field(default_factory=dict)
    """Evaluation set -> outcome -> number of answers; sets whose judge can tell."""


class AttackScores(Record):
    """One attack on one defence: settings, curve (its last point is the outcome), and scores after the repair."""

    config: AttackConfig
    curve: tuple[StateScores, ...]
    after: StateScores | None
    repaired: StateScores | None = None
    """None if the defence has no repair, or it is not done yet."""
    training_s: float


class DefenceScores(Record):
    """One defence: after its alignment, after each attack, and after each repair."""

    title: str
    aligned: str
    """Key of its aligned state, which defences may share."""
    before: StateScores | None
    alignment_s: float
    """Seconds of alignment, without evaluations."""
    attacks: dict[str, AttackScores]


class RunScores(Record):
    """Everything a run measured."""

    run_id: str
    judge: str
    seed: int
    base: StateScores | None
    defences: dict[str, DefenceScores]
    alignment_time_ratio_to_sft: dict[str, float] = Field(default_factory=dict)
    """Within this run only; its jobs may have run side by side."""


class Report(Record):
    """The results of a command."""

    version: str = __version__
    command: str
    config: LabConfig
    """With the settings of the first attack; every attack's own settings are beside its scores."""
    wall_s: float
    runs: tuple[RunScores, ...]
    mean: dict[str, dict[str, float]]
    """State -> `set/score` -> mean percent over the runs; attacked states after their last step."""


def collect(store: Store, run_id: str, judge: str = "") -> RunScores:
    """The scores of a run so far, by the judge of this name, by default the run's own.

    A task's accuracy has its own scorer and is shown with the scores of any judge.
    """
    config = store.run(run_id).config
    judge = judge or judge_named(config.data)
    jobs = {job.id: job for job in store.jobs(run_id)}
    events = store.events(run_id, kinds=("eval",))
    seconds = {job_id: _training_seconds(store, job) for job_id, job in jobs.items() if job.kind in ("align", "attack")}
    points = _points(events, judge)
    defences: dict[str, DefenceScores] = {}
    keys = config.aligned_keys()
    for defence in config.defences:
        name = defence.name
        attacks = {
            str(job.params["attack_id"]): AttackScores(
                config=parse_config(AttackConfig, job.params["attack"]),
                curve=tuple(curve := points.get(attacked_state(name, job.params["attack_id"]), [])),
                after=curve[-1] if curve and job.state == "done" else None,
                repaired=_last(points, repaired_state(name, job.params["attack_id"])),
                training_s=seconds[job.id],
            )
            for job in jobs.values()
            if job.kind == "attack" and job.params["defence"] == name
        }
        aligned = [job for job in jobs.values() if job.kind == "align" and job.params["aligned"] == keys[name]]
        defences[name] = DefenceScores(
            title=title_of(defence),
            aligned=keys[name],
            before=_last(points, aligned_state(keys[name])),
            alignment_s=seconds[aligned[-1].id] if aligned else 0.0,
            attacks=attacks,
        )
    plain = next((defence.name for defence in config.defences if defence == Defence(name=defence.name)), "")
    plain_s = defences[plain].alignment_s if plain else 0.0
    return RunScores(
        run_id=run_id,
        judge=judge,
        seed=config.seed,
        base=_last(points, BASE),
        defences=defences,
        alignment_time_ratio_to_sft={
            name: scores.alignment_s / plain_s for name, scores in defences.items() if plain_s and scores.alignment_s
        },
    )


def _last(points: Mapping[str, Sequence[StateScores]], state: str) -> StateScores | None:
    """The newest measurement of a state; None if there is none."""
    found = points.get(state)
    return found[-1] if found else None


def make_report(command: str, config: LabConfig, runs: Sequence[RunScores], wall_s: float) -> Report:
    """Make one report of runs of one config."""
    return Report(command=command, config=config, wall_s=wall_s, runs=tuple(runs), mean=means_of(runs))


def _points(events: Iterable[StoredEvent], judge: str) -> dict[str, list[StateScores]]:
    """State -> its measurements by attack step. A later measurement of the same set replaces the earlier."""
    latest: dict[str, dict[int, dict[str, EvalRecord]]] = defaultdict(lambda: defaultdict(dict))
    for stored in events:
        record = stored.event
        if isinstance(record, EvalRecord) and (record.judge == judge or task_of(record.eval_set)):
            latest[record.state][record.step][record.eval_set] = record
    return {
        state: [_state_scores(list(by_step[step].values())) for step in sorted(by_step)]
        for state, by_step in latest.items()
    }


def _state_scores(records: Sequence[EvalRecord]) -> StateScores:
    last = records[-1]
    return StateScores(
        state=last.state,
        state_hash=last.state_hash,
        step=last.step,
        judge=last.judge,
        scores={record.eval_set: {name: _score(value) for name, value in record.scores.items()} for record in records},
        outcomes={record.eval_set: record.outcomes for record in records if record.outcomes},
    )


def _score(value: Proportion) -> Score:
    low, high = value.interval
    return Score(percent=value.percent, low=low, high=high, count=value.count, n=value.n)


def _training_seconds(store: Store, job: JobRow) -> float:
    steps = store.events(job.run_id, kinds=("step",), job_id=job.id)
    last = steps[-1].event if steps else None
    return last.elapsed_s if isinstance(last, StepRecord) else 0.0


def rows_of(run: RunScores) -> Iterable[tuple[str, str, StateScores]]:
    """(state, label, scores) in the order of the story: the base first."""
    if run.base:
        yield BASE, "base model", run.base
    for name, defence in run.defences.items():
        if defence.before:
            yield aligned_state(defence.aligned), f"{defence.title}, before", defence.before
        for attack_id, attack in defence.attacks.items():
            if attack.after:
                yield attacked_state(name, attack_id), f"{defence.title}, after {attack_id}", attack.after
            if attack.repaired:
                yield repaired_state(name, attack_id), f"{defence.title}, repaired after {attack_id}", attack.repaired


def means_of(runs: Sequence[RunScores]) -> dict[str, dict[str, float]]:
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        for state, _, scores in rows_of(run):
            for eval_set, by_name in scores.scores.items():
                for name, score in by_name.items():
                    values[state][f"{eval_set}/{name}"].append(score.percent)
    return {state: {key: fmean(found) for key, found in by_key.items()} for state, by_key in values.items()}
