"""Passes through a causal model that compute what a loss needs and nothing else, exactly.

A perturbation method runs each batch twice: a clean pass for the gradients at some attention outputs, and a pass with
those outputs shifted, whose gradient is descended. The plain way is two full forward and backward passes. The gradients
are the same, to rounding, with less work:

- layers under the lowest one that trains give both passes the same hidden states: they run once, without a graph;
- the clean pass needs gradients at attention outputs only: no adapter's gradient, no graph under the lowest output;
- the head and the loss run at labelled positions only, as does the last layer's feed-forward half, on which no other
  token depends; columns after the last labelled one are not computed at all (each where `shortcuts` finds it right);
- the perturbed pass records a graph for what trains only.

With f the share of layers from the lowest drawn one up, this takes 1 + 3f passes' worth of layers instead of 4.

Both passes see the same network: where there is dropout, the second pass replays the first one's masks, so that the
shift is the worst one for the very loss that is descended. (The authors' code draws new masks.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from tvaccine_core import fast_paths, hooks
from tvaccine_core.activation_memory import Mode, chunk_rows, recomputed_layers
from tvaccine_core.errors import ModelError
from tvaccine_core.losses import LabelledTokens, chunked_cross_entropy, cross_entropy
from tvaccine_core.lowrank import adapted_linears, lean_adapters
from tvaccine_core.merged import mergeable
from tvaccine_core.norms import lean_norms
from tvaccine_core.randomness import RandomState, isolated_randomness
from tvaccine_core.short_attention import short_attentions
from tvaccine_core.shortcuts import NONE, Shortcuts, find_shortcuts


@dataclass(frozen=True, eq=False)
class CleanPass:
    """What the clean pass leaves for the perturbed one."""

    loss: Tensor
    """0-dim, detached."""
    gradients: dict[int, Tensor]
    """Layer -> d loss / d attention output, (B, T', D)."""
    floor: int
    """The perturbed pass starts at this layer."""
    floor_input: Any
    """What the layer below the floor returned; None at floor 0, or where the perturbed pass runs every layer."""
    random_states: tuple[RandomState, ...]
    """Of torch's generators at the start of the pass, and on entry to the floor."""


@dataclass(frozen=True, eq=False)
class FastPaths:
    """What stands in for a model's own modules, and what is left out."""

    adapted: list[LoraLayer]
    mergeable: list[LoraLinear]
    forwards: dict[nn.Module, Callable[..., Any]]
    """Of norms and attention."""
    shortcuts: Shortcuts
    skips: bool
    """Layers under the lowest one that trains run once for both passes."""

    @classmethod
    def of(cls, model: nn.Module, parts: hooks.Anatomy, mode: Mode) -> FastPaths:
        """All that `model` allows."""
        forwards = lean_norms(model)
        if mode == "speed":
            forwards |= short_attentions(parts.blocks)
        return cls(adapted_linears(model), mergeable(model), forwards, find_shortcuts(parts), skips=True)


PLAIN = FastPaths([], [], {}, NONE, skips=False)
"""None of them: transformers' and peft's own modules, on every token."""


class Passes:
    """Passes through one model. Parameters are those that require a gradient when this is made.

    Args:
        mode: what is kept for the backward passes.
        fast: whether fast paths may stand in for the model's own modules, see `fast_paths`.
    """

    def __init__(self, model: nn.Module, mode: Mode = "speed", *, fast: bool = True) -> None:
        """Raises `ModelError` if the model's parts cannot be found or it uses reentrant checkpointing."""
        self.anatomy = hooks.anatomy(model)
        self.blocks = self.anatomy.blocks
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.device = next(model.parameters()).device
        self.mode: Mode = mode
        self.fast = FastPaths.of(model, self.anatomy, mode) if fast_paths.enabled(fast) else PLAIN
        """Which fast paths a pass takes."""
        self._recomputed = [self.blocks[layer].layer for layer in recomputed_layers(mode, len(self.blocks))]
        head: Any = self.anatomy.head
        body = hooks.find_body(self.anatomy) if hooks.is_whole(head.weight) else None
        self._chunk_rows = None if body is None else chunk_rows(mode, head.weight.shape[0])
        self._body = body or self.anatomy.causal
        for block in self.blocks:
            checkpoint = getattr(block.layer, "_gradient_checkpointing_func", None)
            if getattr(checkpoint, "keywords", {}).get("use_reentrant", False):
                raise ModelError(
                    "Reentrant gradient checkpointing cannot give gradients at hidden states.",
                    remedy='Enable it with gradient_checkpointing_kwargs={"use_reentrant": False}.',
                )
        self.below_blocks = self._find_below_blocks()
        """Those of `parameters` that act on the input of layer 0, by id: embeddings, projections of them."""

    @contextmanager
    def scope(self, generator: torch.Generator, rank: int = 0) -> Iterator[None]:
        """What a step's passes, backward included, run inside.

        Dropout draws from a seed of `generator` and of `rank`, so that processes with equal generators differ in it;
        torch's global random state is kept; adapters are lean; layers that are to run again in backward do.
        """
        seed = int(torch.randint(2**62, (), generator=generator)) + rank
        with (
            isolated_randomness(self.device, seed),
            lean_adapters(self.fast.adapted, self.fast.mergeable),
            hooks.replace_forwards(self.fast.forwards),
            hooks.recompute(self._recomputed),
        ):
            yield

    def loss(self, tokens: LabelledTokens) -> Tensor:
        """Forward only: mean cross-entropy over the labelled tokens, with its graph."""
        if not self.fast.shortcuts.cuts:
            tokens = tokens.whole()
        with ExitStack() as stack:
            if not self.below_blocks:
                stack.enter_context(hooks.detach_input(self.blocks[0].layer))
            if self._chunk_rows is None or len(tokens.targets) <= self._chunk_rows:
                if not self.fast.shortcuts.gathers:
                    logits = self._run(tokens).logits.flatten(0, 1).index_select(0, tokens.positions)
                    return cross_entropy(logits, tokens.targets)
                stack.enter_context(hooks.gather_input(self.anatomy.head, tokens.positions))
                return cross_entropy(self._run(tokens).logits.squeeze(0), tokens.targets)
            diverted = stack.enter_context(hooks.divert_hidden(self._body, tokens.positions))
            self._run(tokens)
        return self._chunked_loss(tokens, *diverted[0])

    def descend(self, tokens: LabelledTokens, frozen: Sequence[nn.Parameter], weight: float) -> Tensor:
        """Add `weight` times the loss's gradient to `.grad` of all parameters but `frozen`; only these record a graph.

        Returns the loss, 0-dim, detached.
        """
        with hooks.frozen(frozen), self._last_mlp_at(tokens):
            loss = self.loss(tokens)
            (loss * weight).backward()
        return loss.detach()

    def clean(self, tokens: LabelledTokens, layers: Sequence[int], floor: int) -> CleanPass:
        """Loss and its gradients at the attention outputs of `layers`; keeps what a pass from `floor` up can reuse."""
        started = RandomState(self.device)
        entered = RandomState(self.device)
        attentions = {layer: self.blocks[layer].attention for layer in layers}
        with ExitStack() as stack:
            stack.enter_context(hooks.frozen(self.parameters))
            stack.enter_context(self._last_mlp_at(tokens))
            below: list[Any] = []
            if floor and self.fast.skips:
                below = stack.enter_context(hooks.record_output(self.blocks[floor - 1].layer))
                stack.enter_context(hooks.on_entry(self.blocks[floor].layer, entered.save))
            points = stack.enter_context(hooks.capture_gradient_points(attentions))
            loss = self.loss(tokens)
            gradients = torch.autograd.grad(loss, [points[layer] for layer in layers])
        return CleanPass(
            loss=loss.detach(),
            gradients=dict(zip(layers, gradients, strict=True)),
            floor=floor,
            floor_input=below[0] if below else None,
            random_states=(started, entered),
        )

    def perturbed(
        self,
        tokens: LabelledTokens,
        clean: CleanPass,
        shifts: dict[int, Tensor],
        frozen: Sequence[nn.Parameter],
        weight: float,
    ) -> Tensor:
        """Descend under `shifts`, from the floor of `clean` up; see `descend`."""
        attentions = {layer: self.blocks[layer].attention for layer in shifts}
        started, entered = clean.random_states
        with ExitStack() as stack:
            started.restore()
            lower = [block.layer for block in self.blocks[: clean.floor]]
            if clean.floor_input is not None:
                stack.enter_context(hooks.skip_to(lower, clean.floor_input))
                stack.enter_context(hooks.on_entry(self.blocks[clean.floor].layer, entered.restore))
            elif lower:
                frozen = [*frozen, *(parameter for layer in lower for parameter in layer.parameters())]
                stack.enter_context(hooks.detach_input(self.blocks[clean.floor].layer))
            stack.enter_context(hooks.perturb_hidden(attentions, shifts))
            return self.descend(tokens, frozen, weight)

    def _last_mlp_at(self, tokens: LabelledTokens) -> AbstractContextManager[None]:
        mlp = self.fast.shortcuts.last_mlp
        return nullcontext() if mlp is None else hooks.run_at(mlp, tokens.positions)

    def _run(self, tokens: LabelledTokens) -> Any:
        causal = self.anatomy.causal
        return causal(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, use_cache=False)

    def _chunked_loss(self, tokens: LabelledTokens, kind: type, hidden: Tensor) -> Tensor:
        """The loss of hidden states (N, D), through the model's own way from there to the logits."""

        def logits_of(rows: Tensor) -> Tensor:
            with hooks.stand_in(self._body, kind, rows):
                return self._run(tokens).logits.squeeze(0)

        in_body = {id(parameter) for parameter in self._body.parameters()}
        in_body -= {id(parameter) for parameter in self.anatomy.head.parameters()}  # a tied embedding is in both
        above = [parameter for parameter in self.parameters if parameter.requires_grad and id(parameter) not in in_body]
        return chunked_cross_entropy(hidden, tokens.targets, logits_of, above, self._chunk_rows or len(tokens.targets))

    def _find_below_blocks(self) -> set[int]:
        """Read off the graph of one token's embedding; nothing is run where only layers train."""
        inside = {id(parameter) for block in self.blocks for parameter in block.layer.parameters()}
        if all(id(parameter) in inside for parameter in self.parameters):
            return set()
        token = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        state = RandomState(self.device)
        with torch.enable_grad(), hooks.capture_input(self.blocks[0].layer) as inputs:
            self.anatomy.causal(input_ids=token, use_cache=False)
        state.restore()
        found: set[int] = set()
        seen: set[Any] = set()
        nodes: list[Any] = [inputs[0].grad_fn]
        while nodes:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            variable = getattr(node, "variable", None)  # of an AccumulateGrad node: the leaf
            if variable is not None:
                found.add(id(variable))
            nodes.extend(following for following, _ in node.next_functions)
        return found & {id(parameter) for parameter in self.parameters}
