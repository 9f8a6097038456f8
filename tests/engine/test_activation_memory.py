"""Memory modes: the same gradients, less kept, and a choice that is a function of shapes."""

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import FAMILIES, build, make_batch, make_method, plain_loss, take_gradients, worst_error
from torch import Tensor, nn

from tvaccine_core import machine
from tvaccine_core.bench.memory import LiveTensors, SavedActivations
from tvaccine_core.config import LabConfig, ModelConfig, SFTConfig, TVaccineConfig, VaccineConfig
from tvaccine_core.errors import ConfigError
from tvaccine_core.fast import merged_adapters as merged
from tvaccine_core.methods.base import Batch
from tvaccine_core.passes import memory as activation_memory
from tvaccine_core.passes.losses import chunked_cross_entropy, cross_entropy
from tvaccine_core.passes.memory import (
    MODES,
    Mode,
    PassShape,
    choose_mode,
    chunk_rows,
    device_bytes,
    estimate_peak_bytes,
    measure_room,
    measure_shape,
    recomputed_layers,
)

CONFIGS = {
    "sft": SFTConfig(),
    "vaccine": VaccineConfig(rho=2.0),
    "tvaccine": TVaccineConfig(num_layers=2, rho=2.0),
    "paper": TVaccineConfig(num_layers=2, rho=2.0, freezing="layer"),
}
LEAN: tuple[Mode, ...] = ("balanced", "lowest")
CHUNK = 4


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """15 labelled tokens take four chunks, the last of them short."""
    monkeypatch.setattr(activation_memory, "HEAD_CHUNK_BYTES", 0)
    monkeypatch.setattr(activation_memory, "MIN_CHUNK_ROWS", CHUNK)


def method_in(mode: Mode, config: Any, model: nn.Module) -> Any:
    method, _ = make_method(config, model, activation_memory=mode)
    if config.name == "tvaccine":
        method.set_layers((1, 3))  # pyright: ignore[reportAttributeAccessIssue]
    return method


