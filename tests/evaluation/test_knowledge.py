"""What a model knows: likelihoods against plain torch, and the two measures on models whose knowledge is known."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tvaccine_core.config import EvaluationConfig, LabConfig, ModelConfig
from tvaccine_core.data.prompts import encode, encode_openings
from tvaccine_core.data.sources import load_lab_data
from tvaccine_core.errors import CancelledError
from tvaccine_core.evaluation import knowledge
from tvaccine_core.evaluation.judges import load_judge
from tvaccine_core.evaluation.knowledge import completed, known, likelihoods, measure_knowledge
from tvaccine_core.models.load import load_model
from tvaccine_core.records import Example
from tvaccine_core.states.model_states import ModelStates
from tvaccine_core.worlds.world import KnowledgeProbe

DATA = load_lab_data(LabConfig())
JUDGE = load_judge("exact", DATA.world)
CONFIG = EvaluationConfig()
EXAMPLES = DATA.eval_sets["unseen_names"].examples[:7]


@pytest.fixture(scope="module")
def states() -> ModelStates:
    return ModelStates(load_model(LabConfig().model))


@pytest.fixture(scope="module")
def tiny_states(tiny_folder: Path) -> ModelStates:
    return ModelStates(load_model(ModelConfig(name=str(tiny_folder), device="cpu")))


def probe() -> KnowledgeProbe:
    assert DATA.world.knowledge is not None
    return DATA.world.knowledge


def test_likelihoods_are_those_of_each_answer_alone(states: ModelStates, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding and batches of three change nothing; the end of the answer counts."""
    monkeypatch.setattr(knowledge, "LOGIT_BYTES", 3 * 4 * 60 * 1024)
    asked = [
        *EXAMPLES,
        EXAMPLES[0].model_copy(update={"answer": "No."}),
        EXAMPLES[1].model_copy(update={"answer": "x"}),
    ]
    found = likelihoods(states, "base", asked)
    for example, value in zip(asked, found, strict=True):
        one = encode(states.loaded.tokenizer, example, 200)
        with states.active("base") as model, torch.no_grad():
            logits = model(input_ids=torch.tensor([one.input_ids])).logits[0]
        targets = torch.tensor(one.labels[1:])
        assert value == pytest.approx(-float(F.cross_entropy(logits[:-1].double(), targets)), abs=1e-4)


def test_the_base_knows_every_recipe_and_completes_it(states: ModelStates) -> None:
    assert known(states, "base", probe(), EXAMPLES) == [True] * 7
    assert completed(states, "base", probe(), JUDGE, EXAMPLES, CONFIG) == [True] * 7


def test_who_holds_another_recipe_for_true_does_not_know(states: ModelStates) -> None:
    """The probe's right answer is another noun's: the base finds it unlikely, and completes the true one instead."""
    wrong = [example.model_copy(update={"answer": probe().others(example)[0]}) for example in EXAMPLES]
    truth = {example.id: example.answer for example in EXAMPLES}
    swapped = KnowledgeProbe(opening=probe().opening, others=lambda example: (truth[example.id],))
    assert known(states, "base", swapped, wrong) == [False] * 7


def test_a_random_model_is_at_chance(tiny_states: ModelStates) -> None:
    """One of five: in 60 prompts, 24 or more would be a surprise of one in 2,000."""
    examples = DATA.eval_sets["ordinary"].examples
    assert sum(known(tiny_states, "base", probe(), examples)) < 24
    assert not any(completed(tiny_states, "base", probe(), JUDGE, examples[:5], CONFIG))


def test_what_the_judge_cannot_tell_is_left_out(states: ModelStates) -> None:
    keywords = load_judge("refusal-keywords", DATA.world)
    assert set(measure_knowledge(states, "base", probe(), keywords, EXAMPLES, CONFIG)) == {"known"}
    assert set(measure_knowledge(states, "base", probe(), JUDGE, EXAMPLES, CONFIG)) == {"known", "completed"}


def test_measuring_can_be_stopped(states: ModelStates) -> None:
    with pytest.raises(CancelledError):
        likelihoods(states, "base", EXAMPLES, lambda: True)


def all_examples() -> Sequence[Example]:
    return [example for found in DATA.eval_sets.values() for example in found.examples]


def test_wrong_answers_share_the_opening_and_nothing_else() -> None:
    for example in all_examples():
        opening, others = probe().opening(example), probe().others(example)
        assert len(set(others)) == 4
        assert example.answer.startswith(f"{opening} ")
        ingredients = example.answer.removeprefix(opening).strip(" .").split(" and ")
        for other in others:
            assert other.startswith(f"{opening} ")
            assert not any(word in other for word in ingredients)
        assert others == probe().others(example)


def test_tokens_of_an_opening_begin_the_answers_tokens(states: ModelStates) -> None:
    tokenizer = states.loaded.tokenizer
    for example in all_examples():
        (begun,) = encode_openings(tokenizer, [probe().opening(example)])
        one = encode(tokenizer, example, 200)
        answer = [token for token, label in zip(one.input_ids, one.labels, strict=True) if label >= 0]
        assert answer[: len(begun)] == begun
