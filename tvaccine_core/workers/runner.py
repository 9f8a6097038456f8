"""The engine of a worker process: one base model in memory, the pipeline on top. Imports torch.

The base is loaded once and kept until a job needs another. Trained adapters are in memory only while their job runs.
Each job reads the states it builds on from its run's folder, so that no job uses another run's adapter of the same
name. Answers use separate adapters, read from the saved states under names that no job uses, so they change nothing
that trains.
"""

import gc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from tvaccine_core import pipeline
from tvaccine_core.answering import answer
from tvaccine_core.config import AttackConfig, LabConfig, ModelConfig, parse_config
from tvaccine_core.models.load import load_model, pick_device
from tvaccine_core.names import BASE, state_folder
from tvaccine_core.passes.memory import device_bytes
from tvaccine_core.pipeline import Session
from tvaccine_core.processes import ALONE, Ranks
from tvaccine_core.records import AnswerRecord, Event, GeneratedAnswer
from tvaccine_core.states.model_states import ModelStates
from tvaccine_core.store import JobRow, Store
from tvaccine_core.workers.asked_states import AskedStates
from tvaccine_core.workers.divided_base import load_divided, run_a_pass
from tvaccine_core.workers.judge_job import judge_answers

ShouldStop = Callable[[], bool]


class TorchEngine:
    """Runs jobs on one base model at a time.

    Args:
        num_threads: torch's CPU threads; results are bit-equal only for the same number.
        ranks: the processes that train together; all but the leader `follow`.
    """

    def __init__(self, num_threads: int | None = None, *, ranks: Ranks = ALONE) -> None:
        self._num_threads = num_threads
        self._ranks = ranks
        self._states: ModelStates | None = None
        self._asked = AskedStates()

    def run(self, store: Store, job: JobRow, config: LabConfig, should_stop: ShouldStop) -> Iterator[Event]:
        """Do any job but `generate`; see the functions of `pipeline`."""
        if job.kind == "judge":
            yield from judge_answers(store, job, config, should_stop)
            return
        if config.model.shard:
            self._load(config.model)  # in all processes, even if the leader works alone
        start = store.last_checkpoint(job.id) if job.resumed else 0
        if job.kind in ("align", "attack"):
            task = {"kind": job.kind, "params": job.params, "resume_from": start, "config": config.to_yaml()}
            self._ranks.share(json.dumps(task).encode())
        states = self._load(config.model)
        self._forget_jobs(states)
        session = self._session(states, store, job)
        params = job.params
        match job.kind:
            case "baseline":
                yield from pipeline.baseline(session, config, should_stop=should_stop)
            case "align" | "attack":
                yield from _train(session, config, job.kind, params, should_stop, start)
            case "repair":
                attack = parse_config(AttackConfig, params["attack"])
                yield from pipeline.repair(
                    session, config, params["defence"], attack, params["attack_id"], should_stop=should_stop
                )
            case "evaluate":
                yield from _evaluate(session, config, params["state"], params["step"], should_stop)
            case "generate":
                yield from self.answer(store, job, config, should_stop, float("inf"))

    def follow(self, task: dict[str, Any], folder: Path, should_stop: ShouldStop) -> None:
        """Do this process's share of a job that the leader `run`s; writes only in `folder`."""
        config = LabConfig.from_yaml(task["config"])
        states = self._load(config.model)
        if task["kind"] == "load":
            return
        self._forget_jobs(states)
        session = Session(states.loaded, states, folder, lambda answers: None, self._ranks)
        for _ in _train(session, config, task["kind"], task["params"], should_stop, task["resume_from"]):
            pass

    def answer(
        self, store: Store, job: JobRow, config: LabConfig, should_stop: ShouldStop, time_limit_s: float
    ) -> Iterator[AnswerRecord]:
        """Do a `generate` job; see `answering.answer`."""
        states = self._load(config.model)
        wanted = {
            self._asked.load(states, store.run_dir(job.run_id), job.run_id, state): state
            for state in job.params["states"]
        }
        for record in answer(
            self._session(states, store, job),
            config,
            list(wanted),
            job.params["prompt"],
            max_new_tokens=job.params.get("max_new_tokens"),
            should_stop=should_stop,
            time_limit_s=time_limit_s,
        ):
            yield record.model_copy(update={"state": wanted[record.state]})

    def memory_remedy(self, job: JobRow, config: LabConfig) -> str:
        """Advice from the memory plan of a job that ran out of memory; empty if its device's memory is unknown."""
        from tvaccine_core.plan.remedy import memory_remedy  # only when needed: it imports much

        device = pick_device(config.model.device)
        total = device_bytes(device)
        if total is None:
            return ""
        return memory_remedy(config, job.kind, job.params, "cuda" if device.type == "cuda" else "cpu", total / 2**30)

    def release(self) -> None:
        """Drop the model and free its memory."""
        self._states = None
        self._asked.clear()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _session(self, states: ModelStates, store: Store, job: JobRow) -> Session:
        def save(answers: list[GeneratedAnswer]) -> None:
            store.save_answers(job.run_id, answers)

        return Session(states.loaded, states, store.run_dir(job.run_id), save, self._ranks)

    def _load(self, model: ModelConfig) -> ModelStates:
        if self._states is None or self._states.loaded.config != model:
            self.release()  # before loading: two bases may not fit
            if model.shard:
                self._states = load_divided(model, self._num_threads, self._ranks)
                self._ranks.take_part_by(self._run_a_pass)
            else:
                self._states = ModelStates(load_model(model, self._num_threads))
        return self._states

    def _run_a_pass(self) -> None:
        """A follower's pass while the leader measures. `ranks` keeps this method, so it must not keep an old base."""
        assert self._states is not None
        run_a_pass(self._states)

    def _forget_jobs(self, states: ModelStates) -> None:
        """Drop states that earlier jobs left in memory; they are on disk, and may be newer there."""
        for name in states.names:
            if name != BASE and not self._asked.has(name):
                states.drop(name)


def _train(
    session: Session, config: LabConfig, kind: str, params: dict[str, Any], should_stop: ShouldStop, start: int
) -> Iterator[Event]:
    """An `align` or `attack` job."""
    session.ranks.require_same(session.loaded.key, "base model")
    if kind == "align":
        yield from pipeline.align(session, config, params["aligned"], should_stop=should_stop, resume_from=start)
        return
    attack = parse_config(AttackConfig, params["attack"])
    yield from pipeline.attack(
        session, config, params["defence"], attack, params["attack_id"], should_stop=should_stop, resume_from=start
    )


def _evaluate(session: Session, config: LabConfig, state: str, step: int, should_stop: ShouldStop) -> Iterator[Event]:
    """Measure a saved state again, on every set and task."""
    if state != BASE:
        session.states.ensure(state, state_folder(session.run_dir, state))
    yield from pipeline.measure(session, config, state, step, should_stop=should_stop)
