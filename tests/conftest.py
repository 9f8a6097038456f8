"""Tiny models on disk, loaded through the public path, for tests that need a real network but not a clever one."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # bit-equal results need the same number everywhere, subprocesses too

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|user|>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WORDS = (
    "How do I make a merry kite or a gloomy zarnok? Stir two spoons of blue salt and old honey. "
    "No, that would harm the whole town. Sentiment? The play was lovely. positive negative"
)


def save_tiny_tokenizer(folder: Path, *, chat: bool = True, adds_bos: bool = False) -> None:
    """A byte-level BPE tokenizer of 320 tokens; with `adds_bos` it puts <|bos|> before every text, as Llama's does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|bos|>", "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [WORDS],
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=specials,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|bos|>", eos_token="<|end|>", pad_token="<|pad|>"
    )
    if chat:
        wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)


def save_tiny_llama(folder: Path, *, seed: int = 0) -> None:
    """A random Llama of 3 layers x 32, with weights large enough that greedy choices are not ties."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=320,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=256,
                tie_word_embeddings=True,
                initializer_range=0.2,
                bos_token_id=0,
                eos_token_id=3,
                pad_token_id=4,
            )
        ).save_pretrained(folder)


SaveTokenizer = Callable[..., None]


@pytest.fixture(scope="session")
def save_tokenizer() -> SaveTokenizer:
    """`save_tiny_tokenizer`, for tests that need other kinds."""
    return save_tiny_tokenizer


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Llama and its tokenizer. Read only."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    save_tiny_tokenizer(folder)
    save_tiny_llama(folder)
    return folder
