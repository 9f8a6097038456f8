"""Loading a base: what is loaded, how it is named by content, and what a user reads when it cannot be loaded."""

import json
import shutil
from pathlib import Path

import httpx
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from tvaccine_core.config import AdapterConfig, ModelConfig
from tvaccine_core.errors import ModelError, OutOfMemoryError
from tvaccine_core.evaluation.generate import generate_answers
from tvaccine_core.models import load as models
from tvaccine_core.models.files import model_folder
from tvaccine_core.models.load import load_model
from tvaccine_core.states.model_states import ModelStates
from tvaccine_core.worlds.sandbox.base import SANDBOX_BASE


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be damaged."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def load(folder: Path, **settings: object) -> models.LoadedModel:
    return load_model(ModelConfig.model_validate({"name": str(folder), "device": "cpu", **settings}))


def test_a_folder_is_loaded_frozen_and_in_eval_mode(tiny_folder: Path) -> None:
    loaded = load(tiny_folder)
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.end_ids == {3}
    assert loaded.pad_id == 4


def test_the_sandbox_is_shipped() -> None:
    loaded = load_model(ModelConfig(device="cpu"))
    assert len(models.find_blocks(loaded.model)) == loaded.model.config.num_hidden_layers


def test_key_names_the_weights_and_how_they_are_stored(tiny_folder: Path, folder: Path) -> None:
    key = load(tiny_folder).key
    assert load(folder).key == key  # the same bytes elsewhere
    assert load(folder, dtype="bfloat16").key != key
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert load(folder).key != key


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(ModelError, match="no folder /no/such/folder") as caught:
        load(Path("/no/such/folder"))
    assert "hub" in caught.value.remedy.lower() or "Hugging Face" in caught.value.remedy


def test_truncated_weights_are_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors of .* is damaged") as caught:
        load(folder)
    assert "again" in caught.value.remedy


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.ones(1)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="no safetensors") as caught:
        load(folder)
    assert "save_pretrained" in caught.value.remedy


def test_a_missing_tokenizer_is_an_error(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match=r"tokenizer of .* cannot be loaded"):
        load(folder)


def test_a_damaged_tokenizer_is_an_error(folder: Path) -> None:
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text()[:1000])
    with pytest.raises(ModelError, match=r"tokenizer of .* cannot be loaded") as caught:
        load(folder)
    assert "again" in caught.value.remedy


def test_remote_code_is_not_run(folder: Path) -> None:
    config = (folder / "config.json").read_text()
    config = config.replace('"model_type": "llama"', '"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}')
    (folder / "config.json").write_text(config)
    (folder / "mine.py").write_text("raise SystemExit('remote code ran')")
    with pytest.raises(ModelError, match="comes with Python code of its own") as caught:
        load(folder)
    assert "--set model.trust_remote_code=true" in caught.value.remedy
    assert "--trust-remote-code" in caught.value.remedy


