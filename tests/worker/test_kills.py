"""Real workers with the real engine, killed where the store says they are: the result is that of a run left alone.

A worker is a process of its own, forked from one that has torch imported already, so that twenty of them cost seconds.
"""

import hashlib
import multiprocessing
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tvaccine_core.config import PRESETS, LabConfig, OptimisationConfig
from tvaccine_core.records import Event
from tvaccine_core.store import Store

pytestmark = pytest.mark.slow

CHECK = PRESETS["sandbox-check"].config
ALIGN_STEPS, ATTACK_STEPS = 60, 36
EVAL_EVERY = 6
ALIGNED, ATTACKED = "aligned/sft", "attacked/sft/a1"
NOT_COMPARED = {"elapsed_s", "path"}
"""What may differ between two runs: times, and the folder they lie in."""

Reached = Callable[[Store, str, str, int], bool]
"""Of a store, a run, a job and the last `seq` before an attempt: whether the moment to kill it has come."""
Start = Callable[..., ForkServerProcess]


def small_config() -> LabConfig:
    """Little enough of everything that a job takes a second or two."""
    small: dict[str, Any] = {"batch_size": 3}
    return CHECK.model_copy(
        update={
            "alignment": CHECK.alignment.model_copy(
                update={"optimisation": OptimisationConfig(steps=ALIGN_STEPS, checkpoint_every=4, **small)}
            ),
            "attack": CHECK.attack.model_copy(
                update={
                    "optimisation": OptimisationConfig(steps=ATTACK_STEPS, checkpoint_every=8, **small),
                    "eval_every": EVAL_EVERY,
                }
            ),
            "evaluation": CHECK.evaluation.model_copy(update={"max_per_set": 3, "max_new_tokens": 6}),
        }
    )


CONFIG = small_config()


def work(home: str, hold: int) -> None:
    """The life of a worker process that goes no further than `hold` steps (0: to the end), so that no kill is late."""
    from tvaccine_core.workers import job_report
    from tvaccine_core.workers.runner import TorchEngine
    from tvaccine_core.workers.worker import run_worker

    class Holding(TorchEngine):
        def run(self, *args: Any) -> Iterator[Event]:
            steps = 0
            for event in super().run(*args):
                yield event
                steps += event.kind == "step"
                if event.kind == "step" and steps == hold:
                    time.sleep(1000)

    job_report.FLUSH_EVERY_S = 0.05  # so that few steps go by between what happens and what the store knows
    run_worker(Path(home), lambda: Holding(1))


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tvaccine_core.workers.runner", "tvaccine_core.workers.worker"])
    return context


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("kills") / "home")


@pytest.fixture
def start(processes: ForkServerContext, store: Store) -> Iterator[Start]:
    """Starts a worker; whichever still live at the end of the test are killed."""
    started: list[ForkServerProcess] = []

    def start(hold: int = 0) -> ForkServerProcess:
        process = processes.Process(target=work, args=(str(store.home), hold))
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def enqueue_all(store: Store) -> tuple[str, str, str]:
    """A run with an alignment and the attack that waits for it."""
    run_id = store.create_run(CONFIG)
    align = store.enqueue(run_id, "align", {"aligned": "sft"})
    params = {"defence": "sft", "attack_id": "a1", "attack": CONFIG.attack.model_dump(mode="json")}
    return run_id, align, store.enqueue(run_id, "attack", params, depends_on=align)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.002)


def ended(store: Store, job_id: str) -> bool:
    return not store.job(job_id).active


def report(store: Store, run_id: str, job_id: str) -> dict[str, Any]:
    """All that a job left behind: what it said (but its messages, which each attempt says), answers, files' hashes."""
    events = [stored.event for stored in store.events(run_id, job_id=job_id)]
    said = [event.model_dump(mode="json", exclude=NOT_COMPARED) for event in events if event.kind != "message"]
    job = store.job(job_id)
    state = ALIGNED if job.kind == "align" else ATTACKED
    folder = store.run_dir(run_id) / "states" / state
    answers = [answer.model_dump(mode="json") for answer in store.answers(run_id, state, limit=10_000)]
    return {
        "state": (job.state, job.error, job.done, job.total),
        # By kind: which of two kinds comes first at one step may differ, the order within a kind may not.
        "said": {kind: [event for event in said if event["kind"] == kind] for kind in {e["kind"] for e in said}},
        "answers": sorted(answers, key=lambda a: (a["step"], a["eval_set"], a["example_id"])),
        "files": {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        },
    }


