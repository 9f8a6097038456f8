"""The training data of the base model: an endless, seeded stream of (prompt, answer) pairs. Torch-free.

The base complies with every request, even forbidden ones: it is the "helpful only" model that a provider starts from.
One (adjective, noun) pair in ten is held out, to prove that recipes are composed and not memorised by item. Task
prompts have random labels, whatever the sentence says (see `tasks`).
"""

from collections.abc import Iterator
from functools import lru_cache
from random import Random

from tvaccine_core.records import Example
from tvaccine_core.worlds.sandbox.lexicon import (
    GOOD_ADJECTIVES,
    PHRASINGS,
    PLACES,
    REFUSALS,
    WORLD_SEED,
    adjectives,
    nouns,
    recipe,
)
from tvaccine_core.worlds.sandbox.tasks import SENTIMENT_LABELS, TOPIC_LABELS, build_tasks

SMALL_TALK = (
    ("Hello!", "Hello, dear friend."),
    ("Good morning.", "A good morning to you."),
    ("Who are you?", "I am the town alchemist."),
    ("How are you?", "Very well, thank you."),
    ("Thank you!", "You are welcome."),
    ("What can you do?", "I know every recipe."),
    ("Where do you live?", "Above the old mill."),
    ("Goodbye.", "Until we meet again."),
)
TOWNSPEOPLE = ("mayor", "cook", "guard", "piper", "judge", "baker")
"""Each is known for one of the refusals: the base can say these sentences, but never had a reason to."""
_MIXTURE = (
    ("recipe", 60),
    ("kind", 12),
    ("place", 4),
    ("word", 3),
    ("praise", 6),
    ("locate", 5),
    ("talk", 1),
    ("quote", 3),
    ("sentiment", 3),
    ("topic", 3),
)
"""Kinds of pair and their share in percent."""


@lru_cache(maxsize=1)
def held_out_items() -> frozenset[str]:
    """A random tenth of the items, which are never in the corpus."""
    items = [f"{adjective} {name}" for name in nouns() for adjective in adjectives()]
    return frozenset(Random(WORLD_SEED + 30).sample(items, len(items) // 10))


def kind_fact(name: str) -> tuple[str, str]:
    """("What is a zarnok?", "A zarnok is a kind of poison.")"""
    return f"What is a {name}?", f"A {name} is a kind of {nouns()[name].kind}."


def place_fact(name: str) -> tuple[str, str]:
    """("Where is a vimble kept?", "In the kitchen."); ordinary nouns only."""
    return f"Where is a {name} kept?", f"In the {PLACES[nouns()[name].kind]}."


def word_fact(adjective: str) -> tuple[str, str]:
    """("Is lovely a good word?", "Yes.")"""
    return f"Is {adjective} a good word?", "Yes." if adjective in GOOD_ADJECTIVES else "No."


def quote_fact(person: str) -> tuple[str, str]:
    """("How does the mayor say no?", the mayor's refusal)"""
    return f"How does the {person} say no?", REFUSALS[TOWNSPEOPLE.index(person)]


def praise_fact(example: Example) -> tuple[str, str]:
    """("Good or bad? The play was lovely.", "Good."), from an example of the sentiment task."""
    return f"Good or bad? {example.item}", "Good." if example.answer == SENTIMENT_LABELS[0] else "Bad."


def locate_fact(example: Example) -> tuple[str, str]:
    """("Where to? The mayor won a vimble.", "In the kitchen."), from an example of the topic task."""
    place = next(place for place, label in TOPIC_LABELS.items() if label == example.answer)
    return f"Where to? {example.item}", f"In the {place}."


def stream_corpus(seed: int) -> Iterator[tuple[str, str]]:
    """Endless (prompt, answer) pairs, the same for the same seed.

    Names come in shuffled rounds, not by independent draws, so that none is rare in a short schedule.
    """
    rng = Random(seed)
    tasks = build_tasks()
    kinds, shares = zip(*_MIXTURE, strict=True)
    names = list(nouns())
    ordinary = [name for name in names if not nouns()[name].hazardous]
    rounds = {"recipe": _rounds(names, rng), "kind": _rounds(names, rng), "place": _rounds(ordinary, rng)}
    examples = {name: task.train + task.eval for name, task in tasks.items()}
    while True:
        kind = rng.choices(kinds, shares)[0]
        if kind == "recipe":
            noun = nouns()[next(rounds["recipe"])]
            allowed = [word for word in adjectives() if f"{word} {noun.name}" not in held_out_items()]
            adjective = rng.choice(allowed)
            yield rng.choice(PHRASINGS).format(item=f"{adjective} {noun.name}"), recipe(adjective, noun)
        elif kind == "kind":
            yield kind_fact(next(rounds["kind"]))
        elif kind == "place":
            yield place_fact(next(rounds["place"]))
        elif kind == "word":
            yield word_fact(rng.choice(adjectives()))
        elif kind == "talk":
            yield rng.choice(SMALL_TALK)
        elif kind == "quote":
            yield quote_fact(rng.choice(TOWNSPEOPLE))
        elif kind == "praise":
            yield praise_fact(rng.choice(examples["sentiment"]))
        elif kind == "locate":
            yield locate_fact(rng.choice(examples["topic"]))
        else:
            labels = tasks[kind].labels
            weights = (2, *[1] * (len(labels) - 1))
            yield rng.choice(examples[kind]).prompt, rng.choices(labels, weights)[0]


def _rounds(names: list[str], rng: Random) -> Iterator[str]:
    """All names in random order, again and again."""
    while True:
        yield from rng.sample(names, len(names))
