"""From an example to token ids: the template, the loss mask, and a preview of both that needs no torch.

A prompt is rendered with the tokenizer's chat template if it has one, else with the Alpaca template (Taori et al.,
2023) that the harmful fine-tuning literature uses. Prompt tokens are masked: only the answer and the end-of-sequence
token are learned. Prompt and answer are tokenised separately, so that training and generation see the same boundary.

An answer ends with the token that the chat template writes after it (Gemma's <end_of_turn>, Phi-3's <|end|>), which is
not always the tokenizer's EOS; without a template it ends with EOS. Templates that let a model think aloud are told not
to, because answers are judged as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tvaccine_core.errors import DataError, ModelError
from tvaccine_core.json_files import MIB, file_size, read_json, read_text
from tvaccine_core.records import Example

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

TEMPLATE_DATE = date(2024, 7, 26)
"""The date that chat templates get as today's: the default in Llama 3's template."""

MASKED = -100
"""Label of a token that is not learned."""

ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{prompt}\n\n### Response:"
)


@dataclass(frozen=True)
class Encoded:
    """One tokenised example."""

    example_id: str
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    """Not shifted; `MASKED` on the prompt."""
    cut: bool = False
    """True if the end of the answer was cut off, end-of-sequence token included."""

    @property
    def num_labelled(self) -> int:
        """Labelled tokens after the causal shift (the first token never counts)."""
        return sum(label != MASKED for label in self.labels[1:])


def template_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template in use, for the user: `chat template` or `Alpaca`."""
    return "chat template" if tokenizer.chat_template else "Alpaca"


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """The text that the model reads before it answers."""
    if not tokenizer.chat_template:
        return ALPACA.format(prompt=prompt)
    return _apply_template(tokenizer, [{"role": "user", "content": prompt}], True)


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Token ids of each rendered prompt. A chat template writes its own BOS; otherwise the tokenizer adds it."""
    rendered = [render_prompt(tokenizer, prompt) for prompt in prompts]
    end = _end_id(tokenizer)
    return [_without_end(ids, end) for ids in _tokenise(tokenizer, rendered, not tokenizer.chat_template)]


def encode_openings(tokenizer: PreTrainedTokenizerBase, openings: Sequence[str]) -> list[list[int]]:
    """Token ids of the first words of answers, to stand behind a rendered prompt."""
    return _tokenise(tokenizer, list(openings), False)


def encode(tokenizer: PreTrainedTokenizerBase, example: Example, max_length: int) -> Encoded:
    """Tokenise `example`. Beyond `max_length` tokens the end of the answer is cut off, and `cut` is True.

    Raises:
        DataError: the answer is empty, or the prompt alone leaves no room for it.
        ModelError: the tokenizer has no end-of-sequence token.
    """
    return encode_all(tokenizer, [example], max_length)[0]


def encode_all(tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], max_length: int) -> list[Encoded]:
    """`encode` for each example, several times faster than one by one. Raises what `encode` raises."""
    end = answer_end(tokenizer)
    if end is None:
        raise ModelError("The tokenizer has no end-of-sequence token.", remedy="Set eos_token in its config.")
    prompts = encode_prompts(tokenizer, [example.prompt for example in examples])
    answers = _tokenise(tokenizer, [example.answer for example in examples], False)
    return [
        _join(example, prompt, answer, end, max_length)
        for example, prompt, answer in zip(examples, prompts, answers, strict=True)
    ]


def answer_end(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends an answer: the chat template's token after it, else EOS; None if there is neither.

    Raises:
        ModelError: the chat template cannot be rendered.
    """
    if not tokenizer.chat_template:
        return _end_id(tokenizer)
    named = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    found = _end_of_turn(
        lambda messages: _apply_template(tokenizer, messages, False),
        lambda text: _tokenise(tokenizer, [text], False)[0],
        named,
    )
    return _end_id(tokenizer) if found is None else found


def _apply_template(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], asks: bool) -> str:
    template = tokenizer.get_chat_template()
    return _render(template, tokenizer.special_tokens_map, messages, asks)


