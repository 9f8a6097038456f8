"""The LoRA adapters (arXiv:2106.09685) inside one model, behind peft's switches.

peft's switches change `requires_grad`, and an adapter added to a model in eval mode keeps its dropout in train mode.
`undisturbed` restores modes, active adapters and `requires_grad` exactly. The base's own weights are never written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from tvaccine_core.errors import ModelError
from tvaccine_core.states.adapter_files import named_factors


class Adapters:
    """The adapters of one model, each by its name.

    Attributes:
        model: the bare Hugging Face model, whose linears peft replaces.
        peft: peft's wrapper around it; None before the first adapter.
        layers: the linears that have adapters, by their names in `model`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.peft: PeftModel | None = None
        self.layers: dict[str, LoraLayer] = {}

    @property
    def names(self) -> list[str]:
        """All adapters, oldest first."""
        return list(self.peft.peft_config) if self.peft else []

    def rank_and_alpha(self, name: str) -> tuple[int, float]:
        """Rank and alpha of one adapter."""
        assert self.peft is not None
        config: Any = self.peft.peft_config[name]
        return config.r, config.lora_alpha

    def add(self, name: str, lora: LoraConfig, seed: int) -> None:
        """A fresh frozen adapter. Its A depends on `seed` alone; torch's global random state does not change.

        Raises:
            ModelError: the model cannot take it.
        """
        with self.undisturbed(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                if self.peft is None:
                    wrapped = get_peft_model(self.model, lora, adapter_name=name)
                    assert isinstance(wrapped, PeftModel)
                    self.peft = wrapped
                else:
                    self.peft.add_adapter(name, lora)
            except ValueError as error:
                raise ModelError(
                    f"The model cannot take the adapter: {error}",
                    remedy="Name linear modules of the decoder layers, or all-linear.",
                ) from error
        self.layers = {
            module_name: module for module_name, module in self.model.named_modules() if isinstance(module, LoraLayer)
        }
        self.require_grad(name, False)

    def delete(self, names: Collection[str]) -> None:
        """Free these adapters; unknown names are ignored."""
        kept = [name for name in self.names if name not in names]
        with self.undisturbed():
            self.activate(tuple(kept[:1]))  # peft warns when it has to replace an active adapter
            for name in set(names) & set(self.names):
                assert self.peft is not None
                self.peft.delete_adapter(name)

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Copy `tensors`, with the names in peft's files, into an adapter.

        Raises:
            ModelError: the adapter has other modules or other shapes.
        """
        expected: dict[str, Tensor] = {}
        for module_name, layer in self.layers.items():
            if name in layer.lora_A:
                expected |= named_factors(module_name, *factors_of(layer, name))
        if {key: tensor.shape for key, tensor in expected.items()} != {
            key: tensor.shape for key, tensor in tensors.items()
        }:
            raise ModelError(
                f"The tensors of {name} do not fit this model: other modules or other shapes.",
                remedy="Load the model that the adapter was trained on.",
            )
        with torch.no_grad():
            for key, tensor in expected.items():
                tensor.copy_(tensors[key])

    def activate(self, names: tuple[str, ...]) -> None:
        """Let exactly these adapters take part in forward passes, all frozen."""
        for layer in self.layers.values():
            if layer.disable_adapters == bool(names):
                layer.enable_adapters(bool(names))
            if names:
                layer.set_adapter(list(names), inference_mode=True)
        self._tell_peft(names)

    def require_grad(self, name: str, required: bool) -> None:
        """Let an adapter train, or freeze it."""
        for layer in self.layers.values():
            if name in layer.lora_A:
                for factor in factors_of(layer, name):
                    factor.requires_grad_(required)

    def stop_dropout(self, names: Collection[str]) -> None:
        """Switch off the dropout of these adapters for good, also in train mode."""
        for layer in self.layers.values():
            for name in names:
                if name in layer.lora_dropout:
                    layer.lora_dropout[name] = nn.Identity()

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Restore modes, active adapters and `requires_grad` at the end, whatever happens inside."""
        modes = [(module, module.training) for module in (self.peft or self.model).modules()]
        grads = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        layers = [(layer, list(layer.active_adapters), layer.disable_adapters) for layer in self.layers.values()]
        try:
            yield
        finally:
            remaining = set(self.names)
            for layer, names, disabled in layers:
                if layer.disable_adapters != disabled:
                    layer.enable_adapters(not disabled)
                layer.set_adapter([name for name in names if name in remaining], inference_mode=True)
            for parameter, required in grads:
                parameter.requires_grad = required
            for module, mode in modes:
                if module.training != mode:
                    module.training = mode
            self._tell_peft(tuple(layers[0][1]) if layers else ())

    def _tell_peft(self, active: tuple[str, ...]) -> None:
        """peft's wrappers have their own list of active adapters; a deleted adapter in it breaks them."""
        remaining = self.names
        if not remaining:
            return
        kept = [name for name in active if name in remaining] or remaining[:1]
        wrapper: Any = self.peft
        wrapper.active_adapter, wrapper.base_model.active_adapter = kept[-1], kept


def factors_of(layer: LoraLayer, name: str) -> tuple[Tensor, Tensor]:
    """The parameters A (r, in) and B (out, r) of adapter `name`."""
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    return a, b
