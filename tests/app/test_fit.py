"""Will it fit: the command `plan` in a process of its own, what is made of its answer, and what when it has none."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app import fit, text
from app.services import PRESETS, YOUR_MODEL, LabConfig, MemoryPlan, ModelConfig, ModelError, PlanReport
from tvaccine_core.plan.records import PARTS, PhasePeak, TimeEstimate

GB = 10**9


def plan_of(method: str, step_gb: float, evaluate_gb: float) -> MemoryPlan:
    def peak(phase: Any, size_gb: float) -> PhasePeak:
        parts = {
            **dict.fromkeys(PARTS, 0),
            "weights": int(0.75 * size_gb * GB),
            "activations": int(0.25 * size_gb * GB),
        }
        return PhasePeak(phase=phase, peak_bytes=int(size_gb * GB), parts=parts)

    return MemoryPlan(
        model="<b>mine</b>",
        source="config.json",
        method=method,
        quantization="nf4",
        dtype="bfloat16",
        device="cuda",
        activation_memory="lowest",
        batch_size=10,
        length=200,
        labelled=200,
        probe_batch_size=16,
        evaluation_batch_size=32,
        new_tokens=48,
        num_layers=32,
        num_parameters=7 * GB,
        exact=True,
        phases=(peak("load", 1), peak("step", step_gb), peak("evaluate", evaluate_gb)),
        assumptions=(),
    )


def test_peak_verdict_parts_and_advice_are_shown() -> None:
    verdicts = {"sft": "fits", "tvaccine": "does not fit"}
    plans = (plan_of("sft", 4, 3), plan_of("tvaccine", 8, 16))
    shown = fit.fit_view(PlanReport(plans=plans, memory_gib=12.0, verdicts=verdicts))
    assert "<td>4.00 GB</td><td>fits</td>" in shown
    assert "<td>16.00 GB</td><td>does not fit</td>" in shown
    assert "SFT, most in a training step: weights 3.00, activations 1.00 GB." in shown
    assert "T-Vaccine, most in an evaluation: weights 12.00, activations 4.00 GB." in shown
    assert "Try " in shown
    assert "10 x 200 tokens, nf4, on cuda with 12 GiB" in shown


def test_times_are_shown_where_they_were_probed() -> None:
    shared = {"device": "cuda:0", "timed_steps": 10, "steps": 4000}
    times = (
        TimeEstimate(method="sft", step_s=0.25, scoring_s=0.0, total_s=1000.0, **shared),
        TimeEstimate(method="tvaccine", step_s=0.5, scoring_s=2.0, total_s=2040.0, **shared),
    )
    plans = (plan_of("sft", 4, 3), plan_of("tvaccine", 8, 16))
    shown = fit.fit_view(PlanReport(plans=plans, memory_gib=None, verdicts={}, times=times))
    assert '<th scope="col">Time to align</th>' in shown
    assert "<td>17 min</td>" in shown
    assert "<td>34 min</td>" in shown
    assert "SFT on cuda:0: 0.25 s per step, the median of 10; 4,000 steps in all." in shown
    assert "the median of 10, and 2 s per scoring of the layers; 4,000" in shown
    assert "Try" not in shown, "nothing is judged where the memory is not known"
    assert "Time to align" not in fit.fit_view(PlanReport(plans=plans, memory_gib=12.0, verdicts={}))


def with_command(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(fit, "COMMAND", (sys.executable, "-c", code))


def test_the_command_gets_the_config_of_the_page_and_its_answer_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    report = PlanReport(plans=(plan_of("sft", 4, 3),), memory_gib=12.0, verdicts={"sft": "fits"})
    code = (
        "import sys; from pathlib import Path; given = dict(zip(sys.argv[1::2], sys.argv[2::2]));"
        "from tvaccine_core.config import LabConfig; config = LabConfig.load(Path(given['--config']));"
        "assert config.model.name == 'owner/model' and config.model.quantization == 'nf4';"
        "assert given['--device'] in ('cpu', 'cuda') and float(given['--memory-gib']) > 0.1;"
        f"Path(given['--json']).write_text({report.model_dump_json()!r})"
    )
    with_command(monkeypatch, code)
    model = ModelConfig(name="owner/model", quantization="nf4")
    assert fit.predict(PRESETS[YOUR_MODEL].config.model_copy(update={"model": model})) == report


@pytest.mark.parametrize(
    ("code", "message", "remedy"),
    [
        (
            "import sys; sys.stderr.write('Noise\\nNo such model.\\nTake another.\\n'); sys.exit(1)",
            "No such",
            "Take an",
        ),
        ("raise ValueError('secret')", text.FIT_FAILED, text.FIT_FAILED_REMEDY),
        ("", text.FIT_FAILED, text.FIT_FAILED_REMEDY),
    ],
)
def test_a_command_that_fails_is_quoted_if_it_speaks_to_users(
    monkeypatch: pytest.MonkeyPatch, code: str, message: str, remedy: str
) -> None:
    with_command(monkeypatch, code)
    with pytest.raises(ModelError, match=message) as caught:
        fit.predict(LabConfig())
    assert remedy in caught.value.remedy


def test_a_command_that_does_not_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    with_command(monkeypatch, "import time; time.sleep(100)")
    monkeypatch.setattr(fit, "WITHIN_S", 0.2)
    with pytest.raises(ModelError, match="longer than"):
        fit.predict(LabConfig())


def test_the_memory_is_the_gpu_s_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def says(words: str) -> None:
        done = subprocess.CompletedProcess([], 0, stdout=words, stderr="")
        monkeypatch.setattr(fit.subprocess, "run", lambda *_, **__: done)

    monkeypatch.setattr(fit.shutil, "which", lambda _: "nvidia-smi")
    says("24576\n81920\n")
    assert fit.machine_memory("auto") == ("cuda", 24.0)
    device, memory = fit.machine_memory("cpu")
    assert device == "cpu"
    assert memory > 0.1
    says("No devices were found\n")
    assert fit.machine_memory("auto") == ("cpu", memory)
    monkeypatch.setattr(fit.shutil, "which", lambda _: None)
    assert fit.machine_memory("cuda") == ("cpu", memory)


@pytest.mark.slow
def test_the_real_command_predicts_a_small_model(tiny_folder: Path) -> None:
    config = PRESETS[YOUR_MODEL].config
    defences = config.defences[:1]
    model = ModelConfig(name=str(tiny_folder), quantization="nf4", device="cpu")
    report = fit.predict(config.model_copy(update={"model": model, "defences": defences}), probe=True)
    assert [plan.method for plan in report.plans] == ["sft"]
    (time,) = report.times
    assert time.device == "cpu"
    assert time.total_s == pytest.approx(4000 * time.step_s)
    assert "SFT, most in" in fit.fit_view(report)
