"""The T-Vaccine step in the plain way, the reference for the lean step.

Source: the trainer released with Liu et al., arXiv:2410.09760, rewritten for one Hugging Face model, with freezing as
in the paper. Cost: two whole forward and backward passes, and a recomputation of the undrawn layers in each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaForCausalLM

from tvaccine_core.methods.base import Batch

NORM_FLOOR = 1e-7
"""The released code adds this to the norm before it divides by it."""


class ReleasedStep:
    """One step on one model, with the drawn layers given.

    Only the drawn layers' adapters require a gradient. Pass one is a whole forward and backward pass; hooks at drawn
    attention modules keep the gradients of their outputs, and parameter gradients are thrown away. Pass two is a whole
    forward and backward pass with the perturbation added to these outputs. Undrawn layers are under non-reentrant
    checkpointing; the head runs on every position. It shares no code with the lean step.
    """

    def __init__(self, model: PeftModel, drawn: Sequence[int], rho: float) -> None:
        self.model = model
        self.layers: Any = llama(model).model.layers
        self.drawn = tuple(drawn)
        self.rho = rho

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Freeze and checkpoint the undrawn layers, as at a draw and not at every step; undone on exit."""
        undrawn = [layer for index, layer in enumerate(self.layers) if index not in self.drawn]
        frozen = [parameter for layer in undrawn for parameter in layer.parameters() if parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        for layer in undrawn:
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
            layer.gradient_checkpointing = True
        try:
            yield
        finally:
            for layer in undrawn:
                layer.gradient_checkpointing = False
                del layer._gradient_checkpointing_func
            for parameter in frozen:
                parameter.requires_grad_(True)

    def __call__(self, batch: Batch) -> None:
        """Leave the perturbed pass's gradient in `.grad` of the drawn layers' adapters."""
        gradients: dict[int, Tensor] = {}

        def keep(index: int) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: tuple[Tensor, ...]) -> None:
                output[0].register_hook(lambda gradient: gradients.update({index: gradient}))

            return hook

        with self._hooked(keep):
            self._loss(batch).backward()
        self.model.zero_grad()

        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients.values()]))
        scale = self.rho / (norm + NORM_FLOOR)

        def shift(index: int) -> Callable[..., tuple[Tensor, ...]]:
            def hook(module: nn.Module, inputs: Any, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
                return output[0] + scale * gradients[index], *output[1:]

            return hook

        with self._hooked(shift):
            self._loss(batch).backward()

    def _loss(self, batch: Batch) -> Tensor:
        output = self.model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels, use_cache=False
        )
        return output.loss

    @contextmanager
    def _hooked(self, make: Callable[[int], Callable[..., Any]]) -> Iterator[None]:
        handles = [self.layers[index].self_attn.register_forward_hook(make(index)) for index in self.drawn]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def llama(model: PeftModel) -> LlamaForCausalLM:
    """The Llama inside peft's wrapper."""
    causal = model.get_base_model()
    assert isinstance(causal, LlamaForCausalLM)
    return causal
