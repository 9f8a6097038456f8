"""A small run by the product's own code, with all memory counted: a training step, a layer scoring, an evaluation.

The same dry run works on a real model, where it measures, and on a fake model, where it predicts. All rows have the
full length: the worst batch.

Layers that chance would draw are taken from the bottom up: nothing is skipped below layer 0, so this is the worst draw.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from tvaccine_core.config import Config, OptimisationConfig
from tvaccine_core.data.prompts import MASKED, Encoded, encode_prompts
from tvaccine_core.evaluation.generate import stream_tokens
from tvaccine_core.methods import capabilities_of, load_method, worst_case_of
from tvaccine_core.methods.base import MethodContext
from tvaccine_core.passes.memory import Mode
from tvaccine_core.plan.fake_model import ALIGNED, WORD, storages, word_tokenizer
from tvaccine_core.plan.tracker import Peak, Tracker
from tvaccine_core.records import StepRecord
from tvaccine_core.states.model_states import ModelStates
from tvaccine_core.training.collate import collate
from tvaccine_core.training.fit import fit

Moment = Literal["passes", "update", "score", "prompts", "tokens"]
"""Parts of a dry run: a step's passes, the optimiser's update, a scoring, an evaluation's prompts, its last token."""


@dataclass(frozen=True)
class Workload:
    """The work that a model must do."""

    batch_size: int
    length: int
    """Tokens per training row, and per prompt of an evaluation."""
    labelled: int
    """Labelled tokens per training row."""
    evaluation_batch_size: int
    new_tokens: int
    mode: Mode = "speed"
    """How much is kept for the backward passes."""


def dry_run(states: ModelStates, method: Config, workload: Workload) -> dict[Moment, Peak]:
    """The peak of each moment; `states` holds the adapter `ALIGNED`, whose values change.

    Raises:
        Errors of `fit` and of a method's `setup`.
    """
    states.train(ALIGNED)
    model: Any = states.model
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    embedding: Any = states.loaded.model.get_input_embeddings()
    tracker = Tracker(vocabulary=embedding.weight.shape[0])
    tracker.own(storages(model), "weights")
    tracker.own(trained, "adapters")
    worst = worst_case_of(method).settings
    rows = make_rows(workload, workload.batch_size)
    steps = OptimisationConfig(steps=1, batch_size=workload.batch_size, max_length=max(workload.length, 8))
    peaks: dict[Moment, Peak] = {}
    with tracker, _nothing_ends(states):
        events = fit(
            model,
            load_method(worst),
            {stream: rows for stream in ("alignment", *capabilities_of(worst).needs)},
            steps,
            seed=0,
            pad_id=0,
            activation_memory=workload.mode,
        )
        for event in events:
            if not isinstance(event, StepRecord):
                continue
            # An attack's evaluations happen here, with moments and gradients in memory; a scoring follows.
            peaks["passes"] = tracker.peak(0, tracker.updates[0])
            peaks["update"] = tracker.peak(tracker.updates[0])
            peaks |= _evaluate(states, tracker, workload)
            for parameter in trained:
                parameter.grad = None
            if num_rows := capabilities_of(method).scoring_rows:
                peaks["score"] = _score(model, tracker, method, num_rows, workload)
    return peaks


def make_rows(workload: Workload, count: int) -> list[Encoded]:
    """`count` rows of full length; the tokens without labels come first."""
    masked = workload.length - workload.labelled
    ids = (0,) * workload.length
    labels = (MASKED,) * masked + (0,) * workload.labelled
    return [Encoded(example_id=str(row), input_ids=ids, labels=labels) for row in range(count)]


def _score(model: Any, tracker: Tracker, config: Config, num_rows: int, workload: Workload) -> Peak:
    method: Any = load_method(config)
    batch = collate(make_rows(workload, num_rows), 0)

    model.train()
    method.setup(
        model,
        MethodContext(
            generator=torch.Generator().manual_seed(0),
            reduce_sum=lambda tensor: tensor,
            emit=lambda event: None,
            activation_memory=workload.mode,
            streams={"harmful": lambda count, generator: batch},
        ),
    )
    start = tracker.now + 1
    method.score_layers(batch.to(method.passes.device))
    return tracker.peak(start)


def _evaluate(states: ModelStates, tracker: Tracker, workload: Workload) -> dict[Moment, Peak]:
    """The pass over the prompts, and the last token; between the two the cache only grows."""
    peaks: dict[Moment, Peak] = {}
    with tracker.generating():
        start = tracker.now + 1
        for _ in _tokens(states, workload, workload.length, 1):
            pass
        peaks["prompts"] = tracker.peak(start)
        if workload.new_tokens > 1:
            tokens = _tokens(states, workload, workload.length + workload.new_tokens - 1, 2)
            next(tokens)
            start = tracker.now + 1
            for _ in tokens:
                pass
            peaks["tokens"] = tracker.peak(start)
    return peaks


def _tokens(states: ModelStates, workload: Workload, length: int, count: int) -> Iterator[Any]:
    extra = len(encode_prompts(states.loaded.tokenizer, [WORD])[0]) - 1
    prompt = " ".join([WORD] * max(1, length - extra))
    return stream_tokens(states, [(ALIGNED, prompt)] * workload.evaluation_batch_size, count)


@contextmanager
def _nothing_ends(states: ModelStates) -> Iterator[None]:
    """No answer ends early, whatever tokens the model writes, and a prompt has as many tokens as words."""
    loaded = states.loaded
    generation: Any = loaded.model.generation_config
    before = generation.eos_token_id
    generation.eos_token_id = None
    states.loaded = replace(loaded, tokenizer=word_tokenizer(), answer_end=None)
    try:
        yield
    finally:
        generation.eos_token_id = before
        states.loaded = loaded
