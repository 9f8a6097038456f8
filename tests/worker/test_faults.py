"""The real engine under a worker when things go wrong: memory, numbers, sudden ends, damage.

Each job says why, nothing is lost, and the next job runs.
"""

import gc
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_engine import (
    ALIGN_STEPS,
    ATTACK_STEPS,
    CONFIG,
    attack,
    losses,
    run_all,
    scores,
    state_hash,
    whole_run,
)
from test_engine import (
    ALIGNED as ALIGN_PARAMS,
)

from tvaccine_core.evaluation import generate
from tvaccine_core.methods.alignment.tvaccine import TVaccine
from tvaccine_core.models import load as models
from tvaccine_core.records import Event
from tvaccine_core.store import Store
from tvaccine_core.workers.runner import TorchEngine
from tvaccine_core.workers.worker import Worker

ALIGNED, ATTACKED = "aligned/tvaccine", "attacked/tvaccine/a1"
NO_MEMORY = (
    "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 GiB."
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("faults") / "home")


@pytest.fixture(scope="module")
def engine() -> TorchEngine:
    return TorchEngine(1)


@pytest.fixture
def worker(store: Store, engine: TorchEngine) -> Worker:
    return Worker(store, engine)


@pytest.fixture(scope="module")
def finished(store: Store, engine: TorchEngine) -> str:
    """An alignment and an attack that nothing disturbed."""
    return whole_run(store, Worker(store, engine), CONFIG)


def queued(store: Store) -> tuple[str, str]:
    """A run and its alignment."""
    run_id = store.create_run(CONFIG)
    return run_id, store.enqueue(run_id, "align", ALIGN_PARAMS)


def equal(store: Store, first: str, second: str, state: str = ALIGNED) -> bool:
    """The same model, bit by bit, with the same scores."""
    records = [{key: e for key, e in scores(store, run).items() if e.state == state} for run in (first, second)]
    return records[0] == records[1] != {} and state_hash(store, first, state) == state_hash(store, second, state)


def failing_once(function: Callable[..., Any], error: Exception, at: int) -> Callable[..., Any]:
    """`function`, whose call number `at` (from 1) raises `error`."""
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise error
        return function(*args, **kwargs)

    return call


