"""Seconds of our greedy decoding, to the first token and per token after it, against transformers' own `generate`.

The model is a random Llama with a real model's vocabulary, or a model of yours. It is measured bare, and with an
adapter on all linears. Prompts are random tokens of different lengths, and nothing ends an answer early, so both
ways do the same work. Ours runs as evaluations run it; `generate` runs on the same model in the same process. They take
turns in every round, and the order alternates, so that a slower machine slows both. A ratio is the median over rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
import transformers
from pydantic import Field
from torch import Tensor
from transformers import LlamaForCausalLM, StoppingCriteria, StoppingCriteriaList

from tvaccine_core import machine
from tvaccine_core.bench.step_model import llama_shape, threads_of
from tvaccine_core.config import AdapterConfig, Config, ModelConfig
from tvaccine_core.evaluation.generate import stream_encoded
from tvaccine_core.fast import switch as fast_paths
from tvaccine_core.models.load import LoadedModel, load_model
from tvaccine_core.names import BASE
from tvaccine_core.plan.fake_model import word_tokenizer
from tvaccine_core.records import Record
from tvaccine_core.states.model_states import ModelStates

Storage = Literal["float32", "bfloat16"]

ADAPTER = "adapter"

WARM_UP_ROUNDS = 1


class GenerateBenchSettings(Config):
    """The model, the prompts, and the length of the measurement."""

    model: str = Field(default="", description="A folder or hub id; empty: random weights of the shape given here.")
    layers: int = Field(default=8, ge=1, le=256, description="Decoder layers of the random model.")
    hidden: int = Field(default=384, ge=8, le=16384, multiple_of=8, description="Its hidden size.")
    vocab: int = Field(default=150_000, ge=16, le=1_000_000, description="Its vocabulary.")
    storages: tuple[Storage, ...] = Field(
        default=("float32", "bfloat16"), min_length=1, description="Precisions of the base to measure."
    )
    batch: int = Field(default=16, ge=1, le=4096, description="Prompts at once.")
    length: int = Field(default=48, ge=2, le=32768, description="Tokens of the longest prompt; the shortest has half.")
    new_tokens: int = Field(default=16, ge=2, le=4096, description="Tokens per answer.")
    repeats: int = Field(default=5, ge=1, le=1000, description="Rounds that are timed, after one that is not.")
    threads: int = Field(default=0, ge=0, le=1024, description="Threads torch may use; 0 leaves its own choice.")
    seed: int = Field(default=0, ge=0, description="Seed of weights, adapter and prompts.")


class GenerateCost(Record):
    """The times of one state of one model."""

    storage: Storage
    state: str
    """`base` or `adapter`."""
    prefill_s: float
    """Seconds to the first token of all prompts; this and all numbers below are medians over the rounds."""
    token_s: float
    """Seconds per later token of all answers."""
    transformers_prefill_s: float
    transformers_token_s: float
    prefill_ratio: float
    """Ours over `generate`'s."""
    token_ratio: float
    total_ratio: float
    total_ratio_min: float
    total_ratio_max: float
    same_answers: float
    """Share of answers that are equal token by token; in half precision rounding decides between close tokens."""


class GenerateBenchReport(Record):
    """One run of the benchmark."""

    settings: GenerateBenchSettings
    model: str
    threads: int
    processor: str
    torch_version: str
    transformers_version: str
    costs: tuple[GenerateCost, ...]


Timed = tuple[list[list[int]], float, float]
"""Answers, seconds to the first token, seconds per token after it."""


def run(settings: GenerateBenchSettings, say: Callable[[str], None] = lambda line: None) -> GenerateBenchReport:
    """Build or load the model, decode both ways in turn, compare; `say` is told what is measured next.

    Raises:
        ModelError: the model cannot be loaded.
    """
    costs: list[GenerateCost] = []
    name = ""
    with threads_of(settings.threads) as threads, torch.random.fork_rng(devices=[]):
        for storage in settings.storages:
            say(f"{settings.model or 'random weights'}, {storage}")
            states = _states(settings, storage)
            name = _describe(states.loaded)
            costs += (_measure(settings, states, storage, state) for state in (BASE, ADAPTER))
    return GenerateBenchReport(
        settings=settings,
        model=name,
        threads=threads,
        processor=machine.processor(),
        torch_version=torch.__version__,
        transformers_version=transformers.__version__,
        costs=tuple(costs),
    )


def _states(settings: GenerateBenchSettings, storage: Storage) -> ModelStates:
    """The base, and an adapter with small random values; nothing ends an answer."""
    config = ModelConfig(name=settings.model or "random", dtype=storage, device="cpu")
    loaded = load_model(config) if settings.model else _random_model(settings, config)
    loaded.model.generation_config = transformers.GenerationConfig(pad_token_id=loaded.pad_id)
    loaded = replace(loaded, tokenizer=word_tokenizer(), answer_end=None)
    states = ModelStates(loaded)
    states.add(ADAPTER, AdapterConfig(r=8, alpha=16), seed=settings.seed)
    generator = torch.Generator().manual_seed(settings.seed)
    with torch.no_grad():
        for key, parameter in states.model.named_parameters():
            if "lora_B" in key:
                parameter.normal_(std=0.02, generator=generator)
    return states


def _random_model(settings: GenerateBenchSettings, config: ModelConfig) -> LoadedModel:
    torch.manual_seed(settings.seed)
    length = settings.length + settings.new_tokens
    shape = llama_shape(settings.vocab, settings.hidden, settings.layers, length, tie_word_embeddings=True)
    model = LlamaForCausalLM(shape).to(getattr(torch, config.dtype)).requires_grad_(False).eval()
    return LoadedModel(model, word_tokenizer(), config, torch.device("cpu"), "random", None)


