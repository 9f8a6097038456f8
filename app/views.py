"""A run for the screens: events folded into tracks, kept up to date from the store, shared by all viewers.

Folding is incremental: only events after the last seen event are read.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from app.looks import Look, looks_of
from app.services import (
    BASE,
    VIEW_KINDS,
    AttackConfig,
    DriftRecord,
    EvalRecord,
    JobRow,
    Lab,
    LabConfig,
    LayerDrawRecord,
    LayerScoreRecord,
    LayerValuesRecord,
    MessageRecord,
    Proportion,
    RunRow,
    StateRecord,
    StepRecord,
    StoredEvent,
    aligned_state,
    attacked_state,
    cannot,
    latest,
    needs_repair,
    parse_config,
    pooled,
    repaired_state,
)

MAX_RUNS = 16
"""Folded runs in memory."""
MIN_AGE_S = 0.3
"""A fold younger than this is served again, and the store is not asked."""


@dataclass
class Track:
    """The reports of one job, by step."""

    steps: dict[int, StepRecord] = field(default_factory=dict)
    scores: dict[int, LayerScoreRecord] = field(default_factory=dict)
    draws: dict[int, LayerDrawRecord] = field(default_factory=dict)
    messages: list[MessageRecord] = field(default_factory=list)
    values: dict[tuple[str, int], LayerValuesRecord] = field(default_factory=dict)
    """By name and step."""

    @property
    def last(self) -> StepRecord | None:
        """The newest step."""
        return self.steps[max(self.steps)] if self.steps else None

    def copy(self) -> "Track":
        """A snapshot that later events do not change."""
        return Track(dict(self.steps), dict(self.scores), dict(self.draws), list(self.messages), dict(self.values))

    def seconds_left(self) -> float | None:
        """Seconds for the remaining steps at the pace of the last fifty; None before two steps are known."""
        if len(self.steps) < 2:
            return None
        numbers = sorted(self.steps)[-50:]
        first, last = self.steps[numbers[0]], self.steps[numbers[-1]]
        if last.step == first.step:
            return None
        pace = (last.elapsed_s - first.elapsed_s) / (last.step - first.step)
        return max(0.0, pace * (last.num_steps - last.step))


EMPTY_TRACK = Track()


@dataclass(frozen=True)
class RunView:
    """A snapshot of a run. `stamps` says when each topic last changed: equal stamps mean equal pictures."""

    run: RunRow
    config: LabConfig
    jobs: tuple[JobRow, ...]
    tracks: dict[str, Track]
    """By job id."""
    evals: dict[tuple[str, int, str], EvalRecord]
    """Scores by the run's own judge, by state, step and evaluation set."""
    second: dict[str, dict[tuple[str, int, str], EvalRecord]]
    """The same scores by each other judge, by the judge's name; without tasks, which have a scorer."""
    drift: dict[str, DriftRecord]
    """By state."""
    states: dict[str, StateRecord]
    stamps: dict[str, Hashable]

    def stamp(self, *topics: str) -> Hashable:
        """Changes whenever one of `topics` does: `align` and `attack` (steps), `layers`, `eval`, `drift`,
        `state`, `message`, `jobs` (their state and progress), `jobs_made`."""
        return (self.run.id, *(self.stamps.get(topic) for topic in topics))

    @property
    def defences(self) -> tuple[str, ...]:
        """Names of the run's defences, in its order."""
        return tuple(defence.name for defence in self.config.defences)

    @cached_property
    def keys(self) -> dict[str, str]:
        """Defence -> key of its aligned state."""
        return self.config.aligned_keys()

    @property
    def looks(self) -> Mapping[str, Look]:
        """How each defence is drawn."""
        return looks_of(self.config.defences)

    @property
    def active(self) -> bool:
        """True while any work of the run, except questions, is queued or running."""
        return any(job.active for job in self.jobs if job.kind != "generate")

    def align_job(self, key: str) -> JobRow | None:
        """The newest alignment of the state with this key."""
        return latest(self.jobs, "align").get(key)

    def attack_job(self, attack_id: str, defence: str) -> JobRow | None:
        """The newest attempt at this attack on this defence."""
        return latest(self.jobs, "attack").get(f"{attack_id}/{defence}")

    def repair_job(self, attack_id: str, defence: str) -> JobRow | None:
        """The newest repair of this defence after this attack."""
        return latest(self.jobs, "repair").get(f"{attack_id}/{defence}")

    def track(self, job: JobRow | None) -> Track:
        """The reports of `job`; empty for None."""
        return EMPTY_TRACK if job is None else self.tracks.get(job.id, EMPTY_TRACK)

    @property
    def attack_ids(self) -> tuple[str, ...]:
        """Attacks of the run, oldest first."""
        return tuple(dict.fromkeys(str(job.params["attack_id"]) for job in self.jobs if job.kind == "attack"))

    def attack_config(self, attack_id: str) -> AttackConfig:
        """Settings of an attack."""
        job = next(job for job in self.jobs if job.kind == "attack" and job.params["attack_id"] == attack_id)
        return parse_config(AttackConfig, job.params["attack"])

    def attacked_defences(self, attack_id: str) -> tuple[str, ...]:
        """Defences that this attack was started on, in the run's order."""
        return tuple(defence for defence in self.defences if self.attack_job(attack_id, defence))

    def states_of(self, defence: str, attack_id: str | None) -> dict[str, str]:
        """The defence's states: `before` the attack, `after` it and, with a repair, `repaired`."""
        found = {"before": aligned_state(self.keys[defence])}
        if attack_id is not None:
            found["after"] = attacked_state(defence, attack_id)
            if needs_repair(self.config.defence(defence)):
                found["repaired"] = repaired_state(defence, attack_id)
        return found

    def choose_attack(self, wanted: str | None) -> str | None:
        """`wanted` if the run has it, else its newest attack."""
        ids = self.attack_ids
        return wanted if wanted in ids else ids[-1] if ids else None

    def curve(self, defence: str, attack_id: str | None, eval_set: str) -> list[EvalRecord]:
        """Scores of a defence along an attack, from step 0 (the aligned model) on."""
        before = self.evals.get((aligned_state(self.keys[defence]), 0, eval_set))
        found = [before] if before else []
        if attack_id is not None:
            state = attacked_state(defence, attack_id)
            along = [record for (name, _, where), record in self.evals.items() if name == state and where == eval_set]
            # A measurement at step 0 of the attack would equal that of the aligned model.
            found += sorted((record for record in along if record.step or not before), key=lambda record: record.step)
        return found

    def final(self, state: str, eval_set: str) -> EvalRecord | None:
        """The last measurement of a state on a set."""
        steps = [step for name, step, where in self.evals if name == state and where == eval_set]
        return self.evals[state, max(steps), eval_set] if steps else None

    def finals(self, state: str) -> list[EvalRecord]:
        """The last measurements of a state, one per set."""
        return [record for where in self.eval_sets if (record := self.final(state, where)) is not None]

    def pooled(self, state: str, score: str) -> Proportion | None:
        """A score of a state over all sets together; None if it was not measured."""
        return pooled(self.finals(state), score)

    def cannot(self, state: str) -> bool | None:
        """True if the state has lost what the base knows, so that it cannot answer; None if that was not measured."""
        return cannot(self.finals(state), self.finals(BASE))

    @property
    def eval_sets(self) -> tuple[str, ...]:
        """Evaluation sets measured so far, in the order of their first record."""
        return tuple(dict.fromkeys(where for _, _, where in self.evals))

    @property
    def harmful_sets(self) -> tuple[str, ...]:
        """Sets with a harmful score."""
        return self.sets_with("harmful_score")

    def sets_with(self, score: str) -> tuple[str, ...]:
        """Evaluation sets whose measurements have this score."""
        return tuple(dict.fromkeys(where for (_, _, where), record in self.evals.items() if score in record.scores))

    def judge_job(self, key: str) -> JobRow | None:
        """The newest pass of a second judge."""
        return latest(self.jobs, "judge").get(key)

    def by_judge(self, name: str) -> "RunView":
        """The run with the scores of another judge instead of its own."""
        return replace(self, evals=self.second[name])