def test_memory_that_runs_out_in_a_load_fails_the_job_and_frees_what_was_loaded(
    store: Store, worker: Worker, engine: TorchEngine, finished: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.release()
    run_id, align = queued(store)
    half: list[weakref.ref[Any]] = []
    load = models.AutoModelForCausalLM.from_pretrained

    def half_load(*args: Any, **kwargs: Any) -> Any:
        model, _ = load(*args, **kwargs)
        half.append(weakref.ref(model))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    with monkeypatch.context() as patched:
        patched.setattr(models.AutoModelForCausalLM, "from_pretrained", half_load)
        worker.run_one()
    job = store.job(align)
    assert job.state == "failed"
    assert "does not fit into the memory" in (job.error or "")
    assert "nf4" in (job.remedy or "")
    gc.collect()
    assert [model() for model in half] == [None]
    _resume_all(store, worker, run_id)
    assert equal(store, run_id, finished)


def test_memory_that_runs_out_in_a_step_costs_the_steps_since_the_checkpoint(
    store: Store, worker: Worker, engine: TorchEngine, finished: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, align = queued(store)
    with monkeypatch.context() as patched:
        step = failing_once(TVaccine.training_step, RuntimeError(NO_MEMORY), at=5)
        patched.setattr(TVaccine, "training_step", step)
        worker.run_one()
    job = store.job(align)
    assert job.state == "failed"
    assert (job.error or "").startswith("Step 5: cpu has no memory left for batches of 4")
    assert "batch_size" in (job.remedy or "")
    assert "By its plan it fits: it needs 0." in (job.remedy or "")
    assert engine._states is None, "the model's memory was given back"
    _resume_all(store, worker, run_id)
    assert equal(store, run_id, finished)
    assert [number for number, _ in losses(store, run_id, align)] == [1, 2, 3, 4, 5, 6]


def test_memory_that_runs_out_in_an_evaluation_makes_it_smaller_and_costs_nothing(
    store: Store, worker: Worker, finished: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, _ = queued(store)
    sizes: list[int] = []
    stream = generate.stream_tokens

    def at_most_three(states: Any, rows: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        sizes.append(len(rows))
        for number, tokens in enumerate(stream(states, rows, *args, **kwargs)):
            if len(rows) > 3 and number == 1:
                raise RuntimeError(NO_MEMORY)
            yield tokens

    with monkeypatch.context() as patched:
        patched.setattr(generate, "stream_tokens", at_most_three)
        run_all(worker)
    assert {job.state for job in store.jobs(run_id)} == {"done"}
    assert sizes[:5] == [10, 5, 3, 3, 3]
    assert equal(store, run_id, finished)


def test_without_memory_for_one_prompt_the_evaluation_fails_and_the_training_is_kept(
    store: Store, worker: Worker, finished: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, align = queued(store)

    def never(*_: Any, **__: Any) -> Iterator[Any]:
        raise RuntimeError(NO_MEMORY)
        yield

    with monkeypatch.context() as patched:
        patched.setattr(generate, "stream_tokens", never)
        worker.run_one()
    job = store.job(align)
    assert job.state == "failed"
    assert "a single prompt" in (job.error or "")
    assert "the training is kept" in (job.remedy or "")
    steps: list[int] = []
    training_step = TVaccine.training_step

    def counted(self: TVaccine, model: Any, batch: Any, step: int) -> Any:
        steps.append(step)
        return training_step(self, model, batch, step)

    with monkeypatch.context() as patched:
        patched.setattr(TVaccine, "training_step", counted)
        _resume_all(store, worker, run_id)
    assert steps == [], "it was not trained again"
    assert equal(store, run_id, finished)


def test_a_nan_ends_the_job_at_its_step_and_the_next_job_runs(
    store: Store, worker: Worker, finished: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, align = queued(store)
    training_step = TVaccine.training_step

    def nan(self: TVaccine, model: Any, batch: Any, step: int) -> Any:
        values = training_step(self, model, batch, step)
        return {name: value * float("nan") for name, value in values.items()} if step == 4 else values

    with monkeypatch.context() as patched:
        patched.setattr(TVaccine, "training_step", nan)
        worker.run_one()
    job = store.job(align)
    assert job.state == "failed"
    assert (job.error or "").startswith("Step 5: the loss is nan")
    assert "learning rate" in (job.remedy or "")
    assert [number for number, _ in losses(store, run_id, align)] == [1, 2, 3, 4]
    other = store.create_run(CONFIG)
    store.enqueue(other, "baseline", {})
    run_all(worker)
    assert {job.state for job in store.jobs(other)} == {"done"}
    _resume_all(store, worker, run_id)
    assert equal(store, run_id, finished)


@pytest.mark.parametrize(
    ("kind", "after"),
    [
        ("align", "checkpoint"),
        ("align", "state"),
        pytest.param("align", "eval", marks=pytest.mark.slow),
        ("attack", "eval"),
        pytest.param("attack", "state", marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_dies_after_any_event_loses_nothing(
    store: Store, worker: Worker, finished: str, kind: str, after: str
) -> None:
    """It dies when the event is stored: nothing of its is called any more; another worker takes the job up."""
    run_id, align = queued(store)
    if kind == "attack":
        shutil.copytree(store.run_dir(finished) / "states" / "aligned", store.run_dir(run_id) / "states" / "aligned")
        store.claim("elsewhere")
        store.finish(align, "done")
        attack(store, run_id, align)
    job = store.claim("dies")
    assert job is not None
    assert job.kind == kind
    running: Iterator[Event] = TorchEngine(1).run(store, job, CONFIG, lambda: False)
    for event in running:
        store.append(job.id, [event])
        if event.kind == after:
            break
    else:
        raise AssertionError(f"no {after}")
    store.reap(timeout_s=-1)
    assert store.job(job.id).state == "interrupted"
    store.resume(job.id)
    run_all(worker)
    del running
    assert store.job(job.id).state == "done"
    assert equal(store, run_id, finished, ALIGNED if kind == "align" else ATTACKED)
    num_steps = ALIGN_STEPS if kind == "align" else ATTACK_STEPS
    assert [number for number, _ in losses(store, run_id, job.id)] == list(range(1, num_steps + 1))


def test_a_disk_that_is_full_when_a_model_is_saved_keeps_the_checkpoint(
    store: Store, worker: Worker, finished: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, align = queued(store)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("tvaccine_core.states.adapter_files.save_file", full)
        worker.run_one()
    job = store.job(align)
    assert job.state == "failed"
    assert "No space left" in (job.error or "")
    assert "Free disk space" in (job.remedy or "")
    assert not list((store.run_dir(run_id) / "states").rglob("*.safetensors"))
    _resume_all(store, worker, run_id)
    assert equal(store, run_id, finished)


def test_a_base_that_was_damaged_between_two_jobs_is_named(
    store: Store, worker: Worker, tiny_folder: Path, tmp_path: Path
) -> None:
    """The damage comes after the page has looked: the worker says what the page would have said."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    weights, tokenizer = folder / "model.safetensors", folder / "tokenizer.json"
    for path, message in ((weights, "is damaged or incomplete"), (tokenizer, "The tokenizer of")):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        config = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"name": str(folder)})})
        job_id = store.enqueue(store.create_run(config), "align", ALIGN_PARAMS)
        worker.run_one()
        assert store.job(job_id).state == "failed"
        assert message in (store.job(job_id).error or "")
        assert "again" in (store.job(job_id).remedy or "")
        path.write_bytes(whole)


def _resume_all(store: Store, worker: Worker, run_id: str) -> None:
    for job in store.jobs(run_id):
        if job.state != "queued":
            store.resume(job.id)
    run_all(worker)
    assert {job.error for job in store.jobs(run_id)} == {None}
    assert {job.state for job in store.jobs(run_id)} == {"done"}
