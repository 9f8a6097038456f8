"""Model states: one base model in memory, never merged, and LoRA adapters (arXiv:2106.09685) stacked on it.

A *state* is a stack of adapters: `base` = none, `aligned/sft` = one, an attacked state = the frozen aligned adapter and
a new one. Stacks concatenate exactly, W + B1 A1 + B2 A2 = W + [B1 B2] [A1; A2], so each state is one exportable peft
adapter, and several states can answer in one mixed batch. Whatever is evaluated is that one adapter, also while its
parts still train: what a score was measured on is what is exported.

peft's switches flip `requires_grad`, and an adapter added to a model in eval mode keeps its dropout in train mode;
here every look at a state puts modes, active adapters and `requires_grad` back exactly.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from tvaccine_core.config import AdapterConfig
from tvaccine_core.errors import ModelError
from tvaccine_core.fast import switch as fast_paths
from tvaccine_core.fast.merged_adapters import mergeable
from tvaccine_core.models.hooks import on_entry, replace_forwards
from tvaccine_core.models.load import LoadedModel
from tvaccine_core.models.targets import find_targets, shorten
from tvaccine_core.names import BASE
from tvaccine_core.processes import Ranks
from tvaccine_core.records import StateRecord
from tvaccine_core.states.adapter_files import (
    PlainAdapter,
    hash_adapter,
    make_lora_config,
    named_factors,
    read_adapter,
    write_adapter,
)

MERGED_LIMIT_BYTES = 2**28
"""Evaluations merge adapters into copies of the linears' weights while these are no larger in all."""
_BASE_ROW = "__base__"
"""What peft calls a row of a mixed batch that uses no adapter."""


