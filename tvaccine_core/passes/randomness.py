"""torch's global random generators, from which dropout draws: copied, seeded, and put back as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class RandomState:
    """A copy of the state of torch's global generators, of the CPU and of `device`."""

    def __init__(self, device: torch.device) -> None:
        self.module: Any = None if device.type in ("cpu", "meta") else torch.get_device_module(device.type)
        self._which = () if device.type == "mps" else (device,)  # there is one mps device, and it is not asked for
        self._states: list[Tensor] = []
        self.save()

    def save(self) -> None:
        """Copy the generators' present state."""
        self._states = [torch.get_rng_state()]
        if self.module is not None:
            self._states.append(self.module.get_rng_state(*self._which))

    def restore(self) -> None:
        """Put the copied state back."""
        torch.set_rng_state(self._states[0])
        if self.module is not None:
            self.module.set_rng_state(self._states[1], *self._which)


@contextmanager
def isolated_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's global generators (dropout draws from them) for the block, then put them back as they were."""
    before = RandomState(device)
    torch.default_generator.manual_seed(seed)
    if before.module is not None:
        before.module.manual_seed(seed)
    try:
        yield
    finally:
        before.restore()


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """`model` in training mode, without its random parts: dropout, and modules that drop out by themselves.

    Without randomness two forms of a pass can be compared. Training mode matters, since some models differ in it.
    """
    before = [(module, module.training) for module in model.modules()]
    for module, _ in before:
        module.training = not _draws(module)
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _draws(module: nn.Module) -> bool:
    """Random modules have a probability whose name tells: dropout (attention_dropout, p of `nn.Dropout`) or jitter."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return True
    words = ("drop", "jitter")
    return any(
        isinstance(value, float) and value > 0 and any(word in name for word in words)
        for name, value in vars(module).items()
    )
