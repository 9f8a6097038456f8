"""Real worker processes: signals, sudden death, and a supervisor that mends what died."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tvaccine_core.errors import StoreError
from tvaccine_core.store import JobRow, Store
from tvaccine_core.workers.supervisor import Supervisor, default_num_workers, num_cores
from tvaccine_core.workers.worker import NICE

WaitUntil = Callable[[Callable[[], object]], None]
FAKE = str(Path(__file__).with_name("fake_engine.py"))
LONG = {"method": "sft", "steps": 1_000_000, "step_s": 0.01}


@pytest.fixture
def process(store: Store) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, FAKE, str(store.home)], stderr=subprocess.DEVNULL)
    yield process
    process.kill()
    process.wait()


def supervise(store: Store, num_workers: int = 1) -> Supervisor:
    return Supervisor(store.home, num_workers, command=[sys.executable, FAKE, str(store.home), "--supervised"])


def running(store: Store, job_id: str) -> Callable[[], bool]:
    return lambda: bool(store.job(job_id).done)


def steps(store: Store, job: JobRow) -> list[int]:
    return [s.event.step for s in store.events(job.run_id, kinds=["step"], job_id=job.id)]  # pyright: ignore


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_interrupts_the_job_after_its_step(
    store: Store, run_id: str, process: subprocess.Popen[bytes], wait_until: WaitUntil, number: signal.Signals
) -> None:
    job_id = store.enqueue(run_id, "align", LONG)
    wait_until(running(store, job_id))
    process.send_signal(number)
    assert process.wait(timeout=100) == 0
    job = store.job(job_id)
    assert job.state == "interrupted"
    done = steps(store, job)
    assert done == list(range(1, len(done) + 1))
    checkpoint = store.run_dir(run_id) / "checkpoints" / f"{job_id}.txt"
    assert int(checkpoint.read_text()) == len(done)


def test_a_worker_does_not_inherit_a_launchers_place(
    store: Store, wait_until: WaitUntil, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would wait for others that never come, or train on the wrong GPU."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "2")
    say = "import os, sys; print(os.environ.get('RANK'), 'WORLD_SIZE' in os.environ, 'LOCAL_RANK' in os.environ)"
    with Supervisor(store.home, 1, command=[sys.executable, "-c", f"{say}; sys.stdin.read()"]) as supervisor:
        log = supervisor.log_path(0)
        wait_until(lambda: log.exists() and log.read_text())
    assert log.read_text() == "None False False\n"


def test_a_killed_workers_job_is_interrupted_and_resumes_elsewhere(
    store: Store, run_id: str, process: subprocess.Popen[bytes], wait_until: WaitUntil
) -> None:
    job_id = store.enqueue(run_id, "align", {**LONG, "steps": 300})
    wait_until(running(store, job_id))
    process.kill()
    process.wait()
    assert store.job(job_id).state == "running"
    assert [job.id for job in store.reap()] == [job_id]
    store.resume(job_id)
    with supervise(store):
        wait_until(lambda: store.job(job_id).state == "done")
    assert steps(store, store.job(job_id)) == list(range(1, 301))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_all_threads_of_a_supervised_worker_stand_back_and_so_does_its_session(
    store: Store, run_id: str, wait_until: WaitUntil
) -> None:
    """Where the kernel shares cores out among sessions, `nice` alone would change nothing for the page."""
    job_id = store.enqueue(run_id, "align", LONG)
    with supervise(store) as supervisor:
        wait_until(running(store, job_id))
        (pid,) = supervisor.pids()
        lines = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
        group = Path(f"/proc/{pid}/autogroup")
        session = group.read_text().split() if group.exists() else ["", "nice", str(NICE)]
    assert len(lines) >= 3, "training, report, and the one that waits for the parent's end"
    nice = [int(line.rpartition(")")[2].split()[16]) for line in lines]
    assert set(nice) == {min(19, os.nice(0) + NICE)}
    assert session[1:] == ["nice", str(NICE)]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_started_by_hand_leaves_its_terminals_priority_alone(
    store: Store, run_id: str, process: subprocess.Popen[bytes], wait_until: WaitUntil
) -> None:
    wait_until(running(store, store.enqueue(run_id, "align", LONG)))
    group = Path(f"/proc/{process.pid}/autogroup")
    own = Path("/proc/self/autogroup")
    assert psutil.Process(process.pid).nice() == os.nice(0)
    assert not group.exists() or group.read_text() == own.read_text()


def test_the_supervisor_replaces_a_dead_worker_and_its_job_shows_as_interrupted(
    store: Store, run_id: str, wait_until: WaitUntil
) -> None:
    killer = store.enqueue(run_id, "align", {"aligned": "sft", "fail": "die"})
    with supervise(store) as supervisor:
        wait_until(lambda: store.job(killer).state == "interrupted")
        (sentence,) = supervisor.last_deaths()
        assert "exit code 3" in sentence
        assert str(supervisor.log_path(0)) in sentence
        after = store.enqueue(run_id, "align", {"aligned": "tvaccine"})
        wait_until(lambda: store.job(after).state == "done")
        assert store.job(killer).state == "interrupted"  # what killed a worker is not started again by itself


def test_stop_ends_the_workers_and_leaves_their_jobs_resumable(
    store: Store, run_id: str, wait_until: WaitUntil
) -> None:
    job_ids = [store.enqueue(run_id, "align", {**LONG, "aligned": method}) for method in ("sft", "tvaccine")]
    supervisor = supervise(store, num_workers=2)
    supervisor.start()
    wait_until(lambda: all(store.job(job_id).done for job_id in job_ids))
    pids = supervisor.pids()
    assert len(pids) == supervisor.num_alive() == 2
    supervisor.stop()
    assert supervisor.num_alive() == 0
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert [store.job(job_id).state for job_id in job_ids] == ["interrupted", "interrupted"]


def test_a_worker_that_will_not_end_is_killed(store: Store, wait_until: WaitUntil) -> None:
    stubborn = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"
    )
    supervisor = Supervisor(store.home, 1, command=[sys.executable, "-c", stubborn])
    supervisor.start()
    wait_until(lambda: supervisor.log_path(0).read_text() == "up\n")
    (pid,) = supervisor.pids()
    supervisor.stop(grace_s=0.2)
    assert not psutil.pid_exists(pid)


def test_workers_end_with_a_parent_that_was_killed(store: Store, run_id: str, wait_until: WaitUntil) -> None:
    script = f"""
