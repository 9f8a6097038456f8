"""`plan` and `bench gpu` as a user runs them, on a tiny shape."""

import json
import re
from pathlib import Path

import pytest
import torch

from tvaccine_core.__main__ import main
from tvaccine_core.bench.gpu import GpuBenchReport
from tvaccine_core.plan.records import PlanReport

SMALL = ("--batch", "2", "--length", "16", "--set", "defences.tvaccine.alignment.num_layers=2")


def test_plan_prints_a_table_a_method_and_writes_json(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "plan.json"
    arguments = ("plan", "--model", str(tiny_folder), "--method", "sft,tvaccine", *SMALL, "--gpu", "RTX 4090")
    assert main([*arguments, "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "RTX 4090: T-Vaccine fits." in printed
    assert "layer 0 is among the drawn layers" in printed
    report = PlanReport.model_validate_json(path.read_text(encoding="utf-8"))
    assert [plan.method for plan in report.plans] == ["sft", "tvaccine"]
    assert report.verdicts == {"sft": "fits", "tvaccine": "fits"}
    assert [phase.phase for phase in report.plans[1].phases] == ["load", "step", "evaluate", "score"]
    for plan in report.plans:
        assert plan.dtype == "bfloat16"
        assert all(sum(phase.parts.values()) == phase.peak_bytes > 0 for phase in plan.phases)


def test_a_probe_times_real_steps(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    arguments = ("plan", "--model", str(tiny_folder), "--method", "tvaccine", *SMALL, "--device", "cpu", "--probe")
    assert main([*arguments, "--set", "alignment.optimisation.steps=500", "--json", str(path)]) == 0
    (time,) = json.loads(path.read_text(encoding="utf-8"))["times"]
    assert time["timed_steps"] == 10
    assert time["steps"] == 500
    scorings = 3  # steps 0, 200, 400
    assert time["total_s"] == pytest.approx(500 * time["step_s"] + scorings * time["scoring_s"])
    assert time["step_s"] > 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--model", "no-such-folder/at/all"), "There is no config.json"),
        (("--gpu", "abacus"), "There is no GPU 'abacus'"),
        (("--method", "magic"), "no method 'magic'"),
    ],
)
def test_wrong_wishes_end_in_a_message(
    arguments: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *arguments]) in (1, 2)
    assert expected in capsys.readouterr().err


def test_a_probe_without_weights_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvaccine_core.plan.planner.plan_run", lambda *args, **settings: [])
    monkeypatch.setattr("tvaccine_core.cli.plan._show", lambda report, name: None)
    assert main(["plan", "--model", "llama-2-7b", "--probe"]) == 1
    assert "names sizes, not weights" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(("quantization", "limit_gb"), [("nf4", 10), ("none", 18)])
def test_docs_tell_what_is_predicted_for_seven_billion_parameters(
    quantization: str, limit_gb: float, tmp_path: Path
) -> None:
    readme = (Path(__file__).parents[2] / "docs" / "COSTS.md").read_text(encoding="utf-8")
    command = re.search(r"tvaccine_core (plan .*--activation-memory lowest)$", readme, re.MULTILINE)
    words = " ".join(readme.split())
    figures = re.search(r"it predicts ([\d.]+) GB in NF4 and, with `--quantization none`, ([\d.]+) GB", words)
    assert command is not None
    assert figures is not None
    path = tmp_path / "plan.json"
    assert main([*command[1].replace("nf4", quantization).split(), "--json", str(path)]) == 0
    (plan,) = PlanReport.model_validate_json(path.read_text(encoding="utf-8")).plans
    assert (plan.batch_size, plan.length, plan.labelled, plan.activation_memory) == (10, 200, 200, "lowest")
    assert plan.peak_bytes < limit_gb * 1e9
    assert f"{plan.peak_bytes / 1e9:.1f}" == dict(zip(("nf4", "none"), figures.groups(), strict=True))[quantization]


@pytest.mark.slow
def test_bench_gpu_measures_what_the_plan_predicts(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    small = ("--set", "batch=2", "--set", "length=16", "--set", "num_layers=2", "--set", "steps=2")
    arguments = ("bench", "gpu", "--shape", str(tiny_folder), "--random-weights", "--device", "cpu")
    assert main([*arguments, *small, "--json", str(path)]) == 0
    report = GpuBenchReport.model_validate_json(path.read_text(encoding="utf-8"))
    assert report.counted_by == "tracker"
    assert [(cost.storage, cost.method) for cost in report.costs] == [
        (storage, method) for storage in ("bfloat16", "nf4") for method in ("sft", "vaccine", "tvaccine")
    ]
    for cost in report.costs:
        assert cost.error is None
        assert cost.step_s is not None
        assert cost.step_s > 0
        assert cost.planned_bytes == pytest.approx(cost.peak_allocated_bytes, rel=0.02)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_bench_gpu_without_a_gpu_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gpu", "--random-weights"]) == 1
    assert "no cuda device" in capsys.readouterr().err
