"""Memory that a training step holds, counted from tensors and not from the process.

There are two counts, both exact for their tensors:

- `SavedActivations`: unique non-parameter storages that autograd holds for the backward pass, at their peak. Tensors
  that a checkpointed layer recomputes are held by the checkpoint, not by autograd, and do not count.
- `LiveTensors`: every storage that an operation made inside the block and that is still alive, at its peak:
  activations, recomputed activations, gradients and temporaries between operations, not a kernel's scratch memory.

Cost: a Python call per saved tensor, or per operation. Measure time in another pass.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Peak:
    """Bytes held now, and the most that were held at once."""

    def __init__(self) -> None:
        self.now_bytes = 0
        self.peak_bytes = 0

    def add(self, num_bytes: int) -> None:
        self.now_bytes += num_bytes
        self.peak_bytes = max(self.peak_bytes, self.now_bytes)


class _Held:
    """A saved tensor. Autograd drops it when the graph is freed; then the count goes down."""

    def __init__(self, tensor: Tensor, owner: SavedActivations) -> None:
        self.tensor = tensor.detach()  # the tensor itself would make a cycle with the node that saves its own output
        self.key = tensor.untyped_storage().data_ptr()
        self.owner = owner

    def __del__(self) -> None:
        self.owner.release(self.key)


class SavedActivations:
    """Context manager: `peak_bytes` of unique storages that autograd holds, without those of `parameters`."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        self._holders: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._count = _Peak()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    @property
    def peak_bytes(self) -> int:
        return self._count.peak_bytes

    @property
    def now_bytes(self) -> int:
        return self._count.now_bytes

    def _pack(self, tensor: Tensor) -> _Held | Tensor:
        storage = tensor.untyped_storage()
        key = storage.data_ptr()
        if key == 0 or key in self._parameters:
            return tensor
        if key not in self._holders:
            self._holders[key] = 0
            self._sizes[key] = storage.nbytes()
            self._count.add(storage.nbytes())
        self._holders[key] += 1
        return _Held(tensor, self)

    def _unpack(self, saved: _Held | Tensor) -> Tensor:
        return saved.tensor if isinstance(saved, _Held) else saved

    def release(self, key: int) -> None:
        """One holder of the storage at `key` is gone."""
        self._holders[key] -= 1
        if not self._holders[key]:
            del self._holders[key]
            self._count.add(-self._sizes.pop(key))

    def __enter__(self) -> Self:
        self._hooks.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._hooks.__exit__(kind, error, traceback)


class LiveTensors(TorchDispatchMode):
    """Context manager: `peak_bytes` of storages made by operations inside the block and alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[int] = set()
        self._count = _Peak()

    @property
    def peak_bytes(self) -> int:
        return self._count.peak_bytes

    @property
    def now_bytes(self) -> int:
        return self._count.now_bytes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._watch(leaf.untyped_storage(), before)
        return result

    def _watch(self, storage: torch.UntypedStorage, inputs: set[int]) -> None:
        """Count a new storage until it is freed. Views and in-place results have an input's storage: not new."""
        key = id(storage)
        if key in self._seen or key in inputs:
            return
        self._seen.add(key)
        self._count.add(storage.nbytes())
        weakref.finalize(storage, self._freed, key, storage.nbytes())

    def _freed(self, key: int, num_bytes: int) -> None:
        self._seen.discard(key)
        self._count.add(-num_bytes)
