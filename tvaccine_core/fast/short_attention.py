"""Rotary self-attention on short sequences on a CPU: plain batched products, forward and backward written out.

Sources: Vaswani et al., "Attention Is All You Need", arXiv:1706.03762; Su et al., "RoFormer: Enhanced Transformer with
Rotary Position Embedding", arXiv:2104.09864. Blockwise attention kernels are made for long sequences. On short
sequences their overhead outweighs their few small products, and the rotation around them is a chain of short operations
each way. Here everything is one function with its gradient. It takes 0.6 to 0.9 of the time up to `LONGEST` tokens on
one thread; it keeps the attention weights, T per head and token.

Results differ from the model's own by rounding. Modules of this form are found by trying. Other modules, devices and
precisions, longer sequences and cached sequences run the model's own code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tvaccine_core.models import hooks
from tvaccine_core.models.anatomy import Block

LONGEST = 64
"""Tokens; from twice this number on the blockwise kernel is faster."""

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


class RotaryAttention(torch.autograd.Function):
    """`softmax(rot(q) rot(k)' + bias) v` for each of H heads, with gradients for q, k and v.

    Arguments of `apply`: q, k, v (B, T, H*D); cosines and sines for q, for k, (B or 1, 1, T, D) each; bias
    (B or 1, 1, T, T); H. `rot(x) = x * cos + swap(x) * sin`, where `swap` exchanges the halves of the D channels. The
    cosines and sines of q contain the scale of the products.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        for_q: tuple[Tensor, Tensor],
        for_k: tuple[Tensor, Tensor],
        bias: Tensor,
        num_heads: int,
    ) -> Tensor:
        queries, keys = _rotate(_split(q, num_heads), *for_q), _rotate(_split(k, num_heads), *for_k)
        values = _split(v, num_heads)
        # A transposed second factor takes twice as long as copying it and multiplying.
        weights = _product(queries, keys.mT.contiguous()).add_(bias).softmax(-1)  # (B, H, T, T)
        ctx.save_for_backward(queries, keys, values, weights)
        ctx.for_q, ctx.for_k = for_q, for_k
        return _join(_product(weights, values))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, values, weights = ctx.saved_tensors
        outer = _split(gradients[0], weights.shape[1])  # (B, H, T, D)
        for_weights = _product(outer, values.mT.contiguous())
        # the softmax's gradient, w (g - sum w g)
        for_scores = torch.ops.aten._softmax_backward_data(for_weights, weights, -1, weights.dtype)
        for_q = _rotate_back(_product(for_scores, keys), *ctx.for_q)
        for_k = _rotate_back(_product(for_scores.mT, queries), *ctx.for_k)
        return _join(for_q), _join(for_k), _join(_product(weights.mT, outer)), None, None, None, None


