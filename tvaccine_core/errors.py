"""The errors a user can meet. Each says what was given, what is allowed, and in `remedy` what to do next."""

import difflib
import math
import reprlib
from collections.abc import Iterable, Sequence
from typing import Any


class TVaccineError(Exception):
    """Base of every error the lab raises on purpose.

    `str(error)` is the message; `remedy` is one or two sentences telling the user what to do.
    """

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy


class ConfigError(TVaccineError):
    """A setting is missing, misspelt or out of range."""


class DataError(TVaccineError):
    """A data set, a row or a column is not what was promised."""


class ModelError(TVaccineError):
    """A model or an adapter cannot be found, read or used."""


class TrainingError(TVaccineError):
    """Training cannot go on; a checkpoint, where one exists, is kept."""


class NonFiniteLossError(TrainingError):
    """The loss or a gradient became NaN or infinite at optimiser step `step`."""

    def __init__(self, message: str, *, step: int, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.step = step


class OutOfMemoryError(TrainingError):
    """The device has no memory left for the step."""


_MEMORY_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")


def lacks_memory(error: BaseException) -> bool:
    """True if `error`, raised by Python or by a device, says that memory ran out."""
    return isinstance(error, MemoryError | OutOfMemoryError) or any(
        words in str(error).lower() for words in _MEMORY_WORDS
    )


class CancelledError(TVaccineError):
    """The user asked a job to stop; not a failure."""


class StoreError(TVaccineError):
    """The run store cannot be read or written."""


class RunNotFoundError(StoreError):
    """No run, job or model state of that name."""


class RunBusyError(StoreError):
    """The same work is already queued or running. `run_id` and `attack_id` name it; each is empty if unknown."""

    def __init__(self, message: str, *, remedy: str = "", run_id: str = "", attack_id: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.run_id = run_id
        self.attack_id = attack_id


SHOWN = 80
"""Characters of a given value that a message repeats."""


class _Repr(reprlib.Repr):
    """Keeps every repr short: no deep nesting, no long lists, no number that Python refuses to write out."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = limit

    def repr_int(self, x: int, level: int) -> str:
        if x.bit_length() < 200:
            return repr(x)
        return f"<a whole number of about {int(x.bit_length() * math.log10(2)):,} digits>"  # Python will not write it


def shown(given: Any, limit: int = SHOWN) -> str:
    """`repr(given)` for a message: at most `limit` characters, control characters and lone surrogates escaped."""
    return cut(_Repr(limit).repr(given), limit)


def cut(text: str, limit: int) -> str:
    """`text` for a message: at most `limit` characters, lone surrogates escaped so that it can be printed."""
    text = text[: limit + 1].encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def did_you_mean(given: str, names: Iterable[str], also: Sequence[str] = ()) -> str:
    """A remedy for a name that does not exist: similar names, if there are any, then all names.

    Args:
        given: the wrong name.
        names: all names that exist.
        also: suggested if none of `names` is similar.
    """
    names = list(names)
    by_lower = {name.lower(): name for name in names}
    close = [by_lower[name] for name in difflib.get_close_matches(given[:SHOWN].lower(), by_lower, n=2)] or also[:3]
    guess = f"Did you mean {' or '.join(close)}? " if close else ""
    return f"{guess}There are: {', '.join(names)}."
