"""Will it fit? Asks the command `plan`, in a process of its own: the page holds no torch.

Cost: some twenty seconds of one core, in which torch and transformers are imported and one step is rehearsed on tensors
without contents.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path

from app import own_text
from app.services import METHODS, LabConfig, MemoryPlan, ModelError, PlanReport, advise, memory_bytes

WITHIN_S = 600.0
COMMAND = (sys.executable, "-m", "tvaccine_core", "plan")
PACKAGES = Path(__file__).resolve().parents[1]


def machine_memory(wish: str) -> tuple[str, float | None]:
    """The device that `wish` will come to, as `plan` names it, and its memory in GiB; None if that cannot be told."""
    if wish in ("auto", "cuda") and (gpu := _gpu_gib()) is not None:
        return "cuda", gpu
    memory = memory_bytes()
    return "cpu", None if memory is None else memory / 2**30


def _gpu_gib() -> float | None:
    """Memory of the first GPU; None if there is none to be asked."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        query = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
        said = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        return float(said.splitlines()[0]) / 1024
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def predict(config: LabConfig) -> PlanReport:
    """What the command `plan` says of a run on this machine.

    Raises:
        ModelError: it cannot say, with its own words.
    """
    device, memory_gib = machine_memory(config.model.device)
    with tempfile.TemporaryDirectory() as folder:
        settings, report = Path(folder) / "config.yaml", Path(folder) / "plan.json"
        settings.write_text(config.to_yaml(), encoding="utf-8")
        options = ["--config", settings, "--device", device, "--json", report]
        options += [] if memory_gib is None else ["--memory-gib", f"{memory_gib:.2f}"]
        paths = os.pathsep.join(filter(None, (str(PACKAGES), os.environ.get("PYTHONPATH", ""))))
        try:
            done = subprocess.run(
                [*COMMAND, *map(str, options)],
                env={**os.environ, "PYTHONPATH": paths, "COLUMNS": "1000"},
                capture_output=True,
                text=True,
                timeout=WITHIN_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            message = own_text.FIT_SLOW.format(minutes=WITHIN_S / 60)
            raise ModelError(message, remedy=own_text.FIT_FAILED_REMEDY) from error
        if done.returncode != 0 or not report.is_file():
            # The command ends with message and remedy, a line each; anything else is not for a visitor's eyes.
            said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            if len(said) < 2 or "Traceback" in done.stderr:
                raise ModelError(own_text.FIT_FAILED, remedy=own_text.FIT_FAILED_REMEDY)
            raise ModelError(said[-2], remedy=said[-1])
        return PlanReport.model_validate_json(report.read_text(encoding="utf-8"))


def fit_view(report: PlanReport) -> str:
    """Peak and verdict of each method, what the peak is made of, and what would help."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in own_text.FIT_COLUMNS)
    rows = "".join(
        f'<tr><th scope="row">{escape(METHODS[plan.method].title)}</th><td>{plan.peak_bytes / 1e9:.2f} GB</td>'
        f"<td>{escape(report.verdicts.get(plan.method, ''))}</td></tr>"
        for plan in report.plans
    )
    memory = report.memory_gib  # None if this machine does not tell: then nothing is judged
    advice = dict.fromkeys(sentence for plan in report.plans if memory for sentence in advise(plan, memory))
    first = report.plans[0]
    note = own_text.FIT_NOTE.format(
        batch=first.batch_size,
        length=first.length,
        stored=first.dtype if first.quantization == "none" else first.quantization,
        device=f"{first.device} with {memory:.0f} GiB" if memory else first.device,
    )
    sentences = [own_text.FIT_TRY.format(advice=words) for words in advice]
    sentences += [_parts(plan) for plan in report.plans]
    notes = "".join(f'<p class="lab-note">{escape(words)}</p>' for words in (*sentences, note))
    table = f'<table class="lab-table"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return f'<div class="lab-scroll">{table}</div>{notes}'


def _parts(plan: MemoryPlan) -> str:
    """What the worst moment is made of, largest first."""
    parts = sorted(plan.worst.parts.items(), key=lambda part: -part[1])
    shown = [f"{name} {size / 1e9:.2f}" for name, size in parts if size >= 0.005e9]
    return own_text.FIT_PARTS.format(
        method=METHODS[plan.method].title,
        phase=own_text.FIT_PHASES[plan.worst.phase],
        parts=", ".join(shown) or "less than 0.01",
    )
