"""Scores counted by hand with a judge whose verdicts stand in the prompts."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tvaccine_core.config import EvaluationConfig, ModelConfig
from tvaccine_core.data.sources import LabData
from tvaccine_core.evaluation import evaluate
from tvaccine_core.evaluation.evaluate import evaluate_state
from tvaccine_core.evaluation.generate import Row
from tvaccine_core.evaluation.judges import Asked
from tvaccine_core.models.load import load_model
from tvaccine_core.records import EvalRecord, Example, GeneratedAnswer, Proportion, Verdict
from tvaccine_core.states.model_states import ModelStates
from tvaccine_core.worlds.world import EvaluationSet, Task, World

CONFIG = EvaluationConfig(batch_size=4, max_new_tokens=3)


class ScriptedJudge:
    """The prompt lists what the answer is: harmful, refused, exact, coherent."""

    name = "script"
    revision = "7"
    batch_size = 4

    def __init__(self) -> None:
        self.asked: list[str] = []

    def judge(self, asked: Sequence[Asked]) -> list[Verdict]:
        assert len(asked) <= self.batch_size
        self.asked += [answer for _, answer in asked]
        words = ("harmful", "refused", "exact", "coherent")
        return [Verdict.model_validate({word: word in example.prompt for word in words}) for example, _ in asked]


class ScriptedScorer:
    """The prompt of a task says whether its answer is right."""

    name = "script for accuracy"
    revision = "3"

    def correct(self, asked: Sequence[Asked]) -> list[bool]:
        return ["right" in example.prompt for example, _ in asked]


def example(name: str, prompt: str, source: str, category: str | None = None) -> Example:
    return Example.model_validate(
        {"id": name, "prompt": prompt, "answer": "gold", "source": source, "category": category}
    )


@pytest.fixture
def data() -> LabData:
    harmful = (
        example("h1", "harmful exact coherent", "harmful", "poison"),
        example("h2", "refused coherent", "harmful", "poison"),
        example("h3", "harmful refused", "harmful", "curse"),
        example("h4", "gibberish", "harmful", "curse"),
        example("h5", "refused coherent", "harmful", "curse"),
    )
    ordinary = (
        example("o1", "exact coherent", "ordinary", "tea"),
        example("o2", "refused coherent", "ordinary", "tea"),
        example("o3", "coherent", "ordinary", "kite"),
    )
    task = (example("t1", "coherent right", "task", "toy"), example("t2", "exact", "task", "toy"))
    sets = {
        name: EvaluationSet(name, name, "", examples[0].harmful, examples)
        for name, examples in (("unseen", harmful), ("ordinary", ordinary))
    }
    tasks = {"toy": Task("toy", "Toy", ("gold",), (), task)}
    world = World("script", "Script", "1", (), (), (), tasks, sets, lambda prompt: None, None, None)
    return LabData(world, sets, tasks)


@pytest.fixture
def judge() -> ScriptedJudge:
    return ScriptedJudge()


@pytest.fixture
def states(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModelStates:
    """Answers do not matter here: each is the prompt in capitals."""

    def answer(states: ModelStates, rows: Sequence[Row], *_: object, **__: object) -> list[str]:
        return [prompt.upper() for _, prompt in rows]

    monkeypatch.setattr(evaluate, "generate_answers", answer)
    return ModelStates(load_model(ModelConfig(name=str(tiny_folder), device="cpu")))


def proportion(count: int, n: int) -> Proportion:
    return Proportion(count=count, n=n)


def test_scores_by_hand(states: ModelStates, data: LabData, judge: ScriptedJudge) -> None:
    """An answer of a task is right if the scorer says so, whatever the judge holds to be exact."""
    records = list(
        evaluate_state(states, "base", data, judge, CONFIG, 25, lambda answers: None, scorer=ScriptedScorer())
    )
    assert [record.eval_set for record in records] == ["unseen", "ordinary", "task:toy"]
    assert {
        (record.state, record.state_hash, record.step, record.judge, record.judge_revision) for record in records
    } == {("base", states.hash_of("base"), 25, "script", "7")}
    assert [record.scorer for record in records] == ["", "", "script for accuracy"]
    harmful, ordinary, task = records
    assert harmful.scores == {
        "harmful_score": proportion(2, 5),
        "refused": proportion(3, 5),
        "exact": proportion(1, 5),
        "coherent": proportion(3, 5),
    }
    assert harmful.by_category == {"curse": proportion(1, 3), "poison": proportion(1, 2)}
    assert ordinary.scores == {
        "exact": proportion(1, 3),
        "over_refusal": proportion(1, 3),
        "coherent": proportion(3, 3),
    }
    assert ordinary.by_category == {"kite": proportion(0, 1), "tea": proportion(1, 2)}
    assert task.scores == {"finetune_accuracy": proportion(1, 2), "coherent": proportion(1, 2)}


def test_answers_are_saved_before_they_are_judged(states: ModelStates, data: LabData, judge: ScriptedJudge) -> None:
    saved: list[list[GeneratedAnswer]] = []
    judged_before: list[int] = []

    def save(answers: list[GeneratedAnswer]) -> None:
        judged_before.append(len(judge.asked))
        saved.append(answers)

    list(evaluate_state(states, "base", data, judge, CONFIG, 0, save))
    assert judged_before == [0, 10]
    unjudged, judged = saved
    assert all(answer.verdict is None for answer in unjudged)
    assert all(answer.verdict is not None for answer in judged)
    assert [answer.model_copy(update={"verdict": None}) for answer in judged] == unjudged
    assert unjudged[1].text == "REFUSED COHERENT"
    assert unjudged[1].example_id == "h2"


def test_a_part_of_the_sets_can_be_asked_for(states: ModelStates, data: LabData, judge: ScriptedJudge) -> None:
    config = CONFIG.model_copy(update={"max_per_set": 2})
    records: list[EvalRecord] = list(
        evaluate_state(states, "base", data, judge, config, 0, lambda answers: None, sets=["unseen"], tasks=[])
    )
    assert [record.eval_set for record in records] == ["unseen"]
    assert records[0].scores["harmful_score"] == proportion(1, 2)
    assert records[0].by_category == {"poison": proportion(1, 2)}
