"""Every tensor's memory over its whole life: a ledger of storages, real or fake.

A storage is entered when an operation returns it, and struck out when it is freed. Afterwards the ledger tells at which
moment most bytes were alive, and for what use. Counting is exact for storages; memory that a kernel takes and gives
back within one operation is counted only if `SCRATCH` names it.

Uses are found by what an operation does, never by a model's names. The moments are the tensors given to a fused AdamW.
The cache is what grows along the tokens of a (B, H, T, D) tensor. The head is what is as wide as the vocabulary. Every
other tensor is a kept activation if it is `KEPT_AFTER` operations old at the peak, else workspace.

Cost: a Python call per operation, about 20 µs. Measure time in another pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tvaccine_core.plan.records import PARTS, Part

KEPT_AFTER = 64
"""Operations; a decoder layer with its adapters takes more, a linear fewer."""

_ADAMW = {torch.ops.aten._fused_adamw_.default, torch.ops.aten._fused_adamw_.tensor_lr}
_CAT = torch.ops.aten.cat.default
_DEVICE = torch.ops.prim.device.default
_READ = torch.ops.aten._local_scalar_dense.default


def _gemm_4bit_scratch(args: tuple[Any, ...]) -> int:
    """Bytes of the dequantised weight: the kernels for training batches unpack it whole before they multiply."""
    activations, rows, columns = args[0], *args[2]
    return rows * columns * activations.element_size()


SCRATCH: dict[str, Callable[[tuple[Any, ...]], int]] = {"bitsandbytes::gemm_4bit": _gemm_4bit_scratch}
"""Operation -> bytes that it takes and gives back, as a function of its arguments."""


def _quantise_without_outliers(activations: Tensor, threshold: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    rows, scales, _ = torch.ops.bitsandbytes.int8_vectorwise_quant.default(activations, 0.0)
    return rows, scales, activations.new_empty(0, dtype=torch.int64)


def _multiply_without_outliers(
    activations: Tensor,
    rows: Tensor,
    weight: Tensor,
    scales: Tensor,
    weight_scales: Tensor,
    outliers: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    product = torch.ops.bitsandbytes.int8_scaled_mm.default(
        rows, weight, scales, weight_scales, bias=bias, dtype=activations.dtype
    )
    return product, activations.new_empty(0)


STAND_INS: dict[str, Callable[..., Any]] = {
    "bitsandbytes::int8_vectorwise_quant": _quantise_without_outliers,
    "bitsandbytes::int8_mixed_scaled_mm": _multiply_without_outliers,
}
"""Replacements, for fake tensors, of operations whose result's size depends on values: int8 has no outliers here."""


class _Entry:
    """A storage in the ledger. `death` is None while it lives."""

    __slots__ = ("birth", "death", "num_bytes", "part")

    def __init__(self, birth: int, num_bytes: int, part: Part | None) -> None:
        self.birth = birth
        self.death: int | None = None
        self.num_bytes = num_bytes
        self.part: Part | None = part


@dataclass(frozen=True)
class Peak:
    """The most bytes alive at once."""

    num_bytes: int
    parts: dict[Part, int]
    """Bytes per use; sums up to `num_bytes`."""


