"""Greedy answers from several model states, batched and streamed.

This is our own loop instead of `generate`: it is 10 to 30 % faster on small models, can stop after any token, drops
ended rows, and is a plain generator, so a training process can serve answers between two steps. Rows of one state run
with this state's adapter active; rows of several states share one batch in which each row names its adapter.
Decoding is greedy, so a difference between two answers comes from the models.
Cost: one pass over the prompts, then one pass per token with the key-value cache.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from tvaccine_core.data.prompts import encode_openings, encode_prompts
from tvaccine_core.errors import CancelledError
from tvaccine_core.evaluation.in_batches import in_batches
from tvaccine_core.fast import switch as fast_paths
from tvaccine_core.models.anatomy import anatomy, find_blocks
from tvaccine_core.models.hooks import last_column
from tvaccine_core.states.model_states import ModelStates

Row = tuple[str, str]
"""State and prompt (not yet rendered)."""


@dataclass(frozen=True)
class NewTokens:
    """One decoding step."""

    tokens: tuple[tuple[int, int], ...]
    """(row, token) for every row that goes on."""
    ended: tuple[int, ...]
    """Rows that ended at this step: end-of-sequence, length or time."""


def stream_tokens(
    states: ModelStates,
    rows: Sequence[Row],
    max_new_tokens: int,
    *,
    openings: Sequence[str] = (),
    should_stop: Callable[[], bool] = lambda: False,
    time_limit_s: float = math.inf,
) -> Iterator[NewTokens]:
    """Decode `rows` as one batch, step by step. Modes, adapters and `requires_grad` are restored after the last step.

    Args:
        states: holds the states of `rows`.
        rows: at least one.
        max_new_tokens: longest answer.
        openings: first words of each answer, from which the model goes on; its tokens do not include them.
        should_stop: asked before every token.
        time_limit_s: seconds after which answers are cut off.

    Raises:
        CancelledError: `should_stop` said so.
        ModelError: a state is not in memory.
    """
    deadline = time.monotonic() + time_limit_s
    if len({state for state, _ in rows}) > 1 and not _mixable(states):
        yield from _state_by_state(states, rows, max_new_tokens, openings, should_stop, deadline)
        return
    prompts = encode_prompts(states.loaded.tokenizer, [prompt for _, prompt in rows])
    if openings:
        begun = encode_openings(states.loaded.tokenizer, openings)
        prompts = [[*prompt, *opening] for prompt, opening in zip(prompts, begun, strict=True)]
    names = [state for state, _ in rows]
    yield from stream_encoded(states, names, prompts, max_new_tokens, should_stop=should_stop, deadline=deadline)


def stream_encoded(
    states: ModelStates,
    row_states: Sequence[str],
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    deadline: float = math.inf,
) -> Iterator[NewTokens]:
    """`stream_tokens` for tokenised prompts, one per entry of `row_states`; the states must mix in one batch.

    At `deadline`, a time of `time.monotonic`, answers are cut off.
    """
    loaded = states.loaded
    loaded.require_known(max(prompt, default=0) for prompt in prompts)
    longest = max(map(len, prompts))
    device = loaded.device
    ids = torch.tensor([[loaded.pad_id] * (longest - len(prompt)) + [*prompt] for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)  # (B, T)
    live = list(range(len(prompts)))
    accepted = arguments(loaded.model)
    cache = DynamicCache(config=loaded.model.config)
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        names: list[str] | None = None
        model: Any
        if len(set(row_states)) == 1:
            model = stack.enter_context(states.active(row_states[0]))
        else:
            model, names = stack.enter_context(states.mixed(row_states))
        if fast_paths.enabled(loaded.config.fast_paths):
            stack.enter_context(last_column(anatomy(loaded.model).head))
        for number in range(max_new_tokens):
            if should_stop():
                raise CancelledError("The answer was stopped.")
            extra: dict[str, Any] = {"position_ids": positions} if "position_ids" in accepted else {}
            if "logits_to_keep" in accepted:
                extra["logits_to_keep"] = 1
            if names is not None:
                extra["adapter_names"] = names
            logits = model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **extra).logits
            chosen = logits[:, -1].float().argmax(dim=-1)  # (B,); in bfloat16 it is slow on a CPU
            tokens = chosen.tolist()
            over = number + 1 == max_new_tokens or time.monotonic() > deadline
            going = [index for index, token in enumerate(tokens) if token not in loaded.end_ids]
            staying = [] if over else going
            yield NewTokens(
                tokens=tuple((live[index], tokens[index]) for index in going),
                ended=tuple(live[index] for index in range(len(live)) if over or index not in set(going)),
            )
            if not staying:
                return
            ids, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
            if len(staying) < len(live):
                kept = torch.tensor(staying, device=device)
                cache.batch_select_indices(kept)
                ids, positions, mask = ids[kept], positions[kept], mask[kept]
                live = [live[index] for index in staying]
                names = None if names is None else [names[index] for index in staying]


def arguments(model: Any) -> Collection[str]:
    """Names of the arguments that a model's forward pass takes."""
    return inspect.signature(model.forward).parameters.keys()