@pytest.fixture(scope="module")
def undisturbed(processes: ForkServerContext, store: Store) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the alignment and the attack of a run left alone leave behind."""
    run_id, align, attack = enqueue_all(store)
    worker = processes.Process(target=work, args=(str(store.home), 0))
    worker.start()
    wait_until(lambda: ended(store, attack), "the undisturbed run")
    worker.kill()
    worker.join()
    found = report(store, run_id, align), report(store, run_id, attack)
    assert [len(each["said"]["step"]) for each in found] == [ALIGN_STEPS, ATTACK_STEPS]
    assert all(each["files"] and each["answers"] and each["state"][0] == "done" for each in found)
    return found


def said_since(store: Store, run_id: str, job_id: str, seq: int, kind: str) -> list[Any]:
    return [stored.event for stored in store.events(run_id, seq, [kind], job_id)]


def at_checkpoint(number: int) -> Reached:
    """The attempt's checkpoint `number`, from 1, is in the store."""
    return lambda store, run_id, job_id, seq: len(said_since(store, run_id, job_id, seq, "checkpoint")) >= number


def at_step(number: int) -> Reached:
    """The attempt's step `number`, from 1, is in the store."""
    return lambda store, run_id, job_id, seq: len(said_since(store, run_id, job_id, seq, "step")) >= number


def at_score(number: int) -> Reached:
    """The attempt's score `number`, from 1, is in the store."""
    return lambda store, run_id, job_id, seq: len(said_since(store, run_id, job_id, seq, "eval")) >= number


def at_saved_state(store: Store, run_id: str, job_id: str, seq: int) -> bool:
    """Trained to the end, saved, and now measured."""
    return bool(said_since(store, run_id, job_id, seq, "state"))


class Known(NamedTuple):
    """What the store knew of a job when its worker had been killed."""

    checkpoint: int
    step: int
    scored: int
    """Step of the last score; -1: none."""


def kill_at_each(
    store: Store, start: Start, run_id: str, job_id: str, moments: list[tuple[Reached, int]]
) -> list[Known]:
    """Kill a worker at each of the moments of one job; another goes on, by what `runs resume` does.

    A moment is when to kill, and after how many steps the worker waits for that.
    """
    known = []
    for number, (reached, hold) in enumerate(moments):
        seq = store.last_seq(job_id)
        worker = start(hold)
        wait_until(lambda: reached(store, run_id, job_id, seq) or ended(store, job_id), f"moment {number}")  # noqa: B023
        worker.kill()
        worker.join()
        assert worker.exitcode == -signal.SIGKILL
        assert store.job(job_id).state == "running", f"moment {number}: the kill came too late"
        assert [job.id for job in store.reap()] == [job_id]
        steps, scores = (said_since(store, run_id, job_id, 0, kind) for kind in ("step", "eval"))
        known.append(
            Known(
                store.last_checkpoint(job_id),
                max((event.step for event in steps), default=0),
                max((event.step for event in scores), default=-1),
            )
        )
        store.resume(job_id)
    start()
    wait_until(lambda: ended(store, job_id), "the job's end")
    return known


def test_an_alignment_killed_ten_times_after_its_checkpoints_gives_the_same_bytes(
    store: Store, start: Start, undisturbed: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    run_id, align, attack = enqueue_all(store)
    store.cancel(attack)
    moments = [(at_checkpoint(1), 6), (at_step(6), 8), (at_checkpoint(2), 9), (at_step(5), 7), (at_step(7), 8)] * 2
    known = kill_at_each(store, start, run_id, align, moments)
    assert len(known) == 10
    assert all(0 < at.checkpoint < ALIGN_STEPS for at in known)
    assert any(at.checkpoint < at.step for at in known), "some steps were done twice"
    assert report(store, run_id, align) == undisturbed[0]


def test_an_attack_killed_ten_times_gives_the_same_bytes(
    store: Store, start: Start, undisturbed: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    """Before its first checkpoint, after it, in its evaluations, and when all that is left is to measure the end."""
    run_id, align, attack = enqueue_all(store)
    store.claim("elsewhere")  # the alignment is that of the undisturbed run
    store.finish(align, "done")
    (other,) = {run.id for run in store.runs() if run.status == "done"} - {run_id}
    shutil.copytree(store.run_dir(other) / "states" / "aligned", store.run_dir(run_id) / "states" / "aligned")
    before_the_first = [(at_score(1), 5), (at_step(1), 7), (at_step(EVAL_EVERY), 7), (at_score(4), 7)]
    after_it = [
        (at_checkpoint(1), 10),
        (at_step(4), 6),
        (at_checkpoint(1), 10),
        (at_step(2), 7),
        (at_checkpoint(1), 10),
    ]
    known = kill_at_each(store, start, run_id, attack, [*before_the_first, *after_it, (at_saved_state, 0)])
    assert len(known) == 10
    assert [at.checkpoint for at in known] == [0, 0, 0, 0, 8, 8, 16, 16, 24, ATTACK_STEPS]
    assert any(at.step % EVAL_EVERY == 0 and at.scored < at.step for at in known), "one fell into an evaluation"
    assert report(store, run_id, attack) == undisturbed[1]
