"""Who makes which cell: workers are played by the test, which finishes jobs as it likes."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tvaccine_core import orders
from tvaccine_core.config import PRESETS, AttackConfig, parse_config
from tvaccine_core.errors import ConfigError, TVaccineError
from tvaccine_core.store import JobRow, Store
from tvaccine_core.sweeps.drive import KINDS, Progress, places, run_sweep
from tvaccine_core.sweeps.plan import Sweep, cells_of


class KilledError(Exception):
    """The sweep is killed."""


class Workers:
    """Finish one job at each pause; those whose title is in `fail` fail; after `lives` jobs the sweep is killed."""

    def __init__(self, store: Store, lives: int = 10_000) -> None:
        self.store, self.lives, self.fail = store, lives, ""
        self.done: list[JobRow] = []

    def __call__(self) -> None:
        if len(self.done) >= self.lives:
            raise KilledError
        job = self.store.claim("worker")
        assert job is not None, "a sweep that waits has work"
        if self.fail and self.fail in job.title:
            self.store.finish(job.id, "failed", TVaccineError("It burst.", remedy="Try again."))
            return
        self.store.finish(job.id, "done")
        self.done.append(job)

    def made(self) -> Counter[str]:
        """How often each piece of work was done."""
        return Counter(f"{job.run_id} {job.kind} {sorted(job.params.items())}" for job in self.done)


def sweep(**fields: Any) -> Sweep:
    return parse_config(
        Sweep,
        {
            "name": "test",
            "preset": "sandbox-check",
            "defences": ["sft", "tvaccine"],
            "vary": {"seed": [0, 1], "attack.harmful_ratio": [0, 0.1, 0.5]},
            **fields,
        },
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def kinds(workers: Workers) -> Counter[str]:
    return Counter(job.kind for job in workers.done)


def test_cells_share_aligned_models_and_runs(store: Store) -> None:
    workers = Workers(store)
    progress = run_sweep(store, sweep(), at_once=1, pause=workers)
    assert (progress.total, progress.done, progress.failed) == (12, 12, {})
    assert kinds(workers) == {"align": 4, "attack": 12, "baseline": 2}
    assert {run.name for run in store.runs()} == {"sweep test, seed 0", "sweep test, seed 1"}
    ready = places(store)
    for cell in cells_of(sweep()):
        place = ready[cell.key]
        job = next(
            job
            for job in store.jobs(place.run_id)
            if job.params.get("attack_id") == place.attack_id and job.params.get("defence") == place.defence
        )
        assert parse_config(AttackConfig, job.params["attack"]) == cell.attack
        assert store.run(place.run_id).config.seed == cell.config.seed


def test_what_is_done_is_not_made_again_by_any_sweep(store: Store) -> None:
    run_sweep(store, sweep(), at_once=2, pause=Workers(store))
    again = Workers(store)
    assert run_sweep(store, sweep(name="other"), at_once=2, pause=again).done == 12
    assert again.done == []
    wider = sweep(name="wider", vary={"seed": [1, 2], "attack.harmful_ratio": [0.1, 0.2]})
    progress = run_sweep(store, wider, at_once=2, pause=again)
    assert (progress.done_at_start, progress.done) == (2, 8)
    assert kinds(again)["attack"] == 6


def test_a_run_that_the_page_made_counts(store: Store) -> None:
    cell = cells_of(sweep())[0]
    order = orders.start_run(store, cell.config, "by hand", attack=True)
    by_hand = Workers(store)
    while any(store.job(job).active for job in order.jobs):
        by_hand()
    workers = Workers(store)
    progress = run_sweep(store, sweep(vary={"seed": [0]}), at_once=1, pause=workers)
    assert progress.done_at_start == 0, "the preset's attack is another one"
    workers = Workers(store)
    progress = run_sweep(store, sweep(vary={"attack.harmful_ratio": [0]}), at_once=1, pause=workers)
    assert (progress.done_at_start, progress.done, workers.done) == (2, 2, [])


@pytest.mark.parametrize("lives", [0, 1, 2, 4, 7, 11, 15])
def test_a_killed_sweep_repeats_nothing_and_loses_nothing(store: Store, lives: int) -> None:
    first = Workers(store, lives)
    with pytest.raises(KilledError):
        run_sweep(store, sweep(), at_once=2, pause=first)
    second = Workers(store)
    progress = run_sweep(store, sweep(), at_once=2, pause=second)
    assert progress.done == 12
    made = first.made() + second.made()
    assert set(made.values()) == {1}
    assert len(made) == 18
    assert len(store.runs()) == 2


def test_a_job_whose_worker_dies_late_is_resumed(store: Store) -> None:
    """A killed sweep's worker may hold its job for a while after the sweep was started again."""
    workers = Workers(store)
    deaths = ["align sft", "attack tvaccine a1"]

    def pause() -> None:
        job = store.claim("worker")
        assert job is not None
        if job.title in deaths:
            deaths.remove(job.title)
            store.finish(job.id, "interrupted")
        else:
            store.finish(job.id, "done")
            workers.done.append(job)

    progress = run_sweep(store, sweep(), at_once=1, pause=pause)
    assert (progress.done, progress.failed, deaths) == (12, {}, [])
    assert set(workers.made().values()) == {1}


def test_a_worker_that_always_dies_ends_the_wait(store: Store) -> None:
    def pause() -> None:
        job = store.claim("worker")
        assert job is not None
        store.finish(job.id, "interrupted")

    progress = run_sweep(store, sweep(vary={"seed": [0]}), at_once=1, pause=pause)
    assert (progress.done, len(progress.failed)) == (0, 2)


