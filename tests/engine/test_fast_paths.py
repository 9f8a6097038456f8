"""The switch: with it off the model's own modules run, on every token, and the gradients are equal."""

from functools import partial
from typing import Any

import pytest
import torch
from tiny_models import build, make_batch, make_method, take_gradients, worst_error
from torch import Tensor, nn

from tvaccine_core.config import LabConfig, ModelConfig, SFTConfig, TVaccineConfig, VaccineConfig
from tvaccine_core.errors import ConfigError
from tvaccine_core.fast import switch as fast_paths
from tvaccine_core.fast.lean_adapters import LowRankSum
from tvaccine_core.fast.lean_norms import RMSNorm
from tvaccine_core.fast.merged_adapters import MergedLinear
from tvaccine_core.fast.short_attention import RotaryAttention
from tvaccine_core.methods.base import Batch, MethodContext
from tvaccine_core.models.anatomy import find_blocks
from tvaccine_core.passes.passes import PLAIN, Passes
from tvaccine_core.store.schema import base_of

METHODS = [SFTConfig(), VaccineConfig(rho=2.0), TVaccineConfig(rho=2.0, num_layers=2)]
FORMS = (LowRankSum, MergedLinear, RMSNorm, RotaryAttention)


def step(
    model: nn.Module, config: Any, batch: Batch, mode: Any = "speed"
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Metrics and gradients of one step, T-Vaccine's layers forced."""
    method, _ = make_method(config, model, activation_memory=mode)
    if config.name == "tvaccine":
        method.set_layers((1, 3))  # pyright: ignore[reportAttributeAccessIssue]
    metrics = method.training_step(model, batch, 0)
    return metrics, take_gradients(model)


@pytest.mark.parametrize("mode", ["speed", "lowest"])
@pytest.mark.parametrize("config", METHODS, ids=lambda config: config.name)
@pytest.mark.parametrize(("family", "attention"), [("llama", "sdpa"), ("gemma3_text", "eager"), ("opt", "eager")])
def test_with_it_off_a_step_is_the_models_own_and_gives_the_same(
    family: str, attention: str, config: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = build(family, attention=attention, num_key_value_heads=4)
    tolerance = 1e-5
    if family != "gemma3_text":  # in float64 transformers' own Gemma 3 gives nan for padding
        model, tolerance = model.double(), 1e-12
    fast_metrics, fast = step(model, config, make_batch(), mode)
    lengths: list[list[int]] = [[] for _ in range(5)]
    for block, seen in zip(find_blocks(model), lengths, strict=True):
        last: Any = block.layer.fc2 if block.mlp is None else block.mlp
        last.register_forward_pre_hook(partial(note_length, seen))
    for form in FORMS:
        monkeypatch.setattr(form, "apply", None)
    with fast_paths.off():
        metrics, plain = step(model, config, make_batch(), mode)
    assert worst_error(plain, fast) < tolerance
    assert metrics.keys() == fast_metrics.keys()
    for name, value in metrics.items():
        assert float(value) == pytest.approx(float(fast_metrics[name]), rel=tolerance)
    runs = (1 if config.name == "sft" else 2) * (2 if mode == "lowest" else 1)
    assert [length for length in lengths[-1] if length > 1] == [3 * 11] * runs, "every column, padding too"
    if mode == "speed":
        assert [len([length for length in seen if length > 1]) for seen in lengths] == [runs] * 5, (
            "no layer is left out"
        )


def note_length(seen: list[int], module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    seen.append(inputs[0].numel() // inputs[0].shape[-1])


def test_with_it_off_an_embedding_that_the_head_shares_trains_as_before() -> None:
    """Nothing below the lowest drawn layer trains: not through the embedding's own use either."""
    model: Any = build(tie_word_embeddings=True)
    model.get_base_model().lm_head.weight.requires_grad_(True)
    model.get_base_model().config.tie_word_embeddings = True
    config = TVaccineConfig(rho=2.0, num_layers=2)
    _, fast = step(model, config, make_batch())
    with fast_paths.off():
        _, plain = step(model, config, make_batch())
    assert any("embed_tokens" in name or "lm_head" in name for name in plain)
    assert worst_error(plain, fast) < 1e-5


def test_with_it_off_both_passes_still_see_the_same_dropout_masks() -> None:
    model = build("gpt_neox", dropout=0.3, hidden_dropout=0.2, attention_dropout=0.2)
    with fast_paths.off():
        metrics, _ = step(model, TVaccineConfig(num_layers=2, rho=0.0), make_batch())
    assert torch.equal(metrics["loss"], metrics["perturbed_loss"])


def test_a_context_and_the_environment_turn_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    assert Passes(model).fast is not PLAIN
    assert Passes(model, fast=False).fast is PLAIN
    method, _ = make_method(SFTConfig(), model)
    context = method.context
    method.setup(model, MethodContext(context.generator, None, context.reduce_sum, context.emit, fast_paths=False))
    assert method.passes.fast is PLAIN
    monkeypatch.setenv("TVACCINE_FAST_PATHS", "0")
    assert Passes(model).fast is PLAIN
    monkeypatch.setenv("TVACCINE_FAST_PATHS", "1")
    assert Passes(model).fast is not PLAIN
    assert not fast_paths.enabled(False), "a config's no stands"
    monkeypatch.setenv("TVACCINE_FAST_PATHS", "off")
    with pytest.raises(ConfigError, match="'off'") as caught:
        Passes(model)
    assert "0" in caught.value.remedy


def test_a_config_without_the_field_means_what_it_did() -> None:
    text = LabConfig().to_yaml()
    assert "fast_paths: true" in text
    old = text.replace("  fast_paths: true\n", "")
    assert LabConfig.from_yaml(old) == LabConfig()
    off = LabConfig.from_yaml(text.replace("fast_paths: true", "fast_paths: false"))
    assert not off.model.fast_paths
    assert base_of(off.model) != base_of(ModelConfig())
    assert "fast_paths" not in base_of(ModelConfig()), "as runs of earlier versions have it"


def test_off_is_off_for_the_block_only() -> None:
    with fast_paths.off():
        assert not fast_paths.enabled()
    assert fast_paths.enabled()
