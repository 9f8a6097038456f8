"""Orders: what page, command line and scripts ask of the lab. Torch-free.

Every order goes the same way. It is checked for what would fail in a worker. Then all of its jobs are queued in one
transaction, or none. The store refuses work that is already queued or running.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from tvaccine_core.config import PLAIN, STAGES, AttackConfig, Defence, LabConfig
from tvaccine_core.data.mixtures import attack_data
from tvaccine_core.data.sources import load_lab_data
from tvaccine_core.errors import StoreError
from tvaccine_core.evaluation.judges import JUDGES, load_judge
from tvaccine_core.methods import capabilities_of, method_info, title_of
from tvaccine_core.models.files import ModelFacts, check_model
from tvaccine_core.store import JobKind, JobRow, JobState, Store, Work


@dataclass(frozen=True)
class Order:
    """The jobs that were queued."""

    run_id: str
    jobs: tuple[str, ...]
    attack_id: str = ""
    """The attack's name in the run; empty where no attack was ordered."""


def check(config: LabConfig) -> ModelFacts:
    """Find errors before a worker does: in the data, the model's files, the mixture, the number of layers.

    Raises:
        ConfigError: the task, a set or the judge does not exist, or the model has fewer layers than are to be drawn.
        DataError: the attack asks for more samples than there are.
        ModelError: see `check_model`.
    """
    data = load_lab_data(config)
    attack_data(data, config.attack)
    load_judge(config.data.judge, data.world)
    facts = check_model(config.model)
    check_layers(config, facts)
    return facts


def check_layers(config: LabConfig, facts: ModelFacts) -> None:
    """Raise `ConfigError` if a method's settings do not fit the model's known facts, e.g. its number of layers."""
    for defence in config.defences:
        for stage in STAGES:
            method = defence.method(stage)
            method_info(method.name).check(method, facts)


def start_run(
    store: Store, config: LabConfig, name: str | None = None, *, attack: bool = False, priority: int = 0
) -> Order:
    """Make a run: align what its defences need, measure the base; with `attack`, attack every defence too.

    Args:
        priority: of its jobs; the highest is done first.

    Raises:
        RunBusyError: the alignment of a run of the same config is queued or running.
        ConfigError, DataError, ModelError: see `check`.
    """
    check(config)
    keys = _dearest_first(config)
    work = [Work("align", {"aligned": key}) for key in keys]
    if attack:
        settings = {"attack_id": "a1", "attack": config.attack.model_dump(mode="json")}
        key_of = config.aligned_keys()
        for defence in config.defences:
            work.append(Work("attack", {"defence": defence.name, **settings}, keys.index(key_of[defence.name])))
            if needs_repair(defence):
                work.append(Work("repair", work[-1].params, len(work) - 1))
    run_id = store.create_run(config, name, [*work, Work("baseline", {})], priority)
    return Order(run_id, tuple(job.id for job in store.jobs(run_id)), "a1" if attack else "")


def align(store: Store, run_id: str, defences: Sequence[str] = (), *, priority: int = 0) -> Order:
    """Align what some of an existing run's defences need, by default all defences.

    Raises:
        ConfigError: the run does not have the defence, or see `check`.
        RunBusyError: one of the alignments is already queued or running.
    """
    config = store.run(run_id).config
    check(config)
    key_of = config.aligned_keys()
    wanted = {key_of[config.defence(name).name] for name in defences} or set(key_of.values())
    work = [Work("align", {"aligned": key}) for key in _dearest_first(config) if key in wanted]
    return Order(run_id, tuple(store.enqueue_all(run_id, work, priority=priority)))


def start_attack(
    store: Store, run_id: str, attack: AttackConfig, defences: Sequence[str] = (), *, priority: int = 0
) -> Order:
    """Attack some of a run's defences, by default all, in the same way; their repairs follow.

    Raises:
        ConfigError: there is no such defence or task.
        DataError: the mixture asks for more samples than there are.
        RunBusyError: the same attack on one of the defences is already queued or running.
        StoreError: the aligned model of a defence was not made in this run, or its alignment failed.
    """
    config = store.run(run_id).config.model_copy(update={"attack": attack})
    check(config)
    aligned = latest(store.jobs(run_id), "align")
    chosen = [config.defence(name) for name in defences] or list(config.defences)
    key_of = config.aligned_keys()
    needs: dict[str, str] = {}
    for defence in chosen:
        job = aligned.get(key_of[defence.name])
        if job is None or job.state in ("failed", "cancelled"):
            raise StoreError(
                f"{title_of(defence)} is not aligned in this run.",
                remedy="Align it first, on the Align step; on the command line: "
                f"python -m tvaccine_core align --run {run_id} --defence {defence.name}",
            )
        needs[defence.name] = job.id
    repaired = [defence.name for defence in chosen if needs_repair(defence)]
    attack_id, jobs = store.enqueue_attack(run_id, attack.model_dump(mode="json"), needs, repaired, priority)
    return Order(run_id, tuple(jobs), attack_id)


