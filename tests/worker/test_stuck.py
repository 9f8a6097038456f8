"""Workers that do not stop when asked to, or give no sign of life: real processes, ended within a stated time."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from test_processes import FAKE, LONG

from tvaccine_core.errors import RunBusyError, RunNotFoundError
from tvaccine_core.store import Store
from tvaccine_core.workers.supervisor import Supervisor
from tvaccine_core.workers.worker import SILENT_S

WaitUntil = Callable[[Callable[[], object]], None]
Supervise = Callable[..., Supervisor]
WITHIN_S = 0.5


@pytest.fixture
def supervise(store: Store) -> Iterator[Supervise]:
    """A supervisor that has started its workers; they end with the test, whatever they do."""
    started: list[Supervisor] = []

    def supervise(num_workers: int = 1, silent_s: float = SILENT_S) -> Supervisor:
        command = [sys.executable, FAKE, str(store.home), "--supervised", f"--silent-s={silent_s}"]
        started.append(Supervisor(store.home, num_workers, command=command, cancel_within_s=WITHIN_S))
        started[-1].start()
        return started[-1]

    yield supervise
    for supervisor in started:
        supervisor.stop(grace_s=0.2)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def begun(store: Store, job_id: str) -> Callable[[], object]:
    """Its two steps before the hang are in the store."""
    return lambda: len(store.events(store.job(job_id).run_id, kinds=["step"], job_id=job_id)) == 2


@pytest.mark.parametrize("how", ["hang", "hold"])
def test_a_worker_that_does_not_answer_a_cancel_is_ended_and_others_go_on(
    store: Store, run_id: str, wait_until: WaitUntil, supervise: Supervise, how: str
) -> None:
    supervisor = supervise(num_workers=2)
    stuck = store.enqueue(run_id, "align", {"aligned": "sft", "fail": how, "checkpoint_every": 2})
    other = store.enqueue(store.create_run(store.run(run_id).config), "align", LONG)
    wait_until(begun(store, stuck))
    wait_until(lambda: store.job(other).done)
    before = set(supervisor.pids())
    store.cancel(stuck)
    with pytest.raises(RunBusyError):
        store.delete_run(run_id)
    began = time.monotonic()
    wait_until(lambda: store.job(stuck).state == "cancelled")
    assert WITHIN_S < time.monotonic() - began < WITHIN_S + 15  # the machine may be busy
    job = store.job(stuck)
    assert job.error == "`align sft` did not stop within 0.5 s, so its worker was ended."
    assert "Resume" in (job.remedy or "")
    assert store.last_checkpoint(stuck) == 2
    wait_until(lambda: supervisor.num_alive() == 2)
    (ended,) = before - set(supervisor.pids())
    assert gone(ended)
    assert supervisor.last_deaths() == [], "it was our doing"
    after = store.enqueue(run_id, "align", {"aligned": "tvaccine"})
    wait_until(lambda: store.job(after).state == "done")
    assert store.job(other).state == "running"
    assert set(supervisor.pids()) & before
    store.delete_run(run_id)
    with pytest.raises(RunNotFoundError):
        store.job(stuck)


def test_the_new_worker_starts_without_waiting(
    store: Store, run_id: str, wait_until: WaitUntil, supervise: Supervise
) -> None:
    supervisor = supervise()
    for method in ("sft", "tvaccine"):  # each would double a back-off
        stuck = store.enqueue(run_id, "align", {"aligned": method, "fail": "hang"})
        wait_until(begun(store, stuck))
        store.cancel(stuck)
        wait_until(lambda stuck=stuck: store.job(stuck).state == "cancelled")
        wait_until(lambda: supervisor.num_alive() == 1)
    assert supervisor.deaths_in_a_row() == 0, "it is deaths in a row that make the next one wait"


def test_a_job_whose_steps_take_long_gets_the_time_to_end_one(
    store: Store, run_id: str, wait_until: WaitUntil, supervise: Supervise
) -> None:
    """Else a stop would cost a slow machine all steps since its last checkpoint."""
    supervise()
    slow = {"method": "sft", "steps": 9, "step_s": 3 * WITHIN_S, "checkpoint_every": 100}
    job_id = store.enqueue(run_id, "align", slow)
    wait_until(lambda: store.events(run_id, kinds=["step"], job_id=job_id))
    store.cancel(job_id)
    wait_until(lambda: store.job(job_id).state == "cancelled")
    assert store.job(job_id).error is None
    assert store.last_checkpoint(job_id) == 2


def test_a_prompt_that_hangs_costs_the_training_beside_it_nothing_but_steps(
    store: Store, run_id: str, wait_until: WaitUntil, supervise: Supervise
) -> None:
    supervise()
    training = store.enqueue(run_id, "align", {**LONG, "checkpoint_every": 1})
    wait_until(lambda: store.job(training).done)
    prompt = store.enqueue(run_id, "generate", {"prompt": "Hello?", "states": ["base"], "fail": "hang"})
    wait_until(lambda: store.job(prompt).state == "running")
    assert store.job(training).state == "running"
    store.cancel(prompt)
    wait_until(lambda: store.job(prompt).state == "cancelled")
    wait_until(lambda: store.job(training).resumed and store.job(training).state == "running")
    assert not store.job(training).error


def test_ctrl_c_on_the_command_line_has_the_same_bound(store: Store, run_id: str, wait_until: WaitUntil) -> None:
    job_id = store.enqueue(run_id, "align", {"aligned": "sft", "fail": "hold"})
    command = [sys.executable, FAKE, str(store.home), "--supervised"]
    script = f"""
