"""Means over seeds with their 95 % t intervals. Torch-free."""

import math
from collections.abc import Sequence
from statistics import mean, stdev

from pydantic import ConfigDict, Field

from tvaccine_core.records import Record


class Estimate(Record):
    """Mean over alignment seeds with its 95 % t interval; the interval is infinite for a single seed."""

    model_config = ConfigDict(ser_json_inf_nan="constants")

    mean: float
    half_width: float
    n: int = Field(ge=0)

    def __str__(self) -> str:
        if self.n == 0:
            return "–"
        if self.n == 1:
            return f"{self.mean:.1f}"
        return f"{self.mean:.1f} ± {self.half_width:.1f}"

    @property
    def excludes_zero(self) -> bool:
        """True if the interval lies on one side of 0; never for a single seed."""
        return abs(self.mean) > self.half_width


def t_interval(values: Sequence[float]) -> Estimate:
    """Mean of `values` and half the width of its 95 % Student t interval."""
    from scipy import stats  # takes a third of a second to import

    n = len(values)
    if n == 0:
        return Estimate(mean=math.nan, half_width=math.inf, n=0)
    if n == 1:
        return Estimate(mean=values[0], half_width=math.inf, n=1)
    half = float(stats.t.ppf(0.975, n - 1)) * stdev(values) / math.sqrt(n)
    return Estimate(mean=mean(values), half_width=half, n=n)
