"""Attention sinks: how much later tokens attend to the first token, per layer and head, inside a pass that runs anyway.

Sources: Xiao et al., "Efficient Streaming Language Models with Attention Sinks", arXiv:2309.17453; Liu et al., Surgery,
arXiv:2602.05228, which trains on it. Attention kernels return no weights, and (B, H, T, T) maps of every layer would
not fit into memory. So one column of the softmax is computed beside the kernel, from the kernel's query, key, scale and
mask, for a few query rows at a time, and again in the backward pass. A layer keeps (B, H, T).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tvaccine_core.errors import ModelError
from tvaccine_core.models import hooks

SCORES_AT_ONCE = 2**22
"""Attention scores that exist at a time; at least one query row of all heads."""

KNOWN = ("eager", "sdpa")
"""Attention implementations whose mask alone says which tokens a token may look at."""


def sink_attention(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    real: Tensor,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Mean attention of later real tokens to the first real token, (B, H), in float32 or better; differentiable.

    Args:
        query: (B, H, T, D), with positions.
        key: (B, K, T, D); each of K serves H / K heads.
        mask: (B or 1, H or 1, T, T), True or 0 where a token may look; None: at itself and at tokens before it.
        real: (B, T) bool, False on padding. A row with one real token gives 0.
        scaling: factor of the scores; default: D ** -0.5.
        softcap: scores become `softcap * tanh(scores / softcap)`; None: no cap.
    """
    precision = torch.promote_types(query.dtype, torch.float32)
    batch, heads, length, width = query.shape
    keys = key.repeat_interleave(heads // key.shape[1], dim=1)
    real = real.to(query.device)
    first = real.to(torch.uint8).argmax(1)  # (B,)
    column = first.view(batch, 1, 1, 1).expand(batch, heads, length, 1)
    scale = width**-0.5 if scaling is None else scaling
    places = torch.arange(length, device=query.device)

    def look_at_first(rows: Tensor, keys: Tensor, start: int) -> Tensor:
        """Rows (B, H, r, D) from query `start` on: their attention to the first token, (B, H, r)."""
        stop = start + rows.shape[2]
        scores = (rows @ keys.mT).to(precision) * scale  # (B, H, r, T)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        if mask is None:
            scores = scores.masked_fill(places > places[start:stop, None], torch.finfo(precision).min)
        elif mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask[:, :, start:stop, :length], torch.finfo(precision).min)
        else:
            # Unclamped, a row of padding that may look nowhere is all minus infinity: no softmax, no gradient.
            scores = (scores + mask[:, :, start:stop, :length]).clamp(min=torch.finfo(precision).min)
        chosen = scores.gather(-1, column[:, :, start:stop])
        return (chosen - scores.logsumexp(-1, keepdim=True)).exp().squeeze(-1)

    count = max(1, SCORES_AT_ONCE // (batch * heads * length))
    columns = [
        checkpoint(look_at_first, query[:, :, start : start + count], keys, start, use_reentrant=False)
        for start in range(0, length, count)
    ]
    later = (real & (places > first[:, None])).to(precision).unsqueeze(1)  # (B, 1, T)
    return (torch.cat(columns, dim=-1) * later).sum(-1) / later.sum(-1).clamp(min=1)


@contextmanager
def capture_sink(modules: Sequence[nn.Module], real: Tensor) -> Iterator[dict[int, Tensor]]:
    """Collect `sink_attention` of each attention module's first run, by index. Keep it open until backward is done.

    Raises:
        ModelError: a module's attention is not a softmax of query-key scores under a mask.
    """
    captured: dict[int, Tensor] = {}

    def look(index: int, query: Tensor, key: Tensor, mask: Any, **settings: Any) -> None:
        strange = [name for name in ("position_bias", "s_aux", "cache") if settings.get(name) is not None]
        if settings["implementation"] not in KNOWN or strange or not (mask is None or isinstance(mask, Tensor)):
            raise _unknown(strange[0] if strange else f"{settings['implementation']} attention")
        # A recomputation in backward must run the same operations, but its result is not used.
        sink = sink_attention(query, key, mask, real, scaling=settings.get("scaling"), softcap=settings.get("softcap"))
        captured.setdefault(index, sink)

    with hooks.watch_attention(dict(enumerate(modules)), look):
        yield captured


def sink_term(of: Callable[[Tensor], Tensor]) -> Callable[..., AbstractContextManager[Callable[[], Tensor]]]:
    """An extra term for `Passes.descend` and `Passes.gradients`: `of(sinks)`, 0-dim, for sinks (L, B, H) of the pass.

    Tokens after the last labelled column are not computed and do not count, like padding.
    """

    @contextmanager
    def term(attentions: Sequence[nn.Module], real: Tensor) -> Iterator[Callable[[], Tensor]]:
        with capture_sink(attentions, real) as captured:

            def value() -> Tensor:
                if len(captured) < len(attentions):
                    raise _unknown(f"{type(attentions[0]).__name__}, which does not go through transformers' functions")
                return of(torch.stack([captured[layer] for layer in range(len(attentions))]))

            yield value

    return term


def _unknown(what: str) -> ModelError:
    return ModelError(
        f"Attention sinks cannot be computed for {what}.",
        remedy="Use a model whose attention is eager or sdpa in transformers, or a method without attention sinks.",
    )
