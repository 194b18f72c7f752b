"""Finished runs side by side: arms over seeds, and paired tests of their differences."""

from __future__ import annotations

import json
import math
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from gloss_graph._internal.limits import read_object
from gloss_graph.runs.folder import FinishedRun, find_runs, read_run

#: Metrics that runs are compared by unless `metrics` says otherwise, where they have them.
METRICS = (
    *("test.accuracy", "test.subset_accuracy", "test.micro_f1", "test.macro_f1"),
    *("test.macro_silhouette", "test_propagation.macro_f1"),
    *("steps", "best_step", "epochs_to_stop", "seconds.train", "seconds.per_step"),
)
# Entries of `config.json` that are no setting of an arm: the seed, which pairs runs, the data,
# what follows from other settings, and the record of the run.
_NOT_SETTINGS = (
    *("seed", "data", "bank", "model", "command", "files", "contents", "defaults", "versions"),
    *("python", "git_commit", "finished", "device"),
)
# Settings of graph models stand under their name.
_MODELS = ("text_gcn", "bert_gcn")
_LABELS = ("label_fraction", "labels_per_class")
# Runs record the defaults of their version; those of version 0.1.0, which has these, do not.
_FIRST_DEFAULTS: dict[str, Any] = read_object(Path(__file__).with_name("first_defaults.json"))
# Differences this close, relative to their size, count as equal: their spread is rounding.
_EQUAL = 1e-9
_SUMMARY = ["data", "metric", "arm", "n", "mean", "std", "low", "high"]
_TESTS = [
    *("data", "metric", "baseline", "arm", "pairs", "difference", "low", "high"),
    *("p_t", "p_t_holm", "p_wilcoxon", "p_wilcoxon_holm", "effect"),
]


@dataclass(frozen=True)
class Evaluation:
    """Runs side by side; absent values are NaN.

    - `runs`: a row per run: `data`, `arm`, `seed`, a column per metric, `run` (its folder).
    - `summary`: a row per block of data, metric and arm: `n` seeds, `mean`, `std` (n - 1 in the
      denominator) and `low`, `high`, the 95 % confidence interval of the mean.
    - `tests`: a row per block, metric and arm other than the baseline: the columns of `PairedTest`,
      `baseline`, and the p values with their `_holm` correction over all rows of the metric.
    - `metrics`, in order; `baselines`: name of each block of data -> its baseline arm, None where
      it has none; `skipped`: folders of runs that did not end.
    """

    runs: pd.DataFrame
    summary: pd.DataFrame
    tests: pd.DataFrame
    metrics: tuple[str, ...]
    baselines: dict[str, str | None]
    skipped: tuple[Path, ...]

    def arms(self, data: str) -> list[str]:
        """Arms of a block, its baseline first."""
        return list(dict.fromkeys(self.summary.loc[self.summary["data"] == data, "arm"]))


def compare_runs(
    folders: Iterable[str | Path],
    *,
    metrics: Sequence[str] | None = None,
    by: Sequence[str] | None = None,
    baseline: str | None = None,
) -> Evaluation:
    """Group finished runs into arms and test every arm against the baseline, paired by seed.

    Runs on different data (name, classes, sizes, share or number of labels) form separate blocks.
    Within a block, runs with the same settings except the seed are an arm.

    Args:
        folders: Run folders, or folders that hold run folders at any depth.
        metrics: Names as in `metrics.json`; by default `METRICS`, those that occur, of the
            validation split where no run has a test split.
        by: Settings that define the arms, by default the loss and all others that differ.
        baseline: Name of the arm to compare with; by default the only one with loss `ce`, or else
            the first.

    Raises:
        ValueError: Two runs of one arm, seed and data, or paired runs that saw different labels.
    """
    for name, value in {"folders": folders, "metrics": metrics, "by": by}.items():
        if isinstance(value, (str, Path)):
            raise ValueError(f"'{name}' must be a list (got {str(value)!r}). Put it in brackets.")
    finished, skipped = find_runs(folders)
    runs = [read_run(folder) for folder in finished]
    settings = [run.settings for run in runs]
    chosen = _metrics(metrics, runs)
    blocks = _block_names(settings)
    arms = _arm_names(settings, blocks, by)
    groups: dict[str, dict[str, dict[int, FinishedRun]]] = {}
    for run, block, arm in zip(runs, blocks, arms, strict=True):
        seeds = groups.setdefault(block, {}).setdefault(arm, {})
        if (other := seeds.setdefault(run.seed, run)) is not run:
            differing = _differing(*_flattened([other.settings, run.settings]), ["", ""])
            more = f" They differ in {', '.join(differing)}: add --by with these."
            more = more if differing else ""
            raise ValueError(
                f"Two runs are arm {arm!r} with seed {run.seed} on the same data: {other.folder} "
                f"and {run.folder}. Leave one out, or tell them apart with --by (the 'by' "
                f"argument).{more}"
            )
    if baseline is not None and baseline not in arms:
        known = ", ".join(map(repr, dict.fromkeys(arms)))
        raise ValueError(f"'baseline' must be one of the arms {known} (got {baseline!r}).")
    baselines: dict[str, str | None] = {}
    rows: list[dict[str, Any]] = []
    for block, group in groups.items():
        base = _default_baseline(group) if baseline is None else baseline
        baselines[block] = base if base in group else None
        _check_draws(group)
        # The baseline first, the others in their order.
        for arm in sorted(group, key=lambda arm: arm != base):
            for seed, run in sorted(group[arm].items()):
                row = {"data": block, "arm": arm, "seed": seed, "run": str(run.folder)}
                rows.append(row | {metric: run.metrics.get(metric, math.nan) for metric in chosen})
    table = pd.DataFrame(rows, columns=["data", "arm", "seed", *chosen, "run"])
    parts = {data: table[table["data"] == data] for data in baselines}
    summary, tests = arm_tables(parts, chosen, baselines)
    return Evaluation(table, summary, tests, tuple(chosen), baselines, tuple(skipped))


