"""The one switch of the fast paths: with it off, transformers' and peft's own modules run, on every token.

The fast paths are: merged adapters; adapters that keep only their input; written-out norms and short attention; the end
of the model at labelled positions only; the cut of columns that cannot reach the loss; lower layers that run once for
both passes; adapters merged for generation. Each gives the plain result to rounding, and each is right for some models
only. How much is kept for the backward pass (`activation_memory`) is a separate choice. Torch-free.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tvaccine_core.errors import ConfigError

VARIABLE = "TVACCINE_FAST_PATHS"
"""Environment variable: 0 turns every fast path off, whatever a config says."""

_off: ContextVar[bool] = ContextVar("fast_paths_off", default=False)


def enabled(wish: bool = True) -> bool:
    """Whether fast paths may run if a config's `model.fast_paths` is `wish`.

    Raises:
        ConfigError: the environment variable is neither 0 nor 1.
    """
    value = os.environ.get(VARIABLE, "").strip()
    if value not in ("", "0", "1"):
        raise ConfigError(f"{VARIABLE} is {value!r}.", remedy="Set it to 0 (off) or 1, or leave it out.")
    return wish and value != "0" and not _off.get()


@contextmanager
def off() -> Iterator[None]:
    """Turn every fast path off for passes that are set up inside."""
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)
