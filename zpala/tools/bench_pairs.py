"""Two things measured in turn, and what their ratio is: how every comparison of ``zpala bench`` is made. Measures nothing itself.

Pairs come in the order A-B-B-A-A-B..., so that a machine that grows slower or faster meanwhile favours nobody; what counts is the ratio
within a pair.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# Student's t: the 97.5 % quantile for 1, 2, 3, ... degrees of freedom (National Institute of Standards, Handbook of Statistical Methods,
# table 1.3.6.7.2); beyond the table the normal distribution's, which is smaller by at most 4 %.
_T_975: tuple[float, ...] = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_T_975 += (2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042)
_NORMAL_975 = 1.960


@dataclass(frozen=True, slots=True)
class Pair:
    """Two measurements in a row, of one unit. ``order``: "AB" when ``a`` was measured first."""

    order: str
    a: float
    b: float

    @property
    def ratio(self) -> float:
        return self.a / self.b


@dataclass(frozen=True, slots=True)
class Summary:
    """Of all pairs.

    Attributes:
        ratio_median, ratio_min, ratio_max: of the ratios a / b.
        ratio_low, ratio_high: 95 % interval of their geometric mean (Student's t of their logarithms); 0 and infinity for a single pair.
        a_median, b_median: of the measurements.
    """

    ratio_median: float
    ratio_low: float
    ratio_high: float
    ratio_min: float
    ratio_max: float
    a_median: float
    b_median: float

    def __str__(self) -> str:
        interval = f"95 % interval {self.ratio_low:.3f} to {self.ratio_high:.3f}, " if self.ratio_low > 0.0 else ""
        return f"median {self.ratio_median:.3f}, {interval}range {self.ratio_min:.3f} to {self.ratio_max:.3f}"


def orders(pairs: int) -> list[str]:
    """Who comes first in each pair: A-B, B-A, A-B, ..."""
    return ["AB" if index % 2 == 0 else "BA" for index in range(pairs)]


def summarise(pairs: Sequence[Pair]) -> Summary:
    """At least one pair, all figures above 0."""
    ratios = [pair.ratio for pair in pairs]
    low, high = interval(ratios)
    medians = (statistics.median(pair.a for pair in pairs), statistics.median(pair.b for pair in pairs))
    return Summary(statistics.median(ratios), low, high, min(ratios), max(ratios), *medians)


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """95 % confidence interval of the geometric mean of ``ratios``, each above 0; (0, infinity) for a single one."""
    if len(ratios) < 2:
        return 0.0, math.inf
    logarithms = [math.log(ratio) for ratio in ratios]
    freedom = len(ratios) - 1
    quantile = _T_975[freedom - 1] if freedom <= len(_T_975) else _NORMAL_975
    middle, half = statistics.fmean(logarithms), quantile * statistics.stdev(logarithms) / math.sqrt(len(ratios))
    return math.exp(middle - half), math.exp(middle + half)