import functools, signal, sys
from pathlib import Path
import typer
from tvaccine_core.cli import follow
from tvaccine_core.store import Store
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite may run in a shell's background
follow.Supervisor = functools.partial(follow.Supervisor, command={command!r}, cancel_within_s={WITHIN_S})
try:
    follow.follow(Store(Path({str(store.home)!r})), [{job_id!r}], num_workers=1)
except typer.Exit as end:
    sys.exit(end.exit_code)
"""
    follower = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    wait_until(begun(store, job_id))
    worker = int((store.job(job_id).worker_id or "").split(":")[1])
    began = time.monotonic()
    follower.send_signal(signal.SIGINT)
    _, said = follower.communicate(timeout=60)
    assert time.monotonic() - began < WITHIN_S + 15
    assert follower.returncode == 130
    assert "0.5 s" in said
    assert gone(worker)
    assert store.job(job_id).state == "cancelled"
    assert "did not stop within 0.5 s" in (store.job(job_id).error or "")


def test_stop_ends_a_worker_that_no_signal_reaches(
    store: Store, run_id: str, wait_until: WaitUntil, supervise: Supervise
) -> None:
    supervisor = supervise()
    job_id = store.enqueue(run_id, "align", {"aligned": "sft", "fail": "hold"})
    wait_until(begun(store, job_id))
    (pid,) = supervisor.pids()
    time.sleep(0.5)  # now it holds
    supervisor.stop(grace_s=0.2)
    assert not psutil.pid_exists(pid)
    job = store.job(job_id)
    assert (job.state, job.error) == ("interrupted", "Its worker process ended before the job did.")


def test_a_worker_that_gives_no_sign_of_life_ends_itself_and_says_where_it_was(
    store: Store, run_id: str, wait_until: WaitUntil, supervise: Supervise
) -> None:
    """Nobody asked it to stop: else its place would be taken for ever, its run deleted or not."""
    supervisor = supervise(silent_s=1.0)
    job_id = store.enqueue(run_id, "align", {"aligned": "sft", "fail": "hold"})
    wait_until(begun(store, job_id))
    (pid,) = supervisor.pids()
    wait_until(lambda: store.job(job_id).state == "interrupted")
    assert gone(pid)
    (sentence,) = supervisor.last_deaths()
    assert "no sign of life" in sentence
    assert "_misbehave" in supervisor.log_path(0).read_text()
    store.delete_run(run_id)


def test_an_orphan_that_no_thread_of_its_own_can_end_ends(store: Store, run_id: str, wait_until: WaitUntil) -> None:
    command: list[Any] = [sys.executable, FAKE, store.home, "--supervised", "--silent-s=1"]
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert worker.stdin is not None
    job_id = store.enqueue(run_id, "align", {"aligned": "sft", "fail": "hold"})
    try:
        wait_until(begun(store, job_id))
        worker.stdin.close()  # what the parent's death does
        assert worker.wait(timeout=60) == -signal.SIGALRM
    finally:
        worker.kill()
        worker.wait()


def test_a_worker_at_work_or_idle_is_not_taken_for_dead(
    store: Store, run_id: str, wait_until: WaitUntil, supervise: Supervise
) -> None:
    supervisor = supervise(silent_s=0.8)
    wait_until(lambda: supervisor.num_alive() == 1)
    (pid,) = supervisor.pids()
    done = store.enqueue(run_id, "align", {"aligned": "sft", "steps": 1, "step_s": 2.0})
    wait_until(lambda: store.job(done).state == "done")
    os.kill(pid, 0)
    time.sleep(1.2)  # an alarm left behind would go off now
    assert supervisor.pids() == [pid]


def test_a_store_that_fails_sets_off_no_alarm(store: Store, run_id: str) -> None:
    """Nothing beats then, but the job still comes to its next event and says why it failed."""
    job_id = store.enqueue(run_id, "align", {"aligned": "sft", "steps": 3, "step_s": 1.0})
    script = f"""
from pathlib import Path
from fake_engine import FakeEngine
from tvaccine_core.errors import StoreError
from tvaccine_core.store import Store
from tvaccine_core.workers.worker import Worker
store = Store(Path({str(store.home)!r}))
def full(*_):
    raise StoreError("The disk is full.", remedy="Free some space.")
store.append = full
Worker(store, FakeEngine(), silent_s=0.6).run_one()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(FAKE).parent, timeout=60)
    assert done.returncode == 0
    assert (store.job(job_id).state, store.job(job_id).error) == ("failed", "The disk is full.")
