"""Model states: one base model in memory, never merged, and LoRA adapters (arXiv:2106.09685) stacked on it.

A *state* is a stack of adapters: `base` has none, `aligned/sft` one, an attacked state the frozen aligned adapter and a
new one. Stacks concatenate exactly (`stacking`), so each state is one exportable peft adapter, and several states can
answer in one mixed batch. Evaluations always use this one adapter, also while its parts still train: scores are
measured on the adapter that is exported. Using a state leaves the model as it was (`adapters`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from peft import LoraConfig, PeftModel
from torch import Tensor, nn

from tvaccine_core.config import AdapterConfig
from tvaccine_core.errors import ModelError
from tvaccine_core.fast import switch as fast_paths
from tvaccine_core.fast.merged_adapters import mergeable, merged_forwards_without_gradient
from tvaccine_core.models.hooks import on_entry, replace_forwards
from tvaccine_core.models.load import LoadedModel
from tvaccine_core.models.targets import find_targets, shorten
from tvaccine_core.names import BASE
from tvaccine_core.processes import Ranks
from tvaccine_core.records import StateRecord
from tvaccine_core.states.adapter_files import PlainAdapter, hash_adapter, make_lora_config, read_adapter, write_adapter
from tvaccine_core.states.adapters import Adapters
from tvaccine_core.states.stacking import concatenate

_BASE_ROW = "__base__"
"""peft's name for no adapter, in a row of a mixed batch."""


