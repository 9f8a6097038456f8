"""The lean passes: exact on every family, and no more work than promised."""

import weakref
from typing import Any

import pytest
import torch
from tiny_models import (
    FAMILIES,
    build,
    make_batch,
    make_method,
    plain_loss,
    plain_two_passes,
    take_gradients,
    worst_error,
)
from torch import nn

from tvaccine_core.bench.memory import SavedActivations
from tvaccine_core.config import SFTConfig, TVaccineConfig
from tvaccine_core.errors import DataError, ModelError
from tvaccine_core.fast.lean_adapters import lean_adapters
from tvaccine_core.methods.base import Batch
from tvaccine_core.models.anatomy import find_blocks
from tvaccine_core.passes.losses import LabelledTokens
from tvaccine_core.passes.passes import Passes

LAYERS = (1, 3)


def forced(model: nn.Module, **settings: Any) -> Any:
    method, _ = make_method(TVaccineConfig(num_layers=2, rho=2.0, **settings), model)
    method.set_layers(LAYERS)
    return method


def left_padded(batch: Batch) -> Batch:
    """The same rows with their padding in front."""
    shifts = [int((row == 0).sum()) for row in batch.attention_mask]
    parts = zip(batch.input_ids, batch.attention_mask, batch.labels, shifts, strict=True)
    rolled = [[tensor.roll(shift) for tensor in tensors] for *tensors, shift in parts]
    return Batch(*(torch.stack(column) for column in zip(*rolled, strict=True)))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gets_the_plain_steps_gradients(family: str, checkpointing: bool) -> None:
    model = build(family, checkpointing=checkpointing)
    blocks = find_blocks(model)
    assert len(blocks) == 5
    method = forced(model)
    metrics = method.training_step(model, make_batch(), 0)
    ours = take_gradients(model)
    drawn = {id(parameter) for layer in LAYERS for parameter in blocks[layer].attention.parameters()}
    attentions = {id(parameter) for block in blocks for parameter in block.attention.parameters()}
    below = {id(parameter) for parameter in blocks[0].layer.parameters()}
    trained = {
        name: parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
        and (id(parameter) in drawn or id(parameter) not in attentions)
        and id(parameter) not in below
        and "project_in" not in name
    }
    expected, _ = plain_two_passes(model, make_batch(), LAYERS, 2.0, trained)
    assert worst_error(ours, expected) < 1e-5
    assert float(metrics["loss"]) == pytest.approx(float(plain_loss(model, make_batch())), rel=1e-6)


@pytest.mark.parametrize(
    ("family", "attention"), [("llama", "eager"), ("llama", "sdpa"), ("opt", "sdpa"), ("gemma2", "eager")]
)
def test_padding_in_front_is_masked(family: str, attention: str) -> None:
    model = build(family)
    model.get_base_model().set_attn_implementation(attention)  # pyright: ignore[reportCallIssue]
    batch = left_padded(make_batch())
    assert LabelledTokens.of(batch.input_ids, batch.attention_mask, batch.labels).attention_mask is not None
    make_method(SFTConfig(), model)[0].training_step(model, batch, 0)
    ours = take_gradients(model)
    plain_loss(model, batch).backward()
    assert worst_error(ours, take_gradients(model)) < 1e-5


def test_columns_that_cannot_reach_the_loss_are_cut() -> None:
    batch = make_batch()
    tokens = LabelledTokens.of(batch.input_ids, batch.attention_mask, batch.labels)
    assert tokens.input_ids.shape == (3, 9), "11 columns, one of padding, and the last label predicts nothing"
    assert tokens.attention_mask is None
    assert len(tokens.positions) == len(tokens.targets) == batch.num_tokens == 6 + 6 + 3
    row, column = divmod(int(tokens.positions[0]), 9)
    assert (row, column) == (0, 3)
    assert tokens.targets[0] == batch.labels[0, 4]


def test_a_batch_without_labels_is_refused() -> None:
    batch = make_batch()
    with pytest.raises(DataError, match="no labelled token"):
        LabelledTokens.of(batch.input_ids, batch.attention_mask, torch.full_like(batch.labels, -100))


