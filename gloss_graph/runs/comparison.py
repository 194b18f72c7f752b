"""Finished runs side by side: arms over seeds, and what paired tests say of their differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from gloss_graph.runs.arms import Block, arm_names, block_names, differing
from gloss_graph.runs.folder import FinishedRun, find_runs, read_run
from gloss_graph.runs.paired_tests import (
    TEST_COLUMNS,
    PairedTest,
    corrected,
    mean_interval,
    paired_test,
)

#: What runs are compared by unless `metrics` says otherwise, where they have it.
METRICS = (
    "test.accuracy",
    "test.subset_accuracy",
    "test.micro_f1",
    "test.macro_f1",
    "test.macro_silhouette",
    "test_propagation.macro_f1",
    "steps",
    "best_step",
    "epochs_to_stop",
    "seconds.train",
    "seconds.per_step",
)


@dataclass(frozen=True)
class Evaluation:
    """Runs side by side; absent values are NaN.

    Attributes:
        runs: One row a run: `data`, `arm`, `seed`, a column a metric, `run` (its folder).
        summary: One row a block of data, metric and arm: `n` seeds, `mean`, `std` (n - 1 in the
            denominator) and `low`, `high`, the 95 % confidence interval of the mean.
        tests: One row a block, metric and arm other than the baseline: `baseline`, `pairs` of
            seeds, mean `difference` with `low`, `high`, `p_t` and `p_wilcoxon` with their `_holm`
            correction over all rows of the metric, and `effect`, Cohen's d_z.
        metrics: Compared, in order.
        baselines: Name of each block of data -> its baseline arm, None where it has none.
        skipped: Folders of runs that did not end.
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

    Runs on different data (name, classes, sizes, share or number of labels) stand in blocks of
    their own. Within one, runs with the same settings but for the seed are an arm.

    Args:
        folders: Run folders, or folders that hold run folders at any depth.
        metrics: Names as in `metrics.json`; by default `METRICS`, those that occur, of the
            validation split where no run has a test split.
        by: Settings that make the arms, by default the loss and all others that differ.
        baseline: Name of the arm to compare with; by default the only one with loss `ce`, or else
            the first.

    Raises:
        ValueError: No run; a damaged folder; two runs of one arm, seed and data; an unknown
            metric, setting or baseline; paired runs that saw different labels.

    Example:
        See the README.
    """
    for name, value in (("folders", folders), ("metrics", metrics), ("by", by)):
        if isinstance(value, (str, Path)):
            raise ValueError(f"'{name}' must be a list (got {str(value)!r}). Put it in brackets.")
    finished, skipped = find_runs(folders)
    runs = [read_run(folder) for folder in finished]
    chosen = _metrics(metrics, runs)
    blocks = [Block.of(run.settings) for run in runs]
    arms = arm_names([run.settings for run in runs], blocks, by)
    groups: dict[Block, dict[str, dict[int, FinishedRun]]] = {}
    for run, block, arm in zip(runs, blocks, arms, strict=True):
        seeds = groups.setdefault(block, {}).setdefault(arm, {})
        if run.seed in seeds:
            raise ValueError(_twice(seeds[run.seed], run, arm))
        seeds[run.seed] = run
    known = list(dict.fromkeys(arms))
    if baseline is not None and baseline not in known:
        raise ValueError(
            f"'baseline' must be one of the arms {', '.join(map(repr, known))} (got {baseline!r})."
        )
    names = block_names(blocks)
    baselines: dict[str, str | None] = {}
    rows: dict[str, list[dict[str, Any]]] = {"runs": [], "summary": []}
    tests: list[tuple[dict[str, Any], PairedTest]] = []
    for block, group in groups.items():
        name = names[block]
        base = baseline if baseline in group else None
        if baseline is None:
            base = _default_baseline(group)
        baselines[name] = base
        # The baseline first, the others as they were given.
        ordered = {arm: group[arm] for arm in sorted(group, key=lambda arm: arm != base)}
        if block.few_labels:
            _check_draws(ordered)
        rows["runs"] += _run_rows(name, ordered, chosen)
        rows["summary"] += _summary_rows(name, ordered, chosen)
        if base is not None:
            tests += _tests(name, ordered, base, chosen)
    return Evaluation(
        pd.DataFrame(rows["runs"], columns=["data", "arm", "seed", *chosen, "run"]),
        pd.DataFrame(rows["summary"], columns=_SUMMARY),
        pd.DataFrame(corrected(tests), columns=_TESTS),
        tuple(chosen),
        baselines,
        tuple(skipped),
    )


# Arm -> seed -> run.
_Arms: TypeAlias = Mapping[str, Mapping[int, FinishedRun]]

_SUMMARY = ["data", "metric", "arm", "n", "mean", "std", "low", "high"]
_TESTS = ["data", "metric", "baseline", "arm", *TEST_COLUMNS]


def _metrics(asked: Sequence[str] | None, runs: Sequence[FinishedRun]) -> list[str]:
    known = {name for run in runs for name in run.metrics}
    if asked is not None:
        for name in asked:
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


def _twice(one: FinishedRun, other: FinishedRun, arm: str) -> str:
    settings = [one.settings, other.settings]
    told = differing(settings, ["", ""])
    more = f" They differ in {', '.join(told)}: add --by with these." if told else ""
    return (
        f"Two runs are arm {arm!r} with seed {one.seed} on the same data: {one.folder} and "
        f"{other.folder}. Leave one out, or tell them apart with --by (the 'by' argument).{more}"
    )


def _default_baseline(group: _Arms) -> str:
    plain = [
        arm
        for arm, runs in group.items()
        if {run.settings["loss"] for run in runs.values()} == {"ce"}
    ]
    return plain[0] if len(plain) == 1 else next(iter(group))


def _check_draws(group: _Arms) -> None:
    """Runs of one seed must have seen the same labels."""
    drawn: dict[int, tuple[frozenset[Any], FinishedRun]] = {}
    for runs in group.values():
        for seed, run in runs.items():
            ids = run.label_ids()
            expected, first = drawn.setdefault(seed, (ids, run))
            if ids != expected:
                raise ValueError(
                    f"Runs of one seed must have used the same labels, but {first.folder} and "
                    f"{run.folder} (seed {seed}) differ in {len(ids ^ expected)} documents of "
                    "labels_used.csv. Train both on the same files."
                )


def _run_rows(data: str, group: _Arms, metrics: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for arm, runs in group.items():
        for seed, run in sorted(runs.items()):
            row: dict[str, Any] = {"data": data, "arm": arm, "seed": seed, "run": str(run.folder)}
            rows.append(row | {metric: run.metrics.get(metric, math.nan) for metric in metrics})
    return rows


def _summary_rows(data: str, group: _Arms, metrics: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for metric in metrics:
        for arm, runs in group.items():
            found = [run.metrics[metric] for run in runs.values() if metric in run.metrics]
            values = pd.Series(found, dtype=float)
            low, high = mean_interval(found)
            row: dict[str, Any] = {"data": data, "metric": metric, "arm": arm, "n": len(found)}
            row |= {"mean": float(values.mean()), "std": float(values.std(ddof=1))}
            rows.append(row | {"low": low, "high": high})
    return rows


def _tests(
    data: str, group: _Arms, baseline: str, metrics: Sequence[str]
) -> list[tuple[dict[str, Any], PairedTest]]:
    rows = []
    for metric in metrics:
        base = {s: r.metrics[metric] for s, r in group[baseline].items() if metric in r.metrics}
        for arm, runs in group.items():
            if arm == baseline:
                continue
            own = {s: r.metrics[metric] for s, r in runs.items() if metric in r.metrics}
            seeds = sorted(own.keys() & base.keys())
            test = paired_test([own[s] for s in seeds], [base[s] for s in seeds])
            names = {"data": data, "metric": metric, "baseline": baseline, "arm": arm}
            rows.append((names, test))
    return rows
