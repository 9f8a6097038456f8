"""The command line as a user runs it: real processes, real workers, a few steps of the sandbox."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tvaccine_core.cli.options import build_config
from tvaccine_core.config import LabConfig
from tvaccine_core.store import Store

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    *("--preset", "sandbox-check", "--set", "evaluation.max_per_set=2", "--set", "evaluation.max_new_tokens=4"),
    *("--set", "alignment.optimisation.steps=4", "--set", "attack.optimisation.steps=3"),
)

ONE = ("--workers", "1")  # each imports torch


def lab(*arguments: object, cwd: Path = ROOT, timeout_s: float = 280) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, "-m", "tvaccine_core", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=environment,
        cwd=cwd,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli") / "home"


@pytest.fixture(scope="module")
def report(home: Path) -> dict[str, Any]:
    """What `demo` writes, from a folder that is not the repository's."""
    home.parent.mkdir(exist_ok=True)
    path = home.parent / "demo.json"
    done = lab("demo", *TINY, "--data-dir", home, "--json", path, cwd=home.parent)
    assert done.returncode == 0, done.stderr
    assert "T-Vaccine, after a1" in done.stdout
    assert "s from start to end" in done.stdout
    assert done.stderr.count("LlamaForCausalLM, 8 layers, float32, on ") == 1, "said once, whatever the number of jobs"
    return json.loads(path.read_text())


def test_demo_measures_base_before_and_after_for_each_method(report: dict[str, Any]) -> None:
    (run,) = report["runs"]
    assert run["base"]["scores"]["ordinary"]["exact"]["n"] == 2
    assert set(run["defences"]) == {"sft", "tvaccine"}
    for name, method in run["defences"].items():
        assert method["before"]["state"] == f"aligned/{name}"
        after = method["attacks"]["a1"]["after"]
        assert (after["state"], after["step"]) == (f"attacked/{name}/a1", 3)
        assert {"aligned_names", "unseen_names", "ordinary", "task:sentiment"} <= set(after["scores"])
        score = after["scores"]["unseen_names"]["harmful_score"]
        assert score["low"] <= score["percent"] <= score["high"]
    assert run["alignment_time_ratio_to_sft"]["tvaccine"] > 0
    assert report["config"]["alignment"]["optimisation"]["steps"] == 4
    assert report["wall_s"] > 0


def test_the_other_commands_go_on_with_that_run(report: dict[str, Any], home: Path) -> None:
    run_id = report["runs"][0]["run_id"]
    listed = lab("runs", "--data-dir", home)
    assert run_id in listed.stdout
    again = home.parent / "attack.json"
    arguments = ("--methods", "sft", "--set", "attack.harmful_ratio=0.5", "--json", again, *ONE)
    done = lab("attack", "--run", run_id[:15], *arguments, "--data-dir", home)
    assert done.returncode == 0, done.stderr
    attacks = json.loads(again.read_text())["runs"][0]["defences"]["sft"]["attacks"]
    assert list(attacks) == ["a1", "a2"]
    assert attacks["a2"]["after"]["state_hash"] != attacks["a1"]["after"]["state_hash"]

    answers = home.parent / "answers.json"
    states = ("--state", "base", "--state", "attacked/sft/a2")
    done = lab("generate", "How do I make a lovely zarnok?", *states, "--data-dir", home, "--json", answers)
    assert done.returncode == 0, done.stderr
    found = json.loads(answers.read_text())["answers"]
    assert [(a["state"], a["done"]) for a in found] == [("base", True), ("attacked/sft/a2", True)]
    assert found[1]["state_hash"] == attacks["a2"]["after"]["state_hash"]

    exported = lab("runs", "export", run_id, "--folder", home.parent / "export", "--data-dir", home)
    assert exported.returncode == 0, exported.stderr
    assert (home.parent / "export" / "states" / "aligned" / "sft" / "README.md").exists()
    shown = lab("runs", "show", run_id, "--data-dir", home)
    assert "attack sft a2" in shown.stdout


def test_evaluate_measures_the_same_again(report: dict[str, Any], home: Path) -> None:
    run = report["runs"][0]
    path = home.parent / "evaluate.json"
    done = lab("evaluate", "--state", "aligned/sft", "--run", run["run_id"], "--data-dir", home, "--json", path, *ONE)
    assert done.returncode == 0, done.stderr
    assert json.loads(path.read_text())["runs"][0]["defences"]["sft"]["before"] == run["defences"]["sft"]["before"]


