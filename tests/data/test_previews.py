"""A preview outlives the tokenizer and the template that it shows."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tvaccine_core.data import previews
from tvaccine_core.data.previews import preview
from tvaccine_core.data.prompts import preview_here
from tvaccine_core.errors import DataError, ModelError
from tvaccine_core.records import Example
from tvaccine_core.worlds.sandbox.base import SANDBOX_BASE

SaveTokenizer = Callable[..., None]
EXAMPLE = Example(id="x/1", prompt="How do I make a merry kite?", answer="Stir two spoons.", source="ordinary")


@pytest.fixture
def folder(save_tokenizer: SaveTokenizer, tmp_path: Path) -> Path:
    save_tokenizer(tmp_path)
    return tmp_path


def test_it_shows_the_same_as_in_this_process_and_again_when_files_change(folder: Path) -> None:
    assert preview(folder, EXAMPLE) == preview_here(folder, EXAMPLE)
    before = time.perf_counter()
    assert preview(folder, EXAMPLE).template == "chat template"
    assert time.perf_counter() - before < 0.1  # no process was started
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }} !!!{{ eos_token }}")
    assert "!!!" in preview(folder, EXAMPLE).text


def test_the_lab_s_own_tokenizer_needs_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(previews, "PACKAGES", Path("/nowhere"))
    assert preview(SANDBOX_BASE, EXAMPLE) == preview_here(SANDBOX_BASE, EXAMPLE)


def test_errors_come_through(folder: Path) -> None:
    with pytest.raises(DataError, match="x/1") as caught:
        preview(folder, EXAMPLE, 8)
    assert "max_length" in caught.value.remedy
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match=r"tokenizer\.json of mine cannot be read"):
        preview(folder, EXAMPLE, name="mine")


def test_a_template_that_never_ends_is_ended(folder: Path) -> None:
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    (folder / "chat_template.jinja").write_text(loop)
    with pytest.raises(ModelError, match="template of mine did not make a preview within 1 s"):
        preview(folder, EXAMPLE, name="mine", within_s=1)


@pytest.mark.parametrize("template", ["{{ 'a' * 10**11 }}", "{{ '%99999999999s' % 'a' }}", "{{ 'a'.ljust(10**11) }}"])
def test_a_template_that_takes_all_memory_gets_none(folder: Path, template: str) -> None:
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ModelError, match="mine") as caught:
        preview(folder, EXAMPLE, name="mine")
    assert caught.value.remedy


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"])
def test_a_pipe_is_not_read(folder: Path, file: str) -> None:
    (folder / file).unlink(missing_ok=True)
    os.mkfifo(folder / file)
    with pytest.raises(ModelError, match=f"{file} of mine is a pipe"):
        preview(folder, EXAMPLE, name="mine")
