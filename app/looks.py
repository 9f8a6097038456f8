"""How each defence is drawn: title, colour, marker and dash, with one meaning in every chart, table and pane."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from app.services import Defence, LabConfig, alignment_methods, method_info, title_of

MARKERS = ("circle", "square", "diamond", "triangle-up", "cross", "star", "x", "pentagon", "hexagon", "triangle-down")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
OTHER_COLOURS = ("#CC009C", "#307818", "#5484FC", "#C08400", "#3054FC", "#D82400", "#6C90CC", "#007860")
"""For defences of several methods, and for defences with their own name. Of medium lightness, so that each is
seen on white and on black; a search made them as unlike each other and the methods' colours as it could,
for eyes of every kind."""


@dataclass(frozen=True)
class Look:
    """One defence as a reader sees it. No meaning is carried by colour alone."""

    title: str
    colour: str
    marker: str
    dash: str


@lru_cache(maxsize=64)
def looks_of(defences: tuple[Defence, ...]) -> Mapping[str, Look]:
    """Look of each defence by its name. A defence of one alignment method has this method's look, in every run."""
    return looks_by_name([(defence.name, title_of(defence)) for defence in defences])


def looks_by_name(defences: Sequence[tuple[str, str]]) -> Mapping[str, Look]:
    """Look of each defence by its name; of a recorded sweep's defences only name and title are known."""
    alone = {info.name: number for number, info in enumerate(alignment_methods())}
    found: dict[str, Look] = {}
    others = 0
    for name, title in defences:
        if name in alone:
            number, colour = alone[name], method_info(name).colour
        else:
            number, colour = len(alone) + others, OTHER_COLOURS[others % len(OTHER_COLOURS)]
            others += 1
        found[name] = Look(title, colour, MARKERS[number % len(MARKERS)], DASHES[number % len(DASHES)])
    return found


def aligned_looks(config: LabConfig) -> Mapping[str, Look]:
    """Look of each aligned state by its key: the look of the first defence built on it, with the titles of all."""
    looks, found = looks_of(config.defences), {}
    for key in config.alignments():
        sharing = [looks[name] for name, other in config.aligned_keys().items() if other == key]
        title = ", ".join(look.title for look in sharing)
        found[key] = Look(title, sharing[0].colour, sharing[0].marker, sharing[0].dash)
    return found
