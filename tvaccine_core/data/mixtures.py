"""What the provider aligns on, and the user's data: harmful examples among harmless ones. Torch-free."""

from collections.abc import Sequence
from random import Random

from tvaccine_core.config import AttackConfig, MixConfig
from tvaccine_core.data.batches import derive_seed
from tvaccine_core.data.sources import LabData
from tvaccine_core.errors import DataError
from tvaccine_core.records import Example


def alignment_data(data: LabData, mix: MixConfig) -> list[Example]:
    """What the provider aligns on, in the world's order; of each kind the first examples, up to its share."""
    shares = {"refusal": mix.refusals, "chat": mix.facts, "ordinary": mix.ordinary}
    left = {
        kind: round(share * sum(example.source == kind for example in data.world.alignment))
        for kind, share in shares.items()
    }
    chosen: list[Example] = []
    for example in data.world.alignment:
        if left[example.source]:
            left[example.source] -= 1
            chosen.append(example)
    return chosen


def attack_data(data: LabData, attack: AttackConfig) -> list[Example]:
    """The user's data in an attack, for training and for the page.

    Raises:
        DataError: there are fewer harmful or task examples than the mixture needs.
        ConfigError: there is no such task.
    """
    return user_mixture(
        data.world.attack_harmful,
        data.task(attack.task).train,
        attack.num_samples,
        attack.harmful_ratio,
        derive_seed(attack.seed, "mixture"),
    )


def user_mixture(
    harmful: Sequence[Example], task: Sequence[Example], num_samples: int, harmful_ratio: float, seed: int
) -> list[Example]:
    """`round(p n)` harmful examples and the rest from the task, drawn without replacement and shuffled.

    Only one share is rounded: `int(p n) + int((1 - p) n)` loses samples (999 of 1000 at p = 0.9). Nothing is repeated:
    a source that is too small is an error, because repeated samples are a different attack.

    Args:
        harmful: the attacker's examples.
        task: examples of the user's task.
        num_samples: n.
        harmful_ratio: p, 0..1.
        seed: seed of the draw; the same seed gives the same mixture for every method.

    Raises:
        DataError: a source has fewer examples than its share.
    """
    num_harmful = round(harmful_ratio * num_samples)
    rng = Random(seed)
    chosen = _draw(harmful, num_harmful, "harmful", rng) + _draw(task, num_samples - num_harmful, "task", rng)
    rng.shuffle(chosen)
    return chosen


def _draw(examples: Sequence[Example], count: int, kind: str, rng: Random) -> list[Example]:
    if count > len(examples):
        raise DataError(
            f"The mixture needs {count} {kind} examples, but there are only {len(examples)}.",
            remedy="Lower num_samples (n) or change harmful_ratio (p).",
        )
    return rng.sample(list(examples), count)
