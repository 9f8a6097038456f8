"""Parts of a pass that may be left out, found by trying: a few random tokens, forward only, once per model.

There are two shortcuts. A causal loss needs no column after the last labelled token, and no mask for padding at a row's
end. It needs the end of the model (the last layer's feed-forward half, the head) at labelled positions only. The first
is right only if no later token changes an earlier token's result: it is wrong if attention looks both ways, or at a
whole prefix. The second is right only if these modules treat tokens one by one: token shifts do not, and experts of
limited capacity, which drop the last tokens, do not. A class's name tells neither. So each shortcut is compared with
the whole model, and not taken if the results differ. Dropout is off meanwhile; weights, modes and random states stay
as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from tvaccine_core.models import hooks
from tvaccine_core.models.anatomy import Anatomy
from tvaccine_core.passes.losses import IGNORED, LabelledTokens
from tvaccine_core.passes.randomness import isolated_randomness, without_dropout
from tvaccine_core.records import MessageRecord

ROWS, COLUMNS = 3, 12
CROWD = 64
"""Copies of one token. All go to the same experts, and exceed their capacity if there is one."""

FULL_PRECISION = (torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Shortcuts:
    """The shortcuts that a model allows, and messages for its user."""

    cuts: bool
    """Whether columns after the last labelled column, and the mask of padding at the end of rows, may be left out."""
    gathers: bool
    """Whether the head may run at labelled positions only."""
    last_mlp: nn.Module | None
    """The last layer's feed-forward half, if it may run at labelled positions only."""
    notes: tuple[MessageRecord, ...] = ()


NONE = Shortcuts(cuts=False, gathers=False, last_mlp=None)

_found: WeakKeyDictionary[nn.Module, tuple[ref[nn.Module] | None, bool, Shortcuts]] = WeakKeyDictionary()
"""Causal model -> its last feed-forward half, whether this half may run at labelled positions only, and the other
shortcuts. A half is held weakly: it may hold its model, and an unused model must be freed."""


def tolerance(model: nn.Module, full: float, rounded: float) -> float:
    """`full` if all of `model` computes in full precision, `rounded` with half precision or quantised weights."""
    exact = all(tensor.dtype in FULL_PRECISION for tensor in model.parameters())
    return full if exact else rounded


