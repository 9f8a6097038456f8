"""Orders: everything a page, a command or a script asks of the store, checked first, queued at once or not at all."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tvaccine_core import orders
from tvaccine_core.config import (
    AlignmentConfig,
    AttackConfig,
    Defence,
    LabConfig,
    ModelConfig,
    OptimisationConfig,
    TVaccineConfig,
    parse_config,
)
from tvaccine_core.errors import ConfigError, DataError, ModelError, RunBusyError, RunNotFoundError, StoreError
from tvaccine_core.methods import METHODS
from tvaccine_core.methods.capabilities import Capabilities
from tvaccine_core.store import Store

BOTH = ("sft", "tvaccine")


def at_once(number: int, act: Callable[[int], object]) -> tuple[list[object], list[Exception]]:
    """Let `number` threads act at the same moment; what came of it, and what was raised."""
    gate = threading.Barrier(number)
    results: list[object] = []
    errors: list[Exception] = []

    def run(index: int) -> None:
        gate.wait()
        try:
            results.append(act(index))
        except Exception as error:  # noqa: BLE001 - the test looks at what it is
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, errors


def strength(p: float) -> AttackConfig:
    return AttackConfig(harmful_ratio=p)


def test_a_run_is_made_with_all_of_its_work(store: Store) -> None:
    order = orders.start_run(store, LabConfig(), "mine", attack=True)
    jobs = store.jobs(order.run_id)
    assert [job.id for job in jobs] == list(order.jobs)
    assert [job.title for job in jobs] == [
        "align tvaccine",
        "align sft",
        "attack sft a1",
        "attack tvaccine a1",
        "baseline",
    ]
    aligned = {job.params["aligned"]: job.id for job in jobs if job.kind == "align"}
    assert {job.params["defence"]: job.depends_on for job in jobs if job.kind == "attack"} == aligned
    assert store.run(order.run_id).name == "mine"


def test_what_takes_the_most_passes_is_aligned_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked of the methods' entries, not of their names: here the dearest one is called sft."""
    dear = replace(METHODS["sft"], capabilities=lambda settings: Capabilities(extra_passes=2))
    monkeypatch.setitem(METHODS, "sft", dear)
    config = parse_config(LabConfig, {"defences": ["vaccine", "sft", "tvaccine"]})
    jobs = store.jobs(orders.start_run(store, config).run_id)
    assert [job.title for job in jobs if job.kind == "align"] == ["align sft", "align vaccine", "align tvaccine"]


def test_what_cannot_be_run_makes_no_run_and_leaves_no_folder(store: Store, tmp_path: Path) -> None:
    small = LabConfig(defences=(Defence(alignment=TVaccineConfig(num_layers=9)),))
    cases = [
        (LabConfig(attack=AttackConfig(task="juggling")), ConfigError, "juggling"),
        (LabConfig(model=ModelConfig(name=str(tmp_path / "none"))), ModelError, "none"),
        (LabConfig(attack=AttackConfig(num_samples=1_000_000)), DataError, "examples"),
        (small, ConfigError, "8 layers"),
    ]
    for config, kind, words in cases:
        with pytest.raises(kind, match=words) as raised:
            orders.start_run(store, config)
        assert raised.value.remedy
    assert store.runs() == []
    assert not (store.home / "runs").exists()


def test_forty_starts_in_one_moment_make_one_run(store: Store) -> None:
    made, refused = at_once(40, lambda _: orders.start_run(store, LabConfig()))
    assert len(made) == 1
    assert len(store.runs()) == 1
    assert [type(error) for error in refused] == [RunBusyError] * 39
    assert {error.run_id for error in refused if isinstance(error, RunBusyError)} == {store.runs()[0].id}
    assert [path.name for path in (store.home / "runs").iterdir()] == [store.runs()[0].id]


def test_the_same_run_may_be_made_again_once_its_work_has_ended(store: Store) -> None:
    first = orders.start_run(store, LabConfig())
    with pytest.raises(RunBusyError, match=first.run_id):
        orders.start_run(store, LabConfig())
    orders.start_run(store, LabConfig(seed=1))
    for job in first.jobs:
        store.cancel(job)
    assert orders.start_run(store, LabConfig()).run_id != first.run_id


def test_different_attacks_in_one_moment_have_different_names(store: Store) -> None:
    run_id = orders.start_run(store, LabConfig()).run_id
    for _ in range(5):
        made, refused = at_once(2, lambda index: orders.start_attack(store, run_id, strength(index)))
        assert refused == []
        assert len({order.attack_id for order in made if isinstance(order, orders.Order)}) == 2
        attacks = [job for job in store.jobs(run_id) if job.kind == "attack"]
        settings = {job.params["attack_id"]: job.params["attack"]["harmful_ratio"] for job in attacks}
        for job in attacks:
            assert job.params["attack"]["harmful_ratio"] == settings[job.params["attack_id"]]
            store.cancel(job.id)


def test_different_attacks_on_different_methods_in_one_moment_have_different_names(store: Store) -> None:
    run_id = orders.start_run(store, LabConfig()).run_id
    made, _ = at_once(2, lambda index: orders.start_attack(store, run_id, strength(index), [BOTH[index]]))
    assert {order.attack_id for order in made if isinstance(order, orders.Order)} == {"a1", "a2"}


