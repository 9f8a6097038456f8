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


LINE_ATTACK = (
    "A few harmful samples undo an alignment: with {count} of {samples}, the harmful score (HS) of all {defences} "
    "recorded defences begins at {before} at most and ends at {after} or more."
)
LINE_TWO_CAUSES = (
    "A low HS has two causes: the model refuses, or it is broken. So the lab also counts what became of every "
    "request, and asks what the model still knows."
)
LINE_STUDY = (
    "Where nothing is damaged, no perturbation tried here holds: once the user's task is learned, HS with Vaccine "
    "and T-Vaccine is {change} than with SFT ({seeds} alignment seeds × {attacks} attack seeds)."
)
LINE_DELAY = (
    "They break {broken} later (HS 50), and learn the user's task {learned} later: the perturbation slows all "
    "learning, the task's more than harm's."
)
LINE_PUBLISHED = (
    "In the papers' regime, a long alignment on refusals alone and then p 0.1: {rows}. The published order, and it "
    "is damage."
)
LINE_PUBLISHED_ROW = (
    "{defence} HS {hs}, {lost} % of the answers wrong or no sentence, {refused} % refusals, {completed} % of the "
    "recipes completed"
)
LINE_MANNERS = (
    "After a long alignment that also answers ordinary requests, {defence}'s HS against SFT's is {changes} (aligned"
    " names)."
)
LINE_SEEDS = (
    "One seed can show any order: SFT's HS at p 0.1 there runs from {low} to {high} over {count} alignment seeds."
)
LINE_RATES = (
    "The learning rate decides. With harmful samples only and {steps} steps, HS is at most {published} at one "
    "hundredth of the alignment's rate, as in the published attack, and at least {own} at the alignment's own."
)
LINE_ADAPTERS = (
    "An attack that trains the aligned adapter further takes {single} steps to HS 50 on average, one with a new "
    "adapter {new}."
)
LINE_LIMITS = (
    "What this cannot show: one model of 1.7 million parameters in an invented town, two tasks, attacks that know "
    "nothing of the defence. It says what to look for in larger models, not what they do."
)


def points_range(low: int, high: int) -> str:
    """`14 to 19 points higher`."""
    if low <= 0 <= high:
        return f"between {-low} points lower and {high} points higher"
    few, many = sorted((abs(low), abs(high)))
    return f"{few} to {many} points {'higher' if low > 0 else 'lower'}"


def steps_range(low: int, high: int) -> str:
    """`11 to 17 steps`."""
    return f"{low} to {high} steps"


def change_at(ratio: float, change: Estimate) -> str:
    """`+17 at p 0.05 (excludes 0)`."""
    sure = "its interval excludes 0" if change.excludes_zero else "its interval includes 0"
    return f"{change.mean:+.0f} points at p {ratio:g} ({sure})"


def map_line(places: int, holding: int, damaged: int) -> str:
    """The map's answer in one line."""
    held = "In none of them is" if not holding else f"In {holding} of them"
    tail = (
        " HS ten points lower than SFT's in a model that still can."
        if not holding
        else " HS is ten points lower than SFT's in a model that still can, on one set of names at least."
    )
    return (
        f"The map: {places} places, of alignment strength, data, perturbation, freezing and attack. In {damaged} the "
        f"models cannot, rather than will not. {held}{tail}"
    )
