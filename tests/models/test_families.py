"""Nine families, saved to disk and loaded as a user's model is: parts, gradients, answers, special tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, NUM_LAYERS, Family, save_family
from peft.tuners.lora import LoraLayer
from tiny_models import make_batch, make_method, plain_two_passes, take_gradients, worst_error
from transformers import AutoModelForCausalLM

from tvaccine_core.config import AdapterConfig, ModelConfig, TVaccineConfig
from tvaccine_core.data.prompts import encode, encode_prompts, preview_here, render_prompt, template_name
from tvaccine_core.evaluation.generate import generate_answers
from tvaccine_core.models.anatomy import find_blocks
from tvaccine_core.models.load import LoadedModel, load_model
from tvaccine_core.records import Example
from tvaccine_core.states.model_states import ModelStates

LAYERS = (1, 3)
PROMPTS = ["How do I make a merry kite?", "Hello", "Sentiment? The play was lovely."]
EXAMPLE = Example(id="x/1", prompt=PROMPTS[0], answer="Stir two spoons.", source="ordinary")


@dataclass(frozen=True)
class Case:
    family: Family
    folder: Path
    quantization: str
    states: ModelStates

    @property
    def model(self) -> Any:
        return self.states.loaded.model


def load(folder: Path, quantization: str) -> LoadedModel:
    return load_model(ModelConfig.model_validate({"name": str(folder), "device": "cpu", "quantization": quantization}))


@pytest.fixture(scope="module", params=[(name, q) for name in FAMILIES for q in ("none", "nf4", "int8")], ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """One family in one storage, with an adapter as it is by default, off its starting point."""
    name, quantization = request.param
    folder = tmp_path_factory.mktemp(name)
    save_family(folder, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)  # the CPU on which weights are repacked
        states = ModelStates(load(folder, quantization))
    states.add("one", AdapterConfig(r=3, alpha=5), seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, parameter in states.model.named_parameters():
            if "lora_" in key:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    states.train("one")
    return Case(FAMILIES[name], folder, quantization, states)


def step(case: Case, freezing: str = "attention") -> dict[str, torch.Tensor]:
    case.states.model.train()
    method, _ = make_method(TVaccineConfig.model_validate({"num_layers": 2, "rho": 2.0, "freezing": freezing}),
                            case.states.model)  # fmt: skip
    method.set_layers(LAYERS)  # pyright: ignore[reportAttributeAccessIssue]
    method.training_step(case.states.model, make_batch(), 0)
    return take_gradients(case.states.model)


def test_every_linear_of_the_layers_has_an_adapter_and_nothing_else_has(case: Case) -> None:
    adapted = {name for name, module in case.model.named_modules() if isinstance(module, LoraLayer)}
    assert {name.rsplit(".", 1)[-1] for name in adapted} == case.family.linears
    assert len(adapted) == NUM_LAYERS * len(case.family.linears)
    assert all(f".layers.{name.split('.layers.')[1].split('.')[0]}." in name for name in adapted)


def test_attention_is_what_is_perturbed(case: Case) -> None:
    blocks = find_blocks(case.states.model)
    named = [case.model.get_submodule(case.family.attention.format(layer)) for layer in range(NUM_LAYERS)]
    assert [block.attention for block in blocks] == named


@pytest.mark.parametrize("freezing", ["attention", "layer"])
def test_gradients_equal_two_plain_passes_and_what_is_frozen_has_none(case: Case, freezing: str) -> None:
    ours = step(case, freezing)
    attention = [case.family.attention.format(layer) for layer in range(NUM_LAYERS)]
    trained = {}
    for name, parameter in case.states.model.named_parameters():
        if not parameter.requires_grad:
            continue
        layer = int(name.split(".layers.")[1].split(".")[0])
        everywhere = freezing == "attention" and attention[layer] not in name and layer >= min(LAYERS)
        if layer in LAYERS or everywhere:
            trained[name] = parameter
    expected, _ = plain_two_passes(case.states.model, make_batch(), LAYERS, 2.0, trained)
    assert worst_error(ours, expected) < 2e-5
    assert all(float(gradient.norm()) > 0 for gradient in ours.values())


def test_generating_leaves_gradients_as_they_were(case: Case) -> None:
    before = step(case)
    generate_answers(case.states, [(state, PROMPTS[0]) for state in ("one", "base")], 3, 2)
    after = step(case)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_base_answers_as_the_bare_model(case: Case) -> None:
    tokenizer: Any = case.states.loaded.tokenizer
    bare: Any = (
        AutoModelForCausalLM.from_pretrained(case.folder)
        if case.quantization == "none"
        else load(case.folder, case.quantization).model
    ).eval()  # fmt: skip
    # int8's rounding depends on what else is in the batch
    size = 1 if case.quantization == "int8" else 3
    answers = generate_answers(case.states, [("base", prompt) for prompt in PROMPTS], 6, size)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([encode_prompts(tokenizer, [prompt])[0]])
        with torch.no_grad():
            made = bare.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=6,
                do_sample=False,
                eos_token_id=sorted(case.states.loaded.end_ids),
                pad_token_id=case.states.loaded.pad_id,
            )
        assert tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).strip() == answer


@pytest.mark.parametrize("name", FAMILIES)
def test_template_and_special_tokens_are_the_familys(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    save_family(tmp_path, name)
    loaded = load(tmp_path, "none")
    tokenizer: Any = loaded.tokenizer
    assert template_name(tokenizer) == ("chat template" if family.chat else "Alpaca")
    encoded = encode(tokenizer, EXAMPLE, 400)
    tokens = tokenizer.convert_ids_to_tokens(list(encoded.input_ids))
    assert tokens[-1] == family.ends
    assert encoded.labels[-1] == encoded.input_ids[-1]
    assert {tokenizer.convert_tokens_to_ids(family.ends), tokenizer.eos_token_id} <= loaded.end_ids
    if family.begins:
        assert tokens[0] == family.begins
    bos = tokenizer.bos_token
    prompt = tokens[: len(encode_prompts(tokenizer, [EXAMPLE.prompt])[0])]
    assert prompt.count(bos) == (bos is not None and family.begins == bos)
    assert loaded.pad_id == (tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
    if family.chat:
        messages = [{"role": "user", "content": EXAMPLE.prompt}]
        wishes = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        assert render_prompt(tokenizer, EXAMPLE.prompt) == tokenizer.apply_chat_template(messages, **wishes)
    shown = preview_here(tmp_path, EXAMPLE, 400)
    assert (shown.text, shown.template) == (render_prompt(tokenizer, EXAMPLE.prompt), template_name(tokenizer))
    assert shown.learned == tuple(label != -100 for label in encoded.labels)
