"""Attention to the first token, computed beside the kernel, is what eager attention's own weights say."""

from typing import Any

import pytest
import torch
from test_passes import left_padded
from tiny_models import FAMILIES, build, make_batch, make_method, take_gradients, worst_error
from torch import Tensor, nn

from tvaccine_core.bench.memory import SavedActivations
from tvaccine_core.config import SFTConfig
from tvaccine_core.errors import ModelError
from tvaccine_core.methods.base import Batch
from tvaccine_core.models.anatomy import find_blocks
from tvaccine_core.passes import sinks
from tvaccine_core.passes.losses import LabelledTokens, cross_entropy
from tvaccine_core.passes.memory import Mode
from tvaccine_core.passes.sinks import sink_attention, sink_term


def divergence(found: Tensor) -> Tensor:
    """As Surgery's: by how much row 0 looks at its first token more than row 1, where it does; (L, B, H) -> ()."""
    return 3.0 * torch.relu(found[:, 0] - found[:, 1]).mean()


def plain_sinks(model: Any, tokens: LabelledTokens) -> tuple[Tensor, Any]:
    """From whole attention maps, (L, B, H), and the model's output."""
    mask = tokens.real.long()
    output = model(input_ids=tokens.input_ids, attention_mask=mask, use_cache=False, output_attentions=True)
    maps = torch.stack(output.attentions)  # (L, B, H, T, T)
    rows = []
    for row, real in enumerate(tokens.real):
        first, *later = real.nonzero().flatten().tolist()
        rows.append(maps[:, row][:, :, later, first].mean(-1))  # (L, H)
    return torch.stack(rows, dim=1), output


def plain_gradients(model: Any, tokens: LabelledTokens) -> tuple[dict[str, Tensor], Tensor]:
    found, output = plain_sinks(model, tokens)
    loss = cross_entropy(output.logits.flatten(0, 1)[tokens.positions], tokens.targets)
    (loss + divergence(found)).backward()
    return take_gradients(model), found.detach()


def own_gradients(model: nn.Module, batch: Batch, mode: Mode = "speed") -> tuple[dict[str, Tensor], Tensor]:
    passes = make_method(SFTConfig(), model, activation_memory=mode)[0].passes
    seen: list[Tensor] = []

    def of(found: Tensor) -> Tensor:
        seen.append(found.detach())
        return divergence(found)

    with passes.scope(torch.Generator().manual_seed(0)):
        passes.descend(batch.prepare(), (), 1.0, sink_term(of))
    assert len(seen) == 1
    return take_gradients(model), seen[0]


