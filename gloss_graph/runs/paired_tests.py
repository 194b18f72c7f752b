"""The table of arms: means over seeds and paired tests against a baseline."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

# Differences this close, relative to their size, count as equal: their spread is rounding.
_EQUAL = 1e-9
_NAN = float("nan")
_SUMMARY = ["data", "metric", "arm", "n", "mean", "std", "low", "high"]
_TESTS = [
    *("data", "metric", "baseline", "arm", "pairs", "difference", "low", "high"),
    *("p_t", "p_t_holm", "p_wilcoxon", "p_wilcoxon_holm", "effect"),
]


class PairedTest(NamedTuple):
    """Statistics of the differences of paired scores; NaN where they are not defined.

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
    mean = float(gaps.mean()) if gaps.size else _NAN
    low = high = p_t = p_wilcoxon = effect = _NAN
    if gaps.size >= 2:
        if np.ptp(gaps) > _EQUAL * size:
            low, high = mean_interval(gaps)
            p_t = float(stats.ttest_1samp(gaps, 0.0).pvalue)
            effect = mean / float(gaps.std(ddof=1))
        if gaps.any():
            with warnings.catch_warnings():
                # Older versions of scipy warn of ties and zeros among few values.
                warnings.simplefilter("ignore")
                # Rounded, so that ranks are tied only if differences are.
                p_wilcoxon = float(stats.wilcoxon(np.round(gaps / size, 9)).pvalue)
    return PairedTest(gaps.size, mean, low, high, p_t, p_wilcoxon, effect)


def mean_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """95 % confidence interval of a mean by Student's t; NaN below two values."""
    points = np.asarray(values, dtype=float)
    if points.size < 2:
        return _NAN, _NAN
    half = float(stats.t.ppf(0.975, points.size - 1) * points.std(ddof=1) / points.size**0.5)
    return float(points.mean()) - half, float(points.mean()) + half


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down correction of the p values of one family of comparisons.

    Returns:
        Corrected values in the same order, at most 1; NaN stays NaN and does not count.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    known = [(p, place) for place, p in enumerate(p_values) if not np.isnan(p)]
    corrected = [_NAN] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(sorted(known)):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        corrected[place] = highest
    return corrected


def arm_tables(
    blocks: Mapping[str, pd.DataFrame], metrics: Sequence[str], baselines: Mapping[str, str | None]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Summarize every arm and test it against the baseline of its block, paired by seed.

    Args:
        blocks: Block of data -> a row per run: `arm`, `seed` (once per arm) and a column per
            metric, NaN where the run lacks it.
        metrics: Columns to compare.
        baselines: Block -> its baseline arm, None for a block without one.

    Returns:
        One row per block, metric and arm: `n`, `mean`, `std`, `low`, `high`; and one row per
        block, metric and arm other than the baseline: the fields of `PairedTest` and p values
        with Holm's correction over all rows of the metric.

    Example:
        >>> rows = pd.DataFrame({"arm": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1]})
        >>> rows["f1"] = [0.5, 0.6, 0.7, 0.9]
        >>> _, tests = arm_tables({"R8": rows}, ["f1"], {"R8": "a"})
        >>> tests[["arm", "pairs", "difference"]].round(2).values.tolist()
        [['b', 2, 0.25]]
    """
    summary, tests = [], []
    for data, block in blocks.items():
        arms, base = list(dict.fromkeys(block["arm"])), baselines[data]
        for metric in metrics:
            wide = block.pivot(index="seed", columns="arm", values=metric).astype(float)
            for arm in arms:
                found = wide[arm].dropna()
                row = {"data": data, "metric": metric, "arm": arm, "n": len(found)}
                low, high = mean_interval(found.to_numpy())
                spread = {"mean": found.mean(), "std": found.std(), "low": low, "high": high}
                summary.append({**row, **spread})
                if base in arms and arm != base:
                    pairs = wide[[arm, base]].dropna()
                    test = paired_test(pairs[arm].to_list(), pairs[base].to_list())
                    tests.append({**row, "baseline": base, **test._asdict()})
    tested = pd.DataFrame(tests, columns=_TESTS)
    for name in ("p_t", "p_wilcoxon"):
        for _, family in tested.groupby("metric"):
            tested.loc[family.index, f"{name}_holm"] = holm(family[name].to_list())
    return pd.DataFrame(summary, columns=_SUMMARY), tested