def test_what_another_sweep_left_in_a_run_stays_there(store: Store) -> None:
    """Same name, same aligned models, other attacks: the attacks that were stopped are not asked for any more."""
    first = Workers(store, lives=3)
    with pytest.raises(KilledError):
        run_sweep(store, sweep(vary={"seed": [0], "attack.harmful_ratio": [0, 0.1]}), at_once=1, pause=first)
    (run,) = store.runs()
    orders.stop(store, run.id, ("attack",))
    second = Workers(store)
    run_sweep(store, sweep(vary={"seed": [0], "attack.harmful_ratio": [0.5]}), at_once=1, pause=second)
    made = kinds(first) + kinds(second)
    assert (made["align"], made["baseline"]) == (2, 1)
    assert [job.params["attack"]["harmful_ratio"] for job in second.done if job.kind == "attack"] == [0.5, 0.5]
    assert len(store.runs()) == 1


def test_a_job_that_fails_costs_its_cells_and_is_tried_again(store: Store) -> None:
    workers = Workers(store)
    workers.fail = "align tvaccine"
    seen: list[int] = []
    progress = run_sweep(store, sweep(), at_once=1, pause=workers, look=lambda now: seen.append(now.done))
    assert progress.done == 6
    assert len(progress.failed) == 6
    assert all("It burst. Try again." in words for words in progress.failed.values())
    assert seen == sorted(seen)
    second = Workers(store)
    assert run_sweep(store, sweep(), at_once=1, pause=second).done == 12
    assert kinds(second)["align"] == 2
    assert kinds(second)["attack"] == 6
    assert len(store.runs()) == 2


def test_a_cell_that_cannot_work_is_named_before_anything_is_queued(store: Store) -> None:
    with pytest.raises(ConfigError, match="layers"):
        run_sweep(store, sweep(defences=["sft", "tvaccine num_layers=99"]), at_once=1, pause=Workers(store))
    assert store.runs() == []


def test_time_left_follows_from_the_cells_made_since_the_start() -> None:
    progress = Progress(total=10, done=4, done_at_start=4)
    assert progress.seconds_left is None
    progress.done = 6
    progress.began -= 20
    assert progress.seconds_left == pytest.approx(40, rel=0.05)


def test_cells_whose_results_are_in_hand_are_not_made(store: Store) -> None:
    cells = cells_of(sweep())
    known = {cell.key for cell in cells[:3]}
    workers = Workers(store)
    progress = run_sweep(store, sweep(), at_once=2, known=known, pause=workers)
    assert (progress.total, progress.done_at_start, progress.done) == (12, 3, 12)
    assert kinds(workers)["attack"] == 9
    assert not known & set(places(store))


def test_a_run_that_this_version_cannot_read_stops_no_sweep(store: Store) -> None:
    run_sweep(store, sweep(vary={"seed": [0]}), at_once=1, pause=Workers(store))
    with store.writing() as db:
        db.execute("UPDATE runs SET config = '{\"nonsense\": 1}'")
    assert places(store) == {}
    progress = run_sweep(store, sweep(vary={"seed": [1]}), at_once=1, pause=Workers(store))
    assert (progress.done, progress.failed) == (2, {})


def test_what_is_being_stopped_is_waited_for_and_then_goes_on(store: Store) -> None:
    """Stop, and go on before the running step has ended: the promise is that nothing is lost."""
    first = Workers(store, lives=0)
    with pytest.raises(KilledError):
        run_sweep(store, sweep(vary={"seed": [0]}), at_once=1, pause=first)
    running = store.claim("worker")
    assert running is not None
    (run,) = store.runs()
    orders.stop(store, run.id, KINDS)
    workers = Workers(store)
    looks = 0

    def pause() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            store.finish(running.id, "cancelled")
        if looks > 3:
            workers()

    progress = run_sweep(store, sweep(vary={"seed": [0]}), at_once=1, pause=pause)
    assert (progress.done, progress.failed) == (2, {})
    assert len(store.runs()) == 1


def test_the_same_alignment_elsewhere_is_waited_for(store: Store) -> None:
    (config, *_) = [cell.config for cell in cells_of(sweep(vary={"seed": [0]}))]
    by_hand = orders.start_run(store, config, "by hand")
    workers = Workers(store)
    progress = run_sweep(store, sweep(vary={"seed": [0]}), at_once=1, pause=workers)
    assert (progress.done, progress.failed) == (2, {})
    assert {run.name for run in store.runs()} == {"by hand", "sweep test, seed 0"}
    assert all(store.job(job).state == "done" for job in by_hand.jobs)


def test_a_reader_s_work_comes_before_a_sweep_s(store: Store) -> None:
    first = Workers(store, lives=0)
    with pytest.raises(KilledError):
        run_sweep(store, sweep(), at_once=2, pause=first)
    reader = orders.start_run(store, PRESETS["sandbox-check"].config.model_copy(update={"seed": 77}), "reader's")
    claimed = [store.claim("worker") for _ in reader.jobs]
    assert {job.run_id for job in claimed if job} == {reader.run_id}


def test_a_recorded_run_s_cells_are_not_this_machine_s(store: Store) -> None:
    run_sweep(store, sweep(vary={"seed": [0]}), at_once=1, pause=Workers(store))
    assert len(places(store)) == 2
    with store.writing() as db:
        db.execute("UPDATE runs SET recorded = 'digest'")
    assert places(store) == {}