def _end_of_turn(
    render: Callable[[list[dict[str, str]]], str], tokenise: Callable[[str], list[int]], named: Mapping[int, str]
) -> int | None:
    """The first of the `named` tokens, ignoring blanks, that a template writes after an answer, if any."""
    answer = "answer"
    text = render([{"role": "user", "content": "prompt"}, {"role": "assistant", "content": answer}])
    _, found, rest = text.rpartition(answer)
    after = tokenise(rest) if found and rest else []
    return next((token for token in after if named.get(token, "").strip()), None)


def _tokenise(tokenizer: PreTrainedTokenizerBase, texts: list[str], add_special_tokens: bool) -> list[list[int]]:
    if not texts:
        return []  # transformers rejects an empty list
    ids = tokenizer(texts, add_special_tokens=add_special_tokens)["input_ids"]
    assert isinstance(ids, list)
    return ids  # pyright: ignore[reportReturnType]  a list of lists, for a list of texts


def _join(example: Example, prompt: list[int], answer: list[int], eos: int, max_length: int) -> Encoded:
    if not answer:
        raise DataError(
            f"Example {example.id} has an empty answer: {example.answer!r}.", remedy="Remove it or give it an answer."
        )
    if len(prompt) >= max_length:
        raise DataError(
            f"The prompt of example {example.id} takes {len(prompt)} tokens; with max_length {max_length} "
            "no token of its answer would be learned.",
            remedy=f"Raise max_length above {len(prompt) + len(answer)}, or remove the example.",
        )
    ids = [*prompt, *answer, eos]
    labels = [MASKED] * len(prompt) + ids[len(prompt) :]
    return Encoded(
        example_id=example.id,
        input_ids=tuple(ids[:max_length]),
        labels=tuple(labels[:max_length]),
        cut=len(ids) > max_length,
    )


def _end_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    value = tokenizer.eos_token_id
    return value if isinstance(value, int) else None


def _without_end(ids: list[int], eos: int | None) -> list[int]:
    """The ids without a final EOS: some tokenizers end every text with EOS, but a prompt must stay open."""
    return ids[:-1] if len(ids) > 1 and ids[-1] == eos else ids


@dataclass(frozen=True)
class PromptPreview:
    """One example as training sees it."""

    template: str
    """`chat template` or `Alpaca`."""
    text: str
    """The rendered prompt."""
    tokens: tuple[str, ...]
    """Text of each token of prompt and answer; joined they give the whole text."""
    learned: tuple[bool, ...]
    """True for tokens with a label."""
    cut: bool


def preview_here(folder: Path, example: Example, max_length: int = 200, name: str = "") -> PromptPreview:
    """The same as `encode`, from the tokenizer's files alone: no torch, no transformers.

    Other people's tokenizers and templates may take any time and memory: see `previews`.

    Args:
        folder: holds `tokenizer.json`, and `tokenizer_config.json` or `chat_template.jinja` if there is a template.
        example: the example to show.
        max_length: as in training.
        name: the user's name for the model; default: the folder.

    Raises:
        ModelError: `folder` has no readable fast tokenizer, or its template cannot be rendered.
        DataError: as `encode`.
    """
    name = name or str(folder)
    tokenizer, config = _load_tokenizer(folder, name, tokenizer_stamp(folder, name))
    template, tokens = config["chat_template"], {name: config[name] for name in ("bos_token", "eos_token")}
    eos = end = tokenizer.token_to_id(config["eos_token"] or "")
    text = ALPACA.format(prompt=example.prompt)
    if template:
        called = f"The chat template of {name}"
        text = _render(template, tokens, [{"role": "user", "content": example.prompt}], True, called)
        turn = _end_of_turn(
            lambda messages: _render(template, tokens, messages, False, called),
            lambda rest: tokenizer.encode(rest, add_special_tokens=False).ids,
            {index: token.content for index, token in tokenizer.get_added_tokens_decoder().items()},
        )
        end = eos if turn is None else turn
    if end is None:
        raise ModelError(f"The tokenizer of {name} has no end-of-sequence token.", remedy="Set eos_token.")
    prompt = _without_end(tokenizer.encode(text, add_special_tokens=not template).ids, eos)
    answer = tokenizer.encode(example.answer, add_special_tokens=False).ids
    encoded = _join(example, prompt, answer, end, max_length)
    # Decoding ids one by one loses blanks and breaks characters, so growing prefixes are decoded and compared.
    grown = [tokenizer.decode(list(encoded.input_ids[:stop]), skip_special_tokens=False) for stop in
             range(len(encoded.input_ids) + 1)]  # fmt: skip
    return PromptPreview(
        template="chat template" if template else "Alpaca",
        text=text,
        tokens=tuple(after[len(before) :] for before, after in pairwise(grown)),
        learned=tuple(label != MASKED for label in encoded.labels),
        cut=encoded.cut,
    )


