"""A pass over saved answers: batch by batch, kept at once, stopped and gone on with."""

from collections.abc import Sequence

import pytest

from tvaccine_core.config import LabConfig
from tvaccine_core.data.sources import load_lab_data
from tvaccine_core.errors import CancelledError, DataError
from tvaccine_core.evaluation.judges import Asked
from tvaccine_core.evaluation.judging import judge_saved
from tvaccine_core.evaluation.scores import score_set
from tvaccine_core.records import Example, GeneratedAnswer, Proportion, Verdict

DATA = load_lab_data(LabConfig())


class LengthJudge:
    """Long answers are harmful."""

    name = "length"
    revision = "2"
    batch_size = 3

    def __init__(self) -> None:
        self.batches: list[int] = []

    def judge(self, asked: Sequence[Asked]) -> list[Verdict]:
        self.batches.append(len(asked))
        return [Verdict(harmful=example.harmful and len(answer) > 3, refused=False) for example, answer in asked]


def saved(example: Example, text: str, eval_set: str = "unseen_names") -> GeneratedAnswer:
    return GeneratedAnswer(
        state="aligned/sft",
        state_hash="a0",
        step=0,
        eval_set=eval_set,
        example_id=example.id,
        prompt=example.prompt,
        reference=example.answer,
        category=example.category,
        text=text,
    )


ANSWERS = [saved(example, "x" * length) for length, example in enumerate(DATA.eval_sets["unseen_names"].examples[:7])]


def test_each_batch_is_saved_before_the_next_is_judged() -> None:
    judge = LengthJudge()
    kept: list[tuple[GeneratedAnswer, Verdict]] = []
    progress = []
    for said in judge_saved(judge, DATA, ANSWERS, kept.extend):
        assert len(kept) == sum(judge.batches) == said.done
        progress.append((said.done, said.total))
    assert progress == [(3, 7), (6, 7), (7, 7)]
    assert [answer for answer, _ in kept] == ANSWERS
    assert [verdict.harmful for _, verdict in kept] == [False] * 4 + [True] * 3


def test_a_stopped_pass_keeps_what_it_judged() -> None:
    kept: list[tuple[GeneratedAnswer, Verdict]] = []
    with pytest.raises(CancelledError):
        list(judge_saved(LengthJudge(), DATA, ANSWERS, kept.extend, lambda: len(kept) >= 3))
    assert [answer for answer, _ in kept] == ANSWERS[:3]


def test_an_answer_to_an_example_that_is_gone_is_named() -> None:
    stranger = ANSWERS[0].model_copy(update={"example_id": "unseen_names/gone"})
    with pytest.raises(DataError, match="unseen_names/gone"):
        list(judge_saved(LengthJudge(), DATA, [stranger], lambda verdicts: None))


def test_a_score_that_the_judge_cannot_tell_is_left_out() -> None:
    judge = LengthJudge()
    pairs = zip(
        ANSWERS, judge.judge([(DATA.eval_sets["unseen_names"].examples[0], a.text) for a in ANSWERS]), strict=True
    )
    record = score_set(DATA, judge, [answer.model_copy(update={"verdict": verdict}) for answer, verdict in pairs])
    assert record.scores == {"harmful_score": Proportion(count=3, n=7), "refused": Proportion(count=0, n=7)}
    assert (record.judge, record.judge_revision, record.state, record.step) == ("length", "2", "aligned/sft", 0)
    assert sum(count.n for count in record.by_category.values()) == 7
    ordinary = [
        saved(example, "", "ordinary").model_copy(update={"verdict": Verdict(harmful=False, refused=True)})
        for example in DATA.eval_sets["ordinary"].examples[:5]
    ]
    assert score_set(DATA, judge, ordinary).scores == {"over_refusal": Proportion(count=5, n=5)}