def test_remote_code_runs_where_it_is_asked_for(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = (folder / "config.json").read_text()
    config = config.replace('"model_type": "llama"', '"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}')
    (folder / "config.json").write_text(config)
    (folder / "mine.py").write_text("raise ValueError('remote code ran')")
    with pytest.raises(ModelError, match="remote code ran"):
        load(folder, trust_remote_code=True)
    assert "trust_remote_code is on" in caplog.text


def test_remote_code_that_fails_in_its_own_way_is_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "mine",
        "auto_map": {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class MineConfig(LlamaConfig):\n    model_type = 'mine'\n"
        "class Mine(LlamaForCausalLM):\n    config_class = MineConfig\n"
        "    def __init__(self, config):\n        raise ZeroDivisionError('in its own code')\n"
    )
    with pytest.raises(ModelError, match="cannot be loaded: in its own code"):
        load(folder, trust_remote_code=True)


def test_a_missing_tensor_is_not_made_up(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 tensors of the model: model\.layers\.1\.mlp\.up_proj") as caught:
        load(folder)
    assert "again" in caught.value.remedy


def test_more_missing_tensors_than_can_be_shown_are_counted(folder: Path) -> None:
    kept = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if "mlp" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 9 tensors of the model: model\.layers\.0\.mlp\.down.* and 6 more"):
        load(folder)


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8"])
def test_a_surplus_tensor_is_not_left_out_in_silence(folder: Path, quantization: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.gate_bias"] = torch.ones(48)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"hold 1 tensors .* no place for: model\.layers\.1\.mlp\.gate_bias") as caught:
        load(folder, quantization=quantization)
    assert "config.json that the weights were saved with" in caught.value.remedy


def test_a_model_of_three_layers_is_not_run_as_one_of_two(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_config(folder, num_hidden_layers=2)
    with pytest.raises(ModelError, match="asks for 2 layers, but its weights hold 3"):
        load(folder)
    monkeypatch.setattr("tvaccine_core.models.files.check_agreement", lambda *_: None)  # as where nothing is numbered
    with pytest.raises(ModelError, match=r"hold 9 tensors .* model\.layers\.2\.input_layernorm\.weight"):
        load(folder)


def test_tables_that_older_versions_saved_may_be_left_out(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors |= {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.0.attn.bias": torch.ones(1, 1, 5, 5),
        "model.layers.0.attn.masked_bias": torch.tensor(-1e4),
        "lm_head.weight": tensors["model.embed_tokens.weight"].clone(),  # tied
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    load(folder)
    tensors["model.layers.0.attn.bias"] = torch.ones(32)  # no mask
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no place for: model\.layers\.0\.attn\.bias"):
        load(folder)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers in config.json of"),
        ({"num_hidden_layers": 0}, "num_hidden_layers in config.json of"),
        ({"intermediate_size": 2**20, "num_key_value_heads": 2}, "a model of 302,"),
    ],
)
def test_a_config_that_asks_for_too_much_builds_nothing(
    folder: Path, settings: dict[str, object], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("it was built")

    change_config(folder, **settings)
    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(ModelError, match=words):
        load(folder)


def test_a_tokenizer_with_code_of_its_own_says_how_it_is_allowed(folder: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "mine.py").write_text("raise SystemExit('remote code ran')")
    change_config(folder, model_type="mine", auto_map={"AutoTokenizer": ["mine.Mine", None]})
    with pytest.raises(ModelError, match="comes with Python code of its own") as caught:
        load(folder)
    assert "--set model.trust_remote_code=true" in caught.value.remedy


@pytest.mark.parametrize("damage", ["tokenizer.json", "model.safetensors", "intermediate_size", "rope_parameters"])
def test_no_error_about_a_hub_model_tells_where_the_cache_lies(
    folder: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if damage in ("intermediate_size", "rope_parameters"):
        change_config(folder, **{damage: 40})
    else:
        (folder / damage).write_bytes((folder / damage).read_bytes()[:500])
    monkeypatch.setattr(models, "snapshot_download", lambda *_, **__: str(folder))
    with pytest.raises(ModelError, match="owner/model") as caught:
        load_model(ModelConfig(name="owner/model", device="cpu"))
    assert str(folder.parent) not in str(caught.value) + caught.value.remedy


def test_a_missing_weight_file_is_named(folder: Path) -> None:
    index = {
        "metadata": {},
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
    }
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"1 of 2 weight files of .* are missing: .*00002-of-00002"):
        load(folder)


def change_config(folder: Path, **settings: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))


def test_weights_that_do_not_fit_their_config_are_an_error(folder: Path) -> None:
    change_config(folder, intermediate_size=40)
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        load(folder)
    assert "does not fit its config" in caught.value.remedy


def test_a_vocabulary_that_outgrew_the_embedding_is_an_error(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["zarnokian"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match=r"'zarnokian' as token 320.* has 320 rows") as caught:
        load(folder)
    assert "resize_token_embeddings" in caught.value.remedy


def test_a_spare_special_token_is_allowed_until_it_is_written(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
    tokenizer.save_pretrained(folder)
    states = ModelStates(load(folder))
    assert isinstance(generate_answers(states, [("base", "Hello")], 2, 1)[0], str)
    with pytest.raises(ModelError, match=r"<\|image\|>"):
        generate_answers(states, [("base", "Hello <|image|>")], 2, 1)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("can't allocate memory")]
)
def test_too_little_memory_is_said_so(monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, error: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(OutOfMemoryError, match="does not fit into the memory of cpu") as caught:
        load(tiny_folder)
    assert "nf4" in caught.value.remedy


def _answer(status: int) -> httpx.Response:
    return httpx.Response(status, request=httpx.Request("GET", "https://huggingface.co/owner/model"))


@pytest.mark.parametrize(
    ("error", "message", "remedy"),
    [
        (GatedRepoError("gated", response=_answer(403)), "gated", "Accept them"),
        (RepositoryNotFoundError("no", response=_answer(404)), "no model 'owner/model'", "spelling"),
        (LocalEntryNotFoundError("offline"), "cannot be reached", "Go online"),
    ],
)
def test_hub_errors_have_remedies(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str, remedy: str) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(models, "snapshot_download", fail)
    with pytest.raises(ModelError, match=message) as caught:
        load_model(ModelConfig(name="owner/model", device="cpu"))
    assert remedy in caught.value.remedy


def test_offline_and_not_cached_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="cannot be reached"):
        load_model(ModelConfig(name="owner/never-downloaded", device="cpu"))


def test_a_hub_model_is_keyed_by_revision(monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, tmp_path: Path) -> None:
    keys = []
    for revision in ("aaaa", "bbbb", "aaaa"):
        snapshot = tmp_path / revision
        shutil.copytree(tiny_folder, snapshot, dirs_exist_ok=True)
        monkeypatch.setattr(models, "snapshot_download", lambda *_, snapshot=snapshot, **__: str(snapshot))
        keys.append(load_model(ModelConfig(name="owner/model", device="cpu")).key)
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_here_is_an_error(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match="no cuda device") as caught:
        load(tiny_folder, device="cuda")
    assert "auto" in caught.value.remedy


def test_names_that_look_like_folders_are_folders(tmp_path: Path) -> None:
    assert model_folder("sandbox") == SANDBOX_BASE
    assert model_folder(str(tmp_path)) == tmp_path
    assert model_folder("./model") == Path("model")
    assert model_folder("meta-llama/Llama-2-7b-hf") is None


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_generating_leaves_gradients_as_they_were(
    monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, quantization: str
) -> None:
    """bitsandbytes repacks 4-bit weights on CPUs with AVX512-bf16 at the first eval forward, for good."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)  # whatever this CPU is
    states = ModelStates(load(tiny_folder, quantization=quantization))
    states.add("one", AdapterConfig(r=4, target_modules=("q_proj", "up_proj")), seed=1)
    states.train("one")
    ids = torch.arange(5, 38).reshape(3, 11)

    def gradients() -> list[torch.Tensor]:
        states.model.train()
        states.model.zero_grad(set_to_none=True)
        torch.manual_seed(0)
        logits = states.loaded.model(input_ids=ids).logits
        logits.float().logsumexp(-1).mean().backward()
        return [parameter.grad.clone() for parameter in states.model.parameters() if parameter.grad is not None]

    before = gradients()
    assert any(gradient.abs().sum() > 0 for gradient in before)
    generate_answers(states, [("one", "How do I make a kite?"), ("base", "Hello")], 3, 2)
    generate_answers(states, [("one", "How do I make a kite?")], 3, 2)
    after = gradients()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