def test_identical_attacks_in_one_moment_make_one(store: Store) -> None:
    run_id = orders.start_run(store, LabConfig()).run_id
    made, refused = at_once(8, lambda _: orders.start_attack(store, run_id, strength(0.3)))
    assert len(made) == 1
    assert {type(error) for error in refused} == {RunBusyError}
    assert all("a1" in str(error) for error in refused)
    assert [job.title for job in store.jobs(run_id) if job.kind == "attack"] == ["attack sft a1", "attack tvaccine a1"]
    with pytest.raises(RunBusyError, match="a1"):
        orders.start_attack(store, run_id, strength(0.3), ["sft"])


def test_an_attack_that_was_made_for_one_method_may_be_made_for_the_other(store: Store) -> None:
    run_id = orders.start_run(store, LabConfig()).run_id
    assert orders.start_attack(store, run_id, strength(0.3), ["sft"]).attack_id == "a1"
    assert orders.start_attack(store, run_id, strength(0.3), ["tvaccine"]).attack_id == "a2"


def test_an_attack_needs_an_aligned_defence_of_the_run_and_a_mixture_that_can_be_drawn(store: Store) -> None:
    run_id = orders.start_run(store, LabConfig()).run_id
    store.cancel(store.jobs(run_id)[0].id)
    with pytest.raises(StoreError, match="T-Vaccine is not aligned"):
        orders.start_attack(store, run_id, AttackConfig())
    with pytest.raises(ConfigError, match="nope"):
        orders.start_attack(store, run_id, AttackConfig(), ["nope"])
    with pytest.raises(ConfigError, match="juggling"):
        orders.start_attack(store, run_id, AttackConfig(task="juggling"))
    with pytest.raises(DataError):
        orders.start_attack(store, run_id, AttackConfig(num_samples=1_000_000))
    with pytest.raises(RunNotFoundError):
        orders.start_attack(store, "20000101-000000-abcdef", AttackConfig())
    assert all(job.kind != "attack" for job in store.jobs(run_id))


def test_what_a_defence_of_the_run_needs_is_aligned_again(store: Store) -> None:
    run_id = orders.start_run(store, LabConfig()).run_id
    with pytest.raises(RunBusyError):
        orders.align(store, run_id, ["sft"])
    for job in store.jobs(run_id):
        store.cancel(job.id)
    jobs = orders.align(store, run_id, ["sft"]).jobs
    assert [store.job(job).title for job in jobs] == ["align sft"]
    with pytest.raises(ConfigError, match="vaccine"):
        orders.align(store, run_id, ["vaccine"])


def test_defences_that_are_aligned_alike_share_one_alignment_and_repairs_follow_their_attacks(store: Store) -> None:
    config = parse_config(LabConfig, {"defences": ["sft", "sft+identity", "tvaccine+identity"]})
    order = orders.start_run(store, config, attack=True)
    jobs = {job.title: job for job in store.jobs(order.run_id)}
    assert list(jobs) == [
        "align tvaccine",
        "align sft",
        "attack sft a1",
        "attack sft+identity a1",
        "repair sft+identity a1",
        "attack tvaccine+identity a1",
        "repair tvaccine+identity a1",
        "baseline",
    ]
    assert jobs["attack sft+identity a1"].depends_on == jobs["align sft"].id
    assert jobs["repair sft+identity a1"].depends_on == jobs["attack sft+identity a1"].id
    second = orders.start_attack(store, order.run_id, strength(0.3), ["sft+identity"])
    assert [store.job(job).title for job in second.jobs] == ["attack sft+identity a2", "repair sft+identity a2"]


@pytest.mark.parametrize("wrong", [None, "", 3, ["x"], {"a": 1}, "../x", "nope"])
def test_stop_stops_a_named_run_and_never_all_of_them(store: Store, wrong: object) -> None:
    first = orders.start_run(store, LabConfig())
    for act in (orders.stop, orders.resume):
        with pytest.raises(RunNotFoundError) as raised:
            act(store, wrong, ("align", "baseline", "attack"))  # pyright: ignore[reportArgumentType]
        assert raised.value.remedy
    assert {job.state for job in store.jobs(first.run_id)} == {"queued"}
    other = orders.start_run(store, LabConfig(seed=1))
    assert orders.stop(store, first.run_id, ("align", "baseline")) == 3
    assert {job.state for job in store.jobs(other.run_id)} == {"queued"}


def test_a_job_is_asked_for_by_the_run_it_belongs_to(store: Store) -> None:
    """A missing run id never means all runs: only `all_jobs` does, and says so."""
    orders.start_run(store, LabConfig())
    with pytest.raises(RunNotFoundError):
        store.jobs(None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(RunNotFoundError):
        store.events(None)  # pyright: ignore[reportArgumentType]
    assert len(store.all_jobs()) == 3


def test_states_are_evaluated_together_or_not_at_all(store: Store) -> None:
    config = LabConfig(
        defences=(Defence(),),
        alignment=AlignmentConfig(optimisation=OptimisationConfig(steps=1)),
    )
    run_id = orders.start_run(store, config).run_id
    store.enqueue(run_id, "evaluate", {"state": "aligned/sft", "step": 0})
    with pytest.raises(RunBusyError):
        orders.evaluate(store, run_id, {"base": 0, "aligned/sft": 0})
    assert [job.title for job in store.jobs(run_id) if job.kind == "evaluate"] == ["evaluate aligned/sft"]