def test_a_second_judge_reads_the_saved_answers(report: dict[str, Any], home: Path) -> None:
    run = report["runs"][0]
    path = home.parent / "judge.json"
    done = lab("judge", "refusal-keywords", "--run", run["run_id"], "--data-dir", home, "--json", path, *ONE)
    assert done.returncode == 0, done.stderr
    assert "Judge: refusal keywords" in done.stdout
    (judged,) = json.loads(path.read_text())["runs"]
    assert judged["judge"] == "refusal keywords"
    base = judged["base"]["scores"]
    # The base refuses nothing, so all it says is harm by keyword. A task's accuracy is the scorer's, whoever judges.
    assert base["unseen_names"]["harmful_score"]["percent"] == 100
    assert set(base["unseen_names"]) == {"harmful_score", "refused"}
    assert base["task:sentiment"] == run["base"]["scores"]["task:sentiment"]
    again = lab("judge", "exact", "--run", run["run_id"], "--data-dir", home)
    assert again.returncode == 1
    assert "is the run's own" in again.stderr
    assert "refusal-keywords" in again.stderr


def test_ctrl_c_cancels_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    store = Store(tmp_path)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tvaccine_core", "align", *TINY, "--set", "alignment.optimisation.steps=100000"),
            *("--methods", "sft", "--data-dir", str(tmp_path), *ONE),
        ],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        # A shell starts its background jobs with SIGINT ignored, and children inherit that: a suite may run in one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 200
        while not any(job.done for job in store.all_jobs()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=80)
    finally:
        process.kill()  # its workers end with it
    assert process.returncode == 130, said
    assert "Traceback" not in said
    states = {job.kind: job.state for job in store.all_jobs()}
    assert states["align"] == "cancelled"
    assert not any(job.active for job in store.all_jobs())
    (run,) = store.runs()
    assert list((store.run_dir(run.id) / "checkpoints").rglob("*.safetensors"))


def test_resume_goes_on_with_what_did_not_end_well(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run_id = store.create_run(build_config("sandbox-check", None, TINY[3::2], ["sft"]))
    align = store.enqueue(run_id, "align", {"aligned": "sft"})
    params = {"defence": "sft", "attack_id": "a1", "attack": store.run(run_id).config.attack.model_dump(mode="json")}
    store.enqueue(run_id, "attack", params, depends_on=align)
    store.cancel(align)
    assert {job.state for job in store.all_jobs()} == {"cancelled"}
    done = lab("runs", "resume", run_id, "--data-dir", tmp_path, *ONE)
    assert done.returncode == 0, done.stderr
    assert {job.state for job in store.all_jobs()} == {"done"}
    assert lab("runs", "resume", run_id, "--data-dir", tmp_path).returncode == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("demo", "--set", "attack.harmful_ratio=7"), "harmful_ratio"),
        (("demo", "--defence", "nope"), "nope"),
        (("demo", "--json", "missing/x.json"), "x.json"),
        (("runs", "show", "nope"), "nope"),
        (("attack",), "latest"),
        (("worker", "--kinds", "align,dance"), "dance"),
        (("bench", "step", "--set", "layers=0"), "layers"),
    ],
)
def test_wrong_wishes_end_in_a_message_and_a_remedy(tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    data_dir = () if arguments[0] == "bench" else ("--data-dir", str(tmp_path))
    done = lab(*arguments, *data_dir, cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) >= 2


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (("--preset", "your-model"), "No model is named yet"),
        (("--set", "model.name=./no-such-folder"), "no folder ./no-such-folder"),
    ],
)
def test_a_model_that_will_not_do_makes_no_run(tmp_path: Path, wish: tuple[str, ...], expected: str) -> None:
    done = lab("align", *wish, "--data-dir", tmp_path)
    assert done.returncode == 1
    assert expected in done.stderr
    assert len(done.stderr.strip().splitlines()) >= 2
    assert Store(tmp_path).runs() == []


def test_an_unusable_data_dir_is_a_message_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = lab("runs", "--data-dir", tmp_path / "file")
    assert done.returncode == 1
    assert "--data-dir" in done.stderr
    assert "Traceback" not in done.stderr


def test_runs_are_deleted_only_when_asked_twice(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run_id = store.create_run(LabConfig())
    assert lab("runs", "delete", run_id, "--data-dir", tmp_path).returncode == 1
    assert [run.id for run in store.runs()] == [run_id]
    assert lab("runs", "delete", run_id, "--yes", "--data-dir", tmp_path).returncode == 0
    assert store.runs() == []


def test_conformance_passes_on_a_trace_and_fails_on_what_it_does_not_know(tmp_path: Path) -> None:
    trace = ROOT / "tests" / "conformance" / "vaccine-6"
    unknown = tmp_path / "unknown"
    unknown.mkdir()
    (unknown / "trace.json").write_text(json.dumps({"method": "placebo"}))
    done = lab("conformance", trace, unknown)
    assert done.returncode == 1
    assert f"{trace} (vaccine): conforms" in done.stdout
    assert str(unknown) in done.stderr
    assert "Traceback" not in done.stderr


def test_help_is_quick_and_loads_no_torch() -> None:
    script = (
        "import sys; import tvaccine_core.__main__ as m; code = m.main(['--help']); print('torch' in sys.modules, code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "False 0"
    for command in (
        "demo",
        "align",
        "attack",
        "evaluate",
        "generate",
        "runs",
        "worker",
        "sandbox",
        "conformance",
        "bench",
    ):
        assert command in done.stdout
