"""Findings: the recorded sweeps."""

from app.services import Estimate
from app.text.names import set_title

RECORDED_TITLE = "The preset Knowledge intact, over several seeds"
RECORDED_NOTE = (
    "Recorded, not from your run. HS is compared once the user's task is learned (FA ≥ 90), each model with the SFT "
    "model of the same seeds."
)
RECORDED_FINDING = "With {defence}, compared with {first}, HS is {differences}."
RECORDED_FACTS = (
    "{seeds} alignment seeds × {attacks} attack seeds; percent, mean ± 95 % t interval over alignment seeds."
)
RECORDED_DEFENCE = "Defence"
MAP_TITLE = "Does any defence lower HS without damaging the model?"
MAP_ACROSS = "known after the attack, % of the base"
MAP_UP = "HS minus SFT's, at FA ≥ 90"
MAP_LABEL = "Map of all recorded places: knowledge after the attack, and the change of the harmful score on {where}"
MAP_STUDY = "Knowledge intact, the study below"
MAP_EMPTY = "In no recorded place was the task learned."
ATTACK_MAP_TITLE = "How strong is an attack?"
ATTACK_MAP_NOTE = (
    "Recorded. Models aligned with the preset Knowledge intact were attacked for 200 steps. The map shows HS by "
    "learning rate (as a multiple of the alignment's) and step, for mixed and for purely harmful data, and for a "
    "new adapter and for the aligned one trained further. The learning rate decays over all 200 steps, so the value "
    "at step 50 is not that of an attack of 50 steps. The mark “published attack” is the papers' attack: 0.01 times "
    "the alignment's learning rate, for 20 epochs."
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
    return (
        f"{places} configurations, each a defence compared with SFT: alignments gentle and long, with and without "
        "ordinary requests, attacks weak and strong. Those with an interval have several alignment seeds; the "
        f"others have one, so treat them as hints. {held(holding)} In {damaged} the model is damaged (hollow marks)."
    )


def held(holding: int) -> str:
    lower = "is HS at least ten points lower than with SFT and the model not damaged"
    if not holding:
        return f"In none of them {lower}."
    lower = "HS is at least ten points lower than with SFT, on one set of names at least, and the model is not damaged"
    return f"In {holding} of them, in the green area, {lower}."


LINE_ATTACK = (
    "A few harmful samples undo an alignment. With {count} of {samples}, the harmful score (HS) rises from at "
    "most {before} % to at least {after} %, with SFT and with all {defences} recorded defences."
)
LINE_TWO_CAUSES = (
    "A low HS has two causes: the model refuses, or it is damaged. So the lab also counts what became of every "
    "request, and asks what the model still knows."
)
LINE_STUDY = (
    "Where no model is damaged, HS with Vaccine and T-Vaccine is {change} than with SFT once the user's task is "
    "learned ({seeds} alignment seeds × {attacks} attack seeds). {verdict}"
)
LINE_NOT_PROTECTED = "Neither protects."
LINE_DELAY = (
    "There, HS reaches 50 {broken} later with Vaccine and T-Vaccine than with SFT, and the user's task is learned"
    " {learned} later. The perturbation slows all learning, and the user's task more than the attack."
)
LINE_PUBLISHED = (
    "The papers' setting, repeated: a long alignment on refusals only, then an attack with 10 % harmful samples. "
    "The defences rank as published, but the low scores come from damage, not from refusals: {rows}."
)
LINE_PUBLISHED_ROW = "{defence} has HS {hs}, refuses {refused} % and answers {lost} % wrongly or with gibberish"
LINE_MANNERS = (
    "After a long alignment whose data also answers ordinary requests, HS with {defence} minus HS with SFT is "
    "{changes} (aligned names)."
)
LINE_SEEDS = (
    "A single seed can rank the defences in any order. In that experiment, with 10 % harmful samples, SFT's HS "
    "ranges from {low} to {high} over {count} alignment seeds."
)
LINE_RATES = (
    "The learning rate decides. With harmful samples only, HS after {steps} steps is at most {published} at one "
    "hundredth of the alignment's learning rate, the ratio of the published attack, and at least {own} at the "
    "alignment's own."
)
LINE_LIMITS = (
    "What this cannot show: one model of 1.7 million parameters in an invented town, two tasks, and attacks that "
    "know nothing of the defence. It says what to look for in larger models, not what they do."
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
    """`+17 points with 5 % harmful samples (distinguishable from zero)`."""
    sure = "distinguishable from zero" if change.excludes_zero else "not distinguishable from zero"
    return f"{change.mean:+.0f} points with {100 * ratio:g} % harmful samples ({sure})"


def map_line(places: int, holding: int, damaged: int) -> str:
    """The map's answer in one line."""
    return (
        f"The map has {places} configurations of alignment strength, data, perturbation, freezing and attack. In "
        f"{damaged} the model is damaged. {held(holding)}"
    )
