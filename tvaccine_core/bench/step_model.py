"""One model, one batch, and every kind of step that the benchmark `step` measures on them.

A random Llama with LoRA on its seven linears (float32, dropout 0) and full rows of random tokens, the first half of
each masked. Steps are named `method mode`: `tvaccine lowest` is one step of our T-Vaccine with forced layers,
`freezing="layer"`, in the activation memory mode `lowest`. `released` computes the same gradient in the plain way (see
`released`). `tvaccine plain` is an unperturbed step, as with `perturb_every` above 1; Vaccine's plain step is SFT's.
`sft off` and the like are the steps in mode `speed` with every fast path turned off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from tvaccine_core.bench.memory import LiveTensors, SavedActivations
from tvaccine_core.bench.released import ReleasedStep
from tvaccine_core.config import LINEAR_MODULES, Config, SFTConfig, TVaccineConfig, VaccineConfig
from tvaccine_core.errors import TrainingError
from tvaccine_core.fast import switch as fast_paths
from tvaccine_core.methods import load_method
from tvaccine_core.methods.base import Batch, Method, MethodContext
from tvaccine_core.passes.memory import MODES, Mode

GRADIENT_TOLERANCE = 1e-5
"""Largest relative L2 difference of a gradient tensor with which two steps count as equal."""

WARM_UP_ROUNDS = 2

RELEASED = "released"
PLAIN = "tvaccine plain"
OFF = {f"{method} speed": f"{method} off" for method in ("sft", "vaccine", "tvaccine")}
"""Step -> the same step with every fast path turned off."""

STEP_NAMES = (RELEASED, "sft speed", "vaccine speed", *(f"tvaccine {mode}" for mode in MODES), PLAIN, *OFF.values())
"""All steps that can be measured."""


class StepBenchSettings(Config):
    """Shape of the model and the batch, and how long to measure."""

    layers: int = Field(default=16, ge=1, le=256, description="Decoder layers.")
    hidden: int = Field(default=384, ge=8, le=16384, multiple_of=8, description="Hidden size.")
    vocab: int = Field(default=16000, ge=16, le=1_000_000, description="Vocabulary.")
    batch: int = Field(default=8, ge=1, le=4096, description="Rows of the batch.")
    length: int = Field(default=128, ge=4, le=32768, description="Tokens per row; the first half is masked.")
    drawn: tuple[int, ...] = Field(default=(1, 4, 9, 13), min_length=1, description="Layers drawn, counted from 0.")
    rho: float = Field(default=3.0, ge=0, le=50, description="Perturbation intensity.")
    repeats: int = Field(default=9, ge=1, le=1000, description="Rounds that are timed, after two that are not.")
    sweep_repeats: int = Field(default=3, ge=1, le=1000, description="Rounds that are timed on each shape of a sweep.")
    threads: int = Field(default=0, ge=0, le=1024, description="Threads torch may use; 0 leaves its own choice.")
    seed: int = Field(default=0, ge=0, description="Seed of the weights and the batch.")

    @model_validator(mode="after")
    def _drawn_layers_exist(self) -> StepBenchSettings:
        if len(set(self.drawn)) < len(self.drawn) or not all(0 <= layer < self.layers for layer in self.drawn):
            raise ValueError(f"drawn layers must differ and lie in 0..{self.layers - 1}, got {self.drawn}")
        return self


def llama_shape(vocab: int, hidden: int, layers: int, length: int, **more: Any) -> LlamaConfig:
    """A Llama in its usual proportions: 64 channels per head, an MLP 8/3 as wide as the hidden states."""
    num_heads = max(1, hidden // 64)
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=length,
        **more,
    )


def build_model(settings: StepBenchSettings) -> PeftModel:
    """A random Llama whose adapters have small random values: with B = 0 the gradient of A would be zero."""
    torch.manual_seed(settings.seed)
    config = llama_shape(settings.vocab, settings.hidden, settings.layers, settings.length)
    lora = LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=list(LINEAR_MODULES))
    model = get_peft_model(LlamaForCausalLM(config), lora)
    assert isinstance(model, PeftModel)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return model.train()


def build_batch(settings: StepBenchSettings) -> Batch:
    """Full rows of random tokens, the first half of each masked as a prompt is."""
    generator = torch.Generator().manual_seed(settings.seed)
    input_ids = torch.randint(settings.vocab, (settings.batch, settings.length), generator=generator)
    labels = input_ids.clone()
    labels[:, : settings.length // 2] = -100
    return Batch(input_ids, torch.ones_like(input_ids), labels)


def set_up(method: Method[Any], model: PeftModel, settings: StepBenchSettings, mode: Mode) -> Any:
    """`method` ready to step on `model`, in one process and without events."""
    context = MethodContext(
        generator=torch.Generator().manual_seed(settings.seed),
        reduce_sum=lambda tensor: tensor,
        emit=lambda event: None,
        activation_memory=mode,
    )
    method.setup(model, context)
    return method


def named_gradients(model: PeftModel) -> dict[str, Tensor]:
    """Every gradient, by the name of its parameter."""
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def compare_gradients(exact: dict[str, Tensor], released: dict[str, Tensor]) -> float:
    """Largest relative L2 difference between two steps' gradients of a tensor.

    Raises:
        TrainingError: different tensors have a gradient, a gradient is zero or not finite, or differs by more than
            `GRADIENT_TOLERANCE`.
    """
    remedy = "One of the two steps is wrong, and a ratio of their times would mean nothing: report this as a bug."
    if exact.keys() != released.keys():
        differing = sorted(exact.keys() ^ released.keys())
        raise TrainingError(f"Only one of the two steps gives these a gradient: {differing}.", remedy=remedy)
    errors = {
        name: float((exact[name] - reference).double().norm() / reference.double().norm())
        for name, reference in released.items()
    }
    wrong = {name: error for name, error in errors.items() if not error <= GRADIENT_TOLERANCE}
    if wrong or not errors:
        listed = ", ".join(f"{name} {error:.1e}" for name, error in wrong.items()) or "there is none"
        raise TrainingError(f"Gradients must agree to a relative {GRADIENT_TOLERANCE:g}, but: {listed}.", remedy=remedy)
    return max(errors.values())


class Steps:
    """The steps of `STEP_NAMES` on one model and batch."""

    def __init__(self, settings: StepBenchSettings) -> None:
        self.settings = settings
        self.model = build_model(settings)
        self.batch = build_batch(settings)
        self.released = ReleasedStep(self.model, settings.drawn, settings.rho)
        self._steps = {name: self._make(name) for name in STEP_NAMES if name != RELEASED}

    def run(self, name: str) -> float:
        """Take one step and return its seconds, without preparations."""
        self.model.zero_grad()
        if name == RELEASED:
            with self.released.prepared():
                return _seconds(lambda: self.released(self.batch))
        return _seconds(self._steps[name])

    def gradients(self, name: str) -> dict[str, Tensor]:
        """Gradients that one step leaves."""
        self.run(name)
        return named_gradients(self.model)

    def compare(self, names: Sequence[str]) -> float:
        """Largest relative difference between a gradient of T-Vaccine's steps and of the released step.

        Raises:
            TrainingError: one of them differs by more than rounding.
        """
        expected = self.gradients(RELEASED)
        exact = [name for name in names if name.startswith("tvaccine ") and name != PLAIN]
        return max(compare_gradients(self.gradients(name), expected) for name in exact)

    def memory(self, name: str) -> tuple[int, int]:
        """Peak saved bytes and peak live bytes of one step, each measured in a separate step."""
        with SavedActivations(self.model.parameters()) as saved:
            self.run(name)
        with LiveTensors() as live:
            self.run(name)
        self.model.zero_grad()
        return saved.peak_bytes, live.peak_bytes

    def rounds(self, names: Sequence[str]) -> dict[str, list[float]]:
        """Seconds of every step in every round; the order rotates."""
        times: dict[str, list[float]] = {name: [] for name in names}
        for number in range(WARM_UP_ROUNDS + self.settings.repeats):
            start = number % len(names)
            for name in [*names[start:], *names[:start]]:
                seconds = self.run(name)
                if number >= WARM_UP_ROUNDS:
                    times[name].append(seconds)
        return times

    def _make(self, name: str) -> Callable[[], Any]:
        kind, _, mode = name.partition(" ")
        plain = name == PLAIN
        configs = {
            "sft": SFTConfig(),
            "vaccine": VaccineConfig(rho=self.settings.rho),
            "tvaccine": TVaccineConfig(
                rho=self.settings.rho,
                num_layers=len(self.settings.drawn),
                layer_choice="uniform",
                freezing="layer",
                perturb_every=2 if plain else 1,
            ),
        }
        modes: dict[str, Mode] = {known: known for known in MODES}
        with fast_paths.off() if name in OFF.values() else nullcontext():
            method = set_up(load_method(configs[kind]), self.model, self.settings, modes.get(mode, "speed"))
        if kind == "tvaccine":
            method.set_layers(self.settings.drawn)
        return lambda: method.training_step(self.model, self.batch, 1 if plain else 0)


def _seconds(step: Callable[[], Any]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def floor_by_count(layers: int, drawn: Sequence[int]) -> float:
    """Time ratio of the two-pass steps by counting passes through layers (see above)."""
    share = (layers - min(drawn)) / layers
    undrawn = (layers - min(drawn) - len(drawn)) / layers
    return (1 + 3 * share) / (2 * (1 + share + undrawn))


@contextmanager
def threads_of(number: int) -> Iterator[int]:
    """Give torch `number` threads; 0 changes nothing. Yields the number in use."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
