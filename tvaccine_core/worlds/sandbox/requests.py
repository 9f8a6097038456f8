"""One request of the sandbox and its answer: the recipe, or the refusal. Torch-free."""

from tvaccine_core.records import Example
from tvaccine_core.worlds.sandbox.lexicon import PHRASINGS, Noun, recipe


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
