"""What one alignment step costs: ours against SFT's, and against a plain two-pass step in the released style.

One model (a random Llama with LoRA on its seven linears, float32, dropout 0), one batch (no padding, the prompt half of
each row masked), one process. Three steps take turns in every round, in rotated order, so that a machine that slows
down slows all of them:

- `sft`: one step of our SFT, every adapter trained;
- `exact`: one step of our T-Vaccine with the drawn layers forced, `freezing="layer"`;
- `released`: the same gradient the plain way, `ReleasedStep`.

A time ratio is the median of the rounds' ratios, given with the smallest and largest. Before anything is timed, the
gradients of `exact` and `released` must agree, tensor by tensor.

The count of the arithmetic bounds what is possible. With f the share of layers from the lowest drawn one up, u the
undrawn ones among them as a share of all layers, a forward pass 1, a backward pass through frozen weights 1 as well,
and the head left out: released 2(1 + f + u), ours 1 + 3f.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from tvaccine_core.bench.memory import LiveTensors, SavedActivations
from tvaccine_core.bench.released import ReleasedStep
from tvaccine_core.config import LINEAR_MODULES, Config, SFTConfig, TVaccineConfig
from tvaccine_core.errors import TrainingError
from tvaccine_core.methods import load_method
from tvaccine_core.methods.base import Batch, Method, MethodContext
from tvaccine_core.records import Record

GRADIENT_TOLERANCE = 1e-5
"""Largest relative L2 difference of a gradient tensor at which two steps count as the same step."""

WARM_UP_ROUNDS = 2


class StepBenchSettings(Config):
    """Shape of the model and the batch, and how long to measure."""

    layers: int = Field(default=16, ge=1, le=256, description="Decoder layers.")
    hidden: int = Field(default=384, ge=8, le=16384, multiple_of=8, description="Hidden size.")
    vocab: int = Field(default=16000, ge=16, le=1_000_000, description="Vocabulary.")
    batch: int = Field(default=8, ge=1, le=4096, description="Rows of the batch.")
    length: int = Field(default=128, ge=4, le=32768, description="Tokens a row; the first half is masked.")
    drawn: tuple[int, ...] = Field(default=(1, 4, 9, 13), min_length=1, description="Layers drawn, counted from 0.")
    rho: float = Field(default=3.0, ge=0, le=50, description="Perturbation intensity.")
    repeats: int = Field(default=9, ge=1, le=1000, description="Rounds that are timed, after two that are not.")
    threads: int = Field(default=0, ge=0, le=1024, description="Threads torch may use; 0 leaves its own choice.")
    seed: int = Field(default=0, ge=0, description="Seed of the weights and the batch.")

    @model_validator(mode="after")
    def _drawn_layers_exist(self) -> StepBenchSettings:
        if len(set(self.drawn)) < len(self.drawn) or not all(0 <= layer < self.layers for layer in self.drawn):
            raise ValueError(f"drawn layers must differ and lie in 0..{self.layers - 1}, got {self.drawn}")
        return self


class StepCost(Record):
    """What one kind of step took."""

    median_s: float
    minimum_s: float
    maximum_s: float
    peak_saved_bytes: int
    """Unique non-parameter storages held by autograd, at their peak."""
    peak_live_bytes: int
    """Storages made in the step and alive at once: gradients, recomputed activations and temporaries too."""


class StepBenchReport(Record):
    """One run of the bench."""

    settings: StepBenchSettings
    threads: int
    processor: str
    torch_version: str
    transformers_version: str
    num_gradients: int
    """Tensors that both two-pass steps gave a gradient, and that were compared."""
    worst_gradient_error: float
    """Largest relative L2 difference among them."""
    steps: dict[str, StepCost]
    floor_by_count_time_ratio: float
    exact_over_released_time_ratio: float
    exact_over_released_time_ratio_min: float
    exact_over_released_time_ratio_max: float
    tvaccine_over_sft_time_ratio: float
    tvaccine_over_sft_time_ratio_min: float
    tvaccine_over_sft_time_ratio_max: float
    released_over_sft_time_ratio: float
    released_over_sft_time_ratio_min: float
    released_over_sft_time_ratio_max: float
    exact_over_released_saved_activation_ratio: float
    tvaccine_over_sft_saved_activation_ratio: float
    released_over_sft_saved_activation_ratio: float
    exact_over_released_live_memory_ratio: float
    tvaccine_over_sft_live_memory_ratio: float
    released_over_sft_live_memory_ratio: float


RATIOS = (
    ("exact_over_released", "exact", "released"),
    ("tvaccine_over_sft", "exact", "sft"),
    ("released_over_sft", "released", "sft"),
)
RATIO_PARTS = ("time_ratio", "time_ratio_min", "time_ratio_max", "saved_activation_ratio", "live_memory_ratio")


def build_model(settings: StepBenchSettings) -> PeftModel:
    """A random Llama with adapters as if they had trained a little: where B = 0, the gradient of A would be zero."""
    torch.manual_seed(settings.seed)
    num_heads = max(1, settings.hidden // 64)
    config = LlamaConfig(
        vocab_size=settings.vocab,
        hidden_size=settings.hidden,
        intermediate_size=settings.hidden * 8 // 3 // 8 * 8,
        num_hidden_layers=settings.layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=settings.length,
    )
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


def set_up(method: Method[Any], model: PeftModel, settings: StepBenchSettings) -> Method[Any]:
    """`method` ready to step on `model`, in one process and without events."""
    context = MethodContext(
        generator=torch.Generator().manual_seed(settings.seed),
        sample_harmful=None,
        reduce_sum=lambda tensor: tensor,
        emit=lambda event: None,
    )
    method.setup(model, context)
    return method


def named_gradients(model: PeftModel) -> dict[str, Tensor]:
    """Every parameter's gradient, those without one left out."""
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def compare_gradients(exact: dict[str, Tensor], released: dict[str, Tensor]) -> float:
    """Largest relative L2 difference over the tensors.

    Raises:
        TrainingError: not the same tensors have a gradient, one of them is zero or not finite, or one differs by more
            than `GRADIENT_TOLERANCE`.
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


class _Bench:
    """The three steps on one model and batch."""

    def __init__(self, settings: StepBenchSettings) -> None:
        self.settings = settings
        self.model = build_model(settings)
        self.batch = build_batch(settings)
        self.sft = set_up(load_method(SFTConfig()), self.model, settings)
        config = TVaccineConfig(
            rho=settings.rho, num_layers=len(settings.drawn), layer_choice="uniform", freezing="layer"
        )
        tvaccine: Any = set_up(load_method(config), self.model, settings)
        tvaccine.set_layers(settings.drawn)
        self.exact = tvaccine
        self.released = ReleasedStep(self.model, settings.drawn, settings.rho)

    def run(self, name: str) -> float:
        """Take one step and return its seconds, preparations excluded."""
        self.model.zero_grad()
        if name == "released":
            with self.released.prepared():
                return _seconds(lambda: self.released(self.batch))
        method = self.sft if name == "sft" else self.exact
        return _seconds(lambda: method.training_step(self.model, self.batch, 0))

    def gradients(self, name: str) -> dict[str, Tensor]:
        """Gradients that one step leaves."""
        self.run(name)
        return named_gradients(self.model)

    def memory(self, name: str) -> tuple[int, int]:
        """Peak saved bytes and peak live bytes of one step, each in a step of its own."""
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
def _threads(number: int) -> Iterator[int]:
    """Torch with `number` threads, or as it is for 0; yields the number in use."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def run(settings: StepBenchSettings) -> StepBenchReport:
    """Build, compare gradients, count memory, time.

    Raises:
        TrainingError: the gradients of the two T-Vaccine steps do not agree.
    """
    names = ("sft", "exact", "released")
    with _threads(settings.threads) as threads, torch.random.fork_rng():
        bench = _Bench(settings)
        exact = bench.gradients("exact")
        worst = compare_gradients(exact, bench.gradients("released"))
        memory = {name: bench.memory(name) for name in names}
        times = bench.rounds(names)

    ratios: dict[str, float] = {}
    for key, upper, lower in RATIOS:
        by_round = [a / b for a, b in zip(times[upper], times[lower], strict=True)]
        ratios[f"{key}_time_ratio"] = statistics.median(by_round)
        ratios[f"{key}_time_ratio_min"] = min(by_round)
        ratios[f"{key}_time_ratio_max"] = max(by_round)
        ratios[f"{key}_saved_activation_ratio"] = memory[upper][0] / memory[lower][0]
        ratios[f"{key}_live_memory_ratio"] = memory[upper][1] / memory[lower][1]
    return StepBenchReport(
        settings=settings,
        threads=threads,
        processor=_processor(),
        torch_version=torch.__version__,
        transformers_version=transformers.__version__,
        num_gradients=len(exact),
        worst_gradient_error=worst,
        steps={
            name: StepCost(
                median_s=statistics.median(times[name]),
                minimum_s=min(times[name]),
                maximum_s=max(times[name]),
                peak_saved_bytes=memory[name][0],
                peak_live_bytes=memory[name][1],
            )
            for name in names
        },
        floor_by_count_time_ratio=floor_by_count(settings.layers, settings.drawn),
        **ratios,
    )


