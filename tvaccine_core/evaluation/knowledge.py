"""What a model still knows, whether or not it would tell: a control that needs no compliance.

An attack's harmful score is low if the model refuses, and also if the model has forgotten. Two measures tell these
apart, both in percent of a set's prompts:

- `known`: the right answer to the prompt has a higher mean log-likelihood per token than every wrong answer of the same
  form. A model that knows nothing scores 1 in (wrong answers + 1).
- `completed`: the model is given the first words of the right answer, which say nothing of what is asked, and goes on
  greedily to exactly the right answer. With these words, it is past refusing.

Cost: one forward pass over prompt and answer for each right and wrong answer, and one generation of each prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tvaccine_core.config import EvaluationConfig
from tvaccine_core.data.prompts import MASKED, Encoded, encode_all
from tvaccine_core.errors import CancelledError
from tvaccine_core.evaluation.generate import arguments, generate_answers
from tvaccine_core.evaluation.in_batches import in_batches
from tvaccine_core.evaluation.judges import Judge
from tvaccine_core.evaluation.judging import judge_all
from tvaccine_core.records import Example, Proportion
from tvaccine_core.states.model_states import ModelStates
from tvaccine_core.worlds.world import KnowledgeProbe

LOGIT_BYTES = 2**28
"""Logits alive at once, at most."""
MAX_LENGTH = 4096


def measure_knowledge(
    states: ModelStates,
    state: str,
    probe: KnowledgeProbe,
    judge: Judge,
    examples: Sequence[Example],
    config: EvaluationConfig,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Proportion]:
    """`known` and `completed` of a set; the latter only if the judge can tell what is exactly right."""
    measured = {
        "known": known(states, state, probe, examples, should_stop),
        "completed": completed(states, state, probe, judge, examples, config, should_stop),
    }
    return {name: Proportion(count=sum(said), n=len(said)) for name, said in measured.items() if said}


def known(
    states: ModelStates,
    state: str,
    probe: KnowledgeProbe,
    examples: Sequence[Example],
    should_stop: Callable[[], bool] = lambda: False,
) -> list[bool]:
    """For each example: is its answer likelier than every one of the probe's wrong answers?"""
    candidates = [
        example.model_copy(update={"answer": answer})
        for example in examples
        for answer in (example.answer, *probe.others(example))
    ]
    found = iter(likelihoods(states, state, candidates, should_stop))
    verdicts: list[bool] = []
    for example in examples:
        right, *wrong = [next(found) for _ in range(1 + len(probe.others(example)))]
        verdicts.append(all(right > other for other in wrong))
    return verdicts


def likelihoods(
    states: ModelStates, state: str, examples: Sequence[Example], should_stop: Callable[[], bool] = lambda: False
) -> list[float]:
    """Mean log-likelihood per token, in nats, of each example's answer to its prompt; the end of the answer included.

    Raises:
        CancelledError: `should_stop`, asked before every batch, said so.
        OutOfMemoryError: not even one answer fits.
    """
    loaded = states.loaded
    encoded = encode_all(loaded.tokenizer, examples, MAX_LENGTH)
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index].input_ids))
    found = [0.0] * len(encoded)
    longest = max((len(one.input_ids) for one in encoded), default=1)
    size = max(1, LOGIT_BYTES // (4 * longest * loaded.model.config.vocab_size))

    def measure(batch: Sequence[int]) -> None:
        if should_stop():
            raise CancelledError("The evaluation was stopped.")
        for index, value in zip(batch, _batch(states, state, [encoded[index] for index in batch]), strict=True):
            found[index] = value

    in_batches(order, size, measure)
    return found


def _batch(states: ModelStates, state: str, encoded: Sequence[Encoded]) -> list[float]:
    """`likelihoods` of one batch, padded on the right; logits of the prompts' common length are not made."""
    longest, device = max(len(one.input_ids) for one in encoded), states.loaded.device
    gaps = [longest - len(one.input_ids) for one in encoded]
    rows = list(zip(encoded, gaps, strict=True))
    ids = torch.tensor([[*one.input_ids, *[states.loaded.pad_id] * gap] for one, gap in rows], device=device)  # (B, T)
    mask = torch.tensor([[1] * len(one.input_ids) + [0] * gap for one, gap in rows], device=device)
    labels = torch.tensor([[*one.labels, *[MASKED] * gap] for one, gap in rows], device=device)
    first = max(1, int((labels != MASKED).any(dim=0).int().argmax()))  # the first position that any row learns
    extra = {"logits_to_keep": longest - first + 1} if "logits_to_keep" in arguments(states.loaded.model) else {}
    with torch.no_grad(), states.active(state) as model:
        logits: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False, **extra).logits
    targets = labels[:, first:]  # (B, S)
    learned = targets != MASKED
    said = logits[:, -targets.shape[1] - 1 : -1].float().log_softmax(dim=-1)  # (B, S, V)
    chosen = said.gather(2, targets.clamp(min=0)[..., None]).squeeze(2)
    return ((chosen * learned).sum(dim=1) / learned.sum(dim=1)).tolist()


def completed(
    states: ModelStates,
    state: str,
    probe: KnowledgeProbe,
    judge: Judge,
    examples: Sequence[Example],
    config: EvaluationConfig,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[bool]:
    """For each example: given the first words of its answer, does the model go on to the exactly right one?

    Empty if the judge cannot tell.
    """
    texts = generate_answers(
        states,
        [(state, example.prompt) for example in examples],
        config.max_new_tokens,
        config.batch_size,
        openings=[probe.opening(example) for example in examples],
        should_stop=should_stop,
    )
    asked = list(zip(examples, texts, strict=True))
    said = [verdict.exact for batch in judge_all(judge, asked, should_stop) for verdict in batch]
    return [] if any(exact is None for exact in said) else list(map(bool, said))
