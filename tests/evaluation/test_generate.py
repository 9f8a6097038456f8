"""Our greedy loop against `generate`; states in one batch against each alone; stopping; what it leaves behind."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tvaccine_core.config import AdapterConfig, ModelConfig
from tvaccine_core.data.prompts import render_prompt
from tvaccine_core.errors import CancelledError
from tvaccine_core.evaluation.generate import generate_answers, stream_tokens
from tvaccine_core.models.load import load_model
from tvaccine_core.states.model_states import ModelStates

PROMPTS = ["How do I make a merry kite?", "Hello", "Sentiment? The play was lovely.", "A", "No, that would harm."]


@pytest.fixture(scope="module")
def states(tiny_folder: Path) -> ModelStates:
    """The base and two adapters that answer differently."""
    states = ModelStates(load_model(ModelConfig(name=str(tiny_folder), device="cpu")))
    for seed, name in enumerate(("one", "two")):
        states.add(name, AdapterConfig(r=4 + seed, alpha=8), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, parameter in states.model.named_parameters():
                if f".{name}." in key:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    states.define("both", ["one", "two"])
    return states


def by_transformers(states: ModelStates, state: str, prompt: str, max_new_tokens: int) -> str:
    """One prompt at a time: no padding, no batch, no loop of ours."""
    tokenizer: Any = states.loaded.tokenizer
    ids = tokenizer(render_prompt(tokenizer, prompt), add_special_tokens=False, return_tensors="pt")["input_ids"]
    with states.active(state) as model, torch.no_grad():
        generated = model.generate(  # pyright: ignore
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False
        )
    return tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("state", ["base", "one", "both"])
def test_answers_are_those_of_transformers(states: ModelStates, state: str) -> None:
    answers = generate_answers(states, [(state, prompt) for prompt in PROMPTS], 12, 3)
    assert answers == [by_transformers(states, state, prompt, 12) for prompt in PROMPTS]


def test_states_in_one_batch_answer_as_alone(states: ModelStates) -> None:
    rows = [(state, prompt) for prompt in PROMPTS for state in ("two", "base", "one", "both")]
    mixed = generate_answers(states, rows, 12, len(rows))
    alone = [generate_answers(states, [row], 12, 1)[0] for row in rows]
    assert mixed == alone
    assert len({mixed[0], mixed[1], mixed[2], mixed[3]}) == 4  # the states do differ


def test_the_base_is_the_bare_base_model(states: ModelStates, tiny_folder: Path) -> None:
    bare = ModelStates(load_model(ModelConfig(name=str(tiny_folder), device="cpu")))
    rows = [("base", prompt) for prompt in PROMPTS]
    expected = generate_answers(bare, rows, 12, 5)
    assert generate_answers(states, rows, 12, 5) == expected
    mixed = generate_answers(states, [("one", "Hello"), *rows], 12, 6)  # here as rows without an adapter
    assert mixed[1:] == expected


def test_merging_for_speed_changes_no_token(states: ModelStates, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("both", prompt) for prompt in PROMPTS]
    merged = generate_answers(states, rows, 12, 5)
    monkeypatch.setattr("tvaccine_core.fast.merged_adapters.KEEP_LIMIT_BYTES", 0)
    assert generate_answers(states, rows, 12, 5) == merged


SIZES = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA_LIKE = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}
FAMILIES = {
    "gemma2": LLAMA_LIKE,  # soft-capped, sliding window, no fast attention
    "gemma3_text": LLAMA_LIKE,
    "qwen3": LLAMA_LIKE,
    "opt": {**SIZES, "ffn_dim": 48, "word_embed_proj_dim": 32},  # learned positions; cannot mix adapters in a batch
    "gpt_neox": {**SIZES, "intermediate_size": 48},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_answer_as_in_transformers(family: str, tmp_path: Path, save_tokenizer: Any) -> None:
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](
        **FAMILIES[family], bos_token_id=0, eos_token_id=3, pad_token_id=4, max_position_embeddings=256
    )
    model: Any = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.2)
    model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    states = ModelStates(load_model(ModelConfig(name=str(tmp_path), device="cpu")))
    modules = {"opt": ("q_proj", "fc1"), "gpt_neox": ("query_key_value", "dense_4h_to_h")}
    states.add("one", AdapterConfig(r=4, target_modules=modules.get(family, ("q_proj", "down_proj"))), seed=1)
    for name, parameter in states.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.2)
    rows = [(state, prompt) for prompt in PROMPTS[:3] for state in ("base", "one")]
    expected = [by_transformers(states, state, prompt, 8) for state, prompt in rows]
    assert expected[0] != expected[1]
    assert generate_answers(states, rows, 8, len(rows)) == expected
    assert generate_answers(states, rows[::2], 8, 3) == expected[::2]


def test_the_head_reads_one_contiguous_column(states: ModelStates, monkeypatch: pytest.MonkeyPatch) -> None:
    """A strided one costs ten times as much in bfloat16 on a CPU; a model that is not told to keep one gives all."""
    seen: list[tuple[int, bool]] = []
    head: Any = states.model.get_output_embeddings()
    handle = head.register_forward_hook(
        lambda module, inputs, output: seen.append((inputs[0].shape[1], inputs[0].is_contiguous()))
    )
    rows = [("one", prompt) for prompt in PROMPTS]
    answers = generate_answers(states, rows, 4, 5)
    generate_answers(states, [("two", "Hello"), *rows], 4, 6)  # a mixed batch
    signature = inspect.signature(lambda input_ids, attention_mask, past_key_values, use_cache, position_ids: None)
    monkeypatch.setattr("tvaccine_core.evaluation.generate.inspect.signature", lambda forward: signature)
    assert generate_answers(states, rows, 4, 5) == answers
    handle.remove()
    assert len(seen) == 3 * 4
    assert set(seen) == {(1, True)}
    assert not head._forward_pre_hooks


def test_the_best_token_is_sought_in_float32(tiny_folder: Path) -> None:
    """In bfloat16 a CPU takes five times as long over a real vocabulary: half as long as all else of a small model."""
    states = ModelStates(load_model(ModelConfig(name=str(tiny_folder), device="cpu", dtype="bfloat16")))
    sought: list[torch.dtype] = []

    class Look(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.argmax.default:
                sought.append(args[0].dtype)
            return func(*args, **(kwargs or {}))

    with Look():
        generate_answers(states, [("base", prompt) for prompt in PROMPTS], 3, 5)
    assert len(sought) == 3
    assert set(sought) == {torch.float32}


@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
def test_order_and_batch_size_do_not_matter(states: ModelStates, batch_size: int) -> None:
    rows = [("one", prompt) for prompt in PROMPTS]
    assert generate_answers(states, rows, 9, batch_size) == generate_answers(states, rows, 9, 5)
    assert generate_answers(states, rows[::-1], 9, batch_size) == generate_answers(states, rows, 9, 5)[::-1]
    assert generate_answers(states, [], 9, batch_size) == []


def test_rows_that_end_are_dropped_and_the_others_go_on(states: ModelStates, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the most common first token be an end: some rows end at once, the others must not notice."""
    rows = [("one", prompt) for prompt in PROMPTS]
    first = next(stream_tokens(states, rows, 12)).tokens
    whole: list[list[int]] = [[] for _ in rows]
    for step in stream_tokens(states, rows, 12):
        for row, token in step.tokens:
            whole[row].append(token)
    end = first[0][1]
    monkeypatch.setattr(type(states.loaded), "end_ids", frozenset({end}))
    cut: list[list[int]] = [[] for _ in rows]
    ended: list[int] = []
    for step in stream_tokens(states, rows, 12):
        ended += step.ended
        for row, token in step.tokens:
            cut[row].append(token)
    assert sorted(ended) == list(range(len(rows)))
    assert cut == [ids[: ids.index(end)] if end in ids else ids for ids in whole]
    assert cut[0] == []
    assert max(map(len, cut)) > 1


