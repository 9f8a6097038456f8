"""Model states: what a stack of adapters computes, what is written of it, and what a look at a state leaves behind."""

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tvaccine_core.config import LINEAR_MODULES, AdapterConfig, ModelConfig
from tvaccine_core.errors import ModelError, RunNotFoundError
from tvaccine_core.models.load import LoadedModel, load_model
from tvaccine_core.states.adapter_files import CONFIG_FILE, WEIGHTS_FILE
from tvaccine_core.states.model_states import ModelStates

IDS = torch.arange(5, 38).reshape(3, 11)
WIDE = AdapterConfig(r=8, alpha=16)
NARROW = AdapterConfig(r=5, alpha=3, target_modules=("q_proj", "down_proj"))


def load(folder: Path) -> LoadedModel:
    return load_model(ModelConfig(name=str(folder), device="cpu"))


@pytest.fixture
def states(tiny_folder: Path) -> ModelStates:
    return ModelStates(load(tiny_folder))


def shake(states: ModelStates, name: str, seed: int) -> None:
    """Give adapter `name` weights as training might, B included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in states.model.named_parameters():
            if f".{name}." in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def logits_of(states: ModelStates, state: str) -> Tensor:
    with states.active(state) as model, torch.no_grad():
        return model(input_ids=IDS).logits


def trainable(states: ModelStates) -> set[str]:
    return {name for name, parameter in states.model.named_parameters() if parameter.requires_grad}


def test_a_fresh_adapter_equals_the_base_bit_for_bit(states: ModelStates, tiny_folder: Path) -> None:
    with torch.no_grad():
        bare = load(tiny_folder).model(input_ids=IDS).logits
    states.add("first", WIDE, seed=1)
    shake(states, "first", 7)
    states.add("second", WIDE, seed=2)
    assert torch.equal(logits_of(states, "second"), bare)
    assert torch.equal(logits_of(states, "base"), bare)
    assert not torch.allclose(logits_of(states, "first"), bare, atol=1e-2)


def test_initialisation_depends_on_the_seed_alone(tiny_folder: Path) -> None:
    hashes = []
    for global_seed, seed in ((3, 1), (4, 1), (3, 2)):
        torch.manual_seed(global_seed)
        before = torch.get_rng_state()
        states = ModelStates(load(tiny_folder))
        loaded_state = torch.get_rng_state()
        states.add("first", WIDE, seed=seed)
        states.add("second", WIDE, seed=seed)
        assert torch.equal(torch.get_rng_state(), loaded_state)
        assert torch.equal(before, loaded_state)
        assert states.hash_of("first") == states.hash_of("second")
        hashes.append(states.hash_of("first"))
    assert hashes[0] == hashes[1] != hashes[2]


def test_train_lets_one_adapter_train_on_a_frozen_stack(states: ModelStates) -> None:
    states.add("below", WIDE, seed=1)
    states.add("above", NARROW, seed=2)
    shake(states, "below", 7)
    assert not trainable(states)
    states.train("above", on_top_of="below")
    names = trainable(states)
    assert names
    assert all(".above." in name for name in names)
    below = logits_of(states, "below")
    with torch.no_grad():
        torch.testing.assert_close(states.model(input_ids=IDS).logits, below, rtol=0, atol=1e-5)
    states.train("below")
    assert all(".below." in name for name in trainable(states))


def test_what_is_frozen_does_not_drop_out(states: ModelStates) -> None:
    states.add("below", AdapterConfig(r=8, dropout=0.5), seed=1)
    states.add("above", WIDE, seed=2)
    shake(states, "below", 7)
    below = logits_of(states, "below")
    states.train("above", on_top_of="below")
    states.model.train()
    torch.testing.assert_close(states.model(input_ids=IDS).logits.detach(), below, rtol=0, atol=1e-5)


def test_a_stack_concatenates_exactly(states: ModelStates) -> None:
    """Ranks, scalings and target modules all differ."""
    states.add("below", WIDE, seed=1)
    states.add("above", NARROW, seed=2)
    shake(states, "below", 7)
    shake(states, "above", 8)
    states.train("above", on_top_of="below")
    states.model.eval()
    with torch.no_grad():
        stacked = states.model(input_ids=IDS).logits
    states.define("both", ["below", "above"])
    scale = stacked.abs().max()
    assert (logits_of(states, "both") - stacked).abs().max() < 2e-6 * scale
    assert (logits_of(states, "below") - stacked).abs().max() > 1e-2 * scale


def test_a_stack_follows_the_adapter_that_trains(states: ModelStates) -> None:
    states.add("below", WIDE, seed=1)
    states.add("above", NARROW, seed=2)
    states.define("both", ["below", "above"])
    states.train("above", on_top_of="below")
    first, first_hash = logits_of(states, "both"), states.hash_of("both")
    shake(states, "above", 8)
    assert not torch.allclose(logits_of(states, "both"), first, atol=1e-2)
    assert states.hash_of("both") != first_hash


@pytest.mark.parametrize("parts", [["below"], ["below", "above"]])
def test_a_saved_state_is_one_plain_peft_adapter(
    states: ModelStates, tiny_folder: Path, tmp_path: Path, parts: list[str]
) -> None:
    states.add("below", AdapterConfig(r=7, alpha=10), seed=1)
    states.add("above", NARROW, seed=2)
    shake(states, "below", 7)
    shake(states, "above", 8)
    states.define("both", parts)
    record = states.save("aligned/both", parts, tmp_path / "states" / "both", relative_to=tmp_path)
    assert record.path == "states/both"
    assert record.state_hash == states.hash_of("aligned/both")
    expected = logits_of(states, "both")
    torch.testing.assert_close(logits_of(states, "aligned/both"), expected, rtol=0, atol=1e-5)

    plain = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(tiny_folder), str(tmp_path / "states" / "both")
    )
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=IDS).logits, expected, rtol=0, atol=1e-5)

    elsewhere = ModelStates(load(tiny_folder))
    elsewhere.load("theirs", tmp_path / "states" / "both")
    assert elsewhere.hash_of("theirs") == record.state_hash
    assert torch.equal(logits_of(elsewhere, "theirs"), logits_of(states, "aligned/both"))
    again = elsewhere.save("again", ["theirs"], tmp_path / "again")
    assert again.state_hash == record.state_hash
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "states" / "both" / name).read_bytes()


def test_the_hash_covers_weights_scaling_and_base(tiny_folder: Path, tmp_path: Path) -> None:
    states = ModelStates(load(tiny_folder))
    states.add("one", WIDE, seed=1)
    states.add("scaled", AdapterConfig(r=8, alpha=17), seed=1)
    states.add("other", WIDE, seed=2)
    hashes = {states.hash_of(name) for name in ("base", "one", "scaled", "other")}
    assert len(hashes) == 4
    before = states.hash_of("one")
    with torch.no_grad():
        next(p for name, p in states.model.named_parameters() if ".one." in name).view(-1)[5] += 1e-6
    assert states.hash_of("one") != before


def test_a_copy_goes_on_from_the_same_function(states: ModelStates) -> None:
    states.add("aligned", AdapterConfig(r=7, alpha=10, dropout=0.25), seed=1)
    shake(states, "aligned", 7)
    states.copy("aligned", "mine", dropout=0.125)
    assert states.hash_of("mine") == states.hash_of("aligned")
    states.train("mine")
    shake(states, "mine", 8)
    assert states.hash_of("mine") != states.hash_of("aligned")
    assert states.model.peft_config["mine"].lora_dropout == 0.125  # pyright: ignore


def test_training_reopens_a_saved_state(states: ModelStates, tmp_path: Path) -> None:
    states.add("one", WIDE, seed=1)
    record = states.save("one", ["one"], tmp_path / "one")
    states.train("one")
    shake(states, "one", 7)
    assert states.hash_of("one") != record.state_hash


@pytest.mark.parametrize("state", ["base", "below", "both"])
def test_a_look_at_a_state_leaves_everything_as_it_was(states: ModelStates, state: str) -> None:
    states.add("below", AdapterConfig(r=4, dropout=0.1), seed=1)
    states.loaded.model.eval()
    states.add("above", AdapterConfig(r=4, dropout=0.5), seed=2)  # added in eval mode: its dropout is in train mode
    states.define("both", ["below", "above"])
    states.train("above", on_top_of="below")
    states.model.train()
    states.model.base_model.model.model.norm.eval()  # an odd one out must stay one
    layers = [layer for layer in states.model.modules() if isinstance(layer, LoraLayer)]
    active = [list(layer.active_adapters) for layer in layers]
    modes = {name: module.training for name, module in states.model.named_modules()}
    grads = trainable(states)

    def look() -> None:
        with states.active(state) as model:
            assert not any(module.training for module in model.modules())
            assert torch.equal(model(input_ids=IDS).logits, model(input_ids=IDS).logits)
            raise KeyError("on the way out too")

    with pytest.raises(KeyError):
        look()
    assert trainable(states) == grads
    after = {name: module.training for name, module in states.model.named_modules()}
    assert {name: after[name] for name in modes} == modes
    assert [list(layer.active_adapters) for layer in layers] == active


def test_dropped_states_are_gone_and_names_are_free(states: ModelStates) -> None:
    states.add("one", WIDE, seed=1)
    states.add("two", WIDE, seed=2)
    states.define("both", ["one", "two"])
    logits_of(states, "both")
    for name in ("one", "both", "two", "never there"):
        states.drop(name)
    assert states.names == ("base",)
    assert not any("lora" in name for name, _ in states.loaded.model.named_parameters())
    states.add("one", WIDE, seed=1)
    states.train("one")
    assert trainable(states)


def test_dropping_a_part_drops_the_stack(states: ModelStates) -> None:
    states.add("one", WIDE, seed=1)
    states.add("two", WIDE, seed=2)
    states.define("both", ["one", "two"])
    logits_of(states, "both")
    states.drop("one")
    assert states.names == ("base", "two")


def test_dropping_what_peft_calls_active_keeps_the_rest_usable(states: ModelStates) -> None:
    states.add("one", WIDE, seed=1)
    states.add("two", WIDE, seed=2)
    states.train("one")
    states.drop("one")
    states.train("two")
    assert states.model(input_ids=IDS).logits.shape == (3, 11, 320)


@pytest.mark.parametrize("name", ["", "with.dot", "/lead", "trail/", "base", "taken", "blank blank"])
def test_bad_names_are_refused(states: ModelStates, name: str) -> None:
    states.add("taken", WIDE, seed=1)
    with pytest.raises(ModelError, match="cannot be called"):
        states.add(name, WIDE, seed=1)


def test_unknown_modules_are_answered_with_those_there_are(states: ModelStates) -> None:
    with pytest.raises(ModelError) as caught:
        states.add("one", AdapterConfig(target_modules=("query_key_value",)), seed=1)
    assert "q_proj" in caught.value.remedy
    states.add("one", WIDE, seed=1)
    with pytest.raises(ModelError):
        states.add("two", AdapterConfig(target_modules=("query_key_value",)), seed=1)
    states.add("two", WIDE, seed=1)
    assert states.hash_of("two") == states.hash_of("one")


def test_one_name_that_matches_nothing_is_an_error(states: ModelStates) -> None:
    with pytest.raises(ModelError, match="no linear module called qkv_proj") as caught:
        states.add("one", AdapterConfig(target_modules=("q_proj", "qkv_proj")), seed=1)
    assert "all-linear" in caught.value.remedy


def test_all_linear_is_the_seven_of_a_llama(states: ModelStates) -> None:
    states.add("by-structure", AdapterConfig(), seed=1)
    states.add("by-name", AdapterConfig(target_modules=LINEAR_MODULES), seed=1)
    assert states.hash_of("by-structure") == states.hash_of("by-name")
    with pytest.raises(ValueError, match="stands alone"):
        AdapterConfig(target_modules=("all-linear", "q_proj"))


def test_an_unknown_state_is_answered_with_those_there_are(states: ModelStates) -> None:
    with pytest.raises(ModelError, match="aligned/none") as caught, states.active("aligned/none"):
        pass
    assert "base" in caught.value.remedy


@pytest.fixture
def saved(states: ModelStates, tmp_path: Path) -> Path:
    states.add("one", WIDE, seed=1)
    states.save("one", ["one"], tmp_path / "one")
    return tmp_path / "one"


def test_a_missing_adapter_is_an_error(states: ModelStates, tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError, match="no saved model state"):
        states.load("one", tmp_path / "nowhere")


def test_truncated_weights_are_an_error(states: ModelStates, saved: Path) -> None:
    (saved / WEIGHTS_FILE).write_bytes((saved / WEIGHTS_FILE).read_bytes()[:-7])
    with pytest.raises(ModelError, match="damaged"):
        states.load("two", saved)


def test_a_broken_config_is_an_error(states: ModelStates, saved: Path) -> None:
    (saved / CONFIG_FILE).write_text("{")
    with pytest.raises(ModelError, match="damaged"):
        states.load("two", saved)


def test_changed_weights_are_an_error(states: ModelStates, saved: Path) -> None:
    data = bytearray((saved / WEIGHTS_FILE).read_bytes())
    data[-1] ^= 1
    (saved / WEIGHTS_FILE).write_bytes(data)
    with pytest.raises(ModelError, match="hash differs"):
        states.load("two", saved)


def test_an_adapter_of_another_base_is_an_error(saved: Path, tiny_folder: Path, tmp_path: Path) -> None:
    other = load_model(ModelConfig(name=str(tiny_folder), device="cpu", dtype="bfloat16"))
    with pytest.raises(ModelError, match="another base"):
        ModelStates(other).load("one", saved)


def test_an_adapter_that_does_not_fit_is_an_error(states: ModelStates, saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS_FILE)
    tensors.popitem()
    save_file(tensors, saved / WEIGHTS_FILE)  # a foreign file: no hash of ours in it
    with pytest.raises(ModelError, match="do not fit"):
        states.load("two", saved)
    assert "two" not in states.names


def test_dora_is_no_plain_lora(states: ModelStates, saved: Path) -> None:
    config = json.loads((saved / CONFIG_FILE).read_text())
    (saved / CONFIG_FILE).write_text(json.dumps(config | {"use_dora": True}))
    with pytest.raises(ModelError, match="not a plain LoRA"):
        states.load("two", saved)


def test_saving_where_it_cannot_be_written_is_an_error(states: ModelStates, tmp_path: Path) -> None:
    states.add("one", WIDE, seed=1)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelError, match="cannot be written"):
        states.save("one", ["one"], tmp_path / "file" / "one")


def test_adapters_are_float32_on_a_bfloat16_base(tiny_folder: Path) -> None:
    states = ModelStates(load_model(ModelConfig(name=str(tiny_folder), device="cpu", dtype="bfloat16")))
    states.add("one", WIDE, seed=1)
    states.train("one")
    assert {p.dtype for p in states.model.parameters() if p.requires_grad} == {torch.float32}