def _metrics(asked: Sequence[str] | None, runs: Sequence[FinishedRun]) -> list[str]:
    """The metrics to compare, each once."""
    known = {name for run in runs for name in run.metrics}
    for name in asked or ():
        if name not in known:
            raise ValueError(
                f"'metrics' must be among those of the runs (got {name!r}). They have "
                f"{', '.join(sorted(known))}."
            )
    wanted = METRICS if asked is None else asked
    if asked is None and not any(name.startswith("test") for name in known):
        wanted = [name.replace("test", "val", 1) for name in METRICS]
    chosen = [name for name in dict.fromkeys(wanted) if name in known]
    if not chosen:
        raise ValueError("'metrics' must name at least one metric that a run has (got none).")
    return chosen


def _default_baseline(group: Mapping[str, Mapping[int, FinishedRun]]) -> str:
    losses = {arm: {run.settings["loss"] for run in runs.values()} for arm, runs in group.items()}
    plain = [arm for arm, found in losses.items() if found == {"ce"}]
    return plain[0] if len(plain) == 1 else next(iter(group))


def _check_draws(group: Mapping[str, Mapping[int, FinishedRun]]) -> None:
    """Refuse runs of one seed that saw different draws of labels."""
    drawn: dict[int, tuple[frozenset[int], FinishedRun]] = {}
    for seed, run in (pair for runs in group.values() for pair in runs.items()):
        if all(run.settings.get(name) is None for name in _LABELS):
            continue
        ids = run.label_ids()
        expected, first = drawn.setdefault(seed, (ids, run))
        if ids != expected:
            raise ValueError(
                f"Runs of one seed must have used the same labels, but {first.folder} and "
                f"{run.folder} (seed {seed}) differ in {len(ids ^ expected)} documents of "
                "labels_used.csv. Train both on the same files."
            )


