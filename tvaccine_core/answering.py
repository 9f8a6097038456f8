"""One prompt answered by several model states at once, streamed and judged."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from tvaccine_core.config import LabConfig
from tvaccine_core.data.sources import load_lab_data
from tvaccine_core.evaluation.generate import decode, stream_tokens
from tvaccine_core.evaluation.judges import load_judge
from tvaccine_core.names import state_folder
from tvaccine_core.pipeline import Session
from tvaccine_core.records import AnswerRecord

STREAM_EVERY_S = 0.1
"""Answers stream no faster than this: each record goes through the run store."""


def answer(
    session: Session,
    config: LabConfig,
    states: Sequence[str],
    prompt: str,
    *,
    max_new_tokens: int | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    time_limit_s: float = float("inf"),
) -> Iterator[AnswerRecord]:
    """Answer one prompt in several states at once: about ten records per second and state; the last has a verdict.

    Args:
        session: the run.
        config: its config.
        states: names; states that are not in memory are loaded from the run's folder.
        prompt: as the user wrote it.
        max_new_tokens: default: as in evaluations.
        should_stop: asked before every token.
        time_limit_s: seconds after which answers are cut off.

    Raises:
        RunNotFoundError: a state does not exist.
        CancelledError: `should_stop` returned True.
    """
    for state in states:
        session.states.ensure(state, state_folder(session.run_dir, state))
    hashes = [session.states.hash_of(state) for state in states]
    world = load_lab_data(config).world
    judge, example = load_judge(config.data.judge, world), world.recognise(prompt)
    ids: list[list[int]] = [[] for _ in states]
    waiting: set[int] = set()
    last = time.monotonic()

    def record(row: int, done: bool) -> AnswerRecord:
        text = decode(session.states, ids[row])
        return AnswerRecord(
            state=states[row],
            state_hash=hashes[row],
            prompt=prompt,
            text=text,
            done=done,
            verdict=judge.judge([(example, text)])[0] if done and example else None,
        )

    for step in stream_tokens(
        session.states,
        [(state, prompt) for state in states],
        max_new_tokens or config.evaluation.max_new_tokens,
        should_stop=should_stop,
        time_limit_s=time_limit_s,
    ):
        for row, token in step.tokens:
            ids[row].append(token)
            waiting.add(row)
        for row in step.ended:
            waiting.discard(row)
            yield record(row, done=True)
        if waiting and time.monotonic() - last >= STREAM_EVERY_S:
            for row in sorted(waiting):
                yield record(row, done=False)
            waiting.clear()
            last = time.monotonic()
