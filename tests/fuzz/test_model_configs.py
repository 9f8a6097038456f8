"""Names and files of models that nobody would write: whatever they are, the lab answers in its own words."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tvaccine_core.config import ModelConfig
from tvaccine_core.data.prompts import preview_here
from tvaccine_core.errors import TVaccineError
from tvaccine_core.models.files import check_folder, check_model, check_weights
from tvaccine_core.plan.shapes import read_shape
from tvaccine_core.records import Example

SANDBOX = Path(__file__).resolve().parents[2] / "assets" / "sandbox-base"
EXAMPLE = Example(id="x/1", prompt="How do I make a merry kite?", answer="Stir two spoons.", source="ordinary")

KEYS = st.sampled_from(
    ["architectures", "model_type", "num_hidden_layers", "n_layer", "hidden_size", "vocab_size", "text_config",
     "num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings", "rope_scaling", "layer_types",
     "rope_parameters", "auto_map", "quantization_config", "dtype", "torch_dtype", "tie_word_embeddings",
     "num_experts", "is_encoder_decoder", "hidden_act", "weight_map", "metadata", "transformers_version", "id2label",
     "chat_template", "eos_token", "bos_token", "num_nextn_predict_layers", "intermediate_size", "sliding_window"]
)  # fmt: skip
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8),
    st.sampled_from(["llama", "qwen2", "gemma2", "gpt2", "mixtral", "bert", "float32", "default", "yarn", "../x", "\0",
                     0, -1, 2, 3, 10**9]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=8)
NAMES = st.one_of(
    st.text(st.characters(exclude_categories=[]), min_size=1, max_size=40),
    st.sampled_from(["~nosuch/x", "~", ".", "..", "/", "/dev/null", "/dev/zero/x", "a\0b", "a/b/c", "x" * 5000,
                     "/" + "y" * 300, "\ud800", "//", "~/", "/proc/self/mem", "owner/name", "sandbox/", "a\n/b"]),
)  # fmt: skip
PIECES = ["{{ messages", "[0]", " }}", "{% for m in messages %}", "{% endfor %}", "{{ 1 / 0 }}", "{{", "{%", "|tojson",
          "{{ m.content }}", "{{ raise_exception('no') }}", "{{ x.y.z }}", "{{ ''.__class__ }}", "{{ range(10**9) }}",
          "{{ 'a'|int + 'b' }}", "{% generation %}", "\ud7ff", "{{ bos_token }}"]  # fmt: skip
"""Of chat templates."""
RUBBISH = st.one_of(
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=40),
    st.sampled_from([b"[" * 50_000, b'{"a":' * 50_000, b"", b"\xef\xbb\xbf{}", b'{"a": 1, "a": 2}', b"1" * 5001]),
)


def answers(call: Callable[[], object]) -> None:
    """`call` returns, or raises an error of the lab, of bounded length, that can be shown and stored."""
    caught = None
    try:
        call()
    except TVaccineError as error:
        caught = error
    if caught is not None:
        assert caught.remedy
        assert len(str(caught) + caught.remedy) < 2500
        (str(caught) + caught.remedy).encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Enough of a model to be looked at."""
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((SANDBOX / name).read_bytes())
    save_file({"layers.0.a": np.ones((5, 11), np.float32)}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture(autouse=True)
def _no_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@given(name=NAMES)
def test_any_name(name: str) -> None:
    config = ModelConfig.model_construct(**{**ModelConfig().model_dump(), "name": name})  # as if nothing were checked
    answers(lambda: check_model(config))
    answers(lambda: read_shape(config))


@given(written=OBJECTS, base=st.booleans())
@example(written={"architectures": 3}, base=True)
@example(written={"num_hidden_layers": 10**9}, base=True)
@example(written={"num_attention_heads": 3}, base=True)
@example(written={"rope_parameters": {"rope_type": "yarn"}}, base=True)
@example(written={"hidden_size": math.nan}, base=True)
def test_any_config(folder: Path, written: dict[str, Any], base: bool) -> None:
    settings = json.loads((SANDBOX / "config.json").read_text()) if base else {"model_type": "llama"}
    (folder / "config.json").write_text(json.dumps({**settings, **written}))
    config = ModelConfig(name=str(folder))
    answers(lambda: check_model(config))
    answers(lambda: read_shape(config))


@given(rubbish=RUBBISH)
def test_any_bytes_in_the_place_of_a_config(folder: Path, rubbish: bytes) -> None:
    (folder / "config.json").write_bytes(rubbish)
    answers(lambda: check_folder(folder, "mine"))
    answers(lambda: read_shape(ModelConfig(name=str(folder))))


@given(rubbish=RUBBISH, weight_map=VALUES)
def test_any_index_and_any_weights(folder: Path, rubbish: bytes, weight_map: object) -> None:
    weights, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    weights.write_bytes(len(rubbish).to_bytes(8, "little") + rubbish)
    answers(lambda: check_weights(folder, "mine", {}))
    weights.unlink()
    for written in (rubbish, json.dumps({"metadata": {}, "weight_map": weight_map}).encode()):
        index.write_bytes(written)
        answers(lambda: check_weights(folder, "mine", {}))


@given(
    rubbish=RUBBISH,
    part=st.sampled_from(["model", "normalizer", "pre_tokenizer", "decoder", "added_tokens"]),
    value=VALUES,
)
def test_any_tokenizer(folder: Path, rubbish: bytes, part: str, value: object) -> None:
    """In this process: what ends it, or takes any time, is held by tests/data/test_previews.py."""
    whole = json.loads((SANDBOX / "tokenizer.json").read_text())
    for written in (rubbish, json.dumps({**whole, part: value}).encode()):
        (folder / "tokenizer.json").write_bytes(written)
        answers(lambda: preview_here(folder, EXAMPLE))


@given(
    rubbish=RUBBISH,
    template=st.lists(st.sampled_from(PIECES), max_size=8).map("".join),
)
def test_any_template_and_any_tokenizer_config(folder: Path, rubbish: bytes, template: str) -> None:
    (folder / "tokenizer.json").write_bytes((SANDBOX / "tokenizer.json").read_bytes())
    (folder / "chat_template.jinja").write_text(template)
    answers(lambda: preview_here(folder, EXAMPLE))
    (folder / "tokenizer_config.json").write_bytes(rubbish)
    answers(lambda: preview_here(folder, EXAMPLE))