def evaluate(store: Store, run_id: str, states: Mapping[str, int]) -> Order:
    """Measure saved states of a run again; `states`: name -> attack steps it has seen."""
    work = [Work("evaluate", {"state": state, "step": step}) for state, step in states.items()]
    return Order(run_id, tuple(store.enqueue_all(run_id, work)))


def judge(store: Store, run_id: str, key: str) -> Order:
    """Let a second judge read a run's saved answers: its scores cost no generation.

    Raises:
        ConfigError: there is no such judge, or it cannot judge this run's world.
        StoreError: the run has no saved answers yet, or this judge is the run's own.
        RunBusyError: the same work is already queued or running.
    """
    config = store.run(run_id).config
    load_judge(key, load_lab_data(config).world)
    if key == config.data.judge:
        raise StoreError(
            f"The judge {key} is the run's own: it has judged every answer already.",
            remedy=f"Choose another: {', '.join(name for name in JUDGES if name != key)}.",
        )
    if not store.answers(run_id, limit=1):
        raise StoreError("This run has no saved answers yet.", remedy="Wait until a model of it is measured.")
    return Order(run_id, (store.enqueue(run_id, "judge", {"judge": key}),))


def stop(store: Store, run_id: str, kinds: Collection[JobKind]) -> int:
    """Ask the run's jobs of these kinds to stop; returns how many. Waiting jobs come first, so that none starts now.

    Raises:
        RunNotFoundError: there is no such run.
    """
    jobs = store.jobs(store.run(run_id).id, states=("queued", "running"))
    active = [job for job in jobs if job.kind in kinds]
    for job in sorted(active, key=lambda job: job.state == "running"):
        store.cancel(job.id)
    return len(active)


def resume(
    store: Store,
    run_id: str,
    kinds: Collection[JobKind],
    states: Collection[JobState] = ("failed", "cancelled", "interrupted"),
    only: Callable[[JobRow], bool] = lambda job: True,
) -> list[str]:
    """Queue failed and stopped jobs again, before the jobs that depend on them. Returns the jobs.

    Args:
        states: what counts as failed or stopped.
        only: leaves out jobs for which it is false.

    Raises:
        RunNotFoundError: there is no such run.
    """
    store.reap()  # a worker that was just killed has left its job running
    jobs = store.jobs(store.run(run_id).id)
    newest = [job for kind in kinds for job in latest(jobs, kind).values()]
    stopped = [job for job in newest if job.state in states and only(job)]
    for job in sorted(stopped, key=lambda job: job.depends_on is not None):
        store.resume(job.id)
    return [job.id for job in stopped]


def latest(jobs: Sequence[JobRow], kind: JobKind) -> dict[str, JobRow]:
    """The newest job for each piece of work of `kind`. Keys: an alignment's key; an attack's or repair's attack and
    defence (`a1/sft`); a measurement's state; a judge's name; "" for the base."""
    found: dict[str, JobRow] = {}
    for job in jobs:
        if job.kind == kind:
            parts = [
                str(job.params[name])
                for name in ("attack_id", "defence", "aligned", "state", "judge")
                if name in job.params
            ]
            found["/".join(parts)] = job
    return found


def needs_repair(defence: Defence) -> bool:
    """True if a repair follows the user's fine-tuning."""
    return defence.repair.name != PLAIN["repair"]


def _dearest_first(config: LabConfig) -> list[str]:
    """Keys of the aligned models. The method with the fewest passes comes last, to fill a gap between two workers."""
    methods = config.alignments()
    return sorted(methods, key=lambda key: -capabilities_of(methods[key]).extra_passes)
