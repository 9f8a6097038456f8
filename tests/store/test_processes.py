"""Several real processes on one store: claims are exclusive, readers see prefixes, a killed writer breaks nothing."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

from tvaccine_core.records import StepRecord
from tvaccine_core.store import Store

CLAIMER = """
import sys
from pathlib import Path
from tvaccine_core.store import Store
store = Store(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
while (job := store.claim(f"worker-{sys.argv[2]}")) is not None:
    print(job.id)
    store.finish(job.id, "done", worker_id=f"worker-{sys.argv[2]}")
"""

WRITER = """
import sys
from pathlib import Path
from tvaccine_core.records import StepRecord
from tvaccine_core.store import Store
store = Store(Path(sys.argv[1]))
first, last, batch = map(int, sys.argv[3:])
for start in range(first, last, batch):
    store.append(sys.argv[2], [
        StepRecord(step=step, num_steps=last, loss=1, learning_rate=1, grad_norm=1, elapsed_s=1, num_tokens=1)
        for step in range(start, start + batch)
    ])
"""

OPENER = """
import sys
from pathlib import Path
from tvaccine_core.config import LabConfig
from tvaccine_core.store import Store
print(Store(Path(sys.argv[1])).create_run(LabConfig()))
"""


def start(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def steps(store: Store, run_id: str, after: int = 0) -> list[tuple[int, int]]:
    return [(s.seq, s.event.step) for s in store.events(run_id, after) if isinstance(s.event, StepRecord)]


def test_processes_that_open_a_new_store_together_all_succeed(tmp_path: Path) -> None:
    openers = [start(OPENER, tmp_path / "home") for _ in range(4)]
    made = sorted(opener.communicate(timeout=200)[0].strip() for opener in openers)
    assert all(opener.returncode == 0 for opener in openers)
    assert sorted(run.id for run in Store(tmp_path / "home").runs()) == made


def test_no_job_is_claimed_twice(store: Store, run_id: str) -> None:
    queued = [store.enqueue(run_id, "generate", {"prompt": str(i)}) for i in range(150)]
    claimers = [start(CLAIMER, store.home, i) for i in range(4)]
    for claimer in claimers:
        assert claimer.stdout is not None
        assert claimer.stdout.readline() == "ready\n"
    for claimer in claimers:  # all begin at once
        assert claimer.stdin is not None
        claimer.stdin.write("go\n")
        claimer.stdin.flush()
    claimed = [claimer.communicate(timeout=200)[0].split() for claimer in claimers]
    assert sorted(job for jobs in claimed for job in jobs) == sorted(queued)
    assert all(claimer.returncode == 0 for claimer in claimers)
    assert {job.state for job in store.jobs(run_id)} == {"done"}


def test_a_reader_sees_a_growing_prefix_while_two_processes_write(store: Store, run_id: str) -> None:
    jobs = [store.enqueue(run_id, "align", {"aligned": method}) for method in ("sft", "tvaccine")]
    writers = [
        start(WRITER, store.home, jobs[0], 0, 2000, 5),
        start(WRITER, store.home, jobs[1], 10_000, 12_000, 5),
    ]
    seen: list[tuple[int, int]] = []
    looks = 0
    while any(writer.poll() is None for writer in writers) or steps(store, run_id, seen[-1][0] if seen else 0):
        fresh = steps(store, run_id, seen[-1][0] if seen else 0)
        looks += bool(fresh)
        seen += fresh
        # Nothing skipped, nothing twice: what was seen is what the store holds up to there, batches whole.
        for low, high in ((0, 2000), (10_000, 12_000)):
            mine = [step for _, step in seen if low <= step < high]
            assert mine == list(range(low, low + len(mine)))
            assert len(mine) % 5 == 0
    assert looks > 3, "the writers were done before the reader looked"
    assert seen == steps(store, run_id)
    assert len(seen) == 4000


def test_a_killed_writer_leaves_a_valid_database_and_whole_batches(store: Store, run_id: str) -> None:
    job = store.enqueue(run_id, "align", {"aligned": "sft"})
    writer = start(WRITER, store.home, job, 0, 1_000_000, 50)
    deadline = time.monotonic() + 120
    while len(steps(store, run_id)) < 500:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    written = [step for _, step in steps(store, run_id)]
    assert written == list(range(len(written)))
    assert len(written) % 50 == 0
    with sqlite3.connect(store.home / "lab.db") as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    store.append(job, [StepRecord.model_validate(written_step(len(written)))])
    assert len(steps(store, run_id)) == len(written) + 1


def written_step(step: int) -> dict[str, float]:
    return {
        "step": step,
        "num_steps": 10,
        "loss": 1.0,
        "learning_rate": 1.0,
        "grad_norm": 1.0,
        "elapsed_s": 1.0,
        "num_tokens": 1,
    }
