"""Every hook the lab puts on a model's parts.

Nothing else in the engine registers a hook or patches a `forward`. Here only context managers do, and they remove it on
exit, whatever happens. Works on decoder-only Hugging Face models, bare or wrapped by peft.

Three traps shape this file. A forward hook that returns a value replaces the output, so hooks that only look return
None. An attention module returns a tuple; a decoder layer returns a bare tensor or a tuple, by family. Under gradient
checkpointing a block's forward runs a second time inside backward and its hooks fire again: a hook that changes
something must stay until backward is done, and a hook that captures must keep the first run's tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def hidden_of(output: Any) -> Tensor:
    """The hidden states (B, T, D) in what a layer or an attention module returns."""
    return output[0] if isinstance(output, tuple) else output


def _with_hidden(output: Any, hidden: Tensor) -> Any:
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


@contextmanager
def capture_gradient_points(modules: Mapping[int, nn.Module]) -> Iterator[dict[int, Tensor]]:
    """Collect each module's output as a tensor for which `torch.autograd.grad` can give a gradient.

    If nothing below requires a gradient, the output becomes the graph's first leaf, so that nothing under the lowest
    module is recorded. Keep the context open until the gradients are taken.
    """
    captured: dict[int, Tensor] = {}

    def look(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            hidden = hidden_of(output)
            if not hidden.requires_grad:
                hidden.requires_grad_(True)  # in a recomputation as well: both runs must save the same tensors
            captured.setdefault(index, hidden)

        return hook

    with ExitStack() as hooks:
        for index, module in modules.items():
            hooks.enter_context(module.register_forward_hook(look(index)))
        yield captured


@contextmanager
def norms_of_outputs(modules: Mapping[int, nn.Module]) -> Iterator[dict[int, Tensor]]:
    """Collect the L2 norm of the hidden states that each module returns in its first run, in float32 or better."""
    norms: dict[int, Tensor] = {}

    def look(index: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            hidden = hidden_of(output)
            precision = torch.promote_types(hidden.dtype, torch.float32)
            norms.setdefault(index, torch.linalg.vector_norm(hidden, dtype=precision))

        return hook

    with ExitStack() as hooks:
        for index, module in modules.items():
            hooks.enter_context(module.register_forward_hook(look(index)))
        yield norms


@contextmanager
def perturb_hidden(modules: Mapping[int, nn.Module], shifts: Mapping[int, Tensor]) -> Iterator[None]:
    """Add `shifts[i]` to the hidden states that `modules[i]` returns. Keep it open until backward is done."""

    def add(shift: Tensor) -> Callable[..., Any]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            return _with_hidden(output, hidden_of(output) + shift)

        return hook

    with ExitStack() as hooks:
        for index, module in modules.items():
            hooks.enter_context(module.register_forward_hook(add(shifts[index])))
        yield


@contextmanager
def record_output(module: nn.Module) -> Iterator[list[Any]]:
    """Keep the output of `module` in its first run, hidden states detached, in the form that its caller expects."""
    outputs: list[Any] = []

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        if not outputs:
            outputs.append(_with_hidden(output, hidden_of(output).detach()))

    with module.register_forward_hook(hook):
        yield outputs


@contextmanager
def replace_forwards(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Let each module run another function instead of its forward. Its hooks and its place in the model stay."""
    before = {module: module.__dict__.get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module, forward in before.items():
            if forward is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = forward


def skip_to(modules: Sequence[nn.Module], output: Any) -> AbstractContextManager[None]:
    """Let every one of `modules` return `output` instead of running.

    Masks, positions and per-layer settings that the model computes around them are untouched.
    """

    def skip(*args: Any, **kwargs: Any) -> Any:
        return output

    return replace_forwards(dict.fromkeys(modules, skip))


def recompute(modules: Sequence[nn.Module]) -> AbstractContextManager[None]:
    """Let each of `modules` keep only its inputs, and run again in the backward pass with the same dropout masks.

    Keep it open until backward is done, and also every hook inside `modules`.
    """

    def run_again(forward: Callable[..., Any]) -> Callable[..., Any]:
        def forward_without_keeping(*args: Any, **kwargs: Any) -> Any:
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)

        return forward_without_keeping

    return replace_forwards({module: run_again(module.forward) for module in modules})


@contextmanager
def divert_hidden(body: nn.Module, positions: Tensor) -> Iterator[list[tuple[type, Tensor]]]:
    """Keep the output of `body` at flattened `positions` (N,), as (N, D) with its graph; the head gets one token.

    Yields a list of the body's output type and the kept tensor, one entry per run.
    """
    kept: list[tuple[type, Tensor]] = []

    def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
        hidden = output[0]  # (B, T, D); a ModelOutput gives its first field
        kept.append((type(output), hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions)))
        return _body_output(type(output), hidden[:1, :1].detach())

    with body.register_forward_hook(hook):
        yield kept


