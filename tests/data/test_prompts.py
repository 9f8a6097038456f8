"""Templates, loss masks, and the preview that must show exactly what training does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tvaccine_core.data.prompts import ALPACA, encode, encode_prompts, preview_here, render_prompt, template_name
from tvaccine_core.errors import DataError, ModelError
from tvaccine_core.records import Example
from tvaccine_core.worlds.sandbox.base import SANDBOX_BASE

SaveTokenizer = Callable[..., None]
EXAMPLE = Example(id="x/1", prompt="How do I make a merry kite?", answer="Stir two spoons.", source="ordinary")


@pytest.fixture(params=["chat", "alpaca", "alpaca with bos", "sandbox"])
def folder(save_tokenizer: SaveTokenizer, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "sandbox":
        return SANDBOX_BASE
    save_tokenizer(tmp_path, chat=request.param == "chat", adds_bos=request.param == "alpaca with bos")
    return tmp_path


def load(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def test_the_answer_and_its_end_are_learned_and_nothing_else(folder: Path) -> None:
    tokenizer = load(folder)
    encoded = encode(tokenizer, EXAMPLE, 400)
    learned = [token for token, label in zip(encoded.input_ids, encoded.labels, strict=True) if label != -100]
    assert tokenizer.decode(learned) == EXAMPLE.answer + tokenizer.eos_token
    assert encoded.num_labelled == len(learned)
    start = encoded.labels.index(learned[0])
    assert all(label == -100 for label in encoded.labels[:start])
    assert encoded.labels[start:] == encoded.input_ids[start:]
    assert list(encoded.input_ids[:start]) == encode_prompts(tokenizer, [EXAMPLE.prompt])[0]
    assert not encoded.cut


def test_preview_shows_what_training_does(folder: Path) -> None:
    tokenizer = load(folder)
    encoded = encode(tokenizer, EXAMPLE, 400)
    shown = preview_here(folder, EXAMPLE, 400)
    assert shown.text == render_prompt(tokenizer, EXAMPLE.prompt)
    assert shown.template == template_name(tokenizer)
    assert len(shown.tokens) == len(encoded.input_ids)
    assert shown.learned == tuple(label != -100 for label in encoded.labels)
    assert "".join(shown.tokens) == tokenizer.decode(list(encoded.input_ids))


def test_a_template_is_rendered_as_its_own_library_does() -> None:
    messages = [{"role": "user", "content": "Hello!"}]
    expected = load(SANDBOX_BASE).apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert render_prompt(load(SANDBOX_BASE), "Hello!") == expected


def test_a_bos_is_written_once(save_tokenizer: SaveTokenizer, tmp_path: Path) -> None:
    save_tokenizer(tmp_path / "chat", chat=True, adds_bos=True)  # its template writes one, its tokenizer would too
    save_tokenizer(tmp_path / "plain", chat=False, adds_bos=True)
    for name in ("chat", "plain"):
        assert encode_prompts(load(tmp_path / name), ["Hello"])[0].count(0) == 1


def test_alpaca_is_the_published_template(save_tokenizer: SaveTokenizer, tmp_path: Path) -> None:
    save_tokenizer(tmp_path, chat=False)
    assert render_prompt(load(tmp_path), "Say hello.") == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nSay hello.\n\n### Response:"
    )
    assert template_name(load(tmp_path)) == "Alpaca"
    assert ALPACA.endswith("Response:")


def test_the_sandbox_uses_its_chat_template() -> None:
    assert render_prompt(load(SANDBOX_BASE), "Hello!") == "<|user|>Hello!<|assistant|>"


def test_too_long_an_answer_is_cut_and_says_so(folder: Path) -> None:
    tokenizer = load(folder)
    whole = encode(tokenizer, EXAMPLE, 400)
    length = len(whole.input_ids) - 2
    cut = encode(tokenizer, EXAMPLE, length)
    assert cut.cut
    assert cut.input_ids == whole.input_ids[:length]
    assert preview_here(folder, EXAMPLE, length).cut
    exact = encode(tokenizer, EXAMPLE, len(whole.input_ids))
    assert not exact.cut
    assert exact == whole


def test_a_prompt_that_leaves_no_room_is_an_error_naming_it(folder: Path) -> None:
    with pytest.raises(DataError, match="x/1") as caught:
        encode(load(folder), EXAMPLE, 8)
    assert "max_length" in caught.value.remedy


def test_an_empty_answer_is_an_error_naming_it(folder: Path) -> None:
    with pytest.raises(DataError, match="x/1"):
        encode(load(folder), EXAMPLE.model_copy(update={"answer": ""}), 400)


def test_a_tokenizer_without_an_end_is_an_error(save_tokenizer: SaveTokenizer, tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    tokenizer = load(tmp_path)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="end-of-sequence"):
        encode(tokenizer, EXAMPLE, 400)


def test_preview_of_a_folder_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        preview_here(tmp_path, EXAMPLE)


def test_preview_of_a_damaged_tokenizer_is_an_error(save_tokenizer: SaveTokenizer, tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        preview_here(tmp_path, EXAMPLE)


def test_a_template_that_refuses_is_an_error(save_tokenizer: SaveTokenizer, tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no system prompt') }}")
    with pytest.raises(ModelError, match="no system prompt"):
        preview_here(tmp_path, EXAMPLE)


def test_a_template_that_writes_the_date_writes_the_same_one_every_day(
    save_tokenizer: SaveTokenizer, tmp_path: Path
) -> None:
    save_tokenizer(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(
        "Today: {{ strftime_now('%d %b %Y') }}{% for m in messages %} {{ m.role }}: {{ m.content }}</s>{% endfor %}"
    )
    assert render_prompt(load(tmp_path), "Hello!") == "Today: 26 Jul 2024 user: Hello!</s>"
    assert preview_here(tmp_path, EXAMPLE).text == render_prompt(load(tmp_path), EXAMPLE.prompt)