class Tracker(TorchDispatchMode):
    """Context manager: a ledger of all storages that operations make inside it, and of storages given to `own`.

    A number that is read from a fake tensor (`FakeTensor`), such as a loss, is `fake_float`, or `fake_int` for whole
    numbers. Choose them so that control flow goes as in a real run.
    """

    def __init__(self, vocabulary: int, *, fake_float: float = 2.0, fake_int: int = 1) -> None:
        super().__init__()
        self._vocabulary = vocabulary
        self._fake_float = fake_float
        self._fake_int = fake_int
        self._entries: list[_Entry] = []
        self._live: dict[int, tuple[_Entry, weakref.ref[torch.UntypedStorage]]] = {}
        self._scratch: list[tuple[int, int]] = []
        self._clock = 0
        self._cache = False
        self.updates: list[int] = []
        """Moments at which an optimiser changed parameters."""

    @property
    def now(self) -> int:
        """The present moment: the number of operations so far."""
        return self._clock

    def own(self, tensors: Iterable[Tensor], part: Part) -> None:
        """Enter storages that exist already, or set the use of storages in the ledger."""
        for tensor in tensors:
            entry = self._enter(tensor.untyped_storage())
            entry.part = part

    @contextmanager
    def generating(self) -> Iterator[None]:
        """Inside, a tensor that grows along tokens is the key-value cache."""
        self._cache = True
        try:
            yield
        finally:
            self._cache = False

    def peak(self, start: int = 0, end: int | None = None) -> Peak:
        """The most bytes that were alive at once from moment `start` until before moment `end`."""
        stop = self._clock + 1 if end is None else end
        change = [0] * (stop - start + 1)
        for entry in self._entries:
            if entry.birth < stop and (entry.death is None or entry.death > start):
                change[max(entry.birth, start) - start] += entry.num_bytes
                if entry.death is not None and entry.death < stop:
                    change[entry.death - start] -= entry.num_bytes
        scratch = {moment - start: size for moment, size in self._scratch if start <= moment < stop}
        best, best_moment, level = -1, 0, 0
        for moment in range(stop - start):
            level += change[moment]
            if level + scratch.get(moment, 0) > best:
                best, best_moment = level + scratch.get(moment, 0), moment
        parts: dict[Part, int] = dict.fromkeys(PARTS, 0)
        parts["workspace"] += scratch.get(best_moment, 0)
        best_moment += start
        for entry in self._entries:
            if entry.birth <= best_moment and (entry.death is None or entry.death > best_moment):
                unnamed: Part = "activations" if best_moment - entry.birth >= KEPT_AFTER else "workspace"
                parts[entry.part or unnamed] += entry.num_bytes
        return Peak(best, parts)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is _DEVICE:  # reading a fake tensor's device comes through here
            return func(*args, **(kwargs or {}))
        self._clock += 1
        if func is _READ and isinstance(args[0], FakeTensor):
            return self._fake_reading(args[0])
        if func in _ADAMW:
            self._note_optimiser(args)
        scratch = SCRATCH.get(func._schema.name)
        if scratch is not None:
            self._scratch.append((self._clock, scratch(args)))
        stand_in = STAND_INS.get(func._schema.name)
        if stand_in is not None and isinstance(args[0], FakeTensor):
            result = stand_in(*args, **(kwargs or {}))
        else:
            result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self._note(result, func, args)
        elif result is not None:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor):
                    self._note(leaf, func, args)
        return result

    def _note(self, tensor: Tensor, func: Any, args: tuple[Any, ...]) -> None:
        entry = self._enter(tensor.untyped_storage())
        if entry.part is not None or entry.birth != self._clock or tensor.dim() < 2:
            return
        if tensor.shape[-1] == self._vocabulary:
            entry.part = "head"
        elif self._cache and func is _CAT and tensor.dim() == 4 and len(args) > 1 and args[1] in (-2, 2):
            entry.part = "cache"

    def _note_optimiser(self, args: tuple[Any, ...]) -> None:
        _, gradients, *states = (arg for arg in args[:6] if isinstance(arg, (list, tuple)))
        self.own(gradients, "gradients")
        for state in states:
            for tensor in state:
                entry = self._enter(tensor.untyped_storage())
                entry.part, entry.birth = "optimiser", 0
        self.updates.append(self._clock)

    def _enter(self, storage: torch.UntypedStorage) -> _Entry:
        key = id(storage)
        found = self._live.get(key)
        if found is not None:
            return found[0]
        entry = _Entry(self._clock, storage.nbytes(), None)

        def freed(_: weakref.ref[torch.UntypedStorage]) -> None:
            # Freed between two operations: not alive at the next one.
            entry.death = self._clock + 1
            del self._live[key]

        self._live[key] = entry, weakref.ref(storage, freed)
        self._entries.append(entry)
        return entry

    def _fake_reading(self, tensor: Tensor) -> float | int | bool:
        if tensor.dtype == torch.bool:
            return True
        return self._fake_float if tensor.dtype.is_floating_point else self._fake_int
