"""Orders: what page, command line and scripts ask of the lab. Torch-free.

Every order goes the same way: what would fail in a worker is found first, then all of its jobs are queued in one
transaction or none is. The store refuses what is already queued or running.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from tvaccine_core.config import AlignmentConfig, AttackConfig, LabConfig, parse_config
from tvaccine_core.data.mixtures import attack_data
from tvaccine_core.data.sources import load_lab_data
from tvaccine_core.errors import StoreError
from tvaccine_core.methods import method_info, settings_of
from tvaccine_core.model_files import ModelFacts, check_model
from tvaccine_core.store import JobKind, JobRow, Store, Work


@dataclass(frozen=True)
class Order:
    """What was queued."""

    run_id: str
    jobs: tuple[str, ...]
    attack_id: str = ""
    """The attack's name in the run; empty where no attack was ordered."""


def check(config: LabConfig) -> ModelFacts:
    """Find what would fail in a worker: the data, the model's files, the mixture, the number of layers.

    Raises:
        ConfigError: the task does not exist, or the model has fewer layers than are to be drawn.
        DataError: the attack asks for more samples than there are.
        ModelError: see `check_model`.
    """
    attack_data(load_lab_data(config), config.attack)
    facts = check_model(config.model)
    check_layers(config, facts)
    return facts


def check_layers(config: LabConfig, facts: ModelFacts) -> None:
    """Raise `ConfigError` if a method's settings do not fit what is known of the model, e.g. its number of layers."""
    for method in config.alignment.methods:
        method_info(method.name).check(method, facts)


def start_run(store: Store, config: LabConfig, name: str | None = None, *, attack: bool = False) -> Order:
    """Make a run that aligns by every method and measures the base; with `attack` also the config's attack on each.

    Raises:
        RunBusyError: the alignment of a run of the same config is queued or running.
        ConfigError, DataError, ModelError: see `check`.
    """
    check(config)
    aligned = sorted(_names(config), key=_cheap)
    work = [Work("align", {"method": method}) for method in aligned]
    if attack:
        settings = {"attack_id": "a1", "attack": config.attack.model_dump(mode="json")}
        work += [Work("attack", {"method": name, **settings}, aligned.index(name)) for name in _names(config)]
    run_id = store.create_run(config, name, [*work, Work("baseline", {})])
    return Order(run_id, tuple(job.id for job in store.jobs(run_id)), "a1" if attack else "")


def align(store: Store, run_id: str, methods: Sequence[str] = ()) -> Order:
    """Align in a run that exists, by its own methods or by others, which then have their default settings.

    Raises:
        ConfigError: there is no such method, or see `check`.
        RunBusyError: one of the alignments is already queued or running.
    """
    config = store.run(run_id).config
    chosen = [method_info(method).name for method in methods] or _names(config)
    check(with_methods(config, chosen))
    jobs = store.enqueue_all(run_id, [Work("align", {"method": method}) for method in sorted(chosen, key=_cheap)])
    return Order(run_id, tuple(jobs))


def start_attack(store: Store, run_id: str, attack: AttackConfig, methods: Sequence[str] = ()) -> Order:
    """Attack each method's aligned model (of all methods of the run by default) by the same fine-tune.

    Raises:
        ConfigError: there is no such method or task.
        DataError: the mixture asks for more samples than there are.
        RunBusyError: the same attack on one of the models is already queued or running.
        StoreError: a method was not aligned in this run, or its alignment did not end well.
    """
    config = store.run(run_id).config.model_copy(update={"attack": attack})
    check(config)
    aligned = latest(store.jobs(run_id), "align")
    chosen = tuple(methods) or tuple(_names(config))
    for method in chosen:
        job = aligned.get(method_info(method).name)
        if job is None or job.state in ("failed", "cancelled"):
            raise StoreError(
                f"{method_info(method).title} is not aligned in this run.",
                remedy="Align it first, on the Align step; on the command line: "
                f"python -m tvaccine_core align --run {run_id} --methods {method}",
            )
    needs = {method: aligned[method].id for method in chosen}
    attack_id, jobs = store.enqueue_attack(run_id, attack.model_dump(mode="json"), needs)
    return Order(run_id, tuple(jobs), attack_id)


def evaluate(store: Store, run_id: str, states: Mapping[str, int]) -> Order:
    """Measure saved states of a run again; `states`: name -> attack steps it has seen."""
    work = [Work("evaluate", {"state": state, "step": step}) for state, step in states.items()]
    return Order(run_id, tuple(store.enqueue_all(run_id, work)))


def stop(store: Store, run_id: str, kinds: Collection[JobKind]) -> int:
    """Ask the run's jobs of these kinds to stop; returns how many. Waiting ones first, so that none slips in.

    Raises:
        RunNotFoundError: there is no such run.
    """
    jobs = store.jobs(store.run(run_id).id, states=("queued", "running"))
    active = [job for job in jobs if job.kind in kinds]
    for job in sorted(active, key=lambda job: job.state == "running"):
        store.cancel(job.id)
    return len(active)


def resume(store: Store, run_id: str, kinds: Collection[JobKind]) -> list[str]:
    """Queue again what did not end well, what others depend on first. Returns the jobs.

    Raises:
        RunNotFoundError: there is no such run.
    """
    store.reap()  # a worker that was just killed has left its job running
    jobs = store.jobs(store.run(run_id).id)
    stopped = [
        job
        for kind in kinds
        for job in latest(jobs, kind).values()
        if job.state in ("failed", "cancelled", "interrupted")
    ]
    for job in sorted(stopped, key=lambda job: job.depends_on is not None):
        store.resume(job.id)
    return [job.id for job in stopped]


def latest(jobs: Sequence[JobRow], kind: JobKind) -> dict[str, JobRow]:
    """The newest job of each piece of work of `kind`: by attack and method (`a1/sft`), else by method or state; "" for
    the base."""
    found: dict[str, JobRow] = {}
    for job in jobs:
        if job.kind == kind:
            key = str(job.params.get("method", job.params.get("state", "")))
            found[f"{job.params['attack_id']}/{key}" if kind == "attack" else key] = job
    return found


def with_methods(config: LabConfig, names: Sequence[str]) -> LabConfig:
    """The same config with these methods; those it has already keep their settings. Raises `ConfigError`."""
    methods = [settings_of(config, name).model_dump(mode="json") for name in names]
    alignment = {**config.alignment.model_dump(mode="json"), "methods": methods}
    return config.model_copy(update={"alignment": parse_config(AlignmentConfig, alignment)})


def _names(config: LabConfig) -> list[str]:
    return [method.name for method in config.alignment.methods]


def _cheap(method: str) -> bool:
    """Sorts the dearest first: with two workers the undefended twin, which takes half as long, fills a gap."""
    return method == "sft"
