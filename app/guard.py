"""The one place where errors become what a user reads: message and remedy, never a path or a stack."""

import functools
import inspect
import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any, NoReturn, TypeVar

import gradio as gr

from app import text
from app.services import TVaccineError

LOGGER = logging.getLogger("tvaccine.app")

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def guarded(function: FunctionT) -> FunctionT:
    """`function`, whose errors a user can read. Generators keep being generators."""
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def generate(*args: Any, **kwargs: Any) -> Iterator[Any]:
            with _readable(function.__name__):
                yield from function(*args, **kwargs)

        return generate  # pyright: ignore[reportReturnType] - same signature, which wraps() carries over

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _readable(function.__name__):
            return function(*args, **kwargs)

    return call  # pyright: ignore[reportReturnType] - same signature, which wraps() carries over


@contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except gr.Error:
        raise
    except TVaccineError as error:
        fail(str(error), error.remedy)
    except Exception:
        ticket = secrets.token_hex(3)
        LOGGER.exception("note %s, in %s", ticket, name)
        fail(text.UNKNOWN_ERROR.format(ticket=ticket), text.UNKNOWN_REMEDY)


def fail(message: str, remedy: str = "") -> NoReturn:
    """Show `message` and `remedy` to the one who acted, a visitor or a script; nothing else happens."""
    words = escape(f"{message} {remedy}".strip(), quote=False)  # the page shows it as HTML
    raise gr.Error(words, title=text.ERROR_TITLE, duration=12, print_exception=False)