import sys, time
from pathlib import Path
from tvaccine_core.workers.supervisor import Supervisor
supervisor = Supervisor(Path({str(store.home)!r}), 1,
    command=[sys.executable, {FAKE!r}, {str(store.home)!r}, "--supervised"])
supervisor.start()
print(*supervisor.pids(), flush=True)
time.sleep(99)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    job_id = store.enqueue(run_id, "align", LONG)
    wait_until(running(store, job_id))
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    wait_until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    assert store.job(job_id).state == "interrupted"


def test_a_second_supervisor_stands_by_and_takes_over(store: Store, run_id: str, wait_until: WaitUntil) -> None:
    first, second = supervise(store), supervise(store)
    first.start()
    second.start()
    assert not first.standing_by
    assert second.standing_by
    assert second.num_alive() == 0
    first.stop()
    wait_until(lambda: second.num_alive() == 1)
    job_id = store.enqueue(run_id, "align", {"aligned": "sft"})
    wait_until(lambda: store.job(job_id).state == "done")
    second.stop()
    assert second.standing_by


def test_a_command_that_cannot_start_is_named(store: Store) -> None:
    supervisor = Supervisor(store.home, 1, command=[str(store.home / "nothing")])
    with pytest.raises(StoreError, match="Cannot start"):
        supervisor.start()
    supervisor.stop()


def test_the_machine_decides_how_many_workers(monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    assert num_cores() >= 1
    monkeypatch.setattr("tvaccine_core.workers.supervisor.shutil.which", lambda _: None)
    for cores, workers, threads in ((1, 1, 1), (2, 2, 1), (16, 2, 8)):
        monkeypatch.setattr("tvaccine_core.workers.supervisor.num_cores", lambda cores=cores: cores)
        supervisor = Supervisor(store.home)
        assert (default_num_workers(), supervisor.num_workers, supervisor.num_threads) == (workers, workers, threads)
    monkeypatch.setattr("tvaccine_core.workers.supervisor.shutil.which", lambda _: "/usr/bin/nvidia-smi")
    assert default_num_workers() == 1
