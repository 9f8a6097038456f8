"""Text that may be stored and shown: valid Unicode, and without paths of this machine. Torch-free."""

import re
import tempfile
from pathlib import Path

from tvaccine_core.errors import DataError

MAX_PROMPT = 2000
"""Characters of a prompt."""
DATA_FOLDER = "<data folder>"


def check_unicode(text: str, what: str) -> None:
    """Raise `DataError` if `text` holds half a character (a lone surrogate), which no file and no tokenizer takes.

    Args:
        text: from a visitor, a script or a command line.
        what: names it in the message, as the beginning of a sentence.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{what} is not valid Unicode: half a character (U+{ord(text[error.start]):04X}) at position "
            f"{error.start + 1}.",
            remedy="Type it again, or copy it from a program that copies whole characters.",
        ) from error


def check_prompt(prompt: str) -> str:
    """A prompt without the spaces around it. Raises `DataError` if it is empty, too long, or not valid Unicode."""
    check_unicode(prompt, "The prompt")
    prompt = prompt.strip()
    if not 1 <= len(prompt) <= MAX_PROMPT:
        raise DataError(
            f"A prompt has 1 to {MAX_PROMPT:,} characters, not {len(prompt):,}.",
            remedy="Give a question; the page suggests some.",
        )
    return prompt


def without_places(text: str, home: Path) -> str:
    """`text` for a stranger's eyes: each folder of this machine is replaced by a word for its purpose.

    Args:
        text: a message, for example of an error.
        home: the data folder.
    """
    words = {str(home): DATA_FOLDER, str(Path.home()): "~", tempfile.gettempdir(): "<temporary folder>"}
    for place in sorted(words, key=len, reverse=True):  # the longest first: one may lie in another
        if len(place) > 1:
            text = re.sub(rf"(?<![\w/.-]){re.escape(place)}(?![\w-]|\.\w)", lambda _, place=place: words[place], text)
    return text
