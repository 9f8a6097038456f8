"""The job queue's promises: order, dependencies, duplicates, cancelling, death and resumption."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from tvaccine_core.config import LabConfig, ModelConfig
from tvaccine_core.errors import RunBusyError, RunNotFoundError, StoreError, TrainingError
from tvaccine_core.store import JobState, Store

SFT = {"aligned": "sft"}


def state_of(store: Store, job_id: str) -> JobState:
    return store.job(job_id).state


def claim(store: Store, worker_id: str = "w") -> str:
    job = store.claim(worker_id)
    assert job is not None
    return job.id


def end(store: Store, job_id: str, state: str) -> None:
    """Bring a queued job to `state` the way it gets there in life."""
    if state == "cancelled":
        store.cancel(job_id)
        return
    assert claim(store) == job_id
    assert store.finish(job_id, state, TrainingError("Broke.", remedy="Mend it.") if state == "failed" else None)


def test_jobs_are_claimed_in_order_and_generates_first(store: Store, run_id: str) -> None:
    first = store.enqueue(run_id, "align", SFT)
    second = store.enqueue(run_id, "align", {"aligned": "tvaccine"})
    urgent = store.enqueue(run_id, "baseline", {}, priority=1)
    prompt = store.enqueue(run_id, "generate", {"prompt": "Hello?", "states": ["base"]})
    assert [store.queue_position(job) for job in (urgent, prompt, first, second)] == [0, 1, 2, 3]
    assert [claim(store) for _ in range(4)] == [urgent, prompt, first, second]
    assert store.claim("w") is None
    assert store.queue_position(first) is None


def test_claim_filters_by_kind_and_by_base_model(store: Store, run_id: str) -> None:
    store.enqueue(run_id, "align", SFT)
    other = store.create_run(LabConfig(model=ModelConfig(name="sandbox", quantization="nf4")))
    prompt = store.enqueue(other, "generate", {"prompt": "Hello?"})
    assert store.claim("w", kinds=["generate"], model=ModelConfig()) is None
    assert store.claim("w", kinds=[]) is None
    job = store.claim("w", kinds=["generate"], model=ModelConfig(quantization="nf4"))
    assert job is not None
    assert (job.id, job.run_id, job.state, job.worker_id) == (prompt, other, "running", "w")


def test_a_dependent_job_waits_until_its_dependency_is_done(store: Store, run_id: str) -> None:
    align = store.enqueue(run_id, "align", SFT)
    attack = store.enqueue(run_id, "attack", {**SFT, "attack_id": "a1"}, depends_on=align)
    assert claim(store) == align
    assert store.claim("w") is None
    store.finish(align, "interrupted")
    assert store.claim("w") is None
    assert state_of(store, attack) == "queued"
    store.resume(align)
    assert claim(store) == align
    store.finish(align, "done")
    assert claim(store) == attack


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_dependants_are_cancelled_with_the_reason(store: Store, run_id: str, state: str) -> None:
    align = store.enqueue(run_id, "align", SFT)
    attack = store.enqueue(run_id, "attack", {**SFT, "attack_id": "a1"}, depends_on=align)
    second = store.enqueue(run_id, "attack", {**SFT, "attack_id": "a2"}, depends_on=attack)
    end(store, align, state)
    assert [state_of(store, job) for job in (align, attack, second)] == [state, "cancelled", "cancelled"]
    assert "align sft" in (store.job(attack).error or "")
    assert "align sft" in (store.job(attack).remedy or "")
    with pytest.raises(StoreError, match="align sft"):
        store.enqueue(run_id, "attack", {**SFT, "attack_id": "a3"}, depends_on=align)
    with pytest.raises(StoreError, match="align sft"):
        store.resume(attack)
    store.resume(align)
    store.resume(attack)
    assert [state_of(store, job) for job in (align, attack)] == ["queued", "queued"]


def test_a_job_waits_only_for_its_own_run(store: Store, run_id: str) -> None:
    other = store.enqueue(store.create_run(LabConfig()), "align", SFT)
    with pytest.raises(StoreError, match="belongs to run"):
        store.enqueue(run_id, "attack", SFT, depends_on=other)
    with pytest.raises(RunNotFoundError):
        store.enqueue(run_id, "attack", SFT, depends_on="align-0")


def test_the_same_work_is_refused_while_it_is_queued_or_running(store: Store, run_id: str) -> None:
    params = {"method": "sft", "attack": {"p": 0.1, "n": 3}}
    same = {"attack": {"n": 3, "p": 0.1}, "method": "sft"}
    job = store.enqueue(run_id, "attack", params)
    for _ in ("queued", "running"):
        with pytest.raises(RunBusyError) as raised:
            store.enqueue(run_id, "attack", same)
        assert raised.value.remedy
        store.claim("w")
    store.enqueue(run_id, "attack", {**params, "attack": {"p": 0.2, "n": 3}})
    store.enqueue(store.create_run(LabConfig()), "attack", params)
    store.finish(job, "done")
    store.enqueue(run_id, "attack", same)


def test_two_equal_prompts_are_two_jobs(store: Store, run_id: str) -> None:
    params = {"prompt": "Hello?", "states": ["base"]}
    assert store.enqueue(run_id, "generate", params) != store.enqueue(run_id, "generate", params)


def test_resume_refuses_what_runs_what_is_done_and_what_another_job_does(store: Store, run_id: str) -> None:
    job = store.enqueue(run_id, "align", SFT)
    with pytest.raises(RunBusyError):
        store.resume(job)
    end(store, job, "interrupted")
    again = store.enqueue(run_id, "align", SFT)
    with pytest.raises(RunBusyError):
        store.resume(job)
    end(store, again, "done")
    with pytest.raises(StoreError, match="already done"):
        store.resume(again)
    store.resume(job)
    row = store.claim("w")
    assert row is not None
    assert row.resumed
    assert row.error is None


def test_resume_takes_a_new_attempt_for_the_one_that_failed(store: Store, run_id: str) -> None:
    failed = store.enqueue(run_id, "align", SFT)
    attack = store.enqueue(run_id, "attack", {"defence": "sft"}, depends_on=failed)
    end(store, failed, "failed")
    assert store.job(attack).state == "cancelled"
    with pytest.raises(StoreError, match="which this needs, failed"):
        store.resume(attack)
    end(store, store.enqueue(run_id, "align", SFT), "done")
    store.resume(attack)
    row = store.claim("w")
    assert row is not None
    assert row.id == attack


def test_cancel_is_at_once_for_waiting_jobs_and_a_flag_for_running_ones(store: Store, run_id: str) -> None:
    waiting = store.enqueue(run_id, "align", SFT)
    store.cancel(waiting)
    assert state_of(store, waiting) == "cancelled"
    running = store.enqueue(run_id, "align", SFT)
    claim(store)
    assert not store.cancel_requested(running)
    store.cancel(running)
    assert store.cancel_requested(running)
    assert state_of(store, running) == "running"
    store.finish(running, "cancelled")
    store.cancel(running)
    store.resume(running)
    assert not store.cancel_requested(running)


def test_only_the_owner_beats_and_finishes(store: Store, run_id: str) -> None:
    job = store.enqueue(run_id, "align", SFT)
    claim(store, "owner")
    assert store.heartbeat(job, (3, 10), worker_id="owner")
    assert not store.heartbeat(job, (9, 10), worker_id="stranger")
    assert not store.finish(job, "done", worker_id="stranger")
    assert store.heartbeat(job, worker_id="owner")
    assert (store.job(job).done, store.job(job).total) == (3, 10)
    assert store.finish(job, "failed", TrainingError("Broke.", remedy="Mend it."), worker_id="owner")
    assert (store.job(job).error, store.job(job).remedy) == ("Broke.", "Mend it.")
    assert not store.heartbeat(job, worker_id="owner")
    assert not store.finish(job, "done", worker_id="owner")
    assert state_of(store, job) == "failed"


def test_reap_takes_jobs_without_heartbeat_and_a_worker_that_only_slept_gets_its_job_back(
    store: Store, run_id: str
) -> None:
    job = store.enqueue(run_id, "align", SFT)
    claim(store, "sleeper")
    assert store.reap() == []
    (reaped,) = store.reap(timeout_s=-1)
    assert (reaped.id, reaped.state) == (job, "interrupted")
    assert (reaped.error or "").startswith("Its worker gave no sign of life for ")
    assert "If the machine slept, wait" in (reaped.remedy or "")
    assert store.heartbeat(job, worker_id="sleeper")
    assert (state_of(store, job), store.job(job).error) == ("running", None)
    store.reap(timeout_s=-1)
    store.resume(job)
    assert not store.heartbeat(job, worker_id="sleeper")
    claim(store, "next")
    assert not store.heartbeat(job, worker_id="sleeper")


def test_a_job_its_worker_gave_back_is_not_woken_by_a_late_heartbeat(store: Store, run_id: str) -> None:
    job = store.enqueue(run_id, "align", SFT)
    claim(store, "w")
    store.finish(job, "interrupted", worker_id="w")
    assert not store.heartbeat(job, worker_id="w")
    assert state_of(store, job) == "interrupted"


def test_a_silent_job_that_was_asked_to_stop_is_cancelled_and_both_are_said(store: Store, run_id: str) -> None:
    job = store.enqueue(run_id, "align", SFT)
    claim(store, "stuck")
    store.cancel(job)
    (reaped,) = store.reap(timeout_s=-1)
    assert reaped.state == "cancelled"
    assert (reaped.error or "").startswith("Its worker gave no sign of life for ")
    assert (reaped.error or "").endswith(" while the job was being stopped.")
    assert reaped.remedy == "Resume it: it goes on from its last checkpoint."


@pytest.mark.parametrize(
    ("cancel_first", "state", "error"),
    [
        (False, "interrupted", "Its worker process ended before the job did."),
        (True, "cancelled", "Its worker process ended while the job was being stopped."),
    ],
)
def test_reap_takes_jobs_whose_process_is_gone(
    store: Store, run_id: str, cancel_first: bool, state: str, error: str
) -> None:
    job = store.enqueue(run_id, "align", SFT)
    script = (
        f"from pathlib import Path; from tvaccine_core.store import Store; Store(Path({str(store.home)!r})).claim('w')"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert state_of(store, job) == "running"
    if cancel_first:
        store.cancel(job)
    assert [(row.id, row.state, row.error) for row in store.reap()] == [(job, state, error)]
    assert store.reap() == []


def test_unknown_ids_are_named(store: Store, run_id: str) -> None:
    unknown: list[Callable[[], object]] = [
        lambda: store.job("align-0"),
        lambda: store.cancel("align-0"),
        lambda: store.resume("align-0"),
        lambda: store.enqueue("20000101-000000-abcdef", "baseline", {}),
        lambda: store.append("align-0", []),
    ]
    for call in unknown:
        with pytest.raises(RunNotFoundError):
            call()
    with pytest.raises(StoreError, match="kind"):
        store.enqueue(run_id, "mend", {})  # pyright: ignore[reportArgumentType]


def test_a_runs_status_is_that_of_its_latest_work(store: Store, run_id: str) -> None:
    def status() -> str:
        return store.run(run_id).status

    assert status() == "new"
    failed = store.enqueue(run_id, "align", SFT)
    assert status() == "queued"
    end(store, failed, "failed")
    assert status() == "failed"
    retry = store.enqueue(run_id, "align", SFT)
    claim(store)
    assert status() == "running"
    store.finish(retry, "done")
    assert status() == "done"
    store.enqueue(run_id, "generate", {"prompt": "Hello?"})
    assert status() == "done"
    end(store, store.enqueue(run_id, "baseline", {}, priority=1), "interrupted")
    assert status() == "interrupted"
