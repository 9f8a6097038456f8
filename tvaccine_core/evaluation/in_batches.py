"""Work through many rows at once, and fewer at a time when memory runs out: a measurement must not cost a training."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from tvaccine_core.errors import OutOfMemoryError, lacks_memory

log = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")


def in_batches(items: Sequence[ItemT], size: int, work: Callable[[Sequence[ItemT]], None]) -> None:
    """Call `work` on `items` in order, `size` at a time; where memory runs out, again on the first half of the batch.

    Args:
        items: what is to be done.
        size: items at a time, at first.
        work: does a batch; if it fails, nothing of that batch may count.

    Raises:
        OutOfMemoryError: there is not even memory for one item.
    """
    start = 0
    while start < len(items):
        batch = items[start : start + size]
        try:
            work(batch)
            start += len(batch)
            continue
        except (RuntimeError, MemoryError) as error:
            if not lacks_memory(error):
                raise
            if len(batch) == 1:
                raise OutOfMemoryError(
                    "There is not enough memory to evaluate a single prompt.",
                    remedy="Close other programs that use the device, then resume: what was trained is kept. If that "
                    "does not help, lower evaluation.max_new_tokens or quantise the model, in a new run.",
                ) from error
        size = (len(batch) + 1) // 2  # here, where the failed batch is no longer held by its error
        log.warning("memory ran out: evaluating %d prompts at a time from now on", size)
