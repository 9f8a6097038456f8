"""The generate bench: both ways give the same tokens, nobody ends early, and the report adds up."""

from pathlib import Path

import pytest
import torch

from tvaccine_core.bench import generate as bench
from tvaccine_core.bench.generate import GenerateBenchReport, GenerateBenchSettings

TINY = GenerateBenchSettings(layers=2, hidden=64, vocab=97, batch=3, length=11, new_tokens=4, repeats=2, threads=1)


@pytest.fixture(scope="module")
def report() -> GenerateBenchReport:
    said: list[str] = []
    before = torch.get_rng_state()
    report = bench.run(TINY, said.append)
    assert said == ["random weights, float32", "random weights, bfloat16"]
    assert torch.equal(torch.get_rng_state(), before)
    return report


def test_each_state_is_measured_in_each_precision(report: GenerateBenchReport) -> None:
    assert [(cost.storage, cost.state) for cost in report.costs] == [
        ("float32", "base"),
        ("float32", "adapter"),
        ("bfloat16", "base"),
        ("bfloat16", "adapter"),
    ]
    assert all(cost.same_answers == 1 for cost in report.costs if cost.storage == "float32")
    for cost in report.costs:
        assert 0 < cost.total_ratio_min <= cost.total_ratio <= cost.total_ratio_max
        assert min(cost.prefill_s, cost.token_s, cost.transformers_prefill_s, cost.transformers_token_s) > 0
    assert GenerateBenchReport.model_validate_json(report.model_dump_json()) == report


def test_report_as_text_has_a_line_per_measurement(report: GenerateBenchReport) -> None:
    text = bench.render(report)
    assert "LlamaForCausalLM, 2 layers x 64, vocabulary 97; 3 prompts of up to 11 tokens, 4 new ones" in text
    for cost in report.costs:
        line = next(line for line in text.splitlines() if line.startswith(f"{cost.storage} {cost.state}"))
        assert f"{cost.token_ratio:.2f}" in line
        assert f"{cost.transformers_prefill_s:.3f}" in line


def test_times_are_split_at_the_first_token() -> None:
    assert bench._split([1.0, 4.0, 4.5, 5.0]) == (3.0, 0.5)


def test_a_model_on_disk_decodes_to_the_last_token_whatever_its_tokenizer_ends_with(tiny_folder: Path) -> None:
    settings = TINY.model_copy(update={"model": str(tiny_folder), "storages": ("float32",), "new_tokens": 12})
    states = bench._states(settings, "float32")
    prompts = bench._prompts(settings, states.loaded)
    assert [len(prompt) for prompt in prompts] == [5, 8, 11]
    ours, theirs = (way(states, bench.ADAPTER, prompts, 12)[0] for way in (bench._ours, bench._transformers))
    assert [len(answer) for answer in ours] == [12] * 3
    assert ours == theirs
    assert ours != bench._ours(states, "base", prompts, 12)[0]
