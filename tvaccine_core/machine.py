"""Memory and processor of this machine, as the operating system reports them. Torch-free."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from tvaccine_core.errors import ConfigError, shown

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""A container's share of the machine's memory (cgroup v2): a number, or `max`."""


def memory_bytes() -> int | None:
    """Total memory of the machine, or of the container; None if the system does not tell."""
    ask: Any = getattr(os, "sysconf", None)  # not on Windows
    if ask is None:
        return None
    total = int(ask("SC_PAGE_SIZE")) * int(ask("SC_PHYS_PAGES"))
    try:
        limit = CGROUP_LIMIT.read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdecimal() else total


def processor() -> str:
    """Model name of the processor, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


LAUNCHERS = (
    "Start the processes with torchrun, accelerate launch or srun, or set these variables in each; for a process on "
    "its own unset RANK and WORLD_SIZE."
)


def launched_as() -> tuple[int, int, int]:
    """This process as a launcher numbered it: RANK (0 leads), WORLD_SIZE, LOCAL_RANK; 0, 1, 0 on its own.

    Raises:
        ConfigError: one of these environment variables is not a number, or not a possible number.
    """
    rank, local = _launcher_number("RANK", 0, 0), _launcher_number("LOCAL_RANK", 0, 0)
    size = _launcher_number("WORLD_SIZE", 1, 1)
    if rank >= size:
        raise ConfigError(f"RANK is {rank}, but WORLD_SIZE is {size}: ranks go from 0 to {size - 1}.", remedy=LAUNCHERS)
    return rank, size, local


def _launcher_number(name: str, default: int, least: int) -> int:
    given = os.environ.get(name, "").strip()
    if not given:
        return default
    if not (given.isascii() and given.isdecimal() and len(given) < 10 and int(given) >= least):
        raise ConfigError(f"{name} is {shown(given)}; it is a whole number from {least} up.", remedy=LAUNCHERS)
    return int(given)
