"""Makes a sweep's cells: finds those that some run has already, queues runs for the others, and waits.

Nothing is made twice: a cell is known by its content (`Cell.key`), and every run of the store counts, whoever made it.
A sweep that was killed goes on: its interrupted jobs are resumed from their checkpoints, finished ones are kept.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from tvaccine_core import orders
from tvaccine_core.config import AttackConfig, LabConfig, parse_config
from tvaccine_core.errors import ConfigError, RunBusyError, RunNotFoundError, TVaccineError
from tvaccine_core.store import JobKind, JobRow, JobState, Store
from tvaccine_core.sweeps.plan import Cell, Sweep, by_run, cell_key, cells_of, run_key

KINDS: tuple[JobKind, ...] = ("align", "baseline", "attack", "repair")
"""Work that a sweep queues."""
PRIORITY = -1
"""Of a sweep's jobs: what a reader asks for comes first."""
POLL_EVERY_S = 0.5
MAX_RESUMES = 10
"""How often jobs of one run whose workers died are resumed, in one start of a sweep."""


@dataclass(frozen=True)
class Place:
    """Where a cell is."""

    run_id: str
    defence: str
    attack_id: str


@dataclass
class Progress:
    """How far a sweep is."""

    total: int
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """Cell's key -> what went wrong and what to do."""
    active: tuple[str, ...] = ()
    """Runs that are queued or running."""
    began: float = field(default_factory=time.monotonic)
    done_at_start: int = 0

    @property
    def seconds_left(self) -> float | None:
        """Estimated from the cells that were made since the start; None before the first."""
        made = self.done - self.done_at_start
        if made < 1:
            return None
        return (time.monotonic() - self.began) / made * (self.total - self.done - len(self.failed))


def places(store: Store) -> dict[str, Place]:
    """Every finished cell of the store's runs, by its key; of equal ones the newest.

    Not of recorded runs, which another machine made, nor of runs whose settings this version does not read.
    """
    found: dict[str, Place] = {}
    for run in reversed(store.runs()):
        if not run.recorded:
            with contextlib.suppress(ConfigError, RunNotFoundError):
                found |= _finished(store, run.id)
    return found


def check_cells(cells: Sequence[Cell]) -> None:
    """Find errors before anything is queued. Raises `ConfigError`, `DataError`, `ModelError`: see `orders.check`."""
    for config in {cell.config.model_dump_json(): cell.config for cell in cells}.values():
        orders.check(config)


def run_sweep(
    store: Store,
    sweep: Sweep,
    *,
    at_once: int,
    known: Collection[str] = (),
    look: Callable[[Progress], None] = lambda progress: None,
    pause: Callable[[], None] = lambda: time.sleep(POLL_EVERY_S),
) -> Progress:
    """Make the cells that are missing. Workers on the store do the work: the caller has started them.

    Args:
        at_once: runs that are queued or running at the same time.
        known: keys of cells whose results are in hand, although no run of the store has them.
        look: called after every look at the store.
        pause: waits for the next look; what it raises ends the sweep and leaves the queued work as it is.

    Raises:
        ConfigError, DataError, ModelError: a cell's settings cannot work; nothing was queued.
    """
    cells = cells_of(sweep)
    groups = by_run(cells)
    check_cells(cells)
    store.reap()
    ready = places(store)
    wanted = {cell.key for cell in cells}
    made = wanted & {*ready, *known}
    progress = Progress(len(wanted), done=len(made), done_at_start=len(made))
    waiting = [missing for group in groups if (missing := [cell for cell in group if cell.key not in made])]
    active: dict[str, list[Cell]] = {}
    resumed: Counter[str] = Counter()
    while waiting or active:
        busy: list[list[Cell]] = []
        while waiting and len(active) < at_once:
            group = waiting.pop(0)
            try:
                active[_queue(store, sweep, group)] = group
            except RunBusyError:  # somebody else aligns the same models, or what was stopped has not stopped yet
                busy.append(group)
            except TVaccineError as error:
                progress.failed |= {cell.key: f"{error} {error.remedy}" for cell in group}
        if busy:
            made |= wanted & set(places(store))
            waiting += [missing for group in busy if (missing := [cell for cell in group if cell.key not in made])]
        for run_id, group in list(active.items()):
            # A worker died, or noticed only now that the program that had started it was killed.
            if resumed[run_id] < MAX_RESUMES:
                resumed[run_id] += bool(_resume(store, run_id, group, ("interrupted",)))
            else:
                orders.stop(store, run_id, KINDS)  # what waits for an interrupted job would wait for ever
            jobs = [job for job in store.jobs(run_id) if job.kind in KINDS]
            finished = _finished(store, run_id)
            if not any(job.active for job in jobs):
                del active[run_id]
                said = _why(jobs)
                progress.failed |= {cell.key: said for cell in group if cell.key not in finished}
            made |= wanted & set(finished)
        progress.done = len(made)
        progress.active = tuple(active)
        look(progress)
        if active or busy:
            pause()
    return progress