def _mixable(states: ModelStates) -> bool:
    """False for OPT: its layers flatten batch and tokens before a linear, so rows cannot have different adapters."""
    return all(block.mlp is not None for block in find_blocks(states.loaded.model))


def _state_by_state(
    states: ModelStates,
    rows: Sequence[Row],
    max_new_tokens: int,
    openings: Sequence[str],
    should_stop: Callable[[], bool],
    deadline: float,
) -> Iterator[NewTokens]:
    """`stream_tokens` for each state in turn."""
    for state in dict.fromkeys(state for state, _ in rows):
        mine = [row for row, (name, _) in enumerate(rows) if name == state]
        for step in stream_tokens(
            states,
            [rows[row] for row in mine],
            max_new_tokens,
            openings=[openings[row] for row in mine] if openings else (),
            should_stop=should_stop,
            time_limit_s=deadline - time.monotonic(),
        ):
            yield NewTokens(
                tokens=tuple((mine[index], token) for index, token in step.tokens),
                ended=tuple(mine[index] for index in step.ended),
            )


def generate_answers(
    states: ModelStates,
    rows: Sequence[Row],
    max_new_tokens: int,
    batch_size: int,
    *,
    openings: Sequence[str] = (),
    should_stop: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Answers in the order of `rows`, without blanks around them. With openings, each answer begins with its own.

    Args:
        states: holds the states of `rows`.
        rows: pairs (state, prompt).
        max_new_tokens: longest answer.
        batch_size: most rows at once; batches are equally large, and smaller after memory runs out.
        openings: see `stream_tokens`.
        should_stop: asked before every token.

    Raises:
        CancelledError: `should_stop` said so.
        ModelError: a state is not in memory.
        OutOfMemoryError: not even one row fits.
    """
    answers: list[list[int]] = [[] for _ in rows]

    def answer(batch: Sequence[int]) -> None:
        said: list[list[int]] = [[] for _ in batch]
        begun = [openings[row] for row in batch] if openings else ()
        for step in stream_tokens(
            states, [rows[row] for row in batch], max_new_tokens, openings=begun, should_stop=should_stop
        ):
            for index, token in step.tokens:
                said[index].append(token)
        for row, ids in zip(batch, said, strict=True):
            answers[row] = ids

    # Rows of one state run faster than a mixture, and prompts of similar length need less padding.
    order = sorted(range(len(rows)), key=lambda row: (rows[row][0], len(rows[row][1])))
    size = math.ceil(len(rows) / math.ceil(len(rows) / batch_size)) if rows else 1
    in_batches(order, size, answer)
    if not openings:
        return [decode(states, ids) for ids in answers]
    begun = encode_openings(states.loaded.tokenizer, openings)
    return [decode(states, [*opening, *ids]) for opening, ids in zip(begun, answers, strict=True)]


def decode(states: ModelStates, ids: Sequence[int]) -> str:
    """Text of the tokens of an answer."""
    text = states.loaded.tokenizer.decode(list(ids), skip_special_tokens=True)
    assert isinstance(text, str)
    return text.strip()
