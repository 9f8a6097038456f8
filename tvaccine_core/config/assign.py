"""Settings by dotted paths: `attack.harmful_ratio`, `defences.tvaccine.alignment.rho`. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tvaccine_core.config.base import ConfigT, parse_config
from tvaccine_core.errors import SHOWN, ConfigError, cut, did_you_mean, shown

REMEDY = "Write FIELD=VALUE, for example attack.harmful_ratio=0.2."


@dataclass(frozen=True)
class Assignment:
    """A setting's new value. A mapping changes only the settings that it names."""

    path: str
    """Names joined by dots; of a list, the part with this name."""
    value: Any
    text: str
    """The assignment as the user wrote it, for messages."""


def assign(config: ConfigT, assignments: Iterable[Assignment]) -> ConfigT:
    """`config` with these settings.

    Raises:
        ConfigError: no such field, or a value that is not allowed.
    """
    data = config.model_dump(mode="json")
    for assignment in assignments:
        *parents, last = (name.strip() for name in assignment.path.split("."))
        if not all((*parents, last)):
            raise ConfigError(f"{shown(assignment.text)} has no name before, between or after dots.", remedy=REMEDY)
        place: Any = data
        for name in parents:
            place = _child(data, place, name, assignment.text)
        _assign(data, place, last, assignment.value, assignment.text)
    return parse_config(type(config), data)


def _assign(root: Any, place: Any, name: str, value: Any, text: str) -> None:
    """Set `name` of `place`, which is a part of `root`."""
    before = _child(root, place, name, text)
    if not isinstance(before, dict):
        place[name] = value
        return
    if not isinstance(value, dict):
        raise ConfigError(
            f"{shown(name)} holds several settings, and {shown(text)} gives it {shown(value)}.",
            remedy=f"Set one of them, as in {cut(name, SHOWN)}.{next(iter(before))}. There are: {', '.join(before)}.",
        )
    for key, item in value.items():
        _assign(root, before, key, item, text)


def _child(root: Any, place: Any, name: str, text: str) -> Any:
    """The part called `name` of a mapping, or of a list of named mappings."""
    names: dict[str, Any] = {}
    if isinstance(place, dict):
        names = place
    elif isinstance(place, list):
        names = {str(item["name"]): item for item in place if isinstance(item, dict) and "name" in item}
    if name in names:
        return names[name]
    elsewhere = [path for path in _paths(root) if path.endswith(f".{name}")] if place is root else []
    remedy = did_you_mean(name, names, elsewhere) if names else "This field has no parts."
    raise ConfigError(f"There is no setting {shown(name)} for {shown(text)}.", remedy=remedy)


def _paths(data: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Every dotted path of a mapping of mappings."""
    for name, value in data.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{name}.")
