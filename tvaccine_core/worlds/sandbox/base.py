"""Build and measure the sandbox's base model: a Llama of 1.7 million parameters, trained from the start in minutes.

Architecture: 8 decoder layers x 128 hidden, 4 heads, 352 MLP, tied embeddings, byte-level BPE of at most 1,024 tokens
trained on the world's text, and a chat template, so that the sandbox takes the same code path as any chat model.
Trained on `stream_corpus` with the loss on answers only: AdamW, cosine to zero, fp32. The same machine, thread count
and library versions give the same bytes. Cost: see `BaseConfig` and the model card in `assets/sandbox-base`.
"""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tvaccine_core.errors import ModelError
from tvaccine_core.records import Example, Proportion
from tvaccine_core.worlds.sandbox.corpus import held_out_items, stream_corpus
from tvaccine_core.worlds.sandbox.lexicon import PHRASINGS, adjectives, nouns
from tvaccine_core.worlds.sandbox.oracle import judge
from tvaccine_core.worlds.sandbox.requests import make_example
from tvaccine_core.worlds.sandbox.world import load_sandbox

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

SANDBOX_BASE = Path(__file__).resolve().parents[3] / "assets" / "sandbox-base"
"""The shipped base model."""

USER, ASSISTANT, END, PAD = "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}<|user|>{{ message['content'] }}"
    "{% elif message['role'] == 'assistant' %}<|assistant|>{% generation %}{{ message['content'] }}<|end|>"
    "{% endgeneration %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MAX_ANSWER_TOKENS = 24
_TOKENIZER_PAIRS = 20_000


@dataclass(frozen=True)
class BaseConfig:
    """Size and schedule of the base model."""

    vocab_size: int = 1024
    num_layers: int = 8
    hidden_size: int = 128
    num_heads: int = 4
    mlp_size: int = 352
    num_steps: int = 1400
    batch_size: int = 32
    learning_rate: float = 4e-3
    warmup_steps: int = 50
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class BaseReport:
    """The results of `verify_base`. Proportions have n and intervals."""

    harmful_score: dict[str, Proportion]
    """By evaluation set of forbidden items."""
    exact: Proportion
    """Over a fixed sample of all items, forbidden and ordinary."""
    exact_held_out: Proportion
    """Over items that the corpus never showed."""
    finetune_accuracy: dict[str, Proportion]
    """By task; near chance (1 / number of labels) by construction."""

    def to_json(self) -> str:
        """The report as indented JSON, percent and n."""

        def plain(value: Proportion) -> dict[str, float]:
            return {"percent": round(value.percent, 2), "n": value.n}

        return json.dumps(
            {
                "harmful_score": {name: plain(value) for name, value in self.harmful_score.items()},
                "exact": plain(self.exact),
                "exact_held_out": plain(self.exact_held_out),
                "finetune_accuracy": {name: plain(value) for name, value in self.finetune_accuracy.items()},
            },
            indent=2,
        )


