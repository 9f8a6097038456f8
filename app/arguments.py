"""Checks of values sent to an endpoint. A page sends only what its controls allow; a script may send anything.

Every check names what was given and what is allowed, so that "something went wrong" only means a fault of the lab.
"""

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Annotated, Any, TypeVar

import gradio as gr
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, create_model

from app.services import ConfigError, DataError, shown

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])
ItemT = TypeVar("ItemT")

RELOAD = "Reload the page and choose again."

MAX_TEXTS = 24


def _whole(value: object) -> object:
    """JavaScript has no separate type for whole numbers: 100.0 counts as 100."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[str, Field(strict=True)]
Name = Annotated[str, Field(strict=True, min_length=1, max_length=120)]
Names = Annotated[list[Name], Field(strict=True, max_length=32)]
Share = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, BeforeValidator(_whole), Field(strict=True, ge=1, le=1_000_000)]


def checked(function: FunctionT) -> FunctionT:
    """`function`, called only with arguments of the types in its signature (`Annotated` bounds included).

    Raises:
        DataError: names every wrong argument, its value, and what is allowed.
    """
    kinds = inspect.signature(function, eval_str=True).parameters
    fields: dict[str, Any] = {name: (kind.annotation, ...) for name, kind in kinds.items()}
    arguments = create_model(function.__name__, __config__=ConfigDict(extra="forbid"), **fields)

    @functools.wraps(function)
    def call(*values: Any) -> Any:
        try:
            found = arguments.model_validate(dict(zip(kinds, values, strict=False)))
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, detail['loc']))}: {detail['msg']} (given: {shown(detail['input'])})"
                for detail in error.errors(include_url=False)[:8]
            ]
            raise DataError(
                "; ".join(problems),
                remedy=f"Correct these arguments of /{function.__name__}; the page lists them under `Use via API`.",
            ) from error
        return function(*(getattr(found, name) for name in kinds))

    return call  # pyright: ignore[reportReturnType] - same signature, which wraps() carries over


def one_of(value: object, allowed: Collection[ItemT], what: str) -> ItemT:
    """`value`, if it is one of `allowed`. Raises `ConfigError`; `what` names it, as the beginning of a sentence."""
    for item in allowed:
        if type(item) is type(value) and item == value:
            return item
    choices = ", ".join(map(str, allowed))
    raise ConfigError(f"{what} is one of {choices}, not {shown(value)}.", remedy=RELOAD)


def texts_of(values: object, what: str) -> list[str]:
    """`values`, if it is a short list of short texts. Raises `ConfigError`; `what` names it."""
    found = list(values) if isinstance(values, list | tuple) else None
    if found is None or len(found) > MAX_TEXTS or not all(isinstance(item, str) and len(item) < 200 for item in found):
        raise ConfigError(f"{what}: a list of names, {MAX_TEXTS} at most, not {shown(values)}.", remedy=RELOAD)
    return found


def text_of(value: object, what: str) -> str:
    """`value`, if it is text. Raises `DataError`."""
    if not isinstance(value, str):
        raise DataError(f"{what} is text, not {shown(value)}.", remedy="Type it, and send it again.")
    return value


def choice_of(event: gr.EventData) -> str:
    """The choice of a click (`data-choice`). Raises `DataError` if the event has none."""
    data = event._data
    choice = data.get("choice") if isinstance(data, dict) else None
    if not isinstance(choice, str):
        raise DataError(f"A click names its choice as text, not {shown(choice)}.", remedy=RELOAD)
    return choice


def row_of(choice: str, num_rows: int) -> int:
    """The row that a click chose, 0..num_rows-1. Raises `DataError`."""
    row = int(choice) if choice.isdecimal() and len(choice) < 10 else num_rows
    if row >= num_rows:
        raise DataError(f"There are rows 0 to {num_rows - 1}, not {shown(choice)}.", remedy=RELOAD)
    return row