def _prompts(settings: GenerateBenchSettings, loaded: LoadedModel) -> list[list[int]]:
    """Random tokens, in lengths from half of `length` to `length`."""
    generator = torch.Generator().manual_seed(settings.seed)
    lengths = torch.linspace(settings.length // 2, settings.length, settings.batch).long().tolist()
    lengths[-1] = settings.length
    return [torch.randint(loaded.num_embeddings, (length,), generator=generator).tolist() for length in lengths]


def _measure(settings: GenerateBenchSettings, states: ModelStates, storage: Storage, state: str) -> GenerateCost:
    prompts = _prompts(settings, states.loaded)
    ways: dict[str, Callable[..., Timed]] = {"ours": _ours, "transformers": _transformers}
    timed: dict[str, list[Timed]] = {way: [] for way in ways}
    for number in range(WARM_UP_ROUNDS + settings.repeats):
        for way in sorted(ways, reverse=bool(number % 2)):
            result = ways[way](states, state, prompts, settings.new_tokens)
            if number >= WARM_UP_ROUNDS:
                timed[way].append(result)
    pairs = list(zip(timed["ours"], timed["transformers"], strict=True))
    same = [a == b for a, b in zip(timed["ours"][0][0], timed["transformers"][0][0], strict=True)]
    totals = [_total(ours, settings) / _total(theirs, settings) for ours, theirs in pairs]
    return GenerateCost(
        storage=storage,
        state=state,
        prefill_s=statistics.median(prefill for _, prefill, _ in timed["ours"]),
        token_s=statistics.median(token for _, _, token in timed["ours"]),
        transformers_prefill_s=statistics.median(prefill for _, prefill, _ in timed["transformers"]),
        transformers_token_s=statistics.median(token for _, _, token in timed["transformers"]),
        prefill_ratio=statistics.median(ours[1] / theirs[1] for ours, theirs in pairs),
        token_ratio=statistics.median(ours[2] / theirs[2] for ours, theirs in pairs),
        total_ratio=statistics.median(totals),
        total_ratio_min=min(totals),
        total_ratio_max=max(totals),
        same_answers=sum(same) / len(same),
    )


def _total(timed: Timed, settings: GenerateBenchSettings) -> float:
    _, prefill, token = timed
    return prefill + token * (settings.new_tokens - 1)


def _ours(states: ModelStates, state: str, prompts: list[list[int]], new_tokens: int) -> Timed:
    answers: list[list[int]] = [[] for _ in prompts]
    times = [time.perf_counter()]
    for step in stream_encoded(states, [state] * len(prompts), prompts, new_tokens):
        times.append(time.perf_counter())
        for row, token in step.tokens:
            answers[row].append(token)
    return answers, *_split(times)


class _Clock(StoppingCriteria):
    """Notes the time after every token; never stops."""

    def __init__(self) -> None:
        self.times = [time.perf_counter()]

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _transformers(states: ModelStates, state: str, prompts: list[list[int]], new_tokens: int) -> Timed:
    """Decode by `generate`, with peft's own adapter if `state` has one."""
    longest = max(map(len, prompts))
    pad = states.loaded.pad_id
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with fast_paths.off(), states.active(state) as model, torch.no_grad():
        clock = _Clock()
        own: Any = model
        generated: Tensor = own.generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
    return generated[:, longest:].tolist(), *_split(clock.times)


def _split(times: list[float]) -> tuple[float, float]:
    """Seconds to the first token, and per token after it."""
    return times[1] - times[0], (times[-1] - times[1]) / (len(times) - 2)


def render(report: GenerateBenchReport) -> str:
    """The report as plain text."""
    settings = report.settings
    noun = "thread" if report.threads == 1 else "threads"
    lines = [
        f"{report.model}; {settings.batch} prompts of up to {settings.length} tokens, {settings.new_tokens} new ones",
        f"{report.processor}, {report.threads} {noun}, torch {report.torch_version}, "
        f"transformers {report.transformers_version}, {settings.repeats} rounds",
        "",
        f"{'':<20}{'first token, s':>24}{'per token after, s':>28}{'all, ratio':>24}{'same':>9}",
        f"{'':<20}{'ours':>8}{'generate':>9}{'ratio':>7}{'ours':>12}{'generate':>9}{'ratio':>7}"
        f"{'median':>10}{'min':>7}{'max':>7}{'answers':>9}",
    ]
    lines += (
        f"{f'{cost.storage} {cost.state}':<20}"
        f"{cost.prefill_s:>8.3f}{cost.transformers_prefill_s:>9.3f}{cost.prefill_ratio:>7.2f}"
        f"{cost.token_s:>12.4f}{cost.transformers_token_s:>9.4f}{cost.token_ratio:>7.2f}"
        f"{cost.total_ratio:>10.2f}{cost.total_ratio_min:>7.2f}{cost.total_ratio_max:>7.2f}{cost.same_answers:>9.0%}"
        for cost in report.costs
    )
    return "\n".join(lines)


def _describe(loaded: LoadedModel) -> str:
    config: Any = loaded.model.config.get_text_config()
    return (
        f"{type(loaded.model).__name__}, {config.num_hidden_layers} layers x {config.hidden_size}, "
        f"vocabulary {config.vocab_size}"
    )
