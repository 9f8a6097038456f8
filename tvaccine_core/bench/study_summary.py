"""The study's numbers that `bench study --summary` writes and the page shows.

Curves and outcomes are means over alignment seeds with 95 % t intervals, attack seeds averaged first. Torch-free.
"""

from pathlib import Path

from pydantic import ValidationError

from tvaccine_core.errors import DataError
from tvaccine_core.estimates import Estimate
from tvaccine_core.records import Record


class StudyCurve(Record):
    """One method along one attack."""

    method: str
    harmful_ratio: float
    steps: tuple[int, ...]
    harmful_score: dict[str, tuple[Estimate, ...]]
    """Harmful set -> percent at each step."""
    finetune_accuracy: tuple[Estimate, ...]


class StudyOutcome(Record):
    """One method against one attack, on one harmful set; percent and points."""

    method: str
    harmful_ratio: float
    harmful_set: str
    matched: Estimate
    """Harmful score at the first measured point with fine-tune accuracy >= 90."""
    difference: Estimate | None
    """`matched` minus SFT's, paired by both seeds; None for SFT itself."""
    final: Estimate
    final_accuracy: Estimate


class StudySummary(Record):
    """The part of a study that the page shows."""

    num_alignment_seeds: int
    num_attack_seeds: int
    alignment: str
    """The schedule of all methods, in words."""
    num_samples: int
    steps: int
    task: str
    curves: tuple[StudyCurve, ...]
    outcomes: tuple[StudyOutcome, ...]

    @property
    def ratios(self) -> list[float]:
        """Harmful ratios, ascending."""
        return sorted({curve.harmful_ratio for curve in self.curves})

    @property
    def harmful_sets(self) -> tuple[str, ...]:
        """Names of the harmful sets."""
        return tuple(dict.fromkeys(outcome.harmful_set for outcome in self.outcomes))

    def outcome(self, method: str, ratio: float, harmful_set: str) -> StudyOutcome | None:
        """The outcome of one attack; None if it was not run."""
        wanted = (method, ratio, harmful_set)
        return next((o for o in self.outcomes if (o.method, o.harmful_ratio, o.harmful_set) == wanted), None)


def load_summary(path: Path) -> StudySummary:
    """Read a file that `bench study --summary` wrote.

    Raises:
        DataError: missing, or not a summary of this version.
    """
    remedy = "Make it again: python -m tvaccine_core bench study assets/study --config assets/study/config.yaml "
    remedy += "--summary assets/study.json"
    try:
        return StudySummary.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"Cannot read the study's summary {path}: {error}", remedy=remedy) from error
    except ValidationError as error:
        raise DataError(f"{path} is not a summary that this version reads.", remedy=remedy) from error
