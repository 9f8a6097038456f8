"""YAML as the lab reads and writes it: plain data, within limits that also bound the time. Torch-free.

It reads the values that JSON has, in YAML's notation: text, numbers, true, false, null, lists, and mappings from text.
Scalars follow YAML 1.2's core schema (yaml.org/spec/1.2.2): `1e-3` is a number; `no`, `2020-01-01` and `1:30` are text.
It refuses anchors and aliases (a short text may stand for a huge value), tags (they may call code), a key given twice,
and more than one document; errors name the line.

PyYAML's parser yields events one by one, without recursion, so a limit stops it before it reads the rest.
"""

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.reader import ReaderError

from tvaccine_core.errors import ConfigError, cut, shown

MAX_SIZE = 1 << 20
"""Characters of a text and bytes of a file. A config has some thousands."""
MAX_VALUE = 10_000
"""Characters of one value on the command line."""
MAX_ITEMS = 10_000
"""Values in a text; lists, mappings and keys count too."""
MAX_DEPTH = 20
"""Lists and mappings inside each other. A config has 5."""
MAX_DIGITS = 300
"""Digits of a number: more than any setting takes, fewer than Python refuses."""

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_HALF = re.compile("[\ud800-\udfff]")
_SPECIAL_FLOAT = re.compile(r"([-+]?)\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


def read_yaml(text: str, what: str, *, remedy: str, max_size: int = MAX_SIZE) -> Any:
    """The value of `text`; None if there is none.

    Args:
        text: one YAML document.
        what: the beginning of a message, such as `The config`.
        remedy: the remedy of every error.
        max_size: characters allowed.

    Raises:
        ConfigError: it cannot be read, or is larger or deeper than allowed; names the line, counted from 1.
    """
    if len(text) > max_size:
        raise ConfigError(
            f"{what} has {len(text):,} characters; at most {max_size:,} are allowed.", remedy="Give a shorter one."
        )
    return _Reading(text, what, remedy).value()


def write_yaml(data: Any) -> str:
    """`data` as YAML that `read_yaml`, and any other reader of YAML 1.1 or 1.2, reads back unchanged."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False)


def read_file(path: Path, *, remedy: str, max_bytes: int = MAX_SIZE) -> str:
    """The text of a regular file of at most `max_bytes` bytes in UTF-8, with or without a byte order mark.

    Only regular files are opened: a pipe would wait for a writer for ever.

    Raises:
        ConfigError: it cannot be read, or is not such a file.
    """
    where = cut(str(path), 200)
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ConfigError(f"{where} is not a regular file.", remedy=remedy)
        content = b""
        if found.st_size <= max_bytes:
            with path.open("rb") as file:
                content = file.read(max_bytes + 1)  # its size may have changed, or be unknown, as in /proc
        if max(found.st_size, len(content)) > max_bytes:
            raise ConfigError(f"{where} has more than the {max_bytes:,} bytes that are allowed.", remedy=remedy)
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not text in UTF-8 (byte {error.start:,}).", remedy=remedy) from error
    except (OSError, ValueError) as error:  # a ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"Cannot read {where}: {reason}", remedy=remedy) from error


class _Dumper(yaml.SafeDumper):
    """Quotes text that reads as a number in YAML 1.1 or 1.2, and repeats a repeated value instead of an anchor."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(f"(?:{_INT.pattern})$"), list("-+0123456789"))
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"(?:{_FLOAT.pattern})$"), list("-+.0123456789"))


class _Reading:
    """One text being read."""

    def __init__(self, text: str, what: str, remedy: str) -> None:
        self._text = text
        self._what = what
        self._remedy = remedy
        self._num_items = 0
        self._line = 0

    def value(self) -> Any:
        """The document's value."""
        events = self._events()
        documents = 0
        value = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._fail("a second document begins, but only one document is read")
            elif isinstance(event, yaml.NodeEvent):
                value = self._node(event, events, depth=0)
        return value

    def _events(self) -> Iterator[yaml.Event]:
        loader: Any = None
        try:
            loader = yaml.SafeLoader(self._text)
            while loader.check_event():
                event = loader.get_event()
                self._line = event.start_mark.line
                yield event
        except ReaderError as error:
            self._line = self._text.count("\n", 0, error.position)
            self._fail(f"YAML does not allow the character #x{ord(self._text[error.position]):04x}")
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self._line = mark.line if mark else self._line
            self._fail(", ".join(cut(part, 100) for part in (error.context, error.problem) if part))
        except (ValueError, OverflowError) as error:  # PyYAML lets them pass: an escape or a version out of range
            self._fail(cut(str(error), 100))
        finally:
            if loader is not None:
                loader.dispose()

    def _node(self, event: yaml.Event, events: Iterator[yaml.Event], depth: int) -> Any:
        self._num_items += 1
        if self._num_items > MAX_ITEMS:
            self._fail(f"there are more than {MAX_ITEMS:,} values")
        if isinstance(event, yaml.AliasEvent):
            self._fail(f"the alias *{cut(event.anchor, 100)} is not allowed, write the value out")
        anchor, tag = getattr(event, "anchor", None), getattr(event, "tag", None)
        if anchor is not None:
            self._fail(f"the anchor &{cut(anchor, 100)} is not allowed, leave it out")
        if tag is not None:
            self._fail(f"the tag {cut(tag, 100)} is not allowed, leave it out")
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if depth >= MAX_DEPTH:
            self._fail(f"too deep, more than {MAX_DEPTH} lists or mappings stand inside each other")
        if isinstance(event, yaml.SequenceStartEvent):
            return self._list(events, depth + 1)
        return self._mapping(events, depth + 1)

    def _list(self, events: Iterator[yaml.Event], depth: int) -> list[Any]:
        found: list[Any] = []
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            found.append(self._node(event, events, depth))
        return found

    def _mapping(self, events: Iterator[yaml.Event], depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            key = self._node(event, events, depth) if isinstance(event, yaml.ScalarEvent) else None
            if not isinstance(key, str):
                self._fail(f"a key must be text, not {'a list, a mapping or nothing' if key is None else shown(key)}")
            if key in found:
                self._fail(f"the key {shown(key)} is given twice")
            found[key] = self._node(next(events), events, depth)
        return found

    def _scalar(self, event: yaml.ScalarEvent) -> Any:
        text = event.value
        if _HALF.search(text):
            self._fail("an escape stands for half a character (a lone surrogate)")
        if event.style is not None or not event.implicit[0]:
            return text
        if _NULL.fullmatch(text):
            return None
        if _BOOL.fullmatch(text):
            return text.lower() == "true"
        is_int = _INT.fullmatch(text)
        if is_int or _FLOAT.fullmatch(text):
            if len(text) > MAX_DIGITS:
                self._fail(f"a number has {len(text):,} digits, at most {MAX_DIGITS} are allowed")
            return int(text) if is_int else float(text)
        if special := _SPECIAL_FLOAT.fullmatch(text):
            return float("nan") if special[3] else float(f"{special[1]}inf")
        return text

    def _fail(self, problem: str) -> NoReturn:
        raise ConfigError(f"{self._what} cannot be read, line {self._line + 1}: {problem}.", remedy=self._remedy)
