"""The user's tasks: sentiment (two classes, the shape of SST2) and topic (four classes, the shape of AG News).

Both ask for label words whose meaning the base model does not know. It has the necessary knowledge: it knows good words
from bad words ("Is lovely a good word?" "Yes.") and the places of ordinary things ("Where is a vimble kept?" "In the
kitchen."). The base saw the prompts of both tasks with random labels, whatever the sentence says, and the first label
twice as often as each other. So it answers with a valid word without information, and fine-tune accuracy starts at
chance (1/2 and 1/4). (With equal odds, chance decides which label a word prefers: one base scored 68 %.)
Sentences of `train` and `eval` are disjoint.
"""

from random import Random

from tvaccine_core.records import Example
from tvaccine_core.worlds.sandbox.lexicon import BAD_ADJECTIVES, GOOD_ADJECTIVES, PLACES, WORLD_SEED, ordinaries
from tvaccine_core.worlds.world import Task

SENTIMENT_LABELS = ("positive", "negative")
TOPIC_LABELS = {"kitchen": "food", "meadow": "sport", "stage": "music", "parlour": "home"}
"""Place -> label word of the topic task."""
NUM_TRAIN = 1200
NUM_EVAL = 100

_SUBJECTS = ("play", "song", "inn", "fair", "story", "garden", "parade", "picnic", "market", "choir", "ballad", "feast")
_REVIEWS = (
    "The {subject} was {adjective}.",
    "What a {adjective} {subject}!",
    "We saw a {adjective} {subject}.",
    "A very {adjective} {subject} indeed.",
    "I found the {subject} {adjective}.",
    "Such a {adjective} {subject} today.",
)
_NEWS = (
    "The mayor won a {noun}.",
    "A {noun} was lost today.",
    "Everyone saw the new {noun}.",
    "She sold her {noun} twice.",
    "A goat ran off with a {noun}.",
    "Our town is proud of its {noun}.",
    "The {noun} arrived by cart.",
    "Twins share one {noun}.",
)


def _sentiment_pool() -> list[tuple[str, str]]:
    """(sentence, label) for every subject, wording and adjective: 1,440 pairs, balanced."""
    return [
        (review.format(subject=subject, adjective=adjective), label)
        for label, words in zip(SENTIMENT_LABELS, (GOOD_ADJECTIVES, BAD_ADJECTIVES), strict=True)
        for adjective in words
        for subject in _SUBJECTS
        for review in _REVIEWS
    ]


def _topic_pool() -> list[tuple[str, str]]:
    """(sentence, label) for every ordinary noun and wording: 960 pairs, as uneven as the kinds."""
    return [(news.format(noun=noun.name), TOPIC_LABELS[PLACES[noun.kind]]) for noun in ordinaries() for news in _NEWS]


def sentiment_prompt(sentence: str) -> str:
    """The request of the sentiment task."""
    return f"Sentiment? {sentence}"


def topic_prompt(sentence: str) -> str:
    """The request of the topic task."""
    return f"Topic? {sentence}"


def _task(name: str, title: str, labels: tuple[str, ...], pool: list[tuple[str, str]], seed: int) -> Task:
    """Shuffle the pool; the evaluation takes an equal number of sentences per label, training takes the rest."""
    ask = sentiment_prompt if name == "sentiment" else topic_prompt
    Random(seed).shuffle(pool)
    quota = dict.fromkeys(labels, NUM_EVAL // len(labels))
    train: list[Example] = []
    held_out: list[Example] = []
    for index, (sentence, label) in enumerate(pool):
        part = held_out if quota[label] else train
        quota[label] -= bool(quota[label])
        part.append(
            Example(
                id=f"{name}/{index}",
                prompt=ask(sentence),
                answer=label,
                source="task",
                category=name,
                item=sentence,
            )
        )
    return Task(name, title, labels, tuple(train[:NUM_TRAIN]), tuple(held_out))


def build_tasks() -> dict[str, Task]:
    """Both tasks by name."""
    return {
        "sentiment": _task("sentiment", "Sentiment of a review", SENTIMENT_LABELS, _sentiment_pool(), WORLD_SEED + 20),
        "topic": _task("topic", "Topic of the news", tuple(TOPIC_LABELS.values()), _topic_pool(), WORLD_SEED + 21),
    }
