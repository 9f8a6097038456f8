"""What a job that ran out of memory is told: by its own method and its own settings."""

import re

import pytest

from tvaccine_core.config import PRESETS
from tvaccine_core.plan.planner import plan_run
from tvaccine_core.plan.remedy import memory_remedy

CONFIG = PRESETS["sandbox-check"].config
ATTACK = {"defence": "sft", "attack_id": "a1", "attack": CONFIG.attack.model_dump(mode="json")}


def peak_gib(method: str) -> float:
    config = CONFIG.model_copy(update={"defences": (CONFIG.defence(method),)})
    (plan,) = plan_run(config, device="cpu")
    return plan.peak_bytes / 2**30


def test_what_would_fit_is_told_that_something_else_holds_the_memory() -> None:
    remedy = memory_remedy(CONFIG, "align", {"aligned": "tvaccine"}, "cpu", 64)
    assert remedy.startswith("By its plan it fits: it needs 0.")
    assert "of 64.0 GiB" in remedy
    assert "Try" not in remedy


@pytest.mark.parametrize("method", ["sft", "tvaccine"])
def test_what_cannot_fit_gets_the_plan_s_advice_for_its_method(method: str) -> None:
    peak = peak_gib(method)
    remedy = memory_remedy(CONFIG, "align", {"aligned": method}, "cpu", 0.6)  # of which a context takes all
    assert re.search(rf"needs {peak * 2**30 / 1e9:.1f} GB", remedy)
    assert "too little for the device's own use" in remedy
    assert "quantization nf4 saves" in remedy
    assert "does not fit" not in remedy


def test_an_attack_s_plan_is_of_the_attack_s_own_batches() -> None:
    def batch_size(rows: int) -> str:
        optimisation = {**ATTACK["attack"]["optimisation"], "batch_size": rows}
        params = {**ATTACK, "attack": {**ATTACK["attack"], "optimisation": optimisation}}
        return memory_remedy(CONFIG, "attack", params, "cpu", 1.0)

    assert re.search(r"batch_size \(raise accumulation by as much\) \d+ instead of 1000", batch_size(1000))
    assert "fits" in batch_size(4)