class ModelStates:
    """The states of one base model. Adapters and states share one name space; `base` always exists."""

    def __init__(self, loaded: LoadedModel, announce: Callable[[], None] | None = None) -> None:
        self.loaded = loaded
        self._announce = announce
        """Called before each forward pass of a state, where several processes hold parts of the base's weights."""
        self._peft: PeftModel | None = None
        self._layers: dict[str, LoraLayer] = {}
        self._stacks: dict[str, tuple[str, ...]] = {BASE: ()}
        self._sealed: dict[str, str] = {}
        """State -> hash, for states whose adapters nothing trains any more."""

    @property
    def model(self) -> PeftModel:
        """The peft model, for training and mixed batches.

        Raises:
            ModelError: no adapter was added yet.
        """
        if self._peft is None or not self._adapters():
            raise ModelError("The model has no adapter yet.", remedy="Add one before training.")
        return self._peft

    @property
    def names(self) -> tuple[str, ...]:
        """States that are in memory."""
        return tuple(self._stacks)

    def add(self, name: str, config: AdapterConfig, seed: int) -> None:
        """A fresh adapter, and the state of that name: equal to the base until trained (B = 0).

        Its A is drawn from `seed` alone; torch's global random state stays as it is.

        Raises:
            ModelError: the name is taken or malformed, or the model lacks one of the target modules.
        """
        targets = find_targets(self.loaded.model, config.target_modules)
        lora = make_lora_config(config.r, config.alpha, shorten(targets, self.loaded.model), dropout=config.dropout)
        self._inject(name, lora, seed)

    def copy(self, state: str, name: str, *, dropout: float = 0.0) -> None:
        """A new adapter `name` with the weights, rank and scaling of `state`, to go on training it."""
        self._adopt(name, self._plain(self._stack(state)), dropout)

    def define(self, state: str, adapters: Sequence[str]) -> None:
        """Call a stack of adapters `state`.

        Raises:
            ModelError: an adapter does not exist.
        """
        for name in adapters:
            self._stack(name)
        self._stacks[state] = tuple(part for name in adapters for part in self._stack(name))

    def train(self, name: str, on_top_of: str | None = None) -> None:
        """From now on `name` is what training changes, on the frozen stack of state `on_top_of` (None: the base).

        What is frozen no longer drops out: it stands for weights that were merged, and must not depend on whether it
        was trained in this process or read from a file, which knows no dropout.
        """
        below = self._stack(on_top_of) if on_top_of else ()
        for layer in self._layers.values():
            for frozen in below:
                if frozen in layer.lora_dropout:
                    layer.lora_dropout[frozen] = nn.Identity()
        self._activate((*below, name))
        self._require_grad(name, True)
        self._sealed = {state: digest for state, digest in self._sealed.items() if name not in self._stacks[state]}

    def hash_of(self, state: str) -> str:
        """SHA-256 of the state's one adapter: names, shapes, types and bytes of its tensors, its scaling, the base."""
        if state in self._sealed:
            return self._sealed[state]
        return hash_adapter(self._plain(self._stack(state)), self.loaded.key)

    def save(
        self, state: str, adapters: Sequence[str], folder: Path, *, relative_to: Path | None = None
    ) -> StateRecord:
        """Write a stack of adapters as one peft adapter that `PeftModel.from_pretrained(base, folder)` reads.

        From now on `state` is that one adapter; parts of the stack that are no state of their own can be dropped.

        Args:
            state: its name.
            adapters: bottom to top.
            folder: replaced as a whole, and only when the new one is complete.
            relative_to: the record's path is relative to this folder.

        Raises:
            ModelError: it cannot be written.
        """
        stack = tuple(part for name in adapters for part in self._stack(name))
        plain = self._plain(stack)
        digest = write_adapter(folder, plain, base_key=self.loaded.key, base_name=self.loaded.config.name)
        if stack != (state,):
            self.drop(state)
            self._adopt(state, plain)
        self._sealed[state] = digest
        path = folder.relative_to(relative_to) if relative_to else folder
        return StateRecord(state=state, state_hash=digest, path=path.as_posix())

    def load(self, state: str, folder: Path) -> None:
        """Read what `save`, or peft for any plain LoRA of this base, wrote, as `state`.

        Raises:
            RunNotFoundError: there is no adapter in `folder`.
            ModelError: it is damaged, of another base, or no plain LoRA.
        """
        plain = read_adapter(folder, base_key=self.loaded.key)
        self.drop(state)
        self._adopt(state, plain)
        self._sealed[state] = hash_adapter(plain, self.loaded.key)

    def ensure(self, state: str, folder: Path) -> None:
        """Load `state` from `folder` unless it is in memory. Raises what `load` raises."""
        if state not in self._stacks:
            self.load(state, folder)

    def share(self, state: str, ranks: Ranks) -> None:
        """Give the leading process's `state` to the others, which need not have its files."""
        plain = self._plain(self._stack(state)) if ranks.leads else None
        note, tensors = ranks.share_tensors(
            plain and {"rank": plain.rank, "alpha": plain.alpha}, plain.tensors if plain else {}
        )
        if plain is None:
            self.drop(state)
            self._adopt(state, PlainAdapter(tensors, **note))

    def drop(self, state: str) -> None:
        """Forget `state`, free its adapter, and forget the stacks it was part of; nothing happens if there is none.

        The base cannot be dropped.
        """
        if state == BASE or state not in self._stacks:
            return
        for other in [other for other, stack in self._stacks.items() if state in stack and other != state]:
            self.drop(other)
        names = (state, _flat_name(state))
        kept = [name for name in self._adapters() if name not in names]
        with self._undisturbed():
            self._activate(tuple(kept[:1]))  # peft warns when it has to replace an active adapter
            for name in set(names) & set(self._adapters()):
                self.model.delete_adapter(name)
        for name in names:
            self._stacks.pop(name, None)
        self._sealed.pop(state, None)

    @contextmanager
    def active(self, state: str) -> Iterator[nn.Module]:
        """The bare Hugging Face model answering as `state`, in eval mode; everything is put back on leaving."""
        name, model = self._flatten(state), self.loaded.model
        with self._undisturbed():
            self._activate(() if name is None else (name,))
            model.eval()
            with replace_forwards(self._merged_forwards(name)), on_entry(model, self._announce, first=True):
                yield model

    @contextmanager
    def mixed(self, states: Sequence[str]) -> Iterator[tuple[nn.Module, list[str]]]:
        """The model and the `adapter_names` with which row i of a batch answers as `states[i]`, in eval mode."""
        names = {state: self._flatten(state) for state in dict.fromkeys(states)}
        used = [name for name in names.values() if name is not None]
        with self._undisturbed():
            self._activate(tuple(used[:1]))
            self.model.eval()
            with on_entry(self.loaded.model, self._announce, first=True):
                yield self.model, [names[state] or _BASE_ROW for state in states]

    def _stack(self, state: str) -> tuple[str, ...]:
        if state not in self._stacks:
            raise ModelError(
                f"There is no model state {state!r} in memory.", remedy=f"There are: {', '.join(self._stacks)}."
            )
        return self._stacks[state]

    def _adapters(self) -> list[str]:
        return list(self._peft.peft_config) if self._peft else []

    def _flatten(self, state: str) -> str | None:
        """Name of the one adapter that is `state`, made or brought up to date where it is a stack; None: the base."""
        stack = self._stack(state)
        if len(stack) < 2:
            return stack[0] if stack else None
        name = _flat_name(state)
        plain = self._plain(stack)
        if name in self._stacks:
            self._write(name, plain.tensors)
        else:
            self._adopt(name, plain)
        return name

    def _plain(self, stack: Sequence[str]) -> PlainAdapter:
        """A stack as one adapter.

        A single adapter stays as it is. In a stack each A carries its scaling; a module that not all adapters have is
        filled with zeros, since peft knows one rank an adapter.
        """
        tensors: dict[str, Tensor] = {}
        configs = [self.model.peft_config[name] for name in stack]
        rank = sum(config.r for config in configs)  # pyright: ignore[reportAttributeAccessIssue]
        for module_name, layer in self._layers.items():
            present = [name for name in stack if name in layer.lora_A]
            if not present:
                continue
            if len(stack) == 1:
                a, b = (factor.detach().cpu().clone() for factor in _factors(layer, stack[0]))
            else:
                factors = [(*_factors(layer, name), layer.scaling[name]) for name in present]
                a = torch.cat([a.detach() * scaling for a, _, scaling in factors]).cpu()  # (r, in)
                b = torch.cat([b.detach() for _, b, _ in factors], dim=1).cpu()  # (out, r)
                missing = rank - a.shape[0]
                a, b = nn.functional.pad(a, (0, 0, 0, missing)), nn.functional.pad(b, (0, missing))
            tensors |= named_factors(module_name, a, b)
        alpha = configs[0].lora_alpha if len(stack) == 1 else rank  # pyright: ignore[reportAttributeAccessIssue]
        return PlainAdapter(tensors, rank=rank, alpha=float(alpha))

    def _inject(self, name: str, lora: LoraConfig, seed: int) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*", name) or name in self._stacks:
            raise ModelError(
                f"An adapter cannot be called {name!r}: the name is taken, or not of letters, digits, - _ + /.",
                remedy="Choose another name, or drop the state of that name first.",
            )
        with self._undisturbed(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                if self._peft is None:
                    wrapped = get_peft_model(self.loaded.model, lora, adapter_name=name)
                    assert isinstance(wrapped, PeftModel)
                    self._peft = wrapped
                else:
                    self._peft.add_adapter(name, lora)
            except ValueError as error:
                raise ModelError(
                    f"The model cannot take the adapter: {error}",
                    remedy="Name linear modules of the decoder layers, or all-linear.",
                ) from error
        self._layers = {
            module_name: module
            for module_name, module in self.loaded.model.named_modules()
            if isinstance(module, LoraLayer)
        }
        self._require_grad(name, False)
        self._stacks[name] = (name,)

    def _adopt(self, name: str, plain: PlainAdapter, dropout: float = 0.0) -> None:
        """An adapter made of `plain`."""
        targets = shorten(plain.modules, self.loaded.model)
        self._inject(name, make_lora_config(plain.rank, plain.alpha, targets, dropout=dropout), seed=0)
        self._write(name, plain.tensors)

    def _write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Copy `tensors` into the adapter `name`, which must have exactly these modules."""
        expected: dict[str, Tensor] = {}
        for module_name, layer in self._layers.items():
            if name in layer.lora_A:
                expected |= named_factors(module_name, *_factors(layer, name))
        if {key: tensor.shape for key, tensor in expected.items()} != {
            key: tensor.shape for key, tensor in tensors.items()
        }:
            self.drop(name)
            raise ModelError(
                f"The tensors of {name} do not fit this model: other modules or other shapes.",
                remedy="Load the model that the adapter was trained on.",
            )
        with torch.no_grad():
            for key, tensor in expected.items():
                tensor.copy_(tensors[key])

    def _activate(self, adapters: tuple[str, ...]) -> None:
        """Let exactly these adapters take part in forward passes, all frozen."""
        for layer in self._layers.values():
            if layer.disable_adapters == bool(adapters):
                layer.enable_adapters(bool(adapters))
            if adapters:
                layer.set_adapter(list(adapters), inference_mode=True)
        self._tell_peft(adapters)

    def _merged_forwards(self, name: str | None) -> dict[nn.Module, Callable[[Tensor], Tensor]]:
        """For small models, linears with `name` merged into a copy of their weight: a quarter less time to generate.

        The base's own weights are not touched. Without an adapter this is the bare base model. Tokens are the same as
        without it, logits differ by rounding.
        """
        modules: list[Any] = mergeable(self.loaded.model) if fast_paths.enabled(self.loaded.config.fast_paths) else []
        if self._announce or sum(module.base_layer.weight.nbytes for module in modules) > MERGED_LIMIT_BYTES:
            return {}
        forwards: dict[nn.Module, Callable[[Tensor], Tensor]] = {}
        for module in modules:
            base = module.base_layer
            weight = base.weight.detach()
            if name is not None and name in module.lora_A:
                a, b = _factors(module, name)
                weight = torch.addmm(weight, b.detach(), a.detach(), alpha=module.scaling[name])
            forwards[module] = partial(_linear, weight=weight, bias=base.bias)
        return forwards

    def _require_grad(self, name: str, required: bool) -> None:
        for layer in self._layers.values():
            if name in layer.lora_A:
                for factor in _factors(layer, name):
                    factor.requires_grad_(required)

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Whatever happens inside, modes, active adapters and `requires_grad` are afterwards as before."""
        model = self.loaded.model
        modes = [(module, module.training) for module in (self._peft or model).modules()]
        grads = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        layers = [(layer, list(layer.active_adapters), layer.disable_adapters) for layer in self._layers.values()]
        try:
            yield
        finally:
            remaining = set(self._adapters())
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
        """peft's wrappers keep names of their own for the active adapters; an adapter that is gone breaks them."""
        remaining = self._adapters()
        if not remaining:
            return
        kept = [name for name in active if name in remaining] or remaining[:1]
        wrapper: Any = self._peft
        wrapper.active_adapter, wrapper.base_model.active_adapter = kept[-1], kept


def _flat_name(state: str) -> str:
    """Adapter that stands for a stack in evaluations."""
    return f"{state}/flat"


def _linear(x: Tensor, *, weight: Tensor, bias: Tensor | None) -> Tensor:
    return nn.functional.linear(x, weight, bias)


def _factors(layer: LoraLayer, name: str) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) of adapter `name`, the parameters themselves."""
    a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
    assert isinstance(a, Tensor)
    assert isinstance(b, Tensor)
    return a, b
