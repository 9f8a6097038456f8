"""The one place where errors become text for users: message and remedy, never a path or a stack."""

import functools
import inspect
import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import gradio as gr

from app import text
from app.services import TVaccineError, without_places

LOGGER = logging.getLogger("tvaccine.app")

LONGEST = 2000
"""Characters of a message that are shown: it may repeat the user's input."""

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def guarded(function: FunctionT, home: Path) -> FunctionT:
    """`function`, generator or not, with errors that a user can read, without the path of the data folder `home`."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generate(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with _readable(function.__name__, home):
                yield from function(*args, **kwargs)

        return generate  # pyright: ignore[reportReturnType] - same signature, which wraps() carries over

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _readable(function.__name__, home):
            return function(*args, **kwargs)

    return call  # pyright: ignore[reportReturnType] - same signature, which wraps() carries over


@contextmanager
def _readable(name: str, home: Path) -> Iterator[None]:
    try:
        yield
    except gr.Error:
        raise
    except TVaccineError as error:
        fail(without_places(str(error), home), without_places(error.remedy, home))
    except Exception:
        ticket = secrets.token_hex(3)
        LOGGER.exception("note %s, in %s", ticket, name)
        fail(text.UNKNOWN_ERROR.format(ticket=ticket), text.UNKNOWN_REMEDY)


def fail(message: str, remedy: str = "") -> NoReturn:
    """Show `message` and `remedy` to the visitor or script that acted; nothing else happens."""
    message = message if len(message) <= LONGEST else f"{message[: LONGEST - 1]}…"
    words = escape(f"{message} {remedy}".strip(), quote=False)  # the page shows it as HTML
    raise gr.Error(words, title=text.ERROR_TITLE, duration=12, print_exception=False)
