"""What is found wrong with a model before it is loaded: from its name and files alone, without torch or a network."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tvaccine_core.config import YOUR_MODEL, ModelConfig
from tvaccine_core.errors import ModelError
from tvaccine_core.model_files import check_model

SETTINGS = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 3}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Looks like a model, and is enough of one to be looked at."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SETTINGS))
    save_file({"a": np.ones((5, 11), np.float32)}, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return tmp_path / "hub"


def check(name: str | Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        check_model(ModelConfig(name=str(name)))
    assert caught.value.remedy
    return caught.value


def test_a_folder_says_what_it_holds(folder: Path) -> None:
    facts = check_model(ModelConfig(name=str(folder)))
    assert (facts.folder, facts.architecture, facts.num_layers) == (folder, "LlamaForCausalLM", 3)
    assert facts.weights_bytes == (folder / "model.safetensors").stat().st_size
    assert facts.has_tokenizer
    (folder / "tokenizer.json").unlink()
    assert not check_model(ModelConfig(name=str(folder))).has_tokenizer


def test_the_sandbox_is_in_order() -> None:
    facts = check_model(ModelConfig())
    assert (facts.architecture, facts.num_layers, facts.has_tokenizer) == ("LlamaForCausalLM", 8, True)


def test_layers_are_found_where_a_family_writes_them(folder: Path) -> None:
    for settings in ({"n_layer": 5}, {"text_config": {"num_hidden_layers": 5}}):
        (folder / "config.json").write_text(json.dumps(settings))
        assert check_model(ModelConfig(name=str(folder))).num_layers == 5
    (folder / "config.json").write_text("{}")
    assert check_model(ModelConfig(name=str(folder))).num_layers is None


def test_what_is_not_named_is_asked_for() -> None:
    assert "model.name" in check(YOUR_MODEL).remedy


def test_a_folder_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "no") in str(check(tmp_path / "no"))
    assert "config.json is missing" in str(check(tmp_path))


def test_an_adapter_is_not_a_model(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")
    assert "holds an adapter" in str(check(folder))


@pytest.mark.parametrize("words", ["", "{", "[]", '{"is_encoder_decoder": true}'])
def test_a_config_that_will_not_do_is_an_error(folder: Path, words: str) -> None:
    (folder / "config.json").write_text(words)
    assert str(folder) in str(check(folder))


def test_pickled_weights_alone_are_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    error = check(folder)
    assert "no safetensors" in str(error)
    assert "never read" in error.remedy


@pytest.mark.parametrize("size", [0, 5, 60, 200])
def test_a_truncated_weight_file_is_named(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    assert f"model.safetensors of {folder} is damaged or incomplete" in str(check(folder))


@pytest.mark.parametrize("name", ["two words/model", "owner/", "-owner/model", "owner/model..2", "ünïcode", "x" * 97])
def test_an_id_that_cannot_be_one_is_an_error(name: str, cache: Path) -> None:
    error = check(name)
    assert repr(name) in str(error)
    assert "owner/name" in error.remedy


def test_a_hub_model_is_known_as_far_as_the_cache_holds_it(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert check_model(ModelConfig(name="owner/model")).folder is None
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    error = check("owner/model")
    assert "not in the local cache" in str(error)
    assert "HF_HOME" in error.remedy
    snapshot = cache / "models--owner--model" / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (cache / "models--owner--model" / "refs").mkdir()
    (cache / "models--owner--model" / "refs" / "main").write_text("a" * 40)
    facts = check_model(ModelConfig(name="owner/model"))
    assert (facts.folder, facts.num_layers) == (snapshot, 3)


def test_looking_loads_no_torch(folder: Path) -> None:
    code = (
        "import sys; from tvaccine_core.config import ModelConfig; from tvaccine_core.model_files import check_model;"
        f"assert check_model(ModelConfig(name={str(folder)!r})).num_layers == 3;"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout == "[]\n", result.stderr