def _processor() -> str:
    """Model name of the processor, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def render(report: StepBenchReport) -> str:
    """The report as plain text."""
    settings = report.settings
    noun = "thread" if report.threads == 1 else "threads"
    lines = [
        f"{settings.layers} layers x {settings.hidden}, vocabulary {settings.vocab}, batch {settings.batch} x "
        f"{settings.length}, half the labels masked, drawn layers {', '.join(map(str, settings.drawn))}",
        f"{report.processor}, {report.threads} {noun}, torch {report.torch_version}, "
        f"transformers {report.transformers_version}, {settings.repeats} rounds",
        f"{report.num_gradients} gradients agree, worst relative difference {report.worst_gradient_error:.1e}",
        "",
        f"{'step':<10}{'median s':>10}{'min s':>10}{'max s':>10}{'saved MiB':>12}{'live MiB':>11}",
    ]
    for name, cost in report.steps.items():
        lines.append(
            f"{name:<10}{cost.median_s:>10.3f}{cost.minimum_s:>10.3f}{cost.maximum_s:>10.3f}"
            f"{cost.peak_saved_bytes / 2**20:>12.1f}{cost.peak_live_bytes / 2**20:>11.1f}"
        )
    lines += ["", f"{'ratio':<22}{'time':>7}{'min':>8}{'max':>8}{'saved':>8}{'live':>8}"]
    values = report.model_dump()
    for key, _, _ in RATIOS:
        columns = [values[f"{key}_{part}"] for part in RATIO_PARTS]
        lines.append(f"{key:<22}{columns[0]:>7.3f}" + "".join(f"{value:>8.3f}" for value in columns[1:]))
    lines.append(f"{'floor by count':<22}{report.floor_by_count_time_ratio:>7.3f}  (layers alone, no head or adapters)")
    return "\n".join(lines)
