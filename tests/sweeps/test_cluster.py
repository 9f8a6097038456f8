"""A sweep as jobs of a cluster: submitit's local executor starts real processes, which train."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tvaccine_core.__main__ import main
from tvaccine_core.store import Store
from tvaccine_core.sweeps.measured import read_results

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).resolve().parents[2]
FILE = """
name: on a cluster
preset: sandbox-check
set:
  alignment.optimisation: {steps: 4}
  attack.optimisation: {steps: 4}
  attack.eval_every: 0
  evaluation: {max_per_set: 2, max_new_tokens: 4}
defences: [sft, vaccine]
vary:
  seed: [0, 1]
"""


@pytest.mark.slow
def test_each_run_is_a_job_and_nothing_is_made_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(FILE)
    words = ["sweep", str(file), "--cluster", "local", "--data-dir", str(tmp_path / "home")]
    assert main(words) == 0, capsys.readouterr()
    folder = tmp_path / "cluster-results"
    results = read_results(folder / "cells.json")
    assert sorted((result.defence, result.seed) for result in results) == [
        (name, seed) for name in ("sft", "vaccine") for seed in (0, 1)
    ]
    assert all(result.curve[-1].step == 4 for result in results)
    places = list((folder / "cluster").glob("*/lab.db"))
    assert len(places) == 2, "a store for each run"
    assert Store(tmp_path / "home").runs() == []
    logs = list((folder / "cluster" / "log").iterdir())
    assert main(words) == 0
    assert list((folder / "cluster" / "log").iterdir()) == logs, "no job was submitted again"


@pytest.mark.slow
def test_a_job_that_is_killed_is_named_and_the_same_command_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "killed.yaml"
    file.write_text(FILE.replace("{steps: 4}", "{steps: 60, checkpoint_every: 5}", 1).replace("[0, 1]", "[0]"))
    words = ["sweep", str(file), "--cluster", "local", "--data-dir", str(tmp_path / "home")]
    first = subprocess.Popen(
        [sys.executable, "-m", "tvaccine_core", *words], cwd=ROOT, text=True, stdout=-1, stderr=subprocess.STDOUT
    )
    place = tmp_path / "killed-results" / "cluster"
    deadline = time.monotonic() + 300
    while not any(_steps(home) > 10 for home in place.glob("*/lab.db")):
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for pid in _processes_of(str(place)):
        os.kill(pid, signal.SIGKILL)
    said, _ = first.communicate(timeout=120)
    assert first.returncode == 1, said
    assert "ended without a result" in said
    (home,) = place.glob("*/lab.db")
    before = _steps(home)
    assert before < 60
    assert main(words) == 0
    (run_row,) = Store(home.parent).runs()
    resumed = [job for job in Store(home.parent).jobs(run_row.id) if job.kind == "align" and job.resumed]
    assert len(resumed) == 1, "it went on from its checkpoint"
    assert len(read_results(tmp_path / "killed-results" / "cells.json")) == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--cluster", "nowhere"], "nowhere"),
        (["--cluster", "local", "--cluster-set", "wings=2"], "wings"),
        (["--cluster", "local", "--cluster-set", "timeout_min"], "NAME=VALUE"),
        (["--cluster-set", "timeout_min=3"], "--cluster"),
    ],
)
def test_what_submitit_does_not_know_is_said_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(FILE)
    assert main(["sweep", str(file), *words, "--data-dir", str(tmp_path / "home")]) == 2
    assert expected in "".join(capsys.readouterr())


def _steps(path: Path) -> int:
    """Steps of the newest alignment in a store."""
    store = Store(path.parent)
    return max((job.done or 0 for run in store.runs() for job in store.jobs(run.id) if job.kind == "align"), default=0)


def _processes_of(words: str) -> list[int]:
    """Processes of a job: those with `words` in their command line, and workers below it."""
    found = subprocess.run(["pgrep", "-f", words], capture_output=True, text=True, check=False).stdout.split()
    return [int(pid) for pid in found if int(pid) != os.getpid()]
