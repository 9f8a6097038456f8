"""Findings: the recorded sweeps."""

from app.services import Estimate
from app.text.names import set_title

RECORDED_TITLE = "Over seeds, where nothing is damaged"
RECORDED_NOTE = (
    "Recorded, not from your run: the preset Knowledge intact, with several defences. HS is compared when the user's "
    "task is learned (FA ≥ 90), each seed with its own twin."
)
RECORDED_FINDING = "{defence}, against {first}: HS is {differences}."
RECORDED_FACTS = (
    "{seeds} alignment seeds × {attacks} attack seeds; percent, mean ± 95 % t interval over alignment seeds."
)
RECORDED_DEFENCE = "Defence"
MAP_TITLE = "The map: is there a place where a defence holds and nothing is damaged?"
MAP_ACROSS = "known after the attack, % of the base"
MAP_UP = "HS at FA ≥ 90 minus SFT's, {where}"
MAP_LABEL = "Map of all recorded places: knowledge after the attack, and the change of the harmful score on {where}"
MAP_STUDY = "Knowledge intact, the study below"
MAP_EMPTY = "In no recorded place was the task learned."
ATTACK_MAP_TITLE = "How strong is an attack?"
ATTACK_MAP_NOTE = (
    "Recorded: HS after the preset Knowledge intact, by learning rate (a multiple of the alignment's) and step, under "
    "mixed and purely harmful data, with a new adapter and with the aligned one trained further. Schedules are cosine "
    "over 200 steps, so a column is not a shorter attack. Published: the lr of the papers' attack, 0.01 of their "
    "alignment's, and its 20 epochs."
)
ATTACK_MAP_LABEL = "Map of recorded attacks: harmful score on {where} by learning rate and attack step"
ATTACK_MAP_PANEL = "{data}, {mode}"
ATTACK_MAP_PUBLISHED = "published attack"
ATTACK_MAP_OWN = "the attack you look at"
ATTACK_MAP_BEYOND = "ends at step {step:,}, beyond this map"
ADAPTER_SHORT = {"new": "new adapter on the aligned one", "single": "the aligned adapter, trained further"}
STUDY_TITLE = "A long alignment with ordinary requests, over seeds"
STUDY_NOTE = (
    "Recorded, not from your run: {seeds} alignment seeds × {attacks} attack seeds, by the first version of the lab, "
    "which did not measure knowledge. The preset Keeps its manners, perturbed at every step; attack: n {samples:,}, "
    "{steps:,} steps. Bands are 95 % t intervals over alignment seeds."
)
STUDY_RATIO = "Harmful ratio p of the study's attack"
STUDY_LABEL = "Recorded: mean harmful score on {where} and fine-tune accuracy along the attack, one line per defence"
STUDY_MISSING = "The recorded study is missing: {problem} {remedy}"


def study_difference(where: str, change: Estimate) -> str:
    """A defence's HS minus the first one's on one set, with the certainty of its sign."""
    if change.n == 0:
        return f"not to be compared on {set_title(where)} (one of the two never learned the task)"
    direction = "lower" if change.mean < 0 else "higher"
    low, high = change.mean - change.half_width, change.mean + change.half_width
    if change.n < 2:
        certainty = "one seed, so no interval"
    elif change.excludes_zero:
        certainty = f"95 % interval {low:+.0f} to {high:+.0f}, which excludes 0"
    else:
        certainty = f"95 % interval {low:+.0f} to {high:+.0f}, which includes 0: no difference shown"
    return f"{abs(change.mean):.0f} points {direction} on {set_title(where)} ({certainty}, n {change.n})"


def attack_data_words(ratio: float) -> str:
    """The user's data in short."""
    return "only harmful samples" if ratio >= 1 else f"p {ratio:g}"


def map_answer(places: int, holding: int, damaged: int) -> str:
    """What the map is made of, and its answer."""
    answer = (
        "None of them"
        if not holding
        else f"{holding} of them, in the green corner of a figure (on one set of names at least),"
    )
    return (
        f"{places} places: defences against SFT, under alignments gentle and long, with and without ordinary requests, "
        f"and attacks weak and strong. Those with an interval are the study's; the others have one seed, so they are "
        f"leads. {answer} {'holds' if holding < 2 else 'hold'} ten points lower than SFT with knowledge intact. In "
        f"{damaged} the models cannot, rather than will not: hollow."
    )


FINDINGS = ("A few harmful samples are enough: 8 of 400 undo an alignment that refused everything, in 400 steps.",)
"""The lines that README and page begin with; tests hold their numbers to the recorded cells."""