class _Fold:
    """The mutable side of a RunView, one per run, under a lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.view: RunView | None = None
        self.read_at = 0.0
        self._after = 0
        self._tracks: dict[str, Track] = {}
        self._evals: dict[tuple[str, int, str], EvalRecord] = {}
        self._second: dict[str, dict[tuple[str, int, str], EvalRecord]] = {}
        self._drift: dict[str, DriftRecord] = {}
        self._states: dict[str, StateRecord] = {}
        self._reported: dict[tuple[str, int, str], str] = {}  # the job behind each entry of _evals
        self._stamps: dict[str, Hashable] = {}

    def update(self, lab: Lab, run_id: str) -> RunView:
        run = lab.run(run_id)
        jobs = tuple(lab.store.jobs(run_id))
        work = [job for job in jobs if job.kind != "generate"]
        kinds = {job.id: job.kind for job in work}
        changed = False
        for stored in lab.store.events(run_id, after=self._after, kinds=VIEW_KINDS):
            self._after = stored.seq
            if stored.job_id in kinds:
                self._stamps[self._take(stored, kinds[stored.job_id])] = stored.seq
                changed = True
        self._stamps["jobs_made"] = tuple(job.id for job in work)
        self._stamps["jobs"] = tuple(
            (job.id, job.state, job.done, job.total, job.cancel_requested, job.error) for job in work
        )
        if self.view is not None and not changed and self.view.stamps == self._stamps and self.view.run == run:
            self.view = replace(self.view, jobs=jobs)
        else:
            self.view = RunView(
                run=run,
                config=run.config,
                jobs=jobs,
                tracks={job_id: track.copy() for job_id, track in self._tracks.items()},
                evals=dict(self._evals),
                second={judge: dict(records) for judge, records in self._second.items()},
                drift=dict(self._drift),
                states=dict(self._states),
                stamps=dict(self._stamps),
            )
        self.read_at = time.monotonic()
        return self.view

    def _take(self, stored: StoredEvent, kind: str) -> str:
        """Fold one event in; returns the topic it changes."""
        track = self._tracks.setdefault(stored.job_id, Track())
        match stored.event:
            case StepRecord() as event:
                if track.steps and event.step <= max(track.steps):
                    self._take_back(stored.job_id, event.step)
                track.steps[event.step] = event
                return kind
            case LayerScoreRecord() as event:
                track.scores[event.step] = event
                return "layers"
            case LayerDrawRecord() as event:
                track.draws[event.step] = event
                return "layers"
            case LayerValuesRecord() as event:
                track.values[event.name, event.step] = event
                return "layers"
            case EvalRecord() as event:
                key = (event.state, event.step, event.eval_set)
                if kind == "judge":
                    self._second.setdefault(event.judge, {})[key] = event
                    return "eval"
                self._evals[key], self._reported[key] = event, stored.job_id
                return "eval"
            case DriftRecord() as event:
                self._drift[event.state] = event
                return "drift"
            case StateRecord() as event:
                self._states[event.state] = event
                return "state"
            case MessageRecord() as event:
                track.messages.append(event)
                return "message"
            case other:
                raise AssertionError(f"VIEW_KINDS asked for {other.kind}, which no screen draws")

    def _take_back(self, job_id: str, step: int) -> None:
        """A resumed job goes on from its checkpoint: drop its reports of `step` and later."""
        track = self._tracks[job_id]
        for reported in (track.steps, track.scores, track.draws):
            for later in [number for number in reported if number >= step]:
                del reported[later]
        for key in [key for key in track.values if key[1] >= step]:
            del track.values[key]
        for key in [key for key, owner in self._reported.items() if owner == job_id and key[1] >= step]:
            del self._evals[key], self._reported[key]


class Views:
    """Snapshots of recently viewed runs, shared by all viewers of this process."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._lock = threading.Lock()
        self._folds: OrderedDict[str, _Fold] = OrderedDict()

    def view(self, run_id: str, fresh: bool = False) -> RunView:
        """The run as it is now, at most `MIN_AGE_S` old; `fresh` after the viewer changed something.

        Raises:
            RunNotFoundError: it does not exist (any more).
        """
        with self._lock:
            fold = self._folds.setdefault(run_id, _Fold())
            self._folds.move_to_end(run_id)
            while len(self._folds) > MAX_RUNS:
                self._folds.popitem(last=False)
        with fold.lock:
            if fold.view is not None and not fresh and time.monotonic() - fold.read_at < MIN_AGE_S:
                return fold.view
            return fold.update(self._lab, run_id)

    def forget(self, run_id: str) -> None:
        """Read the run anew next time."""
        with self._lock:
            self._folds.pop(run_id, None)


def progress_of(view: RunView, jobs: Sequence[JobRow]) -> tuple[float, float | None]:
    """Share of `jobs` that is done, 0..1, and seconds left of the slowest running job (None if unknown)."""
    if not jobs:
        return 0.0, None
    shares = [1.0 if job.state == "done" else (job.done or 0) / job.total if job.total else 0.0 for job in jobs]
    left = [view.track(job).seconds_left() for job in jobs if job.state == "running"]
    known = [seconds for seconds in left if seconds is not None]
    return sum(shares) / len(shares), max(known) if known else None
