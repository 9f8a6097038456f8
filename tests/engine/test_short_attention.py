"""Short attention computes what the model's own does, is found where it is that, and nowhere else."""

from typing import Any

import pytest
import torch
from tiny_models import build, make_batch, make_method, plain_two_passes, take_gradients, worst_error
from torch import Tensor, nn

from tvaccine_core.config import TVaccineConfig
from tvaccine_core.fast import short_attention
from tvaccine_core.fast.short_attention import LONGEST, RotaryAttention, short_attentions
from tvaccine_core.models.anatomy import find_blocks
from tvaccine_core.models.hooks import replace_forwards

OF_ITS_FORM: dict[str, Any] = {"attention": "sdpa", "num_key_value_heads": 4, "max_position_embeddings": 256}


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Length of the sequences that went through it."""
    lengths: list[int] = []
    apply = RotaryAttention.apply

    def count(q: Tensor, *rest: Any) -> Tensor:
        lengths.append(q.shape[1])
        return apply(q, *rest)

    monkeypatch.setattr(short_attention.RotaryAttention, "apply", count)
    return lengths


def logits_and_gradient(model: Any, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    logits[mask.bool()].square().sum().backward()
    return logits[mask.bool()], torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "granite"])
@pytest.mark.parametrize(("length", "padding"), [(11, "right"), (11, "left"), (LONGEST, "none")])
def test_it_is_the_models_own_function(family: str, length: int, padding: str, runs: list[int]) -> None:
    model: Any = build(family, **OF_ITS_FORM)
    ids, mask = torch.randint(3, 61, (3, length)), torch.ones(3, length, dtype=torch.long)
    if padding != "none":
        mask[0, -4:] = 0
        mask = mask.flip(1) if padding == "left" else mask
    expected = logits_and_gradient(model, ids, mask)
    forwards = short_attentions(find_blocks(model))
    runs.clear()  # of the trials
    with replace_forwards(forwards):
        ours = logits_and_gradient(model, ids, mask)
    assert runs == [length] * 5
    for one, other in zip(ours, expected, strict=True):
        assert float((one - other).norm() / other.norm()) < 1e-5


def test_its_gradient_is_the_gradient_of_its_function() -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k, v = (draw(2, 5, 12).requires_grad_() for _ in range(3))
    tables = [(draw(1, 1, 5, 4), draw(1, 1, 5, 4)) for _ in range(2)]
    bias = draw(2, 1, 5, 5)
    torch.autograd.gradcheck(lambda *qkv: RotaryAttention.apply(*qkv, *tables, bias, 3), (q, k, v))


def test_a_step_takes_it_and_has_the_gradients_of_a_plain_one(runs: list[int]) -> None:
    model = build(**OF_ITS_FORM)
    batch = make_batch()
    method, _ = make_method(TVaccineConfig(num_layers=2, rho=1.5), model)
    runs.clear()
    method.training_step(model, batch, 0)
    ours = take_gradients(model)
    layers: Any = method.layers  # pyright: ignore[reportAttributeAccessIssue]
    assert len(runs) >= 10 - layers[0]
    parameters = dict(model.named_parameters())
    theirs, _ = plain_two_passes(model, batch, layers, 1.5, {name: parameters[name] for name in ours})
    assert worst_error(ours, theirs) < 1e-5


def test_where_memory_is_short_it_is_not_taken(runs: list[int]) -> None:
    model = build(**OF_ITS_FORM)
    for mode in ("balanced", "lowest"):
        method, _ = make_method(TVaccineConfig(num_layers=2), model, activation_memory=mode)
        method.training_step(model, make_batch(), 0)
    assert not runs


@pytest.mark.parametrize("reason", ["too long", "double precision", "cached", "dropout"])
def test_what_is_another_computation_runs_the_models_own_code(reason: str, runs: list[int]) -> None:
    model: Any = build(**OF_ITS_FORM, attention_dropout=0.5 if reason == "dropout" else 0.0)
    if reason == "double precision":
        model.double()
    ids = torch.full((1, LONGEST + 1 if reason == "too long" else 6), 5)
    forwards = short_attentions(find_blocks(model))
    assert len(forwards) == 5
    runs.clear()
    with replace_forwards(forwards):
        model(input_ids=ids, use_cache=reason == "cached")
    assert not runs


class FlatAttention(nn.Module):
    """Has all the parts, and no softmax."""

    def __init__(self, like: Any) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = like.q_proj, like.k_proj, like.v_proj, like.o_proj
        for name in ("config", "head_dim", "scaling", "attention_dropout", "num_key_value_groups"):
            setattr(self, name, getattr(like, name))

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        return self.o_proj(self.v_proj(hidden_states)), None


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("llama", {"num_key_value_heads": 2}),
        ("llama", {"attention": "eager"}),
        ("qwen3", {}),
        ("gemma2", {"attention": "eager"}),
        ("gemma3_text", {}),
        ("phi3", {}),
        ("opt", {}),
        ("gpt_neox", {}),
        ("cohere", {}),
        ("flat", {}),
    ],
)
def test_modules_of_another_form_are_left_alone(family: str, settings: dict[str, Any]) -> None:
    model = build("llama" if family == "flat" else family, **{**OF_ITS_FORM, **settings})
    if family == "flat":
        for block in find_blocks(model):
            setattr(block.layer, "self_attn", FlatAttention(block.attention))  # noqa: B010
    assert not short_attentions(find_blocks(model))
