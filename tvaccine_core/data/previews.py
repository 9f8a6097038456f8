"""The preview of one example, made in a separate process unless tokenizer and template are the lab's own.

A chat template is a program, and a tokenizer's pattern may search for ever. Both come with a model, and the page must
survive them. So they run in a process with limits on time and memory. Cost: about 0.4 s for a small tokenizer, 2 s for
a tokenizer of 262,144 tokens; nothing for a repeated request.

As a program (`python -m tvaccine_core.data.previews`) this module is that process: it reads a request from standard
input and writes an answer to standard output, both JSON.

If the system has no limits for a process (Windows, and memory on macOS), only the time is limited.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

from pydantic import TypeAdapter

from tvaccine_core.data.prompts import PromptPreview, preview_here, tokenizer_stamp
from tvaccine_core.errors import DataError, ModelError, TVaccineError
from tvaccine_core.records import Example
from tvaccine_core.worlds.sandbox.base import SANDBOX_BASE

log = logging.getLogger(__name__)

WITHIN_S = 20
MEMORY_BYTES = 3 * 2**30
"""Memory of the process; the largest published tokenizers take half of it while they are read."""
AT_ONCE = BoundedSemaphore(2)
PACKAGES = Path(__file__).resolve().parents[2]
_PREVIEW = TypeAdapter(PromptPreview)
_ERRORS = {"DataError": DataError, "ModelError": ModelError}


def preview(
    folder: Path, example: Example, max_length: int = 200, name: str = "", *, within_s: float = WITHIN_S
) -> PromptPreview:
    """The example as training sees it. Arguments and errors are those of `preview_here`, with limits.

    Args:
        within_s: time limit in seconds.

    Raises:
        ModelError: also if it takes more time or memory than allowed.
    """
    if folder == SANDBOX_BASE:
        return preview_here(folder, example, max_length, name)
    name = name or str(folder)
    written = example.model_dump_json()
    answer = _ask_apart(str(folder.absolute()), written, max_length, name, within_s, tokenizer_stamp(folder, name))
    if "error" in answer:
        raise _ERRORS[answer["error"]](answer["message"], remedy=answer["remedy"])
    return _PREVIEW.validate_python(answer)


@lru_cache(maxsize=64)
def _ask_apart(folder: str, example: str, max_length: int, name: str, within_s: float, stamp: object) -> dict[str, Any]:
    """The result of `_answer` in a separate process. Raises `ModelError` if there is none."""
    request = {"folder": folder, "name": name, "example": example, "max_length": max_length}
    paths = os.pathsep.join(filter(None, (str(PACKAGES), os.environ.get("PYTHONPATH", ""))))
    called, remedy = f"tokenizer or chat template of {name}", "Correct the chat template, or copy the tokenizer again."
    try:
        with AT_ONCE:
            done = subprocess.run(
                [sys.executable, "-m", __name__],
                input=json.dumps(request).encode(),
                env={**os.environ, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"},
                capture_output=True,
                timeout=within_s,
                check=False,
            )
        return json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise ModelError(f"The {called} did not make a preview within {within_s:g} s.", remedy=remedy) from error
    except (ValueError, OSError) as error:  # it ended without an answer
        raise ModelError(
            f"The {called} ended the process that made the preview, which may take {MEMORY_BYTES / 2**30:g} GiB of "
            "memory.",
            remedy=remedy,
        ) from error


def _answer(asked: str) -> str:
    request = json.loads(asked)
    example = Example.model_validate_json(request["example"])
    try:
        shown = preview_here(Path(request["folder"]), example, request["max_length"], request["name"])
    except TVaccineError as error:
        return json.dumps({"error": type(error).__name__, "message": str(error), "remedy": error.remedy})
    return json.dumps(asdict(shown))


def _limit_this_process() -> None:
    """Limit this process, so that it cannot live long after the process that started it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    for kind, limit in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, 2 * WITHIN_S),
        (resource.RLIMIT_CORE, 0),
    ):
        try:
            resource.setrlimit(kind, (limit, limit))
        except (ValueError, OSError):  # macOS has no limit on memory
            log.debug("no bound for %s here", kind)


if __name__ == "__main__":
    _limit_this_process()
    print(_answer(sys.stdin.read()))
