"""The real command, killed in the middle with its workers left to notice: started again, it repeats nothing."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tvaccine_core.records import StepRecord
from tvaccine_core.store import Store
from tvaccine_core.sweeps.measured import read_results

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
FILE = """
name: killed
preset: sandbox-check
set:
  alignment.optimisation: {steps: 30, checkpoint_every: 5}
  attack.optimisation: {steps: 20, checkpoint_every: 5}
  attack.eval_every: 10
  evaluation: {max_per_set: 3, max_new_tokens: 6}
defences: [sft, tvaccine]
vary:
  seed: [0, 1]
  attack.harmful_ratio: [0.0, 0.1]
"""
CELLS = 8


def start(file: Path, home: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tvaccine_core", "sweep", str(file), "--data-dir", str(home)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_a_killed_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    file, home = tmp_path / "killed.yaml", tmp_path / "home"
    file.write_text(FILE)
    first = start(file, home)
    deadline = time.monotonic() + 300
    while not any(job.kind == "attack" and job.state == "done" for job in Store(home).all_jobs()):
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    os.kill(first.pid, signal.SIGKILL)
    first.wait(30)
    store = Store(home)
    made = sum(job.state == "done" for job in store.all_jobs())
    assert made < 2 * (2 + 1 + 4), "it was killed too late to show anything"

    second = start(file, home)
    said, _ = second.communicate(timeout=600)
    assert second.returncode == 0, said
    assert f"{CELLS} of {CELLS} cells" in said
    jobs = store.all_jobs()
    assert {job.state for job in jobs if job.state != "interrupted"} == {"done"}
    work = Counter(f"{job.run_id} {job.kind} {sorted(job.params.items())}" for job in jobs if job.state == "done")
    assert set(work.values()) == {1}, "nothing is made twice"
    assert len(store.runs()) == 2
    for run in store.runs():
        for job in store.jobs(run.id, states=("done",)):
            steps = [
                stored.event.step
                for stored in store.events(run.id, kinds=("step",), job_id=job.id)
                if isinstance(stored.event, StepRecord)
            ]
            assert steps == sorted(set(steps)), "nothing is lost or counted twice"
            assert len(steps) in (0, 20, 30)

    folder = tmp_path / "killed-results"
    results = read_results(folder / "cells.json")
    assert len({result.key for result in results}) == CELLS
    assert all(result.curve[-1].step == 20 for result in results)
    with (folder / "scores.csv").open(newline="") as rows:
        assert {row["seed"] for row in csv.DictReader(rows)} == {"0", "1"}
    assert {path.name for path in folder.iterdir()} == {
        "cells.json",
        "scores.csv",
        "scores.parquet",
        "tables.md",
        "tables.html",
        "tables.tex",
        "curves.svg",
        "scatter.svg",
        "outcomes.svg",
        "map.svg",
    }
    third = start(file, home)
    said, _ = third.communicate(timeout=120)
    assert f"{CELLS} are there already" in said
    assert len(store.all_jobs()) == len(jobs)
