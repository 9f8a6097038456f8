"""What is found wrong with a model before it is loaded: from its name and files alone, without torch or a network."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tvaccine_core.config import YOUR_MODEL, ModelConfig
from tvaccine_core.errors import ModelError
from tvaccine_core.models.files import MAX_BYTES, check_model, explain

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


@pytest.mark.parametrize(
    "file", ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "mine.py"]
)
@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device", "folder", "socket"])
def test_what_is_no_regular_file_is_not_opened(folder: Path, file: str, kind: str, tmp_path: Path) -> None:
    """A pipe that nobody writes to would block its reader for ever."""
    path = folder / file
    path.unlink(missing_ok=True)
    if kind == "folder":
        path.mkdir()
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            os.chdir(folder)  # a socket's address is short
            made.bind(file)
    else:
        pipe = path if kind == "pipe" else tmp_path / "pipe"
        os.mkfifo(pipe)
        if pipe != path:
            path.symlink_to(pipe)
    error = check(folder)
    assert f"{file} of {folder} is a {kind.removeprefix('link to a ')}, not a regular file" in str(error)


@pytest.fixture(autouse=True)
def _working_folder() -> Iterator[None]:
    before = Path.cwd()
    yield
    os.chdir(before)


def test_a_shard_and_an_index_are_looked_at_before_they_are_opened(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    write_index(folder, {"a": "one.safetensors", "b": "two.safetensors"})
    os.mkfifo(folder / "two.safetensors")
    assert "two.safetensors of" in str(check(folder))
    (folder / "model.safetensors.index.json").unlink()
    os.mkfifo(folder / "model.safetensors.index.json")
    assert "model.safetensors.index.json of" in str(check(folder))


@pytest.mark.parametrize(
    "file", ["config.json", "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json"]
)
def test_a_file_that_is_far_too_large_is_not_read(folder: Path, file: str) -> None:
    limit = MAX_BYTES.get(file) or MAX_BYTES["*.safetensors.index.json" if "index" in file else "tokenizer*.json"]
    assert limit is not None
    (folder / file).touch()
    os.truncate(folder / file, limit + 1)  # takes no room
    error = check(folder)
    assert f"{file} of {folder} has" in str(error)
    assert f"at most {limit / 2**20:g} MiB" in str(error)


def test_a_header_that_is_far_too_large_is_not_read(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes((2**25).to_bytes(8, "little"))
    os.truncate(path, 2**26)
    assert "its header would have 32.0 MiB, of at most 16 MiB" in str(check(folder))


def write_config(folder: Path, **settings: object) -> None:
    (folder / "config.json").write_text(json.dumps({**SETTINGS, **settings}))


def write_index(folder: Path, weight_map: object, **more: object) -> None:
    index = {"metadata": {}, "weight_map": weight_map, **more}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"architectures": 3}, "architectures is 3, not a list"),
        ({"architectures": {"a": "b"}}, "architectures is {'a': 'b'}, not a list"),
        ({"architectures": "Llama"}, "architectures is 'Llama', not a list"),
        ({"architectures": [3]}, "architectures holds [3], not names"),
        ({"model_type": ["llama"]}, "model_type is ['llama'], not a name"),
        ({"text_config": 5}, "text_config is 5, not an object"),
        ({"auto_map": "mine.Mine"}, "auto_map is 'mine.Mine', not an object"),
        ({"transformers_weights": "adapter_model.bin"}, "transformers_weights"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_named(folder: Path, settings: dict[str, Any], words: str) -> None:
    write_config(folder, **settings)
    error = check(folder)
    assert words in str(error)
    assert f"config.json of {folder}" in str(error)


@pytest.mark.parametrize("empty", [None, []])
def test_a_config_need_not_name_its_architecture(folder: Path, empty: object) -> None:
    write_config(folder, architectures=empty)
    assert check_model(ModelConfig(name=str(folder))).architecture == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"hidden_size": 8, "hidden_size": 16}', "'hidden_size' is given twice"),
        ('{"vocab_size": ' + "9" * 5001 + "}", "damaged"),
        ("nonsense", "damaged"),
    ],
)
def test_json_that_cannot_be_one_is_named(folder: Path, text: str, words: str) -> None:
    (folder / "config.json").write_text(text)
    error = check(folder)
    assert words in str(error)
    assert f"config.json of {folder}" in str(error)
    assert len(str(error)) < 600


def test_text_that_is_not_utf8_is_named(folder: Path) -> None:
    (folder / "config.json").write_bytes(b'{"a": "\xff\xfe"}')
    assert f"config.json of {folder} is damaged: it is not UTF-8 text" in str(check(folder))


def test_a_key_given_twice_with_one_value_and_infinity_are_let_through(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": 1, "a": 1, "time_step_limit": [0.0, Infinity], "num_hidden_layers": 3}')
    assert check_model(ModelConfig(name=str(folder))).num_layers == 3


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ([], "no weight_map"),
        ({"weight_map": {"a": "one.safetensors"}}, "no weight_map and metadata"),
        ({"metadata": {}, "weight_map": ["one.safetensors"]}, "no weight_map"),
        ({"metadata": {}, "weight_map": {"a": ["one.safetensors"]}}, "lies in ['one.safetensors']"),
        ({"metadata": {}, "weight_map": {"a": "../model.safetensors"}}, "lies in '../model.safetensors'"),
        ({"metadata": {}, "weight_map": {"a": "/etc/passwd"}}, "lies in '/etc/passwd'"),
        ({"metadata": {}, "weight_map": {"a": "weights.bin"}}, "lies in 'weights.bin'"),
        ({"metadata": {}, "weight_map": {"a": "x" * 5000 + ".safetensors"}}, "File name too long"),
        ({"metadata": {}, "weight_map": {"a": "a\0b.safetensors"}}, "no safetensors file of the same folder"),
        ({"metadata": {}, "weight_map": {}}, "no safetensors weights"),
    ],
)
def test_an_index_that_cannot_be_one_is_named(folder: Path, index: object, words: str) -> None:
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert words in str(check(folder))


def test_an_adapter_beside_the_model_is_an_error(folder: Path) -> None:
    """transformers would put it on top of the model unasked, from pickled weights too."""
    (folder / "adapter_config.json").write_text("{}")
    assert "an adapter beside the model" in str(check(folder))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("~nosuchuser/x", "'~nosuchuser/x' begins with a user"),
        ("x" * 5000, "at most 1,000 characters"),
        ("/" + "x" * 300, "File name too long"),
        ("a\0b", "holds a character"),
        ("owner/\nmodel", "holds a character"),
        ("\udcffmodel", "holds a character"),
    ],
)
def test_a_name_that_no_model_can_have_is_named(name: str, words: str, cache: Path) -> None:
    with pytest.raises(ModelError) as caught:
        check_model(ModelConfig.model_construct(**{**ModelConfig().model_dump(), "name": name}))
    assert words in str(caught.value)
    assert caught.value.remedy
    (str(caught.value) + caught.value.remedy).encode()  # can be shown and stored
    assert len(str(caught.value)) < 500


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(folder: Path) -> None:
    folder.chmod(0)
    try:
        assert "Permission denied" in str(check(folder))
    finally:
        folder.chmod(0o700)


def test_no_error_about_a_hub_model_tells_where_the_cache_lies(folder: Path, cache: Path) -> None:
    snapshot = cache / "models--owner--model" / "snapshots" / ("a" * 40)
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    (cache / "models--owner--model" / "refs").mkdir()
    (cache / "models--owner--model" / "refs" / "main").write_text("a" * 40)
    for text in ("{", '{"architectures": 3}', '{"is_encoder_decoder": true}', '{"num_hidden_layers": 0}'):
        (snapshot / "config.json").write_text(text)
        error = check("owner/model")
        assert "owner/model" in str(error)
        assert str(cache) not in str(error) + error.remedy
    (snapshot / "config.json").unlink()
    os.mkfifo(snapshot / "config.json")
    check_model(ModelConfig(name="owner/model"))  # not a file, so not cached


def test_what_a_library_says_is_told_without_a_path_that_nobody_typed(cache: Path, folder: Path) -> None:
    snapshot = cache / "models--owner--model" / "snapshots" / "a"
    said = OSError(f"no file in {snapshot}, see {cache}/blobs/0f or {sys.prefix}/lib/x.py\nand " + "more " * 1000)
    told = explain(said, "owner/model", snapshot)
    assert told.startswith("no file in owner/model, see (a file of the installation) or (a file of the installation)")
    assert str(cache) not in told
    assert len(told) < 700
    assert str(folder) in explain(OSError(f"no file in {folder}"), str(folder), folder)


def test_looking_loads_no_torch(folder: Path) -> None:
    code = (
        "import sys; from tvaccine_core.config import ModelConfig; from tvaccine_core.models.files import check_model;"
        f"assert check_model(ModelConfig(name={str(folder)!r})).num_layers == 3;"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.stdout == "[]\n", result.stderr