@pytest.mark.parametrize(("checkpointing", "padding"), [(False, "behind"), (True, "in front")])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_sinks_and_gradients_are_those_of_its_attention_maps(
    family: str, checkpointing: bool, padding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grouped heads, sliding windows, soft caps, scales: 4 heads, some rows of 9 at a time."""
    monkeypatch.setattr(sinks, "SCORES_AT_ONCE", 3 * 4 * 9 * 2)
    batch = make_batch() if padding == "behind" else left_padded(make_batch())
    model = build(family)
    if padding == "behind":
        model = (
            model.double()
        )  # not in front: eager attention's own softmax, in float32, of a float64 mask is no number
    expected, maps = plain_gradients(model, batch.prepare())
    if checkpointing:
        model.gradient_checkpointing_enable()  # pyright: ignore[reportCallIssue]
    ours, found = own_gradients(model, batch)
    torch.testing.assert_close(found, maps, rtol=1e-5, atol=1e-6, check_dtype=False)
    assert worst_error(ours, expected) < (1e-5 if padding == "behind" else 1e-4)


@pytest.mark.parametrize("mode", ["speed", "balanced", "lowest"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("padding", ["behind", "in front"])
def test_on_every_attention_and_memory_mode(attention: str, mode: Mode, padding: str) -> None:
    """In float32 with as many key heads as heads, where the lab's short attention is at work in `speed`."""
    batch = make_batch() if padding == "behind" else left_padded(make_batch())
    expected, maps = plain_gradients(build(num_key_value_heads=4), batch.prepare())
    model = build(num_key_value_heads=4, attention=attention)
    passes = make_method(SFTConfig(), model, activation_memory=mode)[0].passes
    short = {type(module).__name__ for module in passes.fast.forwards} - {"LlamaRMSNorm"}
    assert bool(short) == (attention == "sdpa" and mode == "speed")
    ours, found = own_gradients(model, batch, mode)
    torch.testing.assert_close(found, maps, rtol=1e-5, atol=1e-6)
    assert worst_error(ours, expected) < 1e-4


def test_by_hand() -> None:
    """Two tokens after the first, all scores equal: they look at it with 1/2 and 1/3; a pad in front is no first."""
    query, key = torch.zeros(2, 3, 3, 4), torch.randn(2, 1, 3, 4)
    real = torch.tensor([[True, True, True], [False, True, True]])
    mask = real[:, None, None] & torch.ones(3, 3, dtype=torch.bool).tril()
    found = sink_attention(query, key, mask, real)
    torch.testing.assert_close(found, torch.tensor([[5 / 12] * 3, [0.5] * 3]))
    torch.testing.assert_close(sink_attention(query[:1], key[:1], None, real[:1]), found[:1])
    assert sink_attention(query[:1], key[:1], None, real[:1] & torch.tensor([True, False, False])).tolist() == [[0] * 3]


@pytest.mark.parametrize("softcap", [None, 1.5])
def test_its_gradient_is_right_however_many_rows_are_taken_at_once(
    softcap: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 4, 11, 5, dtype=torch.float64, generator=generator).requires_grad_()
    key = torch.randn(3, 2, 11, 5, dtype=torch.float64, generator=generator).requires_grad_()
    real = torch.arange(11) < torch.tensor([[11], [7], [4]])

    def take(query: Tensor, key: Tensor) -> Tensor:
        return sink_attention(query, key, None, real, scaling=0.7, softcap=softcap)

    whole = take(query, key)
    monkeypatch.setattr(sinks, "SCORES_AT_ONCE", 3 * 4 * 11 * 3)
    torch.testing.assert_close(take(query, key), whole, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(take, (query, key))


def test_no_attention_map_is_kept() -> None:
    """Beside queries and keys, which attention keeps as well, there is one column: 1/T of a map."""
    query, key = (torch.randn(2, 4, 200, 8, requires_grad=True) for _ in range(2))
    with SavedActivations([]) as saved:
        found = sink_attention(query, key, None, torch.ones(2, 200, dtype=torch.bool))
        kept = saved.now_bytes
    assert found.shape == (2, 4)
    assert kept < 3 * query.nbytes
    assert 10 * query.nbytes < 4 * 2 * 4 * 200 * 200, "a map would have shown"


def test_gradients_as_values_take_the_term_too() -> None:
    model = build().double()
    expected, _ = own_gradients(model, make_batch())
    passes = make_method(SFTConfig(), model)[0].passes
    names = {parameter: name for name, parameter in model.named_parameters()}
    with passes.scope(torch.Generator().manual_seed(0)):
        _, found = passes.gradients(make_batch().prepare(), passes.parameters, sink_term(divergence))
    assert worst_error({names[parameter]: gradient for parameter, gradient in found.items()}, expected) < 1e-12


def test_attention_of_another_kind_is_refused_and_nothing_is_left_behind() -> None:
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model: Any = build()
    passes = make_method(SFTConfig(), model)[0].passes
    model.get_base_model().config._attn_implementation = "flex_attention"
    with passes.scope(torch.Generator()), pytest.raises(ModelError, match="flex_attention attention") as caught:
        passes.descend(make_batch().prepare(), (), 1.0, sink_term(divergence))
    assert "eager or sdpa" in caught.value.remedy
    assert "get_interface" not in vars(ALL_ATTENTION_FUNCTIONS)

    class Other(nn.Module):
        """Attends by itself."""

        def forward(self, hidden_states: Tensor, **kwargs: Any) -> tuple[Tensor, None]:
            return hidden_states, None

    model = build()
    layer: Any = find_blocks(model)[2].layer
    layer.self_attn.forward = Other().forward
    passes = make_method(SFTConfig(), model)[0].passes
    with passes.scope(torch.Generator()), pytest.raises(ModelError, match="does not go through transformers"):
        passes.descend(make_batch().prepare(), (), 1.0, sink_term(divergence))
