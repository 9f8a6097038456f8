"""Lean RMS norms are the families' own, bit for bit, and keep their input in its own precision."""

import copy
from typing import Any

import pytest
import torch
from tiny_models import build
from torch import nn
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from tvaccine_core.bench.memory import SavedActivations
from tvaccine_core.fast.lean_norms import RMSNorm, lean_norms
from tvaccine_core.models.hooks import replace_forwards


def norms_of(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if "RMSNorm" in type(module).__name__]


def frozen(family: str, dtype: torch.dtype) -> nn.Module:
    model = build(family).to(dtype)
    generator = torch.Generator().manual_seed(0)
    for module in norms_of(model):
        weight: Any = module.weight
        weight.data = torch.randn(weight.shape, generator=generator).to(dtype)
    return model.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "phi3", "granite"])
def test_every_familys_form_is_found_and_equals_its_own_code(family: str, dtype: torch.dtype) -> None:
    model = frozen(family, dtype)
    norms = norms_of(model)
    forwards = lean_norms(model)
    assert list(forwards) == norms
    assert len(norms) > 10
    for module in (norms[0], norms[-1]):
        width = len(module.weight)  # pyright: ignore[reportArgumentType]
        x = (3 * torch.randn(3, 11, width)).to(dtype).requires_grad_()
        outer = torch.randn(3, 11, width).to(dtype)
        module(x).backward(outer)
        expected, x.grad = x.grad, None
        with torch.no_grad():
            plain = module(x)
        with replace_forwards(forwards), SavedActivations(model.parameters()) as saved:
            lean = module(x)
            assert saved.now_bytes == x.nbytes + 3 * 11 * 4
            lean.backward(outer)
        assert torch.equal(lean, plain)
        assert x.grad is not None
        assert expected is not None
        limit = 1e-6 if dtype == torch.float32 else 2**-8
        assert float((x.grad.float() - expected.float()).norm() / expected.float().norm()) < limit


@pytest.mark.parametrize("from_one", [False, True])
def test_its_gradient_is_the_gradient_of_its_function(from_one: bool) -> None:
    x, weight, outer = (torch.randn(3, 11, 16).requires_grad_(), torch.randn(16), torch.randn(3, 11, 16))
    scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
    expected = torch.autograd.grad((weight + from_one) * x * scale, x, outer)[0]
    ours = torch.autograd.grad(RMSNorm.apply(x, weight, 1e-5, from_one), x, outer)[0]
    torch.testing.assert_close(ours, expected)


class HalvedRMSNorm(LlamaRMSNorm):
    """One of a form that nobody knows."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states) / 2


class GatedRMSNorm(LlamaRMSNorm):
    """One that takes more than its input."""

    def forward(self, hidden_states: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:  # pyright: ignore
        return super().forward(hidden_states) * gate


@pytest.mark.parametrize("reason", ["float64", "trains", "another form", "gated", "hooked", "no RMS norm"])
def test_others_run_their_own_code(reason: str) -> None:
    dtype = torch.float64 if reason == "float64" else torch.float32
    model = frozen("opt" if reason == "no RMS norm" else "llama", dtype)
    if reason == "trains":
        model.requires_grad_(True)
    for module in norms_of(model):
        if reason == "another form":
            module.__class__ = HalvedRMSNorm
        if reason == "gated":
            module.__class__ = GatedRMSNorm
        if reason == "hooked":  # as accelerate does where layers lie on several devices
            module.forward = copy.copy(module.forward)
    assert not lean_norms(model)
