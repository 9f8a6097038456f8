"""Tiny random models of several families, batches, and a plain two-pass step to hold the lean one against."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tvaccine_core.methods import load_method
from tvaccine_core.methods.base import Batch, Method, MethodContext
from tvaccine_core.models.anatomy import find_blocks
from tvaccine_core.passes.memory import Mode
from tvaccine_core.records import Event

VOCABULARY = 61
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 4},
    "gemma2": {"sliding_window": 4, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 5.0},
    "gemma3_text": {"sliding_window": 4, "final_logit_softcapping": 3.0},
    "phi3": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 24, "dropout": 0.0, "do_layer_norm_before": True},
    "gpt_neox": {"hidden_dropout": 0.0, "attention_dropout": 0.0},
    "cohere": {"logit_scale": 0.4},
    "granite": {"logits_scaling": 3.0, "attention_multiplier": 0.35, "residual_multiplier": 0.8},
}
"""model_type -> settings that make it differ where a shortcut could go wrong."""


def build(
    family: str = "llama",
    *,
    num_layers: int = 5,
    checkpointing: bool = False,
    dropout: float = 0.0,
    lora: bool = True,
    targets: list[str] | str = "all-linear",
    attention: str = "eager",
    **settings: Any,
) -> nn.Module:
    """A random model in training mode, its LoRA off its starting point so that every factor has a gradient."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**{**SIZES, "num_hidden_layers": num_layers, **FAMILIES[family], **settings})
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.2)
    if checkpointing:
        model.gradient_checkpointing_enable()
    if lora:
        model = get_peft_model(
            model, LoraConfig(r=3, lora_alpha=5, lora_dropout=dropout, target_modules=targets, task_type="CAUSAL_LM")
        )
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.1)
    return model.train()


def make_batch(seed: int = 0, weight: float = 1.0) -> Batch:
    """B=3, T=11, right-padded, prompts unlabelled; one row ends early and one column is padding throughout."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (3, 11), generator=generator)
    mask = torch.ones_like(ids)
    labels = ids.clone()
    for row, (prompt, length) in enumerate(((4, 10), (2, 8), (3, 6))):
        ids[row, length:], mask[row, length:] = 0, 0
        labels[row, :prompt], labels[row, length:] = -100, -100
    return Batch(ids, mask, labels, weight)


def make_method(
    config: Any, model: nn.Module, seed: int = 0, activation_memory: Mode = "speed"
) -> tuple[Method[Any], list[Event]]:
    """A method set up on `model`, and the list its events go to."""
    events: list[Event] = []
    context = MethodContext(
        generator=torch.Generator().manual_seed(seed),
        streams={"harmful": lambda size, generator: make_batch(int(torch.randint(1000, (), generator=generator)))},
        reduce_sum=lambda value: value,
        emit=events.append,
        activation_memory=activation_memory,
    )
    method = load_method(config)
    method.setup(model, context)
    return method, events


def take_gradients(model: nn.Module) -> dict[str, Tensor]:
    """The gradients that are not None, taken off the model."""
    taken = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    for parameter in model.parameters():
        parameter.grad = None
    return taken


def plain_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The whole forward pass with Hugging Face's own loss."""
    return model(
        input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels, use_cache=False
    ).loss


def plain_two_passes(
    model: nn.Module, batch: Batch, layers: Sequence[int], rho: float, trained: Mapping[str, nn.Parameter]
) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
    """Written by hand: gradients of `trained` under the perturbation of `layers`, and the clean gradients by layer."""
    attentions = [block.attention for block in find_blocks(model)]
    outputs: dict[int, Tensor] = {}

    def keep(layer: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            outputs.setdefault(layer, output[0])

        return hook

    handles = [attentions[layer].register_forward_hook(keep(layer)) for layer in layers]
    clean = torch.autograd.grad(plain_loss(model, batch), [outputs[layer] for layer in layers])
    for handle in handles:
        handle.remove()
    norm = torch.cat([gradient.flatten() for gradient in clean]).norm()
    shifts = {layer: rho * gradient / (norm + 1e-7) for layer, gradient in zip(layers, clean, strict=True)}

    def shift(layer: int) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            return output[0] + shifts[layer], *output[1:]

        return hook

    handles = [attentions[layer].register_forward_hook(shift(layer)) for layer in layers]
    gradients = torch.autograd.grad(plain_loss(model, batch) * batch.weight, list(trained.values()))
    for handle in handles:
        handle.remove()
    return dict(zip(trained, gradients, strict=True)), dict(zip(layers, clean, strict=True))


def worst_error(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    """Largest relative L2 error over tensors of the same names."""
    assert ours.keys() == theirs.keys(), sorted(ours.keys() ^ theirs.keys())
    return max(float((ours[name] - theirs[name]).norm() / theirs[name].norm()) for name in theirs)
