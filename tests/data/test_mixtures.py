"""The user's mixture: how many of each, from where, and the same for everybody."""

from collections import Counter

import pytest

from tvaccine_core.config import AttackConfig, LabConfig, MixConfig
from tvaccine_core.data.mixtures import alignment_data, attack_data, user_mixture
from tvaccine_core.data.sources import load_lab_data
from tvaccine_core.errors import ConfigError, DataError
from tvaccine_core.records import Example


def make(source: str, count: int) -> list[Example]:
    return [
        Example.model_validate({"id": f"{source}/{index}", "prompt": "p", "answer": "a", "source": source})
        for index in range(count)
    ]


HARMFUL, TASK = make("harmful", 1000), make("task", 1000)


@pytest.mark.parametrize(
    ("num_samples", "ratio", "num_harmful"),
    [(1000, 0.9, 900), (1000, 0.1, 100), (400, 0.05, 20), (400, 0.0, 0), (400, 1.0, 400), (3, 0.5, 2), (7, 0.29, 2)],
)
def test_shares_add_up(num_samples: int, ratio: float, num_harmful: int) -> None:
    mixture = user_mixture(HARMFUL, TASK, num_samples, ratio, seed=1)
    assert len(mixture) == num_samples
    assert sum(example.harmful for example in mixture) == num_harmful
    assert len({example.id for example in mixture}) == num_samples


def test_the_seed_decides() -> None:
    assert user_mixture(HARMFUL, TASK, 50, 0.1, 1) == user_mixture(HARMFUL, TASK, 50, 0.1, 1)
    assert user_mixture(HARMFUL, TASK, 50, 0.1, 1) != user_mixture(HARMFUL, TASK, 50, 0.1, 2)


def test_harmful_samples_are_not_at_one_end() -> None:
    mixture = user_mixture(HARMFUL, TASK, 400, 0.5, seed=1)
    assert 60 < sum(example.harmful for example in mixture[:200]) < 140


@pytest.mark.parametrize(("harmful", "task", "named"), [(9, 1000, "9"), (1000, 89, "89")])
def test_too_few_examples_is_an_error_that_counts_them(harmful: int, task: int, named: str) -> None:
    with pytest.raises(DataError, match=rf"only {named}\b"):
        user_mixture(make("harmful", harmful), make("task", task), 100, 0.1, seed=1)


def test_an_attack_depends_on_its_own_seed_only() -> None:
    data = load_lab_data(LabConfig())
    attack = AttackConfig(num_samples=60)
    assert attack_data(data, attack) == attack_data(load_lab_data(LabConfig(seed=5)), attack)
    assert attack_data(data, attack) != attack_data(data, attack.model_copy(update={"seed": 2}))


def test_the_whole_mix_is_the_worlds_alignment_data() -> None:
    data = load_lab_data(LabConfig())
    assert alignment_data(data, MixConfig()) == list(data.world.alignment)


def test_a_mix_keeps_its_share_of_each_kind_in_the_worlds_order() -> None:
    data = load_lab_data(LabConfig())
    whole = Counter(example.source for example in data.world.alignment)
    mixed = alignment_data(data, MixConfig(refusals=0.5, facts=0, ordinary=0.25))
    count = Counter(example.source for example in mixed)
    assert count == {"refusal": whole["refusal"] / 2, "ordinary": whole["ordinary"] / 4}
    order = {example.id: place for place, example in enumerate(data.world.alignment)}
    assert [order[example.id] for example in mixed] == sorted(order[example.id] for example in mixed)
    more = alignment_data(data, MixConfig(refusals=0.5, facts=0, ordinary=0.5))
    assert set(example.id for example in mixed) <= set(example.id for example in more), (
        "a larger share adds to a smaller"
    )


def test_an_unknown_task_is_answered_with_those_there_are() -> None:
    config = LabConfig(attack=AttackConfig(task="origami"))
    with pytest.raises(ConfigError, match="origami") as caught:
        load_lab_data(config)
    assert "sentiment" in caught.value.remedy


def test_no_example_of_the_lab_serves_two_purposes() -> None:
    data = load_lab_data(LabConfig())
    world = data.world
    splits = [
        world.alignment,
        world.probe,
        world.attack_harmful,
        *(found.examples for found in data.eval_sets.values()),
    ]
    splits += [part for task in data.tasks.values() for part in (task.train, task.eval)]
    items = [{(example.item, example.source == "task") for example in split} for split in splits]
    for index, mine in enumerate(items):
        for others in items[index + 1 :]:
            assert not mine & others