class ModelStates:
    """The states of one base model. Adapters and states share their names; `base` always exists."""

    def __init__(self, loaded: LoadedModel, announce: Callable[[], None] | None = None) -> None:
        self.loaded = loaded
        self._announce = announce
        """Called before each forward pass of a state, if several processes hold parts of the base's weights."""
        self._adapters = Adapters(loaded.model)
        self._stacks: dict[str, tuple[str, ...]] = {BASE: ()}
        self._sealed: dict[str, str] = {}
        """State -> hash, for states whose adapters are no longer trained."""

    @property
    def model(self) -> PeftModel:
        """The peft model, for training and mixed batches.

        Raises:
            ModelError: no adapter was added yet.
        """
        if self._adapters.peft is None or not self._adapters.names:
            raise ModelError("The model has no adapter yet.", remedy="Add one before training.")
        return self._adapters.peft

    @property
    def names(self) -> tuple[str, ...]:
        """States that are in memory."""
        return tuple(self._stacks)

    def add(self, name: str, config: AdapterConfig, seed: int) -> None:
        """A fresh adapter, and a state with the same name: equal to the base until it is trained (B = 0).

        Its A depends on `seed` alone; torch's global random state does not change.

        Raises:
            ModelError: the name is taken or malformed, or the model lacks one of the target modules.
        """
        targets = find_targets(self.loaded.model, config.target_modules)
        lora = make_lora_config(config.r, config.alpha, shorten(targets, self.loaded.model), dropout=config.dropout)
        self._inject(name, lora, seed)

    def copy(self, state: str, name: str, *, dropout: float = 0.0) -> None:
        """A new adapter `name` with the weights, rank and scaling of `state`, for further training."""
        self._adopt(name, concatenate(self._adapters, self._stack(state)), dropout)

    def define(self, state: str, adapters: Sequence[str]) -> None:
        """Define `state` as a stack of adapters.

        Raises:
            ModelError: an adapter does not exist.
        """
        for name in adapters:
            self._stack(name)
        self._stacks[state] = tuple(part for name in adapters for part in self._stack(name))

    def train(self, name: str, on_top_of: str | None = None) -> None:
        """Let training change adapter `name`, on the frozen stack of state `on_top_of` (None: the base).

        Frozen adapters have no dropout: they stand for merged weights, and must not depend on whether they were trained
        in this process or read from a file, which has no dropout.
        """
        below = self._stack(on_top_of) if on_top_of else ()
        self._adapters.stop_dropout(below)
        self._adapters.activate((*below, name))
        self._adapters.require_grad(name, True)
        self._sealed = {state: digest for state, digest in self._sealed.items() if name not in self._stacks[state]}

    def hash_of(self, state: str) -> str:
        """SHA-256 of the state's adapter: names, shapes, types and bytes of its tensors, its scaling, and the base."""
        if state in self._sealed:
            return self._sealed[state]
        return hash_adapter(concatenate(self._adapters, self._stack(state)), self.loaded.key)

    def save(
        self, state: str, adapters: Sequence[str], folder: Path, *, relative_to: Path | None = None
    ) -> StateRecord:
        """Write a stack of adapters as one peft adapter that `PeftModel.from_pretrained(base, folder)` reads.

        From now on `state` is this one adapter; parts of the stack that are not states can be dropped.

        Args:
            state: the state's name.
            adapters: the stack, bottom to top.
            folder: replaced as a whole when the new folder is complete.
            relative_to: the record's path is relative to this folder.

        Raises:
            ModelError: it cannot be written.
        """
        stack = tuple(part for name in adapters for part in self._stack(name))
        plain = concatenate(self._adapters, stack)
        digest = write_adapter(folder, plain, base_key=self.loaded.key, base_name=self.loaded.config.name)
        if stack != (state,):
            self.drop(state)
            self._adopt(state, plain)
        self._sealed[state] = digest
        path = folder.relative_to(relative_to) if relative_to else folder
        return StateRecord(state=state, state_hash=digest, path=path.as_posix())

    def load(self, state: str, folder: Path) -> None:
        """Read an adapter that `save` wrote, or peft for a plain LoRA of this base, as `state`.

        Raises:
            RunNotFoundError: there is no adapter in `folder`.
            ModelError: it is damaged, of another base, or not a plain LoRA.
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
        """Give the leader's `state` to the other processes, which need not have its files."""
        plain = concatenate(self._adapters, self._stack(state)) if ranks.leads else None
        note, tensors = ranks.share_tensors(
            plain and {"rank": plain.rank, "alpha": plain.alpha}, plain.tensors if plain else {}
        )
        if plain is None:
            self.drop(state)
            self._adopt(state, PlainAdapter(tensors, **note))

    def drop(self, state: str) -> None:
        """Forget `state` and all stacks that contain it, and free its adapter; an unknown state is ignored.

        The base cannot be dropped.
        """
        if state == BASE or state not in self._stacks:
            return
        for other in [other for other, stack in self._stacks.items() if state in stack and other != state]:
            self.drop(other)
        names = (state, _flat_name(state))
        self._adapters.delete(names)
        for name in names:
            self._stacks.pop(name, None)
        self._sealed.pop(state, None)

    @contextmanager
    def active(self, state: str) -> Iterator[nn.Module]:
        """The bare Hugging Face model as `state`, in eval mode; everything is restored at the end."""
        name, model = self._flatten(state), self.loaded.model
        with self._adapters.undisturbed():
            self._adapters.activate(() if name is None else (name,))
            model.eval()
            with replace_forwards(self._merged_forwards()), on_entry(model, self._announce, first=True):
                yield model

    @contextmanager
    def mixed(self, states: Sequence[str]) -> Iterator[tuple[nn.Module, list[str]]]:
        """The model in eval mode, and the `adapter_names` with which row i of a batch answers as `states[i]`."""
        names = {state: self._flatten(state) for state in dict.fromkeys(states)}
        used = [name for name in names.values() if name is not None]
        with self._adapters.undisturbed():
            self._adapters.activate(tuple(used[:1]))
            self.model.eval()
            with on_entry(self.loaded.model, self._announce, first=True):
                yield self.model, [names[state] or _BASE_ROW for state in states]

    def _stack(self, state: str) -> tuple[str, ...]:
        if state not in self._stacks:
            raise ModelError(
                f"There is no model state {state!r} in memory.", remedy=f"There are: {', '.join(self._stacks)}."
            )
        return self._stacks[state]

    def _flatten(self, state: str) -> str | None:
        """Name of the one adapter for `state`, made or updated from its stack; None for the base."""
        stack = self._stack(state)
        if len(stack) < 2:
            return stack[0] if stack else None
        name = _flat_name(state)
        plain = concatenate(self._adapters, stack)
        if name in self._stacks:
            self._write(name, plain.tensors)
        else:
            self._adopt(name, plain)
        return name

    def _inject(self, name: str, lora: LoraConfig, seed: int) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*", name) or name in self._stacks:
            raise ModelError(
                f"An adapter cannot be called {name!r}: the name is taken, or not of letters, digits, - _ + /.",
                remedy="Choose another name, or drop the state of that name first.",
            )
        self._adapters.add(name, lora, seed)
        self._stacks[name] = (name,)

    def _adopt(self, name: str, plain: PlainAdapter, dropout: float = 0.0) -> None:
        """Add `plain` as adapter `name`."""
        targets = shorten(plain.modules, self.loaded.model)
        self._inject(name, make_lora_config(plain.rank, plain.alpha, targets, dropout=dropout), seed=0)
        self._write(name, plain.tensors)

    def _write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Copy `tensors` into the adapter `name`, which is dropped if they do not fit it."""
        try:
            self._adapters.write(name, tensors)
        except ModelError:
            self.drop(name)
            raise

    def _merged_forwards(self) -> Mapping[nn.Module, Callable[..., Tensor]]:
        """Merged weights of the active adapters, if the base is whole in this process and fast paths are on."""
        if self._announce or not fast_paths.enabled(self.loaded.config.fast_paths):
            return {}
        return merged_forwards_without_gradient(mergeable(self.loaded.model))


def _flat_name(state: str) -> str:
    """Name of the adapter that replaces a stack in evaluations."""
    return f"{state}/flat"
