"""Passes through a causal model that compute no more than a loss needs, exactly.

A perturbation method runs each batch twice: a clean pass for the gradients at some attention outputs, and a pass with
these outputs shifted, whose gradient is descended. The plain way is two full forward and backward passes. This way
gives the same gradients, to rounding, with less work:

- layers under the lowest trained layer give both passes the same hidden states: they run once, without a graph;
- the clean pass needs gradients at attention outputs only: no adapter's gradient, no graph under the lowest output;
- the head, the loss and the last layer's feed-forward half run at labelled positions only, because no other token
  depends on them; columns after the last labelled column are not computed (both only where `shortcuts` allows it);
- the perturbed pass records a graph for trained parameters only.

With f the share of layers from the lowest drawn layer up, this costs 1 + 3f passes through the layers instead of 4.

Both passes see the same network: the second pass replays the dropout masks of the first, so that the shift is the worst
shift for the loss that is descended. (The authors' code draws new masks.)

A method that looks at other weights takes gradients as values (`gradients`), also where weights have `moved`; the same
masks are replayed there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from tvaccine_core.errors import ModelError
from tvaccine_core.fast import switch as fast_paths
from tvaccine_core.fast.lean_adapters import adapted_linears, lean_adapters
from tvaccine_core.fast.lean_norms import lean_norms
from tvaccine_core.fast.merged_adapters import mergeable
from tvaccine_core.fast.short_attention import short_attentions
from tvaccine_core.models import hooks
from tvaccine_core.models.anatomy import Anatomy, anatomy, find_body, is_whole
from tvaccine_core.passes.losses import LabelledTokens, chunked_cross_entropy, cross_entropy
from tvaccine_core.passes.memory import Mode, chunk_rows, recomputed_layers
from tvaccine_core.passes.randomness import RandomState, isolated_randomness
from tvaccine_core.passes.shortcuts import NONE, Shortcuts, find_shortcuts

ExtraTerm = Callable[[Sequence[nn.Module], Tensor], AbstractContextManager[Callable[[], Tensor]]]
"""A term that looks at a pass while it runs, and adds to its loss. Called with the attention modules, lowest first, and
a (B, T') mask of real tokens, it is a context that yields a function: the term, 0-dim, after the pass. See
`sinks.sink_term`."""


@dataclass(frozen=True, eq=False)
class CleanPass:
    """Results of the clean pass that the perturbed pass uses."""

    loss: Tensor
    """0-dim, detached."""
    gradients: dict[int, Tensor]
    """Layer -> d loss / d attention output, (B, T', D)."""
    floor: int
    """The perturbed pass starts at this layer."""
    floor_input: Any
    """Output of the layer below the floor; None at floor 0, or if the perturbed pass runs every layer."""
    random_states: tuple[RandomState, ...]
    """States of torch's generators at the start of the pass, and on entry to the floor."""
    weights: object
    """Identifies the weights that the pass saw."""


@dataclass(frozen=True, eq=False)
class FastPaths:
    """The forms that replace a model's own modules, and the parts of a pass that are left out."""

    adapted: list[LoraLayer]
    mergeable: list[LoraLinear]
    forwards: dict[nn.Module, Callable[..., Any]]
    """Replacements for the forward of norms and attention modules."""
    shortcuts: Shortcuts
    skips: bool
    """Whether layers under the lowest trained layer run once for both passes."""

    @classmethod
    def of(cls, model: nn.Module, parts: Anatomy, mode: Mode) -> FastPaths:
        """All fast paths that `model` allows."""
        forwards = lean_norms(model)
        if mode == "speed":
            forwards |= short_attentions(parts.blocks)
        return cls(adapted_linears(model), mergeable(model), forwards, find_shortcuts(parts), skips=True)


PLAIN = FastPaths([], [], {}, NONE, skips=False)
"""No fast paths: transformers' and peft's own modules, on every token."""


class Passes:
    """Passes through one model. `parameters` are all that require a gradient when this is made.

    Args:
        mode: how much is kept for the backward passes.
        fast: whether fast paths may replace the model's own modules, see `fast.switch`.
    """

    def __init__(self, model: nn.Module, mode: Mode = "speed", *, fast: bool = True) -> None:
        """Raises `ModelError` if the model's parts cannot be found or it uses reentrant checkpointing."""
        self.anatomy = anatomy(model)
        self.blocks = self.anatomy.blocks
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.device = next(model.parameters()).device
        self.mode: Mode = mode
        self.fast = FastPaths.of(model, self.anatomy, mode) if fast_paths.enabled(fast) else PLAIN
        """The fast paths that a pass takes."""
        self._adapters: ExitStack | None = None
        """While a scope lasts: the context in which adapters run leaner than peft, with the values read last."""
        self._must_read_again = False
        self._began = RandomState(self.device)
        """State of torch's generators at the start of the last pass."""
        self._weights = object()
        """Identifies the present weights; `moved` replaces it."""
        self._own_attention = {block.attention: block.attention.forward for block in self.blocks}
        self._recomputed = [self.blocks[layer].layer for layer in recomputed_layers(mode, len(self.blocks))]
        head: Any = self.anatomy.head
        body = find_body(self.anatomy) if is_whole(head.weight) else None
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
        """Ids of the `parameters` that act on the input of layer 0: embeddings and their projections."""

    @contextmanager
    def scope(self, generator: torch.Generator, rank: int = 0) -> Iterator[None]:
        """The context around all passes of a step, backward included.

        Dropout draws from a seed made of `generator` and `rank`, so that processes with equal generators have different
        masks. torch's global random state is kept. Adapters run lean. Layers run again in backward as the mode asks.
        """
        seed = int(torch.randint(2**62, (), generator=generator)) + rank
        with (
            isolated_randomness(self.device, seed),
            ExitStack() as adapters,
            hooks.replace_forwards(self.fast.forwards),
            hooks.recompute(self._recomputed),
        ):
            self._adapters = adapters
            self._began.save()
            self._read_adapters(adapters)
            try:
                yield
            finally:
                self._adapters = None

    @contextmanager
    def moved(self, shifts: Mapping[nn.Parameter, Tensor]) -> Iterator[None]:
        """Add `shifts` to trained weights; on exit, even after an error, the weights are bit for bit as before.

        Use it inside a scope. Adapters are read once per scope, so they are read again after each move. The first pass
        inside replays the dropout masks of the last pass before, so that the two differ by the weights alone.
        A graph must not outlive the move: take its gradient before, or inside.

        Raises:
            ModelError: there is no scope, or a parameter is not one of `parameters`.
        """
        if self._adapters is None:
            raise ModelError("Weights cannot move outside a step's scope.", remedy="Move them inside `Passes.scope`.")
        known = set(self.parameters)
        if not known.issuperset(shifts):
            raise ModelError(
                f"{len(set(shifts) - known)} of {len(shifts)} weights to move are not trained.",
                remedy="Move parameters that require a gradient when the method is set up.",
            )
        here, copies = self._weights, [parameter.detach().clone() for parameter in shifts]
        try:
            self._weights, self._must_read_again = object(), True
            with torch.no_grad():
                for parameter, shift in shifts.items():
                    parameter.add_(shift)
            self._began.restore()
            yield
        finally:
            with torch.no_grad():
                for parameter, copy in zip(shifts, copies, strict=True):
                    parameter.copy_(copy)
            self._weights, self._must_read_again = here, True

    def loss(self, tokens: LabelledTokens) -> Tensor:
        """Forward only: mean cross-entropy over the labelled tokens, with its graph."""
        self._began.save()
        if self._must_read_again and self._adapters is not None:
            self._read_adapters(self._adapters)
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

    def descend(
        self, tokens: LabelledTokens, frozen: Sequence[nn.Parameter], weight: float, extra: ExtraTerm | None = None
    ) -> Tensor:
        """Add `weight` times the loss's gradient to `.grad` of all parameters but `frozen`; only these record a graph.

        With `extra` it is the gradient of loss plus extra term. Returns the loss alone, 0-dim, detached.
        """
        with hooks.frozen(frozen), self._last_mlp_at(tokens), self._watching(extra, tokens) as term:
            loss = self.loss(tokens)
            (_plus(loss, term) * weight).backward()
        return loss.detach()

    def gradients(
        self, tokens: LabelledTokens, parameters: Sequence[nn.Parameter], extra: ExtraTerm | None = None
    ) -> tuple[Tensor, dict[nn.Parameter, Tensor]]:
        """The loss, 0-dim, detached, and its gradient with respect to each of `parameters`; no `.grad` changes.

        With `extra` the loss includes the extra term. A gradient is that of the mean over this process's tokens, see
        `perturbation.sum_over_processes`; it is zero for parameters that the loss does not reach.
        """
        wanted = set(parameters)
        others = [parameter for parameter in self.parameters if parameter not in wanted]
        with hooks.frozen(others), self._last_mlp_at(tokens), self._watching(extra, tokens) as term:
            loss = _plus(self.loss(tokens), term)
            if not loss.requires_grad:
                return loss, {parameter: torch.zeros_like(parameter) for parameter in parameters}
            found = torch.autograd.grad(loss, list(parameters), allow_unused=True, materialize_grads=True)
        return loss.detach(), dict(zip(parameters, found, strict=True))

    def clean(self, tokens: LabelledTokens, layers: Sequence[int], floor: int) -> CleanPass:
        """Loss and its gradients at the attention outputs of `layers`; keeps what a pass from `floor` can reuse."""
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
            weights=self._weights,
        )

    def perturbed(
        self,
        tokens: LabelledTokens,
        clean: CleanPass,
        shifts: dict[int, Tensor],
        frozen: Sequence[nn.Parameter],
        weight: float,
    ) -> Tensor:
        """Descend under `shifts`, from the floor of `clean` up; see `descend`.

        If weights have moved since the clean pass, layers under the floor run again, without a graph as before.
        """
        attentions = {layer: self.blocks[layer].attention for layer in shifts}
        started, entered = clean.random_states
        with ExitStack() as stack:
            started.restore()
            lower = [block.layer for block in self.blocks[: clean.floor]]
            if clean.floor_input is not None and clean.weights is self._weights:
                stack.enter_context(hooks.skip_to(lower, clean.floor_input))
                stack.enter_context(hooks.on_entry(self.blocks[clean.floor].layer, entered.restore))
            elif lower:
                frozen = [*frozen, *(parameter for layer in lower for parameter in layer.parameters())]
                stack.enter_context(hooks.detach_input(self.blocks[clean.floor].layer))
            stack.enter_context(hooks.perturb_hidden(attentions, shifts))
            return self.descend(tokens, frozen, weight)

    def _read_adapters(self, scope: ExitStack) -> None:
        """Until the scope ends, run adapters with their present values."""
        scope.close()
        scope.enter_context(lean_adapters(self.fast.adapted, self.fast.mergeable))
        self._must_read_again = False

    @contextmanager
    def _watching(self, extra: ExtraTerm | None, tokens: LabelledTokens) -> Iterator[Callable[[], Tensor] | None]:
        """Yields the function that gives the extra term after the pass. Attention runs the model's own code here."""
        if extra is None:
            yield None
            return
        attentions = [block.attention for block in self.blocks]
        real = (tokens if self.fast.shortcuts.cuts else tokens.whole()).real
        with hooks.replace_forwards(self._own_attention), extra(attentions, real) as term:
            yield term

    def _last_mlp_at(self, tokens: LabelledTokens) -> AbstractContextManager[None]:
        mlp = self.fast.shortcuts.last_mlp
        return nullcontext() if mlp is None else hooks.run_at(mlp, tokens.positions)

    def _run(self, tokens: LabelledTokens) -> Any:
        causal = self.anatomy.causal
        return causal(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, use_cache=False)

    def _chunked_loss(self, tokens: LabelledTokens, kind: type, hidden: Tensor) -> Tensor:
        """The loss of hidden states (N, D), through the model's own code from there to the logits."""

        def logits_of(rows: Tensor) -> Tensor:
            with hooks.stand_in(self._body, kind, rows):
                return self._run(tokens).logits.squeeze(0)

        in_body = {id(parameter) for parameter in self._body.parameters()}
        in_body -= {id(parameter) for parameter in self.anatomy.head.parameters()}  # a tied embedding is in both
        above = [parameter for parameter in self.parameters if parameter.requires_grad and id(parameter) not in in_body]
        return chunked_cross_entropy(hidden, tokens.targets, logits_of, above, self._chunk_rows or len(tokens.targets))

    def _find_below_blocks(self) -> set[int]:
        """Read from the graph of one token's embedding; nothing runs if only layers train."""
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


def _plus(loss: Tensor, term: Callable[[], Tensor] | None) -> Tensor:
    return loss if term is None else loss + term()