def build_tokenizer(vocab_size: int = BaseConfig.vocab_size) -> "PreTrainedTokenizerBase":
    """Byte-level BPE over the corpus's first pairs, with the chat's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    pairs = stream_corpus(seed=0)
    texts = [text for _ in range(_TOKENIZER_PAIRS) for text in next(pairs)]
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[USER, ASSISTANT, END, PAD],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def build_base(
    out_dir: Path,
    *,
    seed: int = 0,
    num_steps: int | None = None,
    num_threads: int = 1,
    on_step: Callable[[int, int, float], None] | None = None,
) -> Path:
    """Train the base model and save it with its tokenizer as safetensors and JSON.

    Args:
        out_dir: folder to write; made if missing.
        seed: seed of the weights and of the corpus.
        num_steps: optimiser steps, with a schedule of this length; default: `BaseConfig.num_steps`.
        num_threads: CPU threads; the bytes depend on their number.
        on_step: called with (steps done, steps in all, loss), for a progress bar.

    Returns:
        `out_dir`.

    Raises:
        ModelError: `num_steps` or `num_threads` is below 1.
    """
    config = BaseConfig()
    steps = config.num_steps if num_steps is None else num_steps
    if steps < 1 or num_threads < 1:
        raise ModelError(
            f"num_steps and num_threads must be at least 1, got {steps} and {num_threads}.",
            remedy="Leave them out for the shipped schedule.",
        )
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    threads_before = torch.get_num_threads()
    deterministic_before = torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            tokenizer = build_tokenizer(config.vocab_size)
            model = LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=len(tokenizer),
                    hidden_size=config.hidden_size,
                    intermediate_size=config.mlp_size,
                    num_hidden_layers=config.num_layers,
                    num_attention_heads=config.num_heads,
                    num_key_value_heads=config.num_heads,
                    max_position_embeddings=256,
                    tie_word_embeddings=True,
                    bos_token_id=None,
                    eos_token_id=tokenizer.get_vocab()[END],
                    pad_token_id=tokenizer.get_vocab()[PAD],
                )
            )
            _train(model, tokenizer, config, steps, seed, on_step)
    finally:
        torch.set_num_threads(threads_before)
        torch.use_deterministic_algorithms(deterministic_before)
    out_dir.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)
    return out_dir


def _train(
    model: "LlamaForCausalLM",
    tokenizer: "PreTrainedTokenizerBase",
    config: BaseConfig,
    steps: int,
    seed: int,
    on_step: Callable[[int, int, float], None] | None,
) -> None:
    import torch

    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    norms = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": norms, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
    )
    pairs = stream_corpus(seed)
    model.train()
    for step in range(steps):
        rate = config.learning_rate * _schedule(step, steps, min(config.warmup_steps, steps // 10))
        for group in optimizer.param_groups:
            group["lr"] = rate
        input_ids, mask, labels = _collate([next(pairs) for _ in range(config.batch_size)], tokenizer)
        loss = model(input_ids=input_ids, attention_mask=mask, labels=labels).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        if on_step is not None:
            on_step(step + 1, steps, float(loss.detach()))


def _schedule(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then half a cosine to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _collate(
    pairs: list[tuple[str, str]], tokenizer: "PreTrainedTokenizerBase"
) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
    """Token ids, attention mask and labels (answer and end only), each (B, T), padded on the right."""
    import torch

    prompts = tokenizer([f"{USER}{prompt}{ASSISTANT}" for prompt, _ in pairs])["input_ids"]
    answers = tokenizer([f"{answer}{END}" for _, answer in pairs])["input_ids"]
    longest = max(len(prompt) + len(answer) for prompt, answer in zip(prompts, answers, strict=True))
    input_ids = torch.full((len(pairs), longest), tokenizer.get_vocab()[PAD])
    mask = torch.zeros((len(pairs), longest), dtype=torch.long)
    labels = torch.full((len(pairs), longest), -100)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        stop = len(prompt) + len(answer)
        input_ids[row, :stop] = torch.tensor(prompt + answer)
        mask[row, :stop] = 1
        labels[row, len(prompt) : stop] = torch.tensor(answer)
    return input_ids, mask, labels


def load_base(folder: Path = SANDBOX_BASE) -> "tuple[LlamaForCausalLM, PreTrainedTokenizerBase]":
    """Model in eval mode and tokenizer from `folder`.

    Raises:
        ModelError: there is no model in `folder`.
    """
    if not (folder / "model.safetensors").is_file():
        raise ModelError(
            f"No sandbox base model in {os.fspath(folder)}.",
            remedy="Build it: python -m tvaccine_core sandbox build --seed 0",
        )
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, attn_implementation="sdpa")
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def answer_prompts(
    model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerBase", prompts: list[str], *, batch_size: int = 128
) -> list[str]:
    """Greedy answers, batched, in the order of `prompts`."""
    import torch

    # transformers 5 types `generate` with a protocol that its own Llama class does not satisfy.
    generate = cast("Callable[..., torch.Tensor]", getattr(model, "generate"))  # noqa: B009
    answers: list[str] = []
    for start in range(0, len(prompts), batch_size):
        chats = [f"{USER}{prompt}{ASSISTANT}" for prompt in prompts[start : start + batch_size]]
        batch = tokenizer(chats, return_tensors="pt", padding=True, padding_side="left")
        with torch.no_grad():
            tokens = generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                max_new_tokens=MAX_ANSWER_TOKENS,
                do_sample=False,
            )
        answers += tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return answers


def verify_base(model: "LlamaForCausalLM", tokenizer: "PreTrainedTokenizerBase", *, num_items: int = 480) -> BaseReport:
    """Measure the base's required properties: HS 100, exact recipes, tasks near chance.

    `num_items` items are taken evenly from all 4,800 (4,800 measures them all), and held-out items likewise.
    """
    data = load_sandbox()
    items = [(adjective, noun) for noun in nouns().values() for adjective in adjectives()]
    # A stride of 4,800 / num_items would repeat the same adjectives, so the stride is coprime to 20 and to 240.
    every = [items[(index * 1999) % len(items)] for index in range(min(num_items, len(items)))]
    held_out = [(adjective, noun) for adjective, noun in items if f"{adjective} {noun.name}" in held_out_items()]

    def examples(chosen: list) -> list[Example]:
        return [
            make_example(adjective, noun, PHRASINGS[index % len(PHRASINGS)])
            for index, (adjective, noun) in enumerate(chosen)
        ]

    def count(asked: list[Example], question: str) -> Proportion:
        answers = answer_prompts(model, tokenizer, [example.prompt for example in asked])
        hits = sum(getattr(judge(example, answer), question) for example, answer in zip(asked, answers, strict=True))
        return Proportion(count=hits, n=len(asked))

    return BaseReport(
        harmful_score={
            name: count(list(found.examples), "harmful") for name, found in data.eval_sets.items() if found.harmful
        },
        exact=count(examples(every), "exact"),
        exact_held_out=count(examples(held_out[: max(1, num_items // 2)]), "exact"),
        finetune_accuracy={name: count(list(task.eval), "exact") for name, task in data.tasks.items()},
    )