def test_lower_layers_run_once_and_the_end_of_the_model_sees_labelled_positions_only() -> None:
    model = build()
    method = forced(model)
    runs = [0] * 5
    logits: list[torch.Size] = []
    lengths: dict[int, set[int]] = {0: set(), 4: set()}
    recorded: list[bool] = []

    def count(layer: int) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            runs[layer] += 1
            output = plain[layer](*args, **kwargs)
            recorded.append(output.requires_grad)
            return output

        return run

    plain = [block.layer.forward for block in method.passes.blocks]
    for layer, block in enumerate(method.passes.blocks):
        block.layer.forward = count(layer)
    handle = method.passes.anatomy.head.register_forward_hook(lambda head, inputs, output: logits.append(output.shape))
    handles = [
        method.passes.blocks[layer].mlp.down_proj.register_forward_pre_hook(
            lambda module, inputs, seen=seen: seen.add(inputs[0].flatten(0, 1).shape[0])
        )
        for layer, seen in lengths.items()
    ]
    method.training_step(model, make_batch(), 0)
    for hook in (handle, *handles):
        hook.remove()
    for block in method.passes.blocks:
        del block.layer.forward
    assert runs == [1, 2, 2, 2, 2]
    assert recorded == [False, True, True, True, True, True, True, True, True], "layer 0 records no graph"
    assert logits == [(1, make_batch().num_tokens, 61)] * 2
    assert lengths == {0: {3 * 9}, 4: {make_batch().num_tokens}}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("layers", [(0, 2), (2, 4)])
def test_both_passes_see_the_same_dropout_masks(layers: tuple[int, ...], checkpointing: bool) -> None:
    model = build("gpt_neox", checkpointing=checkpointing, dropout=0.3, hidden_dropout=0.2, attention_dropout=0.2)
    method, _ = make_method(TVaccineConfig(num_layers=2, rho=0.0), model)
    method.set_layers(layers)
    metrics = method.training_step(model, make_batch(), 0)
    assert torch.equal(metrics["loss"], metrics["perturbed_loss"])
    again = method.training_step(model, make_batch(), 1)
    assert not torch.equal(metrics["loss"], again["loss"]), "the next step draws other masks"


def test_reentrant_checkpointing_is_refused() -> None:
    model: Any = build(lora=False)
    model.gradient_checkpointing_enable({"use_reentrant": True})
    with pytest.raises(ModelError, match="Reentrant") as caught:
        Passes(model)
    assert "use_reentrant" in caught.value.remedy


def test_a_model_of_another_kind_is_refused() -> None:
    with pytest.raises(ModelError):
        Passes(nn.Sequential(nn.Linear(3, 3)))


def nf4_llama(dropout: float = 0.0) -> Any:
    """A tiny Llama whose linears are NF4 on the CPU, with LoRA."""
    import bitsandbytes as bnb
    from peft import LoraConfig, get_peft_model

    model: Any = build(lora=False, hidden_size=64, head_dim=16, intermediate_size=64)
    model.requires_grad_(False)
    model.is_loaded_in_4bit = True
    for parent in list(model.model.layers.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                quantised = bnb.nn.Linear4bit(
                    child.in_features, child.out_features, bias=False, compute_dtype=torch.float32, quant_type="nf4"
                )
                quantised.weight = bnb.nn.Params4bit(child.weight.data, requires_grad=False, quant_type="nf4")
                setattr(parent, name, quantised.to("cpu"))
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False  # its eval forward would repack the weights for good
    lora = LoraConfig(r=3, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.train()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_quantised_base_gets_the_plain_steps_gradients_before_and_after_generating(checkpointing: bool) -> None:
    model = nf4_llama()
    assert type(model.get_base_model().model.layers[0].self_attn.q_proj.base_layer).__name__ == "Linear4bit"
    if checkpointing:
        model.gradient_checkpointing_enable()
    method = forced(model, freezing="layer")
    method.training_step(model, make_batch(), 0)
    ours = take_gradients(model)
    trained = {name: parameter for name, parameter in model.named_parameters() if name in ours}
    assert len(trained) == 2 * 7 * 2
    expected, _ = plain_two_passes(model, make_batch(), LAYERS, 2.0, trained)
    assert worst_error(ours, expected) < 1e-5

    with torch.no_grad():
        model.eval().generate(input_ids=make_batch().input_ids, max_new_tokens=2, do_sample=False)
    model.train()
    method.training_step(model, make_batch(), 1)
    assert worst_error(take_gradients(model), ours) < 1e-6


def test_a_quantised_linear_with_an_adapter_holds_one_input() -> None:
    """bitsandbytes' NF4 product holds none, which autograd's counters would not see; LoRA's part holds one."""
    model = nf4_llama(dropout=0.3)
    attention = model.get_base_model().model.layers[0].self_attn
    leaf = torch.randn(3, 11, 64).requires_grad_()
    inner = leaf * 2  # holds nothing either
    held = weakref.ref(inner)
    out = attention.q_proj.base_layer(inner)
    del inner
    assert held() is None
    out.sum().backward()
    assert leaf.grad is not None
    assert float(leaf.grad.abs().sum()) > 0

    linears = [attention.q_proj, attention.k_proj, attention.v_proj]
    with SavedActivations(model.parameters()) as saved, lean_adapters(linears, []):
        outputs = [linear(leaf) for linear in linears]
        assert saved.now_bytes == leaf.nbytes
    del outputs
