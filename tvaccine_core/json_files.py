"""Reading small files that somebody else wrote: regular files only, within a size limit, as text or as JSON.

A pipe or a device under a file's name would block its reader, or feed it for ever. So the file system is asked for
kind and size first; nothing is opened to find them out.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from tvaccine_core.errors import ModelError

MIB = 2**20
AGAIN = "Download or copy this file again."
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def look_at(path: Path, called: str) -> os.stat_result | None:
    """The file system's entry for `path`, links followed; None if there is none.

    Args:
        called: the file's name in errors, in words that the user knows.

    Raises:
        ModelError: looking at it is forbidden, or no file can have such a name.
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # ValueError: the name holds NUL, or half a surrogate pair
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ModelError(
            f"{called} cannot be looked at: {why}.",
            remedy="Check the name, and that the user who runs the lab may read it.",
        ) from error


def file_size(path: Path, called: str, limit: int | None = None) -> int | None:
    """Bytes of the regular file `path`; None if there is no such file.

    Raises:
        ModelError: as `look_at`; it is not a regular file, or it has more than `limit` bytes.
    """
    found = look_at(path, called)
    if found is None:
        return None
    if not stat.S_ISREG(found.st_mode):
        kind = next((words for is_kind, words in _KINDS if is_kind(found.st_mode)), "something else")
        raise ModelError(
            f"{called} is {kind}, not a regular file.", remedy="Put the file itself there, or a link to it."
        )
    if limit is not None and found.st_size > limit:
        raise ModelError(
            f"{called} has {found.st_size / MIB:,.1f} MiB; at most {limit / MIB:g} MiB are read.",
            remedy="Check that it is what its name says; if it is damaged, download or copy it again.",
        )
    return found.st_size


def read_text(path: Path, called: str, limit: int) -> str | None:
    """The text of a file; None if there is no file. Raises `ModelError` as `file_size`, or if it is not UTF-8."""
    if file_size(path, called, limit) is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{called} is damaged: it is not UTF-8 text ({error.reason}).", remedy=AGAIN) from error
    except OSError as error:
        raise ModelError(
            f"{called} cannot be read: {error.strerror}.",
            remedy="Check that the user who runs the lab may read it.",
        ) from error


def read_json(path: Path, called: str, limit: int) -> Any:
    """The value in a JSON file; None if there is no file, or if it holds null.

    NaN and Infinity are let through, as Python's own reader does: published configs have them.

    Raises:
        ModelError: as `read_text`; it is not JSON, is nested too deeply, or gives one key two values.
    """
    text = read_text(path, called, limit)
    if text is None:
        return None
    try:
        return json.loads(text, object_pairs_hook=_without_contradictions)
    except RecursionError as error:
        raise ModelError(f"{called} is damaged: it is nested too deeply.", remedy=AGAIN) from error
    except ValueError as error:
        raise ModelError(f"{called} is damaged: {error}", remedy=AGAIN) from error


def _without_contradictions(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object, if no key has two values: readers differ in which one they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if repr(found[key]) != repr(value):
                raise ValueError(f"{key[:80]!r} is given twice, with different values")
    return found
