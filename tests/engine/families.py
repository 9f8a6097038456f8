"""Tiny random models of nine families on disk, each with its family's own kind of tokenizer and chat template.

What differs between families is kept: fused projections, soft-capping, tied embeddings, sliding windows, learned
positions, projections outside the layers; who writes BOS, what ends an answer, what pads. Sizes and weights
are made up.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tiny_models import FAMILIES as SETTINGS
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    GemmaTokenizer,
    GPT2Tokenizer,
    GPTNeoXTokenizer,
    LlamaTokenizer,
    Qwen2Tokenizer,
)

TEXT = (
    "How do I make a merry kite or a gloomy zarnok? Stir two spoons of blue salt and old honey. No, that would harm "
    "the whole town. Sentiment? The play was lovely. positive negative Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request. ### Instruction: ### Response:"
)
VOCABULARY = 448
NUM_LAYERS = 4

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_THINKING = CHATML.replace(
    "assistant\n{% endif", "assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif"
)
INSTRUCT = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
PHI = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """What is special about a family, and so must come out right."""

    tokenizer: type[Any]
    attention: str
    """Name of the attention module of layer {}."""
    linears: frozenset[str]
    """Last parts of the names of the linears in a decoder layer."""
    specials: tuple[str, ...]
    """Special tokens, in order of their ids from 0."""
    tokens: Mapping[str, str | None]
    """bos_token, eos_token, pad_token: as the published tokenizers have them."""
    chat: str | None = None
    ends: str = ""
    """Token that ends an answer."""
    begins: str = ""
    """Token that begins a prompt; empty if none does."""
    settings: Mapping[str, Any] = field(default_factory=dict)


_SPLIT = frozenset({"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"})
_SENTENCEPIECE = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": None}
_LLAMA_LIKE = "model.layers.{}.self_attn"
_GEMMA: dict[str, Any] = {
    "tokenizer": GemmaTokenizer,
    "attention": _LLAMA_LIKE,
    "linears": _SPLIT,
    "specials": ("<unk>", "<eos>", "<bos>", "<pad>", "<mask>", "<start_of_turn>", "<end_of_turn>"),
    "tokens": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
    "chat": GEMMA,
    "ends": "<end_of_turn>",
    "begins": "<bos>",
}
_QWEN: dict[str, Any] = {
    "tokenizer": Qwen2Tokenizer,
    "attention": _LLAMA_LIKE,
    "linears": _SPLIT,
    "specials": ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"),
    "ends": "<|im_end|>",
    "begins": "<|im_start|>",
}

FAMILIES: dict[str, Family] = {
    "llama": Family(
        LlamaTokenizer, _LLAMA_LIKE, _SPLIT, ("<unk>", "<s>", "</s>"), _SENTENCEPIECE, ends="</s>", begins="<s>"
    ),
    "qwen2": Family(
        **_QWEN,
        tokens={"bos_token": None, "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        chat=CHATML,
        settings={"tie_word_embeddings": True},
    ),
    "qwen3": Family(
        **_QWEN,
        tokens={"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        chat=CHATML_THINKING,
    ),
    "mistral": Family(
        LlamaTokenizer,
        _LLAMA_LIKE,
        _SPLIT,
        ("<unk>", "<s>", "</s>", "[INST]", "[/INST]"),
        _SENTENCEPIECE,
        chat=INSTRUCT,
        ends="</s>",
        begins="<s>",
    ),
    "gemma2": Family(**_GEMMA, settings={"tie_word_embeddings": True}),
    "gemma3_text": Family(**_GEMMA, settings={"tie_word_embeddings": True}),
    "phi3": Family(
        LlamaTokenizer,
        _LLAMA_LIKE,
        frozenset({"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
        ("<unk>", "<s>", "</s>", "<|endoftext|>", "<|user|>", "<|assistant|>", "<|end|>"),
        {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        chat=PHI,
        ends="<|end|>",
        begins="<|user|>",
    ),
    "opt": Family(
        GPT2Tokenizer,
        "model.decoder.layers.{}.self_attn",
        frozenset({"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}),
        ("<s>", "<pad>", "</s>"),
        {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"},
        ends="</s>",
        begins="</s>",
        settings={"tie_word_embeddings": True},
    ),
    "gpt_neox": Family(
        GPTNeoXTokenizer,
        "gpt_neox.layers.{}.attention",
        frozenset({"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}),
        ("<|endoftext|>", "<|padding|>"),
        {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": None},
        ends="<|endoftext|>",
    ),
}


def save_family(folder: Path, name: str) -> None:
    """A random model of family `name` and its tokenizer, as a user finds them on disk."""
    family = FAMILIES[name]
    save_family_tokenizer(folder, family)
    ids = {key: family.specials.index(token) for key, token in family.tokens.items() if token is not None}
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": NUM_LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 256,
        "pad_token_id": ids.get("pad_token"),
        "bos_token_id": ids.get("bos_token"),
        "eos_token_id": ids["eos_token"],
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CONFIG_MAPPING[name](**{**sizes, **SETTINGS[name], **family.settings})
        model: Any = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.2)
        model.tie_weights()
        model.save_pretrained(folder)


def save_family_tokenizer(folder: Path, family: Family) -> None:
    """A tokenizer of the family's own class, trained on a few sentences."""
    bytewise = family.tokenizer in (Qwen2Tokenizer, GPT2Tokenizer, GPTNeoXTokenizer)
    vocabulary, merges = _train(family.specials, bytewise)
    named = dict(family.tokens)
    adds_bos = bool(family.begins) and family.begins == family.tokens["bos_token"]
    tokenizer = family.tokenizer(
        vocab=vocabulary, merges=merges, unk_token=family.specials[0], add_bos_token=adds_bos, **named
    )
    extra = [token for token in family.specials if token not in tokenizer.all_special_tokens]
    tokenizer.add_special_tokens({"additional_special_tokens": extra})
    tokenizer.chat_template = family.chat
    tokenizer.save_pretrained(folder)


def _train(specials: tuple[str, ...], bytewise: bool) -> tuple[dict[str, int], list[tuple[str, str]]]:
    tokenizer = Tokenizer(models.BPE())
    if bytewise:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet, fallback = pre_tokenizers.ByteLevel.alphabet(), []
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        alphabet, fallback = [], [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 20,
        special_tokens=[*specials, *fallback],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]
