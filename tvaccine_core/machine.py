"""What this machine has, asked of the system. Torch-free."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
"""A container's share of the machine's memory (cgroup v2): a number, or `max`."""


def memory_bytes() -> int | None:
    """Whole memory of the machine, or of the container; None if the system does not tell."""
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