def stand_in(body: nn.Module, kind: type, hidden: Tensor) -> AbstractContextManager[None]:
    """Let `body` return the hidden states (N, D) as one row instead of running; `kind` as `divert_hidden` gave it."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        return _body_output(kind, hidden.unsqueeze(0))

    return replace_forwards({body: forward})


def _body_output(kind: type, hidden: Tensor) -> Any:
    return (hidden,) if issubclass(kind, tuple) else kind(last_hidden_state=hidden)


@contextmanager
def gather_input(module: nn.Module, positions: Tensor) -> Iterator[None]:
    """Give `module` only the hidden states at flattened `positions` (N,) of its (B, T, D) input, as (1, N, D)."""

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = inputs[0]
        return hidden.reshape(-1, hidden.shape[-1]).index_select(0, positions).unsqueeze(0), *inputs[1:]

    with module.register_forward_pre_hook(hook):
        yield


@contextmanager
def last_column(module: nn.Module) -> Iterator[None]:
    """Give `module` only the last column of its (B, T, D) input, as a contiguous (B, 1, D).

    In bfloat16 on a CPU, a linear whose input is a strided view copies its whole weight once per row.
    """

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return inputs[0][:, -1:].contiguous(), *inputs[1:]

    with module.register_forward_pre_hook(hook):
        yield


def run_at(module: nn.Module, positions: Tensor) -> AbstractContextManager[None]:
    """Run `module`, which treats tokens one by one, at flattened `positions` (N,) only; elsewhere it gives zeros.

    Keep it open until backward is done.
    """
    plain = module.forward

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        rows = hidden.reshape(-1, hidden.shape[-1])  # (B * T, D)
        output = plain(rows.index_select(0, positions).unsqueeze(0), *args, **kwargs)
        there = hidden_of(output).squeeze(0)  # (N, D)
        everywhere = there.new_zeros(len(rows), there.shape[-1]).index_copy(0, positions, there)
        return _with_hidden(output, everywhere.view(*hidden.shape[:-1], -1))

    return replace_forwards({module: forward})


@contextmanager
def detach_input(module: nn.Module) -> Iterator[None]:
    """Cut the graph at the input of `module`: gradient checkpointing makes embeddings require a gradient needlessly."""

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].requires_grad:
            return inputs[0].detach(), *inputs[1:]
        return None

    with module.register_forward_pre_hook(hook):
        yield


@contextmanager
def capture_input(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the hidden states that `module` is given, one entry per run."""
    captured: list[Tensor] = []

    def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        captured.append(inputs[0])

    with module.register_forward_pre_hook(hook):
        yield captured


@contextmanager
def on_entry(module: nn.Module, action: Callable[[], None] | None, *, first: bool = False) -> Iterator[None]:
    """Call `action` just before each run of `module`, except recomputations inside backward.

    With `first` it comes before all present hooks, also FSDP's. Without an action nothing happens.
    """
    if action is None:
        yield
        return

    def hook(module: nn.Module, inputs: Any) -> None:
        action()

    with module.register_forward_pre_hook(hook, prepend=first):
        yield


@contextmanager
def watch_attention(modules: Mapping[int, nn.Module], look: Callable[..., None]) -> Iterator[None]:
    """Call `look(index, query, key, mask, **settings)` before each of `modules` attends; keep it open until backward.

    Query (B, H, T, D) and key (B, K, T, D) contain positions and are multiplied as given. Mask and settings are those
    of transformers' attention function; the settings also hold its name, `implementation`.
    """
    owners = {part: index for index, module in modules.items() for part in module.modules()}
    find = ALL_ATTENTION_FUNCTIONS.get_interface

    def find_watched(implementation: str, default: Callable[..., Any]) -> Callable[..., Any]:
        attend = find(implementation, default)

        def watched(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **settings: Any) -> Any:
            if module in owners:
                look(owners[module], query, key, mask, implementation=implementation, **settings)
            return attend(module, query, key, value, mask, **settings)

        return watched

    ALL_ATTENTION_FUNCTIONS.__dict__["get_interface"] = find_watched
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS.__dict__["get_interface"] = find
        if getattr(find, "__self__", None) is ALL_ATTENTION_FUNCTIONS:
            del ALL_ATTENTION_FUNCTIONS.__dict__["get_interface"]


@contextmanager
def frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Let `parameters` require no gradient; on exit each is as it was."""
    before = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)
