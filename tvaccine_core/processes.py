"""Several processes that train one model together: how they sum their shares, and how they agree on the next step.

Every process (rank) holds the base and the adapters, takes its share of each global batch, and ends a step with the
same gradients. Rank 0 leads: it alone writes. torch's DistributedDataParallel is not used: its reducer counts backward
hooks, and methods take gradients with `autograd.grad` and add to `.grad` by hand.

There are two process groups. Tensors are summed through the device's own group (nccl on CUDA, gloo on a CPU). Messages
go through gloo, which may wait as long as the leader needs to measure a model. A third channel, the launcher's
key-value store, takes the first failure: a process that fails leaves the others waiting inside a sum, and only a thread
that reads this store can end them with the reason.

Where the base is divided (`models.shard`), a forward pass needs every process. The leader measures alone, so it
announces each of its passes. The others wait for the announcement and then run a pass over a single token: the pass
lends their parts of the weights, and its result is thrown away. So all processes stay in step, however much the leader
generates.

Cost per step: one small gloo exchange before the step and one after the backward pass, the sum of the adapters'
gradients in buckets, one sum for the metrics, and three small sums per micro-batch for a method that perturbs. Bytes
between processes are safetensors and JSON, never pickles.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from enum import IntEnum
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from tvaccine_core.errors import ConfigError, TrainingError, TVaccineError
from tvaccine_core.machine import LAUNCHERS, launched_as

PATIENCE = timedelta(days=7)
"""Longest wait for another process's message. A dead process is noticed by its closed connection, not by this limit."""
BUCKET_BYTES = 2**25
"""Gradients are summed in parts of this size, so that a sum needs little memory of its own."""
_FAILURE, _SEEN = "failure", "failure seen"


class Word(IntEnum):
    """A process's message to the others before a step; the highest message holds for all."""

    GO_ON = 0
    STOP = 1
    """Write a checkpoint and end this job."""
    LEAVE = 2
    """The leader ends this job where it is."""


