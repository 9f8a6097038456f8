"""How much a config may ask for, and whether the weights are those it asks for; without torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tvaccine_core.config import ModelConfig
from tvaccine_core.errors import ModelError
from tvaccine_core.models.files import check_model
from tvaccine_core.models.sizes import check_agreement, check_count, check_sizes, list_some

LLAMA = {"num_hidden_layers": 8, "hidden_size": 16, "vocab_size": 33}


def make_shapes(layers: int = 8, prefix: str = "model.layers", **more: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Of a model with so many layers, a width of 16, a vocabulary of 33; and of its other parts."""
    stack = {f"{prefix}.{layer}.mlp.up_proj.weight": (48, 16) for layer in range(layers)}
    return {"model.embed_tokens.weight": (33, 16), **stack, **more}


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layer", "hidden_size", "n_embd", "vocab_size", "n_positions",
                                 "num_attention_heads", "intermediate_size", "max_position_embeddings"])  # fmt: skip
@pytest.mark.parametrize(
    "value", [0, -1, 10**9, pytest.param(10**5000, id="huge"), True, 2.0, "12", float("nan"), float("inf")]
)
def test_a_size_that_no_model_has_is_named(key: str, value: object) -> None:
    for settings in ({key: value}, {"text_config": {key: value}}):
        with pytest.raises(ModelError, match=f"^{key} in config.json of mine is .* whole number from 1 to") as caught:
            check_sizes(settings, "mine")
        assert len(str(caught.value)) < 300
        assert caught.value.remedy


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_local_experts", 10**6), ("num_mtp_layers", 10**9), ("encoder_layers", 5000), ("mamba_n_heads", 10**6),
     ("ssm_state_size", 10**12), ("depth", 10**9), ("q_lora_rank", 10**9)],
)  # fmt: skip
def test_counts_and_widths_by_other_names_have_bounds_too(key: str, value: int) -> None:
    with pytest.raises(ModelError, match=f"{key} in config.json of mine .* at most"):
        check_sizes({"vision_config": {key: value}}, "mine")


def test_experts_are_bounded_over_all_layers() -> None:
    check_sizes({"num_hidden_layers": 61, "n_routed_experts": 384}, "mine")
    with pytest.raises(ModelError, match="16,384 experts in each of 1,000 layers"):
        check_sizes({"num_hidden_layers": 1000, "n_routed_experts": 16384}, "mine")


def test_what_published_configs_say_is_let_through() -> None:
    check_sizes(
        {
            "num_hidden_layers": 126,
            "hidden_size": 16384,
            "intermediate_size": [16384, 8192],
            "num_key_value_heads": None,
            "head_dim": None,
            "vocab_size": 290943,
            "max_position_embeddings": 10485760,
            "rope_theta": 10**9,
            "sliding_window": None,
            "num_kv_shared_layers": 0,
            "chunk_size_feed_forward": 0,
            "time_step_limit": [0.0, float("inf")],
            "eos_token_id": [128001, 128009],
            "ngram_vocab_size_base": 20_000_000,
            "quantization_config": {"group_size": -1, "bits": 4},
            "num_experts": 1,
        },
        "mine",
    )


def test_weights_of_the_config_s_sizes_agree() -> None:
    check_agreement(LLAMA, make_shapes(), "mine")
    check_agreement({**LLAMA, "num_nextn_predict_layers": 1}, make_shapes(9), "mine")
    check_agreement({"text_config": LLAMA, "hidden_size": 5}, make_shapes(**{"vision.layers.2.a": (7, 7)}), "mine")
    check_agreement({**LLAMA, "n_layer": 9}, {"a": (5, 11)}, "mine")  # nothing is numbered: loading will tell


@pytest.mark.parametrize(
    ("settings", "layers", "words"),
    [
        (
            {"num_hidden_layers": 4},
            8,
            r"asks for 4 layers, but its weights hold 8 \(model.layers.0 to model.layers.7\)",
        ),
        ({"num_hidden_layers": 1000}, 8, "asks for 1,000 layers, but its weights hold 8"),
        ({"vocab_size": 2**20}, 8, r"a vocabulary of 1,048,576 \(vocab_size\), which no tensor"),
        ({"hidden_size": 4096}, 8, r"a width of 4,096 \(hidden_size\), which no tensor"),
    ],
)
def test_weights_of_other_sizes_are_an_error(settings: dict[str, Any], layers: int, words: str) -> None:
    for asked in ({**LLAMA, **settings}, {"text_config": {**LLAMA, **settings}}):
        with pytest.raises(ModelError, match=words):
            check_agreement(asked, make_shapes(layers), "mine")


def test_a_model_far_larger_than_its_files_is_an_error() -> None:
    shapes = make_shapes()
    check_count(7000, 10**6, LLAMA, shapes, 28000, "mine")
    for asked, computed, what in ((10**9, 0, "1,000,000,000 parameters"), (7000, 10**12, "numbers in tables")):
        with pytest.raises(ModelError, match=what):
            check_count(asked, computed, LLAMA, shapes, 28000, "mine")
    check_count(10**9, 0, {"quantization_config": {"bits": 2}}, shapes, 250_000_000, "mine")  # packed


def test_the_page_is_told_before_a_run_is_made(tmp_path: Path) -> None:
    tensors = {name: np.zeros(shape, np.float16) for name, shape in make_shapes(8).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    assert check_model(ModelConfig(name=str(tmp_path))).num_layers == 8
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "num_hidden_layers": 4}))
    with pytest.raises(ModelError, match="asks for 4 layers"):
        check_model(ModelConfig(name=str(tmp_path)))
    # What the numbers mean, a model's own code decides.
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "num_hidden_layers": 4, "auto_map": {"a": "b.C"}}))
    assert check_model(ModelConfig(name=str(tmp_path), trust_remote_code=True)).num_layers == 4


def test_of_many_names_a_few_are_shown() -> None:
    assert list_some(["b", "a"]) == "a, b"
    assert list_some([f"t{number}" for number in range(1003)]) == "t0, t1, t10 and 1,000 more"
