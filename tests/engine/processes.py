"""Processes that tests start: a port of their own, and two that train together."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_two(
    arguments: Sequence[str], environment: Mapping[str, str], *, discards_output: bool = False
) -> tuple[list[int], list[str]]:
    """Two Python processes as SLURM would start them: their exit codes, and what each printed to standard error.

    They see no GPU, as two of them would be refused on a machine with one.
    """
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    processes = [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**os.environ, **environment, **shared}
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.DEVNULL if discards_output else None,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=580)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said