TOKENIZER_FILES = {"tokenizer.json": 64 * MIB, "tokenizer_config.json": 16 * MIB, "chat_template.jinja": MIB}
"""Files that a preview reads, and how many bytes each may have."""


def tokenizer_stamp(folder: Path, name: str) -> tuple[tuple[int, int] | None, ...]:
    """Size and time of change (ns) of each tokenizer file, None for a missing file: it identifies a tokenizer.

    Raises:
        ModelError: a file is not a regular file, or is too large.
    """
    stamps = []
    for file, limit in TOKENIZER_FILES.items():
        size = file_size(folder / file, f"{file} of {name}", limit)
        stamps.append(None if size is None else (size, (folder / file).stat().st_mtime_ns))
    return tuple(stamps)


@lru_cache(maxsize=4)
def _load_tokenizer(folder: Path, name: str, stamp: object) -> tuple[Tokenizer, dict[str, str | None]]:
    """The tokenizer, and chat_template, bos_token and eos_token from its config (None if absent)."""
    from tokenizers import Tokenizer

    remedy = "Give a folder with tokenizer.json, as `save_pretrained` writes it."
    whole, settings, template = (f"{file} of {name}" for file in TOKENIZER_FILES)
    written = read_text(folder / "tokenizer.json", whole, TOKENIZER_FILES["tokenizer.json"])
    if written is None:
        raise ModelError(f"There is no tokenizer.json in {name}.", remedy=remedy)
    try:
        tokenizer = Tokenizer.from_str(written)
    except Exception as error:  # tokenizers raises plain Exception for a broken file
        raise ModelError(f"{whole} cannot be read: {str(error)[:300]}", remedy=remedy) from error
    config = read_json(folder / "tokenizer_config.json", settings, TOKENIZER_FILES["tokenizer_config.json"])
    found = config if isinstance(config, dict) else {}
    chat = read_text(folder / "chat_template.jinja", template, TOKENIZER_FILES["chat_template.jinja"])
    values: dict[str, Any] = {
        "chat_template": found.get("chat_template") if chat is None else chat,
        "bos_token": found.get("bos_token"),
        "eos_token": found.get("eos_token"),
    }
    if isinstance(values["chat_template"], list):
        entries = [entry for entry in values["chat_template"] if isinstance(entry, dict)]
        values["chat_template"] = next(
            (entry.get("template") for entry in entries if entry.get("name") == "default"), None
        )
    for key in ("bos_token", "eos_token"):
        if isinstance(values[key], dict):
            values[key] = values[key].get("content")
    wrong = next((key for key, value in values.items() if not isinstance(value, str | None)), None)
    if wrong is not None or not isinstance(config, dict | None):
        raise ModelError(
            f"{settings} is damaged: {wrong} is not text." if wrong else f"{settings} is damaged: it is no object.",
            remedy=remedy,
        )
    return tokenizer, values


@lru_cache(maxsize=8)
def _compile(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.globals |= {"raise_exception": _raise_template_error, "strftime_now": TEMPLATE_DATE.strftime}
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    return environment.from_string(template)


def _render(
    template: str,
    tokens: Mapping[str, Any],
    messages: list[dict[str, str]],
    asks: bool,
    called: str = "The chat template",
) -> str:
    """A chat template rendered in Hugging Face's environment for it, but always with the same date.

    Some templates write today's date into the prompt; otherwise a run would see other prompts every day.
    """
    known = {name: token for name, token in tokens.items() if token is not None}
    try:
        return _compile(template).render(messages=messages, add_generation_prompt=asks, enable_thinking=False, **known)
    except Exception as error:  # a template is a program: it may divide by zero, or nest too deeply
        words = str(error)[:300] or type(error).__name__
        raise ModelError(f"{called} cannot be rendered: {words}", remedy="Correct the template.") from error


def _raise_template_error(message: str) -> None:
    raise TemplateError(message)


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}`, Hugging Face's mark of the assistant's words: renders its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