def _split(x: Tensor, num_heads: int) -> Tensor:
    """(B, T, H*D) -> (B, H, T, D), copied."""
    batch, length, width = x.shape
    return x.view(batch, length, num_heads, width // num_heads).transpose(1, 2).contiguous()


def _join(x: Tensor) -> Tensor:
    """(B, H, T, D) -> (B, T, H*D)."""
    return x.transpose(1, 2).flatten(2)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Product of the matrices (B, H, ., .)."""
    return torch.bmm(left.flatten(0, 1), right.flatten(0, 1)).unflatten(0, left.shape[:2])


def _swap(x: Tensor) -> Tensor:
    """Exchange the halves of the last dimension."""
    width = x.shape[-1]
    return x.reshape(-1, width).roll(width // 2, -1).view(x.shape)  # fast on two dimensions only


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    return (x * cosines).addcmul_(_swap(x), sines)


def _rotate_back(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """The transposed map: a swap is its own inverse."""
    return _rotate(x, cosines, _swap(sines))


def short_attentions(blocks: Iterable[Block]) -> dict[nn.Module, Callable[..., Any]]:
    """Forwards for the attention modules of `blocks` that compute this function."""
    tables: dict[float, _Tables] = {}
    forwards: dict[nn.Module, Callable[..., Any]] = {}
    for block in blocks:
        module: Any = block.attention
        if _has_the_parts(module):
            forward = _short_forward(module, tables.setdefault(module.scaling, _Tables(module.scaling)))
            if _computes_the_same(module, forward):
                forwards[module] = forward
    return forwards


class _Tables:
    """Tables of a pass's positions and mask, made once for all layers."""

    def __init__(self, scale: float) -> None:
        self._scale = scale
        self._made_from: tuple[Tensor | None, ...] = ()
        self._made: tuple[Any, ...] = ()

    def of(self, cosines: Tensor, sines: Tensor, mask: Tensor | None) -> tuple[Any, ...]:
        """Cosines and sines for q and for k, and the bias, as `RotaryAttention` takes them.

        Args:
            cosines: (B or 1, T, D).
            sines: likewise.
            mask: True where a token may look, (B or 1, 1, T, T); None: at itself and at tokens before it.
        """
        made_from = (cosines, sines, mask)
        if not self._made or any(new is not old for new, old in zip(made_from, self._made_from, strict=True)):
            length, half = cosines.shape[1], cosines.shape[2] // 2
            wide = cosines.unsqueeze(1)
            signed = torch.cat((-sines[..., :half], sines[..., half:]), -1).unsqueeze(1)
            barred = torch.ones(length, length, dtype=torch.bool).triu(1)[None, None] if mask is None else ~mask
            # Not minus infinity: a row that may look nowhere must give finite numbers, even if arbitrary.
            bias = barred.float().mul_(torch.finfo(torch.float32).min)
            self._made = (wide * self._scale, signed * self._scale), (wide, signed), bias
            self._made_from = made_from
        return self._made


def _short_forward(module: Any, tables: _Tables) -> Callable[..., Any]:
    plain, num_heads = module.forward, module.config.num_attention_heads

    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        mask, positions = kwargs.get("attention_mask"), kwargs.get("position_embeddings")
        if (
            args
            or positions is None
            or hidden_states.shape[1] > LONGEST
            or hidden_states.dtype != torch.float32
            or hidden_states.device.type != "cpu"
            or kwargs.get("past_key_values") is not None
            or (mask is not None and mask.dtype != torch.bool)
            or (module.training and module.attention_dropout)
        ):
            return plain(hidden_states, *args, **kwargs)
        for_q, for_k, bias = tables.of(positions[0], positions[1], mask)
        q, k, v = module.q_proj(hidden_states), module.k_proj(hidden_states), module.v_proj(hidden_states)
        return module.o_proj(RotaryAttention.apply(q, k, v, for_q, for_k, bias, num_heads)), None

    return forward


def _has_the_parts(module: Any) -> bool:
    return (
        {name for name, _ in module.named_children()} == set(PROJECTIONS)
        and "forward" not in module.__dict__
        and all(hasattr(module, name) for name in ("config", "head_dim", "scaling", "attention_dropout"))
        and getattr(module, "num_key_value_groups", 0) == 1
        and getattr(module.config, "_attn_implementation", None) == "sdpa"
    )


def _computes_the_same(module: Any, forward: Callable[..., Any]) -> bool:
    """Try both on test queries, keys and values, so that the module's weights and their place do not matter."""
    batch, length, width = 2, 5, module.config.num_attention_heads * module.head_dim
    wave = torch.arange(7 * batch * length * width).sin().view(7, batch, length, width)
    q, k, v = wave[:3]
    cosines, sines = wave[3:5, :1, :, : module.head_dim]
    mask = torch.ones(batch, 1, length, length, dtype=torch.bool).tril()
    mask[1, :, -1, 1:3] = False
    stand_ins: dict[nn.Module, Callable[..., Any]] = {
        module.q_proj: lambda hidden: q,
        module.k_proj: lambda hidden: k,
        module.v_proj: lambda hidden: v,
        module.o_proj: lambda attended: attended,
    }
    was_training = module.training
    module.training = False  # the module's own flag: no dropout either
    try:
        with torch.no_grad(), hooks.replace_forwards(stand_ins):
            for inputs in ({"attention_mask": mask}, {"attention_mask": None}):
                inputs |= {"position_embeddings": (cosines, sines), "past_key_values": None}
                theirs, ours = hooks.hidden_of(module.forward(q, **inputs)), forward(q, **inputs)[0]
                if theirs.shape != ours.shape or not torch.allclose(theirs, ours, atol=1e-5):
                    return False
    except Exception:  # noqa: BLE001 - a module that needs other arguments is of another form
        return False
    finally:
        module.training = was_training
    return True
