"""Paired tests of two series of scores, and their correction for several comparisons."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
from scipy import stats

# Differences this close, relative to their size, count as equal: their spread is rounding.
_EQUAL = 1e-9
_P_VALUES = ("p_t", "p_wilcoxon")
#: What `corrected` says of a comparison.
TEST_COLUMNS = (
    *("pairs", "difference", "low", "high"),
    *("p_t", "p_t_holm", "p_wilcoxon", "p_wilcoxon_holm", "effect"),
)


@dataclass(frozen=True)
class PairedTest:
    """What the differences of paired scores say; NaN where they say nothing.

    Attributes:
        pairs: Number of pairs.
        difference: Mean difference.
        low: Lower end of its 95 % confidence interval (Student's t), NaN where `p_t` is.
        high: Upper end.
        p_t: Paired t-test, two-sided. NaN below two pairs and for equal differences, which have
            no spread to compare with.
        p_wilcoxon: Wilcoxon's signed-rank test, two-sided. NaN below two pairs and where all
            differences are zero.
        effect: Cohen's d_z, the mean difference in standard deviations of the differences.
    """

    pairs: int
    difference: float
    low: float
    high: float
    p_t: float
    p_wilcoxon: float
    effect: float


def paired_test(values: Sequence[float], baseline: Sequence[float]) -> PairedTest:
    """Compare paired scores with those of a baseline.

    Args:
        values: (n,) scores.
        baseline: (n,) scores of the same seeds, in the same order.

    Raises:
        ValueError: Different lengths, or a value that is not finite.

    Example:
        >>> test = paired_test([0.8, 0.9, 0.7], [0.7, 0.7, 0.6])
        >>> round(test.difference, 3), round(test.p_t, 3), test.p_wilcoxon
        (0.133, 0.057, 0.25)
    """
    one, other = np.asarray(values, dtype=float), np.asarray(baseline, dtype=float)
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(
            f"'values' must pair with 'baseline' (got shapes {one.shape} and {other.shape})."
        )
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        raise ValueError("'values' and 'baseline' must be finite. Leave out the pair.")
    gaps = one - other
    size = max(np.abs(one).max(initial=0.0), np.abs(other).max(initial=0.0))
    # 0.3 - 0.2 and 0.2 - 0.1 are one difference.
    gaps[np.abs(gaps) <= _EQUAL * size] = 0.0
    mean = float(gaps.mean()) if gaps.size else float("nan")
    low = high = p_t = p_wilcoxon = effect = float("nan")
    if gaps.size >= 2:
        if np.ptp(gaps) > _EQUAL * size:
            low, high = mean_interval(gaps)
            p_t = float(stats.ttest_1samp(gaps, 0.0).pvalue)
            effect = mean / float(gaps.std(ddof=1))
        if gaps.any():
            # Ranks are tied only if differences are, not by rounding.
            rounded = np.round(gaps / size, 9)
            with warnings.catch_warnings():
                # Older versions of scipy warn of ties and zeros among few values.
                warnings.simplefilter("ignore")
                p_wilcoxon = float(stats.wilcoxon(rounded).pvalue)
    return PairedTest(gaps.size, mean, low, high, p_t, p_wilcoxon, effect)


def mean_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """95 % confidence interval of a mean by Student's t; NaN below two values.

    Example:
        >>> low, high = mean_interval([1.0, 2.0, 3.0])
        >>> round(low, 2), round(high, 2)
        (-0.48, 4.48)
    """
    points = np.asarray(values, dtype=float)
    if points.size < 2:
        return float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, points.size - 1) * points.std(ddof=1) / points.size**0.5)
    return float(points.mean()) - half, float(points.mean()) + half


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down correction of p values; NaN stays NaN and does not count.

    Args:
        p_values: Of the comparisons of one family.

    Returns:
        Corrected values in the given order, at most 1.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    known = [(p, place) for place, p in enumerate(p_values) if not np.isnan(p)]
    corrected = [float("nan")] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(sorted(known)):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        corrected[place] = highest
    return corrected


def corrected(rows: Sequence[tuple[dict[str, Any], PairedTest]]) -> list[dict[str, Any]]:
    """Rows of a table of tests: Holm's correction is over all comparisons of a metric.

    Args:
        rows: What tells a comparison from others, `metric` among it, and its test.

    Returns:
        The same, flat, with `TEST_COLUMNS`.

    Example:
        >>> test = paired_test([0.8, 0.9, 0.7], [0.7, 0.7, 0.6])
        >>> rows = [({"metric": "f1", "arm": arm}, test) for arm in "ab"]
        >>> [round(row["p_t_holm"], 2) for row in corrected(rows)]
        [0.11, 0.11]
    """
    flat = [{**names, **asdict(test)} for names, test in rows]
    ordered = sorted(flat, key=lambda row: str(row["metric"]))
    for _, same in groupby(ordered, key=lambda row: str(row["metric"])):
        family = list(same)
        for name in _P_VALUES:
            for row, p in zip(family, holm([row[name] for row in family]), strict=True):
                row[f"{name}_holm"] = p
    return flat