class Ranks:
    """One process on its own. `Group` is one of several; the calls are the same."""

    index: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """True for the one process that writes."""
        return self.index == 0

    def reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum over processes, the same bits in each."""
        return tensor

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Put the sum over processes into every `.grad`; a gradient that is None in every process stays None."""

    def agree(self, word: Word) -> Word:
        """The highest of all processes' words."""
        return word

    def take_part_by(self, run_a_pass: Callable[[], None]) -> None:
        """From now on the leader announces its own forward passes, and the others call `run_a_pass` at each."""

    def announce(self) -> None:
        """In the leader: make the others take part in the next forward pass. In the others: nothing."""

    def share(self, payload: bytes | None) -> bytes:
        """The leader's bytes, in every process; the others' `payload` is ignored."""
        return payload or b""

    def share_tensors(self, note: Any, tensors: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        """The leader's JSON value and CPU tensors, in every process."""
        return note, dict(tensors)

    def require_same(self, text: str, what: str) -> None:
        """Raise `TrainingError`, in every process, unless all gave the same text."""


ALONE = Ranks()


class Group(Ranks):
    """One of the processes that a launcher started. Make it with `join`."""

    def __init__(self, index: int, size: int, board: Store) -> None:
        self.index = index
        self.size = size
        self.on_stop: Callable[[], None] = lambda: None
        """Called in the leader when another process wants to stop."""
        self._board = board
        self._run_a_pass: Callable[[], None] | None = None
        self._words: Any = dist.new_group(backend="gloo", timeout=PATIENCE)

    def reduce_sum(self, tensor: Tensor) -> Tensor:
        total = tensor.detach().clone()
        with _connected():
            dist.all_reduce(total)
        return total

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        # A parameter (of an expert) may have a gradient in some ranks only: in the others it counts as zero.
        present = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.int32)
        with _connected():
            dist.all_reduce(present, group=self._words)
        trained = [parameter for parameter, count in zip(parameters, present.tolist(), strict=True) if count]
        for bucket in _buckets(trained):
            for parameter in bucket:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            gradients = [parameter.grad for parameter in bucket if parameter.grad is not None]
            flat = torch.cat([gradient.flatten() for gradient in gradients])
            with _connected():
                dist.all_reduce(flat)
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def agree(self, word: Word) -> Word:
        self._wait_for_the_leader()
        agreed = Word(self._highest(word))
        if self.leads and agreed == Word.STOP and word != Word.STOP:
            self.on_stop()
        return agreed

    def take_part_by(self, run_a_pass: Callable[[], None]) -> None:
        self._run_a_pass = run_a_pass

    def announce(self) -> None:
        if self.leads:
            self._leader_says(True)

    def _wait_for_the_leader(self) -> None:
        """Run a pass for each one that the leader announces, until it has nothing more to do alone."""
        if self._run_a_pass is None:
            return
        while self._leader_says(False):
            self._run_a_pass()

    def _leader_says(self, a_pass_comes: bool) -> bool:
        word = torch.tensor(int(a_pass_comes))
        with _connected():
            dist.broadcast(word, src=0, group=self._words)
        return bool(word)

    def share(self, payload: bytes | None) -> bytes:
        self._wait_for_the_leader()
        payload = (payload or b"") if self.leads else b""
        length = torch.tensor(len(payload))
        with _connected():
            dist.broadcast(length, src=0, group=self._words)
        if not int(length):
            return b""
        data = torch.empty(int(length), dtype=torch.uint8)
        if self.leads:
            data.copy_(torch.frombuffer(bytearray(payload), dtype=torch.uint8))
        with _connected():
            dist.broadcast(data, src=0, group=self._words)
        return data.numpy().tobytes()

    def share_tensors(self, note: Any, tensors: Mapping[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        note = json.loads(self.share(json.dumps(note).encode()))
        packed = self.share(to_bytes({key: tensor.cpu().contiguous() for key, tensor in tensors.items()}))
        return note, from_bytes(packed)

    def require_same(self, text: str, what: str) -> None:
        differs = self.share(text.encode()).decode() != text
        if self._highest(int(differs)):
            raise TrainingError(
                f"The processes do not have the same {what}.",
                remedy="Start all of them with the same program, settings and files.",
            )

    def _highest(self, value: int) -> int:
        answer = torch.tensor(value)
        with _connected():
            dist.all_reduce(answer, op=dist.ReduceOp.MAX, group=self._words)
        return int(answer)

    def post_failure(self, error: Exception) -> None:
        """Tell the others why this process cannot go on; the first to fail is heard."""
        remedy = error.remedy if isinstance(error, TVaccineError) else ""
        said = str(error) if isinstance(error, TVaccineError) else f"{type(error).__name__}: {error}"
        note = {"rank": self.index, "message": said, "remedy": remedy}
        self._board.compare_set(_FAILURE, "", json.dumps(note))

    def failure(self) -> TrainingError | None:
        """The failure that a process posted, as an error that names the process; None without one."""
        if not self._board.check([_FAILURE]):
            return None
        note = json.loads(self._board.get(_FAILURE))
        return TrainingError(f"Process {note['rank']} of {self.size}: {note['message']}", remedy=note["remedy"])

    def acknowledge(self) -> None:
        """Tell the failed process that its failure is on record."""
        self._board.set(_SEEN, "yes")

    def wait_until_acknowledged(self, timeout_s: float) -> None:
        """Give the leader time to record this process's failure."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and not self._board.check([_SEEN]):
            time.sleep(0.05)


def join() -> Group:
    """Meet the other processes that the launcher started (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT).

    On a machine with GPUs, a process takes the GPU numbered LOCAL_RANK.

    Raises:
        ConfigError: there are more processes than GPUs on this machine, or one of these variables is missing or wrong.
        TrainingError: the other processes did not come, or cannot be reached.
    """
    backend = "gloo"
    if torch.cuda.is_available():
        (_, _, local), gpus = launched_as(), torch.cuda.device_count()
        if local >= gpus:
            raise ConfigError(
                f"Process {local} of this machine has no GPU: there are {gpus}.",
                remedy='Start one process per GPU, or hide the GPUs from all: CUDA_VISIBLE_DEVICES="".',
            )
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    store: Any
    variables = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    given = ", ".join(f"{name}={os.environ.get(name, '(not set)')}" for name in variables)
    try:
        store, index, size = next(rendezvous("env://"))
        board = PrefixStore("tvaccine", store.clone())  # a connection of its own: another's wait must not block it
        dist.init_process_group(backend, store=PrefixStore("group", store), rank=index, world_size=size)
        return Group(index, size, board)
    except ValueError as error:
        raise ConfigError(
            f"The processes cannot meet: {error} Here: {given}.",
            remedy=LAUNCHERS,
        ) from error
    except RuntimeError as error:
        raise TrainingError(
            f"The processes do not meet: {error} Here: {given}.",
            remedy="Each of the WORLD_SIZE processes needs a RANK of its own, and the address and a free port of the "
            "machine that rank 0 is on; a firewall between machines must let them through.",
        ) from error


def leave(code: int) -> NoReturn:
    """Close the connections to the other processes, and end this one with `code`.

    Python's own shutdown is skipped: gloo's threads outlive the group and may still release a tensor, which needs the
    interpreter. A shutdown meanwhile aborts the process now and then.
    """
    dist.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _buckets(parameters: Sequence[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """`parameters` in order, in groups of at most `BUCKET_BYTES`; a larger parameter is a group alone."""
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        if bucket and size + parameter.nbytes > BUCKET_BYTES:
            yield bucket
            bucket, size = [], 0
        bucket.append(parameter)
        size += parameter.nbytes
    if bucket:
        yield bucket


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise TrainingError(
            f"The connection to another process of this job broke: {error}",
            remedy="That process may have been killed, perhaps because memory ran out. Look at the launcher's output, "
            "then resume.",
        ) from error
