"""Work on many rows at once, and on fewer when memory runs out: a measurement must not end a training."""

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

from tvaccine_core.errors import OutOfMemoryError, lacks_memory

log = logging.getLogger(__name__)

ItemT = TypeVar("ItemT")


def in_batches(items: Sequence[ItemT], size: int, work: Callable[[Sequence[ItemT]], None]) -> None:
    """Call `work` on `items` in order, `size` at a time; if memory runs out, again on the first half of the batch.

    Args:
        items: the items to work on.
        size: items at a time, at first.
        work: does a batch; a failed batch must have no effect.

    Raises:
        OutOfMemoryError: memory is not enough for a single item.
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
                    remedy="Close other programs that use the device, then resume: the training is kept. If this does "
                    "not help, lower evaluation.max_new_tokens or quantise the model, in a new run.",
                ) from error
        size = (len(batch) + 1) // 2  # only here, when the error no longer holds the failed batch
        log.warning("memory ran out: evaluating %d prompts at a time from now on", size)