def _block_names(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name the data of every run: its name, sizes where other data share it, and the label draw."""
    names, files, draws = [], [], []
    for run in settings:
        data = run["data"]
        names.append(str(data["name"]) or "data")
        sizes = tuple((part, data.get(part)) for part in ("train", "val", "test"))
        files.append((tuple(map(str, data["classes"])), sizes))
        draws.append(tuple((name, run.get(name)) for name in _LABELS))
    variants = Counter(name for name, _ in {*zip(names, files, strict=True)})
    shown = {}
    for block in zip(names, files, draws, strict=True):
        name, (classes, sizes), draw = block
        parts = [f"{option}={_shown(value)}" for option, value in draw if value is not None]
        if variants[name] > 1:
            counts = [f"{part} {number}" for part, number in sizes if number]
            parts = [f"{len(classes)} classes", *counts, *parts]
        shown[block] = f"{name} ({', '.join(parts)})" if parts else name
    # Two blocks may have the same sizes and different classes.
    shared = Counter(shown.values())
    for place, (block, name) in enumerate(shown.items(), start=1):
        shown[block] = f"{name} #{place}" if shared[name] > 1 else name
    return [shown[block] for block in zip(names, files, draws, strict=True)]


def _arm_names(
    settings: Sequence[Mapping[str, Any]], blocks: Sequence[str], by: Sequence[str] | None
) -> list[str]:
    """Name the arm of every run.

    By default an arm is its loss and every other setting in which two runs of a block differ;
    settings at their default are left out of the name. With `by` these settings define the arms.
    """
    flat, defaults = _flattened(settings)
    if by is not None and (not by or "seed" in by):
        raise ValueError(f"'by' must name settings other than 'seed', which pairs (got {by!r}).")
    shared = set.intersection(*map(set, flat))
    for key in by or ():
        if key not in defaults and key not in shared:
            odd = set(_NOT_SETTINGS) - {"bank"}
            known = sorted(key for key in shared if key.partition(".")[0] not in odd)
            raise ValueError(
                f"'by' must name settings of every run's config.json (got {key!r}). They have "
                f"{', '.join(known)}."
            )
    keys = by or _differing(flat, defaults, blocks)
    names = []
    for run in flat:
        parts = [] if by else [str(run["loss"])]
        for key in keys:
            value = run.get(key, defaults.get(key))
            told = value is not None and _has(key, run)
            if by or (told and _comparable(value) != _comparable(defaults.get(key))):
                parts.append(_shown(value) if key == "loss" else f"{key}={_shown(value)}")
        names.append(", ".join(parts))
    return names


def _differing(
    flat: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any], blocks: Sequence[str]
) -> list[str]:
    """Settings other than the loss in which two runs of one block differ, in their order."""
    # The name of the encoder tells as much as its description.
    needless = "encoder" if all(run.get("encoder_name") for run in flat) else "encoder_name"
    found = []
    for key in dict.fromkeys(key for run in flat for key in run):
        if key.partition(".")[0] in (*_NOT_SETTINGS, *_LABELS, "loss", needless):
            continue
        values = {
            (block, _comparable(run.get(key, defaults.get(key))))
            for run, block in zip(flat, blocks, strict=True)
            if _has(key, run)
        }
        if len(values) > len({block for block, _ in values}):
            found.append(key)
    return found


def _flattened(
    settings: Sequence[Mapping[str, Any]],
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Settings of every run as `outer.inner`, and their defaults as the runs recorded them."""
    defaults = dict(_FIRST_DEFAULTS)
    for run in settings:
        defaults |= run.get("defaults") or {}
    return [dict(_flat(run)) for run in settings], defaults


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _has(key: str, run: Mapping[str, Any]) -> bool:
    """Whether a run has a setting; a graph model has no setting of other trainings."""
    return key in run or ("model" not in run and key.partition(".")[0] not in _MODELS)


def _comparable(value: Any) -> Hashable:
    """Equal for equal settings: 3 and 3.0 are, 1 and true are not."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    return json.dumps(value, sort_keys=True)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.12g}"
    return value if isinstance(value, str) else json.dumps(value)


class PairedTest(NamedTuple):
    """Statistics of the differences of paired scores; NaN where they are not defined.

    Mean `difference` of the `pairs`, `low` and `high` ends of its 95 % confidence interval
    (Student's t), `p_t` of a paired t-test and `p_wilcoxon` of Wilcoxon's signed-rank test, both
    two-sided, and `effect`, Cohen's d_z: the mean difference in standard deviations of the
    differences. Below two pairs only the mean is defined. Equal differences have no spread, so that
    the interval, `p_t` and `effect` are NaN; so is `p_wilcoxon` if all are zero.
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

    `values` (n,) and `baseline` (n,) are scores of the same seeds in the same order.

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
    mean = float(gaps.mean()) if gaps.size else math.nan
    low = high = p_t = p_wilcoxon = effect = math.nan
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
        return math.nan, math.nan
    mean = float(points.mean())
    half = float(stats.t.ppf(0.975, points.size - 1) * points.std(ddof=1) / points.size**0.5)
    return mean - half, mean + half


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's (1979) step-down correction of the p values of one family of comparisons.

    Corrected values are at most 1 and in the same order; NaN stays NaN and does not count.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    values = np.array(p_values, dtype=float)
    order = np.argsort(values)  # NaN last
    left = np.sum(~np.isnan(values)) - np.arange(values.size)
    values[order] = np.minimum(1.0, np.maximum.accumulate(left * values[order]))
    return values.tolist()


def arm_tables(
    blocks: Mapping[str, pd.DataFrame], metrics: Sequence[str], baselines: Mapping[str, str | None]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tables `summary` and `tests` of an `Evaluation`.

    A block holds a row per run: `arm`, `seed` (once per arm) and a column per metric, NaN where
    the run lacks it; its baseline is None where it has none.
    """
    summary, tests = [], []
    for data, block in blocks.items():
        arms, base = list(dict.fromkeys(block["arm"])), baselines[data]
        for metric in metrics:
            wide = block.pivot(index="seed", columns="arm", values=metric).astype(float)
            for arm in arms:
                found = wide[arm].dropna()
                row = {"data": data, "metric": metric, "arm": arm, "n": len(found)}
                spread = (found.mean(), found.std(), *mean_interval(found.to_numpy()))
                summary.append((*row.values(), *spread))
                if base in arms and arm != base:
                    pairs = wide[[arm, base]].dropna()
                    test = paired_test(pairs[arm].to_list(), pairs[base].to_list())
                    tests.append({**row, "baseline": base, **test._asdict()})
    tested = pd.DataFrame(tests, columns=_TESTS)
    for name in ("p_t", "p_wilcoxon"):
        for _, family in tested.groupby("metric"):
            tested.loc[family.index, f"{name}_holm"] = holm(family[name].to_list())
    return pd.DataFrame(summary, columns=_SUMMARY), tested