def has_numbers(model: nn.Module) -> bool:
    """False if `model` has shapes only: on the meta device, or fake, as in a memory plan."""
    return not any(tensor.device.type == "meta" or isinstance(tensor, FakeTensor) for tensor in model.parameters())


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest L2 distance between a row of `ours` and of `theirs`, (N, D), over the row's norm; NaN if any is."""
    ours, theirs = ours.flatten(0, -2).double(), theirs.flatten(0, -2).double()
    return float(((ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp_min(1e-30)).max())


def find_shortcuts(parts: Anatomy) -> Shortcuts:
    """Try the shortcuts on the model of `parts`. A model without numbers allows all of them.

    Several processes that hold a model's parts must call it together.
    """
    mlp = parts.blocks[-1].mlp
    device = next(parts.causal.parameters()).device
    if not has_numbers(parts.causal):
        return Shortcuts(cuts=True, gathers=True, last_mlp=mlp)
    if parts.causal in _found:
        tried, alone, known = _found[parts.causal]
        if (tried and tried()) is mlp:
            return replace(known, last_mlp=mlp if alone else None)
    with torch.no_grad(), isolated_randomness(device, 0), without_dropout(parts.causal):
        found = _try(parts, mlp, _random_tokens(parts, device))
    _found[parts.causal] = mlp and ref(mlp), found.last_mlp is not None, replace(found, last_mlp=None)
    return found


def _try(parts: Anatomy, mlp: nn.Module | None, tokens: LabelledTokens) -> Shortcuts:
    limit = tolerance(parts.causal, 1e-3, 5e-2)
    name = type(parts.causal).__name__
    whole = tokens.whole()
    with _tried_alone(mlp, limit) as alone:
        plain = _logits(parts, whole).flatten(0, 1).index_select(0, whole.positions)  # (N, V)

    if not bool(plain.isfinite().all()):
        if not bool(whole.real.all()):  # in a very short window padding attends to nothing: no number
            return _try(parts, mlp, _random_tokens(parts, plain.device, padding=0))
        text = f"{name} gives numbers that are not finite on random tokens, so nothing is left out of its passes."
        remedy = "Check the model's files and its precision."
        return Shortcuts(False, False, None, (MessageRecord(level="warning", text=text, remedy=remedy),))

    def agrees(logits: Callable[[], Tensor]) -> bool:
        try:
            return relative_error(logits().flatten(0, 1), plain) <= limit
        except Exception:  # noqa: BLE001 - a part that needs other arguments is of another form
            return False

    def at_positions(*modules: nn.Module) -> Tensor:
        with ExitStack() as stack:
            for module in modules:
                stack.enter_context(hooks.run_at(module, tokens.positions))
            stack.enter_context(hooks.gather_input(parts.head, tokens.positions))
            return _logits(parts, tokens)

    if not agrees(lambda: _logits(parts, tokens).flatten(0, 1).index_select(0, tokens.positions).unsqueeze(0)):
        text = f"In {name} a token's result depends on later tokens or on padding, so every column runs, padding too."
        remedy = "This is slower but right. If the model should be causal, look at its attention."
        return Shortcuts(False, False, None, (MessageRecord(level="warning", text=text, remedy=remedy),))
    if mlp is not None and alone == [True] and agrees(lambda: at_positions(mlp)):
        return Shortcuts(cuts=True, gathers=True, last_mlp=mlp)
    gathers = agrees(at_positions)
    if mlp is None and gathers:
        return Shortcuts(cuts=True, gathers=True, last_mlp=None)
    what = "last feed-forward half" if gathers else "end"
    text = f"The {what} of {name} does not treat tokens one by one, so it runs on all of them."
    return Shortcuts(True, gathers, None, (MessageRecord(level="info", text=text),))


def _random_tokens(parts: Anatomy, device: torch.device, padding: int = 4) -> LabelledTokens:
    """Rows of different lengths, one padded at the end; labels with gaps, none in the last columns."""
    embedding: Any = parts.embedding
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(int(embedding.weight.shape[0]), (ROWS, COLUMNS), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, COLUMNS - padding :] = 0
    labels = torch.full_like(ids, IGNORED)
    labels[:, 2:-3:2] = ids[:, 2:-3:2]
    labels[0, 5:-3] = ids[0, 5:-3]
    labels[mask == 0] = IGNORED
    return LabelledTokens.of(ids, mask, labels).to(device)


def _logits(parts: Anatomy, tokens: LabelledTokens) -> Tensor:
    causal: Any = parts.causal
    return causal(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, use_cache=False).logits


@contextmanager
def _tried_alone(module: nn.Module | None, limit: float) -> Iterator[list[bool]]:
    """Find in every run of `module` whether it treats tokens one by one. Inside the run, because its weights may be
    elsewhere before and after."""
    answers: list[bool] = []
    if module is None:
        yield answers
        return

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        answers.append(_one_by_one(module.forward, inputs, hooks.hidden_of(output), limit))

    handle = module.register_forward_hook(hook)
    try:
        yield answers
    finally:
        handle.remove()


def _one_by_one(forward: Callable[..., Any], inputs: tuple[Any, ...], output: Tensor, limit: float) -> bool:
    """Whether tokens give the same results in another order, and in a crowd of copies of one token."""
    try:
        rows, results = inputs[0].flatten(0, 1), output.flatten(0, 1)  # (N, D)
        some = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))[: len(rows) // 2].to(rows.device)
        among_others = hooks.hidden_of(forward(rows[some].unsqueeze(0), *inputs[1:])).flatten(0, 1)
        alone = hooks.hidden_of(forward(rows[None, :1], *inputs[1:])).flatten(0, 1)
        crowd = hooks.hidden_of(forward(rows[None, :1].repeat(1, CROWD, 1), *inputs[1:])).flatten(0, 1)
        return (
            relative_error(among_others, results[some]) <= limit
            and relative_error(alone, results[:1]) <= limit
            and relative_error(crowd, alone.expand_as(crowd)) <= limit
        )
    except Exception:  # noqa: BLE001 - a module that needs other arguments is of another form
        return False
