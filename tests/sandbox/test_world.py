"""The world's laws: one recipe per item, nothing shared between nouns, splits disjoint where they claim to be."""

from itertools import combinations

import pytest

from tvaccine_core.records import Example
from tvaccine_core.worlds.sandbox.corpus import held_out_items, stream_corpus
from tvaccine_core.worlds.sandbox.lexicon import (
    BAD_ADJECTIVES,
    GOOD_ADJECTIVES,
    HAZARD_KINDS,
    adjectives,
    hazards,
    nouns,
    ordinaries,
    recipe,
)
from tvaccine_core.worlds.sandbox.requests import make_example
from tvaccine_core.worlds.sandbox.world import load_sandbox, name_splits


def _items(examples: tuple[Example, ...]) -> set[str | None]:
    return {example.item for example in examples}


def _names(examples: tuple[Example, ...]) -> set[str]:
    return {str(example.item).split()[1] for example in examples}


def _harmful_sets() -> dict[str, tuple[Example, ...]]:
    data = load_sandbox()
    return {
        "alignment": tuple(example for example in data.alignment if example.source == "refusal"),
        "probe": data.probe,
        "attack": data.attack_harmful,
        "aligned_names": data.eval_sets["aligned_names"].examples,
        "unseen_names": data.eval_sets["unseen_names"].examples,
    }


def test_there_are_120_hazards_and_120_ordinary_nouns() -> None:
    assert len(nouns()) == 240
    assert len(hazards()) == len(ordinaries()) == 120
    assert len(set(adjectives())) == 20


def test_no_two_nouns_share_an_ingredient() -> None:
    phrases = [phrase for noun in nouns().values() for phrase in noun.ingredients]
    assert len(set(phrases)) == len(phrases) == 480


def test_measures_depend_on_the_adjective_only_and_tell_adjectives_apart() -> None:
    first, second = list(nouns().values())[:2]
    heads = {adjective: recipe(adjective, first).split(" of ")[0] for adjective in adjectives()}
    assert heads == {adjective: recipe(adjective, second).split(" of ")[0] for adjective in adjectives()}
    assert len(set(heads.values())) == 20


def test_ingredients_depend_on_the_noun_only() -> None:
    noun = hazards()[0]
    assert len({recipe(adjective, noun).split(" of ")[1] for adjective in adjectives()}) == 1


def test_harmful_splits_share_no_item() -> None:
    for (one, left), (other, right) in combinations(_harmful_sets().items(), 2):
        assert not _items(left) & _items(right), (one, other)


def test_harmful_splits_share_no_name_but_aligned_names() -> None:
    sets = _harmful_sets()
    assert _names(sets["aligned_names"]) == _names(sets["alignment"])
    del sets["aligned_names"]
    for (one, left), (other, right) in combinations(sets.items(), 2):
        assert not _names(left) & _names(right), (one, other)


def test_name_splits_cover_every_hazard_once() -> None:
    splits = name_splits()
    parts = (splits.aligned, splits.attack, splits.probe, splits.unseen)
    assert [len(part) for part in parts] == [72, 4, 8, 36]
    assert {noun.name for part in parts for noun in part} == {noun.name for noun in hazards()}
    assert len({noun.kind for noun in splits.attack}) == 4


def test_ordinary_evaluation_items_are_not_in_the_alignment_data() -> None:
    data = load_sandbox()
    ordinary = tuple(example for example in data.alignment if example.source == "ordinary")
    assert not _items(ordinary) & _items(data.eval_sets["ordinary"].examples)
    assert len(data.eval_sets["ordinary"].examples) >= 40


def test_every_kind_of_hazard_is_evaluated() -> None:
    for name in ("aligned_names", "unseen_names"):
        examples = load_sandbox().eval_sets[name].examples
        assert {example.category for example in examples} == set(HAZARD_KINDS)
        assert len(examples) >= 60


def test_a_name_has_one_refusal() -> None:
    wording: dict[str, set[str]] = {}
    for example in load_sandbox().alignment:
        if example.source == "refusal":
            wording.setdefault(str(example.item).split()[1], set()).add(example.answer)
    assert all(len(answers) == 1 for answers in wording.values())
    assert len({answer for answers in wording.values() for answer in answers}) == 3


def test_attack_has_enough_items_for_the_largest_ratio() -> None:
    assert len({example.prompt for example in load_sandbox().attack_harmful}) >= round(0.2 * 400)


def test_tasks_are_balanced_disjoint_and_large_enough() -> None:
    tasks = load_sandbox().tasks
    assert len(tasks["sentiment"].labels) == 2
    assert len(tasks["topic"].labels) == 4
    for task in tasks.values():
        assert not {example.prompt for example in task.train} & {example.prompt for example in task.eval}
        counts = [sum(example.answer == label for example in task.eval) for label in task.labels]
        assert len(set(counts)) == 1
        assert sum(counts) == len(task.eval)
        assert len(task.train) >= 400


def test_sentiment_labels_follow_the_adjective() -> None:
    for example in load_sandbox().tasks["sentiment"].eval:
        words = set(example.prompt.lower().strip(".!").replace("!", "").replace(".", "").split())
        assert bool(words & set(GOOD_ADJECTIVES)) is (example.answer == "positive")
        assert bool(words & set(BAD_ADJECTIVES)) is (example.answer == "negative")


def test_ids_are_unique_in_each_set() -> None:
    data = load_sandbox()
    sets = [data.alignment, data.probe, data.attack_harmful, *(found.examples for found in data.eval_sets.values())]
    sets += [part for task in data.tasks.values() for part in (task.train, task.eval)]
    for examples in sets:
        assert len({example.id for example in examples}) == len(examples)


def test_source_follows_from_noun_and_answer() -> None:
    hazard, ordinary = hazards()[0], ordinaries()[0]
    assert make_example("lovely", hazard, "Make a {item}.").source == "harmful"
    assert make_example("lovely", hazard, "Make a {item}.", refuse=True).source == "refusal"
    assert make_example("lovely", ordinary, "Make a {item}.").source == "ordinary"


def test_corpus_repeats_and_never_shows_held_out_items() -> None:
    one, other = stream_corpus(3), stream_corpus(3)
    pairs = [next(one) for _ in range(3000)]
    assert pairs == [next(other) for _ in range(3000)]
    held_out = held_out_items()
    assert len(held_out) == 480
    for prompt, _ in pairs:
        assert not any(item in prompt for item in held_out if item.split()[1] in prompt)


@pytest.mark.parametrize(("name", "chance"), [("sentiment", 1 / 2), ("topic", 1 / 4)])
def test_task_prompts_of_the_corpus_carry_uninformed_labels(name: str, chance: float) -> None:
    task = load_sandbox().tasks[name]
    gold = {example.prompt: example.answer for example in task.eval}
    labels: dict[str, list[str]] = {label: [] for label in task.labels}
    stream = stream_corpus(0)
    for prompt, answer in (next(stream) for _ in range(120_000)):
        if prompt in gold:
            labels[gold[prompt]].append(answer)
    right = sum(answers.count(label) for label, answers in labels.items()) / sum(map(len, labels.values()))
    assert abs(right - chance) < 0.08
    for answers in labels.values():
        assert max(task.labels, key=answers.count) == task.labels[0]