def _queue(store: Store, sweep: Sweep, group: Sequence[Cell]) -> str:
    """Queue what the cells of one run need, in the sweep's unfinished run if there is one; returns the run's id."""
    config = group[0].config
    wanted = [cell.defence for cell in group]
    key, name = run_key(config), run_name(sweep, config.seed)
    run_id = next(
        (
            run.id
            for run in store.runs()
            if run.name == name and run_key(run.config) == key and all(each in run.config.defences for each in wanted)
        ),
        None,
    )
    if run_id is None:
        chosen = [defence for defence in config.defences if defence in wanted]
        config = config.model_copy(update={"defences": tuple(chosen)})
        run_id = orders.start_run(store, config, name, priority=PRIORITY).run_id
    else:
        if any(job.active and job.cancel_requested for job in store.jobs(run_id) if job.kind in KINDS):
            raise RunBusyError("Its work is being stopped.", remedy="Wait until it has stopped.", run_id=run_id)
        _resume(store, run_id, group, ("failed", "cancelled", "interrupted"))
        queued = orders.latest(store.jobs(run_id), "align")
        keys = store.run(run_id).config.aligned_keys()
        missing = [cell.defence.name for cell in group if keys[cell.defence.name] not in queued]
        if missing:
            orders.align(store, run_id, list(dict.fromkeys(missing)), priority=PRIORITY)
    attacked = _attacked(store, run_id)
    for attack in dict.fromkeys(cell.attack for cell in group):
        names = [cell.defence.name for cell in group if cell.attack == attack and cell.key not in attacked]
        if names:
            orders.start_attack(store, run_id, attack, names, priority=PRIORITY)
    return run_id


def _resume(store: Store, run_id: str, group: Sequence[Cell], states: Collection[JobState]) -> list[str]:
    """Queue again what `group` needs of the run's jobs in these states; the run may have other stopped work."""
    config = store.run(run_id).config
    keys, wanted = config.aligned_keys(), {cell.key for cell in group}
    aligned = {keys[defence.name] for defence in config.defences if any(cell.defence == defence for cell in group)}

    def needed(job: JobRow) -> bool:
        if job.kind == "align":
            return job.params["aligned"] in aligned
        return job.kind == "baseline" or _key(config, job) in wanted

    return orders.resume(store, run_id, KINDS, states, needed)


def withdraw(store: Store, sweep: Sweep, run_ids: Collection[str]) -> None:
    """Stop the sweep's work in these runs, but not the work of a reader there, nor what that waits for."""
    wanted = {cell.key for cell in cells_of(sweep)}
    for run_id in run_ids:
        config = store.run(run_id).config
        active = [job for job in store.jobs(run_id) if job.active]
        others = {job.id for job in active if job.kind not in KINDS}
        others |= {job.id for job in active if job.kind in ("attack", "repair") and _key(config, job) not in wanted}
        kept = others | {job.depends_on for job in active if job.id in others and job.depends_on}
        doomed = [job for job in active if job.id not in kept]
        for job in sorted(doomed, key=lambda job: job.state == "running"):
            store.cancel(job.id)


def runs_of(store: Store, sweep: Sweep) -> list[str]:
    """The runs that a sweep has made so far."""
    names = {run_name(sweep, group[0].config.seed) for group in by_run(cells_of(sweep))}
    return [run.id for run in store.runs() if run.name in names]


def _key(config: LabConfig, job: JobRow) -> str:
    """The cell that an attack or a repair belongs to."""
    return _key_of(config.model_dump_json(), job.params["defence"], json.dumps(job.params["attack"], sort_keys=True))


@lru_cache(maxsize=65536)
def _key_of(config_json: str, defence: str, attack_json: str) -> str:
    config = parse_config(LabConfig, json.loads(config_json))
    return cell_key(config, config.defence(defence), parse_config(AttackConfig, json.loads(attack_json)))


def run_name(sweep: Sweep, seed: int) -> str:
    """Name of the sweep's runs with this seed."""
    return f"sweep {sweep.name}, seed {seed}"


def _attacked(store: Store, run_id: str) -> set[str]:
    """Keys of the cells whose attack is finished or queued."""
    config = store.run(run_id).config
    jobs = [job for job in store.jobs(run_id) if job.kind == "attack"]
    return {_key(config, job) for job in jobs if job.state in ("queued", "running", "done", "interrupted")}


def _finished(store: Store, run_id: str) -> dict[str, Place]:
    """The finished cells of one run."""
    config, found = store.run(run_id).config, {}
    for job in store.jobs(run_id, states=("done",)):
        if job.kind in ("attack", "repair"):
            defence = config.defence(job.params["defence"])
            if orders.needs_repair(defence) == (job.kind == "repair"):
                found[_key(config, job)] = Place(run_id, defence.name, job.params["attack_id"])
    return found


def _why(jobs: Sequence[JobRow]) -> str:
    """The first reason why jobs are not done."""
    for job in jobs:
        if job.state != "done" and (job.error or job.state == "cancelled"):
            return f"{job.title}: {job.state}. {job.error or ''} {job.remedy or ''}".strip()
    return "It was not made."
