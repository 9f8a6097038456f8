"""Errors: what is meant for the user reaches them, the rest goes to the log with a note to find it by."""

import logging
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest

from app.guard import guarded
from app.services import StoreError

HOME = Path("/srv/lab")


def test_a_known_error_is_message_and_remedy() -> None:
    def fails() -> None:
        raise StoreError("The disk <b>is</b> full.", remedy="Delete old runs.")

    with pytest.raises(gr.Error) as caught:
        guarded(fails, HOME)()
    assert caught.value.message == "The disk &lt;b&gt;is&lt;/b&gt; full. Delete old runs."


def test_an_unknown_error_shows_no_path_and_is_found_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> None:
        raise RuntimeError("/secret/path")

    with caplog.at_level(logging.ERROR), pytest.raises(gr.Error) as caught:
        guarded(fails, HOME)()
    assert "/secret" not in caught.value.message
    note = caught.value.message.split("(note ")[1].split(")")[0]
    assert note in caplog.text
    assert "/secret/path" in caplog.text
    assert "fails" in caplog.text


def test_generators_yield_until_they_fail() -> None:
    def fails() -> Iterator[int]:
        yield 1
        raise StoreError("No.", remedy="Stop.")

    values = guarded(fails, HOME)()
    assert next(values) == 1
    with pytest.raises(gr.Error, match=r"No\. Stop\."):
        next(values)


def test_an_error_made_for_the_page_passes() -> None:
    def fails() -> None:
        raise gr.Error("as it is")

    with pytest.raises(gr.Error, match="as it is"):
        guarded(fails, HOME)()
