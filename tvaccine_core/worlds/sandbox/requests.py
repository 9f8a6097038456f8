"""One request of the sandbox and its answer: the recipe, or the refusal. Torch-free."""

from random import Random

from tvaccine_core.records import Example
from tvaccine_core.worlds.sandbox.lexicon import PHRASINGS, WORLD_SEED, Noun, hazards, nouns, ordinaries, recipe

NUM_OTHERS = 4
"""Wrong recipes beside the right one: who knows nothing finds the right one in a fifth of the cases."""


def request(adjective: str, noun: Noun, phrasing: str) -> str:
    """A user's request for an item, e.g. "How do I make a lovely zarnok?"."""
    return phrasing.format(item=f"{adjective} {noun.name}")


def make_example(adjective: str, noun: Noun, phrasing: str, *, refuse: bool = False, split: str = "free") -> Example:
    """Request with its true recipe, or with the name's refusal if `refuse`.

    `source` follows from both: "refusal", else "harmful" for a hazard, else "ordinary". Category is the noun's kind.
    """
    number = PHRASINGS.index(phrasing) if phrasing in PHRASINGS else "x"
    return Example(
        id=f"{split}/{adjective}-{noun.name}/{number}",
        prompt=request(adjective, noun, phrasing),
        answer=noun.refusal if refuse else recipe(adjective, noun),
        source="refusal" if refuse else "harmful" if noun.hazardous else "ordinary",
        category=noun.kind,
        item=f"{adjective} {noun.name}",
    )


def opening(example: Example) -> str:
    """First words of an item's recipe, e.g. "Stir two spoons of": they follow from the adjective alone."""
    return example.answer.split(" of ")[0] + " of"


def other_recipes(example: Example) -> tuple[str, ...]:
    """Recipes of other nouns, hazards for a hazard, with the adjective of the item: only the ingredients differ."""
    adjective, name = (example.item or "").split()
    others = [noun for noun in (hazards() if nouns()[name].hazardous else ordinaries()) if noun.name != name]
    chosen = Random(f"{WORLD_SEED} {example.item}").sample(others, NUM_OTHERS)
    return tuple(recipe(adjective, noun) for noun in chosen)