def test_tokens_stream_step_by_step(states: ModelStates) -> None:
    rows = [("one", "Hello"), ("base", "Hello"), ("one", "A")]
    seen = [list(step.tokens) for step in stream_tokens(states, rows, 5)]
    answers = generate_answers(states, rows, 5, 3)
    assert 0 < len(seen) <= 5
    tokenizer: Any = states.loaded.tokenizer
    for row, answer in enumerate(answers):
        ids = [token for step in seen for index, token in step if index == row]
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == answer


def test_stopping_is_honoured_within_a_token(states: ModelStates) -> None:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(len(asked))
        return len(asked) > 2

    modes = [module.training for module in states.model.modules()]
    with pytest.raises(CancelledError):
        generate_answers(states, [("one", "Hello"), ("base", "A")], 12, 2, should_stop=stop)
    assert asked == [0, 1, 2]
    assert [module.training for module in states.model.modules()] == modes


def test_a_time_limit_ends_answers_where_they_are(states: ModelStates) -> None:
    steps = list(stream_tokens(states, [("one", "Hello"), ("base", "A")], 12, time_limit_s=0.0))
    assert len(steps) == 1
    assert set(steps[0].ended) == {0, 1}


def test_leaving_in_the_middle_puts_everything_back(states: ModelStates) -> None:
    states.train("one")
    states.model.train()
    grads = [parameter.requires_grad for parameter in states.model.parameters()]
    for rows in ([("two", "Hello")], [("two", "Hello"), ("base", "A")]):
        stream = stream_tokens(states, rows, 12)
        next(stream)
        assert not states.model.base_model.model.training
        stream.close()  # type: ignore[attr-defined]
        assert all(module.training for module in states.model.modules())
        assert [parameter.requires_grad for parameter in states.model.parameters()] == grads
