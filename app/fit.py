"""Will it fit, how long will it take? Asks the command `plan` in its own process: the page holds no torch.

Cost: about twenty seconds of one core, to import torch and transformers and take one step on tensors without contents.
For the time, the model is loaded and takes real steps.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path

from app import text
from app.services import METHODS, LabConfig, MemoryPlan, ModelError, PlanReport, advise, memory_bytes

WITHIN_S = 600.0
PROBE_WITHIN_S = 1800.0
COMMAND = (sys.executable, "-m", "tvaccine_core", "plan")
PACKAGES = Path(__file__).resolve().parents[1]


def machine_memory(wish: str) -> tuple[str, float | None]:
    """The device that `wish` means, as `plan` names it, and its memory in GiB; None if that is unknown."""
    if wish in ("auto", "cuda") and (gpu := _gpu_gib()) is not None:
        return "cuda", gpu
    memory = memory_bytes()
    return "cpu", None if memory is None else memory / 2**30


def _gpu_gib() -> float | None:
    """Memory of the first GPU in GiB; None if there is none or it does not tell."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        query = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        said = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        return float(said.splitlines()[0]) / 1024
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def predict(config: LabConfig, *, probe: bool = False) -> PlanReport:
    """The result of the command `plan` for a run on this machine.

    Args:
        probe: also take a few steps by each method; needs the model's weights on this machine.

    Raises:
        ModelError: `plan` failed; with its message.
    """
    device, memory_gib = machine_memory(config.model.device)
    within_s = PROBE_WITHIN_S if probe else WITHIN_S
    with tempfile.TemporaryDirectory() as folder:
        settings, report = Path(folder) / "config.yaml", Path(folder) / "plan.json"
        settings.write_text(config.to_yaml(), encoding="utf-8")
        options = ["--config", settings, "--device", device, "--json", report]
        options += [] if memory_gib is None else ["--memory-gib", f"{memory_gib:.2f}"]
        options += ["--probe"] if probe else []
        paths = os.pathsep.join(filter(None, (str(PACKAGES), os.environ.get("PYTHONPATH", ""))))
        try:
            done = subprocess.run(
                [*COMMAND, *map(str, options)],
                env={**os.environ, "PYTHONPATH": paths, "COLUMNS": "1000"},
                capture_output=True,
                text=True,
                timeout=within_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            message = text.FIT_SLOW.format(minutes=within_s / 60)
            raise ModelError(message, remedy=text.FIT_FAILED_REMEDY) from error
        if done.returncode != 0 or not report.is_file():
            # The command ends with message and remedy, one line each; anything else is not for visitors.
            said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            if len(said) < 2 or "Traceback" in done.stderr:
                raise ModelError(text.FIT_FAILED, remedy=text.FIT_FAILED_REMEDY)
            raise ModelError(said[-2], remedy=said[-1])
        return PlanReport.model_validate_json(report.read_text(encoding="utf-8"))


def fit_view(report: PlanReport) -> str:
    """Peak and verdict of each method, its time if it was probed, the peak's parts, and advice."""
    times = {time.method: time for time in report.times}
    columns = (*text.FIT_COLUMNS, text.TIME_COLUMN) if times else text.FIT_COLUMNS
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    rows = "".join(
        f'<tr><th scope="row">{escape(METHODS[plan.method].title)}</th><td>{plan.peak_bytes / 1e9:.2f} GB</td>'
        f"<td>{escape(report.verdicts.get(plan.method, ''))}</td>"
        + (f"<td>{text.duration(times[plan.method].total_s)}</td>" if plan.method in times else "")
        + "</tr>"
        for plan in report.plans
    )
    memory = report.memory_gib  # None if this machine does not tell: then there is no verdict
    advice = dict.fromkeys(sentence for plan in report.plans if memory for sentence in advise(plan, memory))
    first = report.plans[0]
    note = text.FIT_NOTE.format(
        batch=first.batch_size,
        length=first.length,
        stored=first.dtype if first.quantization == "none" else first.quantization,
        device=f"{first.device} with {memory:.0f} GiB" if memory else first.device,
    )
    sentences = [text.FIT_TRY.format(advice=words) for words in advice]
    sentences += [_parts(plan) for plan in report.plans]
    sentences += [
        text.TIME_NOTE.format(
            method=METHODS[time.method].title,
            device=time.device,
            step=time.step_s,
            timed=time.timed_steps,
            scoring=text.TIME_SCORING.format(seconds=time.scoring_s) if time.scoring_s else "",
            steps=time.steps,
        )
        for time in report.times
    ]
    notes = "".join(f'<p class="lab-note">{escape(words)}</p>' for words in (*sentences, note))
    table = f'<table class="lab-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="lab-scroll">{table}</div>{notes}'


def _parts(plan: MemoryPlan) -> str:
    """The parts of the worst moment, largest first."""
    parts = sorted(plan.worst.parts.items(), key=lambda part: -part[1])
    shown = [f"{name} {size / 1e9:.2f}" for name, size in parts if size >= 0.005e9]
    return text.FIT_PARTS.format(
        method=METHODS[plan.method].title,
        phase=text.FIT_PHASES[plan.worst.phase],
        parts=", ".join(shown) or text.FIT_LITTLE,
    )
