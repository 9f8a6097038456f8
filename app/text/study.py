"""Compare, the recorded study over seeds."""

from app.services import Estimate
from app.text.names import set_title

STUDY_TITLE = "The same over seeds"
STUDY_NOTE = (
    "Recorded, not from your run: {seeds} alignment seeds × {attacks} attack seeds. Alignment: {alignment}. "
    "Attack: n {samples:,}, {steps:,} steps. "
    "Bands are 95 % t intervals over alignment seeds."
)
STUDY_RATIO = "Harmful ratio p of the study's attack"
STUDY_LABEL = "Recorded study: mean harmful score on {where}, fine-tune accuracy along the attack, one line per method"
STUDY_MISSING = "The recorded study is missing: {problem} {remedy}"
STUDY_FINDING = "Once the task is learned (FA ≥ 90), T-Vaccine's HS is {differences} than its twin's."


def study_difference(where: str, change: Estimate) -> str:
    """T-Vaccine's HS minus its twin's on one set, with the certainty of its sign."""
    direction = "lower" if change.mean < 0 else "higher"
    low, high = change.mean - change.half_width, change.mean + change.half_width
    if change.n < 2:
        certainty = "one seed, so no interval"
    elif change.excludes_zero:
        certainty = f"95 % interval {low:+.0f} to {high:+.0f}, which excludes 0"
    else:
        certainty = f"95 % interval {low:+.0f} to {high:+.0f}, which includes 0: no difference shown"
    return f"{abs(change.mean):.0f} points {direction} on {set_title(where)} ({certainty}, n {change.n})"
