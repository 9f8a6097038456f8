"""The base of every config: no unknown keys, real and finite numbers, errors that name each field. Torch-free."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from tvaccine_core.errors import ConfigError, cut, did_you_mean, shown

ADVANCED: dict[str, Any] = {"advanced": True}
"""Marks a field that the page folds."""

MAX_NUMBER = 2**53
"""Largest whole number: JSON, a browser and a float keep it exactly up to here."""
MAX_PROBLEMS = 10
"""Wrong fields that one message names."""
MAX_HINTS = 3
"""With more wrong fields than this, the message gives no suggestions."""

_WORDS = {
    "extra_forbidden": "There is no such setting",
    "model_type": "Input should be a mapping of settings",
    "model_attributes_type": "Input should be a mapping of settings",
    "invalid_key": "Names of settings are text",
}
"""Replaces words of pydantic that are for programmers."""


class Config(BaseModel):
    """Frozen; an unknown key is an error; true is not a number; every number is finite.

    Text that spells a number counts as a number, and 4.0 as the whole number 4: controls of a page and command lines
    give such values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _true_is_no_number(cls, data: Any) -> Any:
        """Turn true and false into text in fields of numbers: pydantic takes the values as 1 and 0, not the text."""
        if not isinstance(data, dict):
            return data
        numbers = _number_fields(cls)
        return {key: _spelt_out(value) if key in numbers else value for key, value in data.items()}

    @field_validator("*", mode="after")
    @classmethod
    def _numbers_keep_exactly(cls, value: Any) -> Any:
        values = value if isinstance(value, tuple) else [value]
        if any(isinstance(item, int) and abs(item) > MAX_NUMBER for item in values):
            raise ValueError(f"Whole numbers go up to 2**53 = {MAX_NUMBER}")
        return value


@cache
def _number_fields(cls: type[BaseModel]) -> frozenset[str]:
    """Fields that hold numbers, one or several."""
    kinds = {name: {field.annotation, *get_args(field.annotation)} for name, field in cls.model_fields.items()}
    return frozenset(name for name, found in kinds.items() if found & {int, float} and bool not in found)


def _spelt_out(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_spelt_out(item) for item in value]
    return str(value).lower() if isinstance(value, bool) else value


ConfigT = TypeVar("ConfigT", bound=Config)


def parse_config(cls: type[ConfigT], data: dict[str, Any]) -> ConfigT:
    """Validate `data` as a `cls`.

    Raises:
        ConfigError: names every wrong field (the first ones, if there are many), what was given and what is allowed.
    """
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False)
        # A list whose items are wrong also counts as too short for pydantic.
        inner = {detail["loc"][:depth] for detail in details for depth in range(1, len(detail["loc"]))}
        details = [detail for detail in details if detail["type"] != "too_short" or detail["loc"] not in inner]
        hint = len(details) <= MAX_HINTS
        problems = [_problem(detail, cls, hint) for detail in details[:MAX_PROBLEMS]]
        if len(details) > MAX_PROBLEMS:
            problems.append(f"and {len(details) - MAX_PROBLEMS:,} more")
        raise ConfigError("; ".join(problems), remedy="Correct the named settings and try again.") from error


def _problem(detail: Mapping[str, Any], cls: type[Config], hint: bool) -> str:
    place = ".".join(cut(str(part), 40) for part in detail["loc"]) or "config"
    message = _WORDS.get(detail["type"]) or cut(detail["msg"].removeprefix("Value error, "), 300)
    if hint and detail["type"] == "extra_forbidden" and (holder := _holder(cls, detail["loc"][:-1])):
        message += f". {cut(did_you_mean(str(detail['loc'][-1]), holder.model_fields), 300)}"
    return f"{place}: {message} (given: {shown(detail['input'])})"


def _holder(kind: Any, place: Sequence[int | str]) -> type[Config] | None:
    """The config class at `place` below `kind`; None if it cannot be found.

    Args:
        kind: a config class, a union of config classes, or a list of them.
        place: names of fields, indices of list items, and names of chosen members of unions.
    """
    if not place:
        return kind if isinstance(kind, type) and issubclass(kind, Config) else None
    step, *rest = place
    if isinstance(kind, type) and issubclass(kind, Config):
        field = kind.model_fields.get(str(step))
        return _holder(field.annotation, rest) if field else None
    members = get_args(kind)
    if isinstance(step, int):
        return _holder(members[0], rest) if members else None
    named = (member for member in members if isinstance(member, type) and issubclass(member, Config))
    return next((_holder(member, rest) for member in named if _name_of(member) == step), None)


def _name_of(cls: type[Config]) -> Any:
    field = cls.model_fields.get("name")
    return field.default if field else None
