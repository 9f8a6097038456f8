"""Judging as a separate pass over saved answers: a second judge costs no generation. Torch-free.

The answers of one state, step and set are scored when all of them are judged. Verdicts are saved after each batch, so
that a stopped pass can go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from tvaccine_core.data.sources import LabData
from tvaccine_core.errors import CancelledError, DataError
from tvaccine_core.evaluation.judges import Asked, Judge
from tvaccine_core.records import Example, GeneratedAnswer, ProgressRecord, Verdict


def judge_all(
    judge: Judge, asked: Sequence[Asked], should_stop: Callable[[], bool] = lambda: False
) -> Iterator[list[Verdict]]:
    """Verdicts on `asked`, in order, one batch at a time.

    Raises:
        CancelledError: `should_stop`, asked before every batch, returned True.
    """
    for start in range(0, len(asked), judge.batch_size):
        if should_stop():
            raise CancelledError("The judging was stopped.")
        yield judge.judge(asked[start : start + judge.batch_size])


def judge_saved(
    judge: Judge,
    data: LabData,
    answers: Sequence[GeneratedAnswer],
    save: Callable[[list[tuple[GeneratedAnswer, Verdict]]], None],
    should_stop: Callable[[], bool] = lambda: False,
) -> Iterator[ProgressRecord]:
    """Judge saved answers to evaluation sets of `data`; after each batch, save its verdicts and report progress.

    Raises:
        CancelledError: `should_stop` returned True; saved verdicts stay.
        DataError: `data` does not have the example of an answer.
    """
    examples = {(name, example.id): example for name, found in data.eval_sets.items() for example in found.examples}
    asked = [(_example_of(answer, examples), answer.text) for answer in answers]
    done = 0
    for verdicts in judge_all(judge, asked, should_stop):
        save(list(zip(answers[done : done + len(verdicts)], verdicts, strict=True)))
        done += len(verdicts)
        yield ProgressRecord(done=done, total=len(answers))


def _example_of(answer: GeneratedAnswer, examples: dict[tuple[str, str], Example]) -> Example:
    found = examples.get((answer.eval_set, answer.example_id))
    if found is None:
        raise DataError(
            f"The answer to {answer.example_id} cannot be judged: the set {answer.eval_set} has no such example now.",
            remedy="Measure the run's models again, then judge them.",
        )
    return found
