"""What a pass leaves out is tried on the model: parts that mix tokens get the plain gradients."""

import gc
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, build, make_batch, make_method, plain_loss, take_gradients, worst_error
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tvaccine_core.config import SFTConfig, TVaccineConfig
from tvaccine_core.models.anatomy import anatomy, find_blocks


class PaddedShift(nn.Module):
    """Looks at the token before through a module that pads, as RWKV's does."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.shift = nn.ZeroPad2d((0, 0, 1, -1))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.inner(hidden + self.shift(hidden))


class RolledShift(nn.Module):
    """The same without a module whose name would tell."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.weight = getattr(inner, "weight", None)  # where it stands for a head or a norm

    def forward(self, hidden: Tensor) -> Tensor:
        before = torch.cat((torch.zeros_like(hidden[:, :1]), hidden[:, :-1]), dim=1)
        return self.inner(hidden + 0.5 * before)


class LimitedExperts(nn.Module):
    """Two experts by the sign of a channel, each for half the tokens at most; those that come later get nothing."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        rows = hidden.flatten(0, 1)
        first = rows[:, 0] > 0
        rank = torch.where(first, first.cumsum(0), (~first).cumsum(0))
        kept = (rank <= -(-len(rows) // 2)).to(hidden.dtype)[:, None]
        return (self.inner(rows * torch.where(first, 1.0, -1.0)[:, None]) * kept).view_as(hidden)


class CrowdedExperts(LimitedExperts):
    """One of many experts that seldom fills: it takes three quarters of the tokens of a pass."""

    def forward(self, hidden: Tensor) -> Tensor:
        rows = hidden.flatten(0, 1)
        mine = rows[:, 0] > 0
        kept = (~mine | (mine.cumsum(0) <= 0.75 * len(rows))).to(hidden.dtype)[:, None]
        return (self.inner(rows) * kept).view_as(hidden)


def mix_in_last_mlp(kind: Callable[[nn.Module], nn.Module]) -> Callable[[Any], None]:
    def change(causal: Any) -> None:
        causal.model.layers[-1].mlp = kind(causal.model.layers[-1].mlp)

    return change


def mix_after_last_layer(causal: Any) -> None:
    causal.model.norm = RolledShift(causal.model.norm)


def mix_in_head(causal: Any) -> None:
    causal.lm_head = RolledShift(causal.lm_head)


def look_both_ways(causal: Any) -> None:
    """Eager attention without a mask bars nothing."""
    for layer in causal.model.layers:
        layer.self_attn.forward = partial(without_mask, layer.self_attn.forward)


def without_mask(plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return plain(*args, **{**kwargs, "attention_mask": None})


def count_the_columns(causal: Any) -> None:
    """Causal in what tokens say, not in how many there are."""
    plain = causal.model.layers[1].forward
    causal.model.layers[1].forward = lambda hidden, *args, **kwargs: plain(
        hidden * (1 + hidden.shape[1] / 50), *args, **kwargs
    )


FOOLING: dict[str, tuple[Callable[[Any], None], tuple[bool, bool, bool]]] = {
    "padded shift": (mix_in_last_mlp(PaddedShift), (True, True, False)),
    "rolled shift": (mix_in_last_mlp(RolledShift), (True, True, False)),
    "limited experts": (mix_in_last_mlp(LimitedExperts), (False, False, False)),
    "crowded experts": (mix_in_last_mlp(CrowdedExperts), (True, True, False)),
    "mixing after the last layer": (mix_after_last_layer, (True, True, False)),
    "mixing head": (mix_in_head, (True, False, False)),
    "attention both ways": (look_both_ways, (False, False, False)),
    "counted columns": (count_the_columns, (False, False, False)),
}
"""Name -> what it does to a Llama, and which of cut, gathered head and last half at positions remain."""


@pytest.mark.parametrize("name", FOOLING)
def test_a_model_that_mixes_tokens_gets_the_plain_gradients(name: str) -> None:
    model: Any = build()
    FOOLING[name][0](model.get_base_model())
    make_method(SFTConfig(), model)[0].training_step(model, make_batch(), 0)
    ours = take_gradients(model)
    plain_loss(model, make_batch()).backward()
    assert worst_error(ours, take_gradients(model)) < 1e-5


def found_for(model: nn.Module) -> Any:
    from tvaccine_core.passes.shortcuts import find_shortcuts

    return find_shortcuts(anatomy(model))


@pytest.mark.parametrize("name", FOOLING)
def test_only_what_is_wrong_is_left_undone_and_a_user_is_told(name: str) -> None:
    model: Any = build()
    change, remaining = FOOLING[name]
    change(model.get_base_model())
    found = found_for(model)
    assert (found.cuts, found.gathers, found.last_mlp is not None) == remaining
    (note,) = found.notes
    assert "LlamaForCausalLM" in note.text
    assert note.level == ("info" if found.cuts else "warning")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", [*FAMILIES, "mixtral"])
def test_every_family_keeps_every_shortcut(family: str, attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if (family, attention) == ("gemma2", "sdpa"):
        pytest.skip("transformers has no such attention for it")
    monkeypatch.setitem(FAMILIES, "mixtral", {"num_local_experts": 4})
    model = build(family, attention=attention, lora=family != "mixtral")
    found = found_for(model)
    assert found.cuts
    assert found.gathers
    assert found.last_mlp is find_blocks(model)[-1].mlp
    assert (found.last_mlp is None) == (family == "opt")
    assert not found.notes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_rounding_is_no_difference(dtype: torch.dtype) -> None:
    assert found_for(build("qwen3").to(dtype)).last_mlp is not None


def test_a_model_without_finite_numbers_runs_plainly() -> None:
    model: Any = build()
    model.get_base_model().model.norm.weight.data.fill_(float("nan"))
    found = found_for(model)
    assert (found.cuts, found.gathers, found.last_mlp) == (False, False, None)
    assert "not finite" in found.notes[0].text


def test_dropout_hides_nothing_and_all_is_left_as_it_was() -> None:
    model = build("gpt_neox", dropout=0.3, hidden_dropout=0.2, attention_dropout=0.2).eval()
    model.get_submodule("base_model.model.gpt_neox.layers.1").train()
    modes = [module.training for module in model.modules()]
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    found = found_for(model)
    assert found.cuts
    assert found.last_mlp is not None
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_model_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = build()
    runs: list[int] = []
    handle = model.get_base_model().register_forward_pre_hook(lambda *_: runs.append(1))
    first = found_for(model)
    assert len(runs) == 3
    make_method(TVaccineConfig(), model)
    assert found_for(model).last_mlp is first.last_mlp
    assert len(runs) == 3
    mix_in_last_mlp(RolledShift)(model.get_base_model())
    assert found_for(model).last_mlp is None, "another last half is tried anew"
    handle.remove()


def test_shapes_without_numbers_are_believed() -> None:
    """A plan works with such models; its numbers would be made up."""
    with torch.device("meta"):
        model = build(lora=False)
    assert found_for(model).last_mlp is not None
    with FakeTensorMode():
        fake = build(lora=False)
        found = found_for(fake)
    assert (found.cuts, found.gathers) == (True, True)
    assert found.last_mlp is not None
    assert not found.notes


def test_what_was_found_keeps_no_model_alive() -> None:
    """A divided model's parts know their model; one that outlives the processes' connection would end them badly."""
    parts = anatomy(build())
    model = parts.causal
    mlp = parts.blocks[-1].mlp
    assert mlp is not None
    mlp.__dict__["model"] = model
    assert found_for(model).last_mlp is mlp
    assert found_for(model).last_mlp is mlp, "found before"
    gone = weakref.ref(model)
    del model, parts, mlp
    gc.collect()
    assert gone() is None