def gradients(mode: Mode, config: Any, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    metrics = method_in(mode, config, model).training_step(model, make_batch(), 0)
    return take_gradients(model), metrics


@pytest.mark.parametrize("mode", LEAN)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_mode_gives_the_same_gradients_under_dropout(config: Any, mode: Mode) -> None:
    model = build(dropout=0.4)
    expected, metrics = gradients("speed", config, model)
    ours, ours_metrics = gradients(mode, config, model)
    assert worst_error(ours, expected) < 1e-5
    assert ours_metrics.keys() == metrics.keys()
    for name, value in metrics.items():
        torch.testing.assert_close(ours_metrics[name], value, rtol=1e-5, atol=0)
    again, _ = gradients(mode, config, model)
    assert worst_error(again, ours) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_the_leanest_mode(family: str) -> None:
    """Soft-capped and scaled logits, projections after the last layer, sliding windows, parallel residuals."""
    model = build(family)
    expected, _ = gradients("speed", CONFIGS["tvaccine"], model)
    ours, _ = gradients("lowest", CONFIGS["tvaccine"], model)
    assert worst_error(ours, expected) < 1e-5


def test_a_head_and_a_tied_embedding_that_train() -> None:
    model = build(lora=False, tie_word_embeddings=True)
    plain_loss(model, make_batch()).backward()
    expected = take_gradients(model)
    assert "model.embed_tokens.weight" in expected
    ours, _ = gradients("lowest", SFTConfig(), model)
    assert worst_error(ours, expected) < 1e-5

    adapted = build(targets=["q_proj", "lm_head"])
    plain_loss(adapted, make_batch()).backward()
    expected = take_gradients(adapted)
    assert any("lm_head" in name for name in expected)
    ours, _ = gradients("lowest", SFTConfig(), adapted)
    assert worst_error(ours, expected) < 1e-5


def test_huggingface_checkpointing_may_be_on_as_well() -> None:
    model = build(checkpointing=True, dropout=0.4)
    expected, _ = gradients("speed", CONFIGS["tvaccine"], model)
    assert worst_error(gradients("lowest", CONFIGS["tvaccine"], model)[0], expected) < 1e-5


@pytest.mark.parametrize(("mode", "runs"), [("speed", (0,) * 5), ("balanced", (0, 1, 0, 1, 0)), ("lowest", (1,) * 5)])
def test_what_lies_under_the_lowest_drawn_layer_runs_once_and_the_rest_as_often_as_the_mode_says(
    mode: Mode, runs: tuple[int, ...]
) -> None:
    model = build()
    method = method_in(mode, CONFIGS["tvaccine"], model)
    count: Counter[int] = Counter()
    rows: list[int] = []
    handles = [method.passes.anatomy.head.register_forward_hook(lambda head, inputs, out: rows.append(out.shape[1]))]
    for index, block in enumerate(method.passes.blocks):
        handles.append(block.attention.register_forward_hook(lambda *args, index=index: count.update([index])))
    method.training_step(model, make_batch(), 0)
    for handle in handles:
        handle.remove()
    assert count[0] == 1
    assert [count[layer] for layer in range(1, 5)] == [2 + 2 * runs[layer] for layer in range(1, 5)]
    assert rows == ([15] if mode == "speed" else [1, 4, 4, 4, 3]) * 2


@pytest.mark.parametrize("mode", MODES)
def test_the_clean_pass_makes_no_adapter_gradient_and_no_graph_below_the_lowest(mode: Mode) -> None:
    model = build()
    method = method_in(mode, CONFIGS["tvaccine"], model)
    recorded: dict[int, bool] = {}
    handles = [
        block.layer.register_forward_hook(lambda *args, index=index: recorded.update({index: args[2].requires_grad}))
        for index, block in enumerate(method.passes.blocks)
    ]
    with method.passes.scope(torch.Generator()):
        clean = method.passes.clean(make_batch().prepare(), (2, 4), floor=2)
    for handle in handles:
        handle.remove()
    assert recorded == {0: False, 1: False, 2: True, 3: True, 4: True}
    assert clean.gradients.keys() == {2, 4}
    assert not take_gradients(model)


def test_less_is_kept_the_leaner_the_mode() -> None:
    """With `lowest`, what autograd holds is the layers' inputs and one chunk of the head."""
    model = build("llama", attention_dropout=0.0)
    peaks: dict[str, int] = {}
    live: dict[str, int] = {}
    for mode in MODES:
        method = method_in(mode, CONFIGS["vaccine"], model)
        with SavedActivations(model.parameters()) as saved:
            method.training_step(model, make_batch(), 0)
        take_gradients(model)
        with LiveTensors() as tensors:
            method.training_step(model, make_batch(), 0)
        take_gradients(model)
        peaks[mode], live[mode] = saved.peak_bytes, tensors.peak_bytes
    assert peaks["balanced"] < 0.7 * peaks["speed"]
    inputs, head = 5 * 3 * 9 * 32 * 4, 15 * 32 * 4 + CHUNK * 61 * 4
    assert inputs < peaks["lowest"] < 1.6 * (inputs + head)
    assert live["lowest"] < live["balanced"] < live["speed"]


def test_chunked_loss_and_its_gradients_equal_the_plain_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(11, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    weight = torch.randn(7, 5, dtype=torch.float64, generator=generator, requires_grad=True)
    targets = torch.randint(7, (11,), generator=generator)

    def logits_of(rows: Tensor) -> Tensor:
        seen.append(len(rows))
        return 3 * torch.tanh(F.linear(rows, weight) / 3)

    seen: list[int] = []
    expected = torch.autograd.grad(cross_entropy(logits_of(hidden), targets) * 0.3, [hidden, weight])
    for num_rows, sizes in ((4, [4, 4, 3]), (11, [11]), (1, [1] * 11)):
        seen.clear()
        loss = chunked_cross_entropy(hidden, targets, logits_of, [weight], num_rows)
        torch.testing.assert_close(loss, cross_entropy(logits_of(hidden), targets))
        assert seen[:-1] == sizes
        for ours, theirs in zip(torch.autograd.grad(loss * 0.3, [hidden, weight]), expected, strict=True):
            torch.testing.assert_close(ours, theirs)
    with torch.no_grad():
        assert not chunked_cross_entropy(hidden, targets, logits_of, [weight], 4).requires_grad


def test_recomputed_layers_by_hand() -> None:
    assert [list(recomputed_layers(mode, 5)) for mode in MODES] == [[], [1, 3], [0, 1, 2, 3, 4]]
    assert list(recomputed_layers("balanced", 6)) == [0, 2, 4]
    assert list(recomputed_layers("balanced", 1)) == []


def test_chunks_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_memory, "HEAD_CHUNK_BYTES", 4000)
    assert chunk_rows("speed", 10) is None
    assert chunk_rows("balanced", 10) == 100
    assert chunk_rows("lowest", 1000) == CHUNK


SHAPE = PassShape(num_tokens=10, num_labelled=6, num_layers=4, layer_bytes=100, hidden_bytes=8, vocabulary=5)


def test_the_estimate_by_hand() -> None:
    """4 layers kept, or 2 and 2 inputs, or 4 inputs; 4 shifts; a head of 6 or 4 rows, or a layer that runs again."""
    assert estimate_peak_bytes("speed", SHAPE) == 10 * (4 * 100 + 4 * 8) + 3 * 4 * 6 * 5
    assert estimate_peak_bytes("balanced", SHAPE) == 10 * (2 * 100 + 2 * 8 + 4 * 8) + 10 * 150
    assert estimate_peak_bytes("lowest", SHAPE) == 10 * (4 * 8 + 4 * 8) + 10 * 150


def test_auto_is_the_fastest_that_fits_and_the_leanest_where_none_does() -> None:
    sizes = {mode: estimate_peak_bytes(mode, SHAPE) for mode in MODES}
    assert sizes["speed"] > sizes["balanced"] > sizes["lowest"]
    for mode, size in sizes.items():
        assert choose_mode("auto", SHAPE, size) == mode
    assert choose_mode("auto", SHAPE, 0) == "lowest"
    assert choose_mode("auto", SHAPE, -1) == "lowest"
    assert choose_mode("auto", SHAPE, None) == "speed"
    assert [choose_mode(mode, SHAPE, 0) for mode in MODES] == list(MODES)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_the_estimate_is_right_to_a_factor_of_one_and_a_half(
    family: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With tokens enough that merged weights and adapters' gradients, which it leaves out, are small."""
    monkeypatch.setattr(merged, "KEEP_LIMIT_BYTES", 0)
    model: Any = build(family)
    model.get_base_model().set_attn_implementation(attention)
    ids = torch.randint(3, 61, (12, 60), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids, torch.ones_like(ids), ids)
    shape = measure_shape(model, batch_size=12, length=59, num_labelled=batch.num_tokens)
    assert (shape.num_tokens, shape.num_layers, shape.hidden_bytes) == (708, 5, 32 * 4)
    for mode in MODES:
        method = method_in(mode, CONFIGS["vaccine"], model)
        with LiveTensors() as live:
            method.training_step(model, batch, 0)
        take_gradients(model)
        ratio = live.peak_bytes / estimate_peak_bytes(mode, shape)
        assert 1 / 1.5 < ratio < 1.5, (mode, ratio)


def test_room_is_what_weights_gradients_and_moments_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(3, 5, bias=False), nn.Linear(5, 2, bias=False))
    model[0].requires_grad_(False)
    monkeypatch.setattr(activation_memory, "device_bytes", lambda device: 1000)
    assert measure_room(model, torch.device("cpu")) == 850 - 15 * 4 - 10 * 4 * 4
    monkeypatch.setattr(activation_memory, "device_bytes", lambda device: None)
    assert measure_room(model, torch.device("cpu")) is None


def test_a_containers_limit_counts_as_the_machines_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(machine, "CGROUP_LIMIT", limit)
    whole = device_bytes(torch.device("cpu"))
    assert whole is not None
    assert whole > 2**28
    limit.write_text("max\n")
    assert device_bytes(torch.device("cpu")) == whole
    limit.write_text("4096000\n")
    assert device_bytes(torch.device("cpu")) == 4096000
    assert device_bytes(torch.device("meta")) is None


def test_configs_from_before_are_still_read() -> None:
    text = LabConfig().to_yaml()
    assert "activation_memory: auto" in text
    for word, expected in (("true", "lowest"), ("false", "auto")):
        old = text.replace("activation_memory: auto", f"gradient_checkpointing: {word}")
        assert LabConfig.from_yaml(old).model.activation_memory == expected
    assert ModelConfig.model_validate({"gradient_checkpointing": True, "activation_memory": "speed"}) == ModelConfig(
        activation_memory="speed"
    )
    with pytest.raises(ConfigError, match="gradient_checkpointing"):
        LabConfig.from_yaml(text.replace("activation_memory: auto", "gradient_checkpointing: sometimes"))
