"""What a study found: one tidy table, a summary of every arm, tests against the baseline."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gloss_graph._internal.files import atomic_write
from gloss_graph._internal.limits import read_object
from gloss_graph.runs.paired_tests import TEST_COLUMNS, corrected, mean_interval, paired_test
from gloss_graph.studies.engine import open_storage, read_rows, sqlite_url
from gloss_graph.studies.trials import (
    arm_name,
    canonical,
    encoded,
    keep_latest,
    read_lines,
    shown,
)

__all__ = ["STUDY_FILE", "Results", "read_results"]

STUDY_FILE = "study.json"
#: File of the database, in the folder of a study.
DATABASE = "optuna.db"
# What the table says of every trial beside factors and metrics.
_COLUMNS = frozenset(
    (
        *("seed", "seconds", "peak_memory_mb", "status", "nan", "unread", "error", "arm", "cost"),
        *("python", "git_commit", "worker", "finished", "attempt", "trial"),
    )
)
_PREFIXES = ("metric.", "version.")
# What still fits beside a picture.
_LONGEST = 60
# More values of a range than this are shown in thirds.
_MOST_LEVELS = 6
# What `read_results` needs of the description of a study, and of the row of a trial.
_STUDY: dict[str, Any] = {
    **dict.fromkeys(("name", "question", "design"), str),
    **dict.fromkeys(("factors", "baseline", "settings", "identity"), dict),
    **dict.fromkeys(("seeds", "trials"), list),
    "metric": (str, type(None)),
    "minimize": bool,
}
_ROW = ("id", "status", "arm", "seed", "metrics", "seconds", "peak_memory_mb")


@dataclass(frozen=True)
class Results:
    """What a study found.

    Attributes:
        folder: Of the study.
        study: Its definition, the content of `study.json`.
        table: One row a trial: a column a factor, `seed`, a column a metric, `seconds`,
            `peak_memory_mb`, `status`, `nan` (metrics that were NaN), `unread`, `error`, `arm`,
            `cost`, versions, `git_commit`, `trial`.
        metrics: Names of the metrics, the one the study is about first; of one called as a factor
            or another column `metric.NAME`.
    """

    folder: Path
    study: dict[str, Any]
    table: pd.DataFrame
    metrics: list[str]
    tracebacks: dict[str, str] = field(default_factory=dict)

    @property
    def factors(self) -> list[str]:
        """Names of the factors."""
        return list(self.study["factors"])

    @property
    def baseline(self) -> str:
        """Name of the baseline arm."""
        return arm_name(self.study["baseline"])

    @property
    def arms(self) -> list[str]:
        """Names of the arms that have a row, the baseline first."""
        found = list(dict.fromkeys(self.table["arm"])) if len(self.table) else []
        return sorted(found, key=lambda arm: arm != self.baseline)

    @property
    def left(self) -> int:
        """Planned trials without a row."""
        return len(set(self.study["trials"]) - set(self.table.get("trial", ())))

    def summary(self) -> pd.DataFrame:
        """One row an arm and metric: `n`, `mean`, `std`, `low`, `high` (95 % interval)."""
        return self._summary.copy()

    @cached_property
    def _summary(self) -> pd.DataFrame:
        rows = []
        for metric in self.metrics:
            for arm in self.arms:
                found = self._values(arm, metric).to_numpy()
                low, high = mean_interval(found)
                mean = float(found.mean()) if found.size else math.nan
                std = float(found.std(ddof=1)) if found.size > 1 else math.nan
                rows.append(
                    {"metric": metric, "arm": arm, "n": found.size, "mean": mean, "std": std}
                    | {"low": low, "high": high}
                )
        return pd.DataFrame(rows, columns=["metric", "arm", "n", "mean", "std", "low", "high"])

    def tests(self) -> pd.DataFrame:
        """One row a metric and arm: paired by seed against the baseline, Holm-corrected."""
        return self._tests.copy()

    @cached_property
    def _tests(self) -> pd.DataFrame:
        rows = []
        for metric in self.metrics:
            base = self._values(self.baseline, metric)
            for arm in self.arms:
                if arm == self.baseline:
                    continue
                own = self._values(arm, metric)
                seeds = own.index.intersection(base.index)
                test = paired_test(own[seeds].to_list(), base[seeds].to_list())
                rows.append(({"metric": metric, "arm": arm}, test))
        return pd.DataFrame(corrected(rows), columns=["metric", "arm", *TEST_COLUMNS])

    def problems(self) -> list[str]:
        """Everything a reader must know before believing the numbers."""
        table, found = self.table, []
        failed = table[table["status"] == "failed"]
        for error, rows in failed.groupby("error", sort=False):
            arms = ", ".join(dict.fromkeys(rows["arm"]))
            found.append(f"{_trials(len(rows))} failed by {error} ({arms}).")
        for metric in self.metrics:
            bad = table[table["nan"].str.split(", ").map(lambda names, m=metric: m in names)]
            if len(bad):
                places = ", ".join(f"{row.arm} seed {row.seed}" for row in bad.itertuples())
                found.append(
                    f"{metric} is NaN or infinite in {_trials(len(bad))}: {places}. Means, tests "
                    "and pictures leave these out."
                )
        idle = table[table["unread"] != ""]
        for names, rows in idle.groupby("unread", sort=False):
            found.append(f"The function did not read {names} in {_trials(len(rows))}.")
        if self.left:
            found.append(f"{_trials(self.left)} of the plan have no result yet.")
        for column in ("git_commit", "version.gloss-graph", "version.torch"):
            if column in table and table[column].nunique() > 1:
                values = ", ".join(map(str, table[column].dropna().unique()))
                found.append(f"Trials were made with several {column.split('.')[-1]}: {values}.")
        return [*found, *self.study.get("notes", [])]

    # ------------------------------------------------------------------ how metrics are shown

    def title(self, metric: str) -> str:
        """What people call a metric."""
        return str(self.titles.get(metric, metric))

    @property
    def titles(self) -> dict[str, str]:
        """Metric -> what people call it, of those with another name."""
        given = self.study.get("titles", {})
        return {metric_column(name, self.factors): title for name, title in given.items()}

    def scale(self, metric: str) -> float:
        """100 for shares that are shown in per cent."""
        return 100.0 if self.title(metric).endswith("%") else 1.0

    def show(self, metric: str, value: float, *, sign: bool = False) -> str:
        """A value as it stands in a table; nothing for NaN."""
        if math.isnan(value):
            return ""
        plus = "+" if sign and value else ""
        if self.scale(metric) == 100.0:
            return f"{100 * value:{plus}.1f}"
        size = max((abs(v) for v in self._known(metric)[metric]), default=0.0)
        digits = 4 if size < 0.1 else 3 if size < 10 else 1 if size < 1000 else 0
        return f"{value:{plus}.{digits}f}"

    def lower_is_better(self, metric: str) -> bool:
        """Whether less of a metric is better."""
        if metric in self._columns("lower_is_better"):
            return True
        return bool(self.study["minimize"]) and metric == (self.metrics or [""])[0]

    @property
    def shown(self) -> list[str]:
        """Metrics pictures show, the one the study is about first."""
        wanted = [name for name in self._columns("shown") if name in self.metrics]
        return list(dict.fromkeys([*self.metrics[:1], *(wanted or self.metrics)]))[:3]

    def _columns(self, key: str) -> list[str]:
        """Metrics that the study lists under a key."""
        return [metric_column(name, self.factors) for name in self.study.get(key, ())]

    # ------------------------------------------------------------------ effects

    def effect(self, factor: str, metric: str) -> pd.DataFrame:
        """Main effect of a factor: a row a value, in order.

        Of a crossed design every seed is averaged over the other factors first; of one factor at
        a time only arms count that differ from the baseline in this factor alone. Ranges are cut
        into thirds of their trials.

        Returns:
            Columns `level`, `baseline` (bool), `n` seeds, `mean` with `low`, `high`, and
            `difference` to the baseline's level with its own `gap_low`, `gap_high`, paired by
            seed; `seeds`, the means by seed.
        """
        table, base = self._known(metric), self.study["baseline"]
        if self.study["design"] == "one-at-a-time":
            for name in self.factors:
                if name != factor:
                    table = table[table[name].map(canonical) == canonical(base[name])]
        groups = self._groups(factor, table)
        means = [rows.groupby("seed")[metric].mean() for _, _, rows in groups]
        reference = next(
            (own for own, (_, is_base, _) in zip(means, groups, strict=True) if is_base), None
        )
        rows = []
        for own, (level, is_base, _) in zip(means, groups, strict=True):
            low, high = mean_interval(own.to_numpy())
            gap = pd.Series(dtype=float) if reference is None else (own - reference).dropna()
            gap_low, gap_high = mean_interval(gap.to_numpy())
            rows.append(
                {"level": level, "baseline": is_base, "n": len(own), "mean": own.mean()}
                | {"low": low, "high": high, "difference": gap.mean() if len(gap) else math.nan}
                | {"gap_low": gap_low, "gap_high": gap_high, "seeds": own}
            )
        return pd.DataFrame(rows)

    def _groups(self, factor: str, table: pd.DataFrame) -> list[tuple[str, bool, pd.DataFrame]]:
        """Level, whether it is the baseline's, its rows."""
        base, levels = self.study["baseline"][factor], self._levels(factor, table)
        if "low" in self.study["factors"][factor] and len(levels) > _MOST_LEVELS:
            values = table[factor].astype(float)
            cuts = np.quantile(np.array(levels, dtype=float), [1 / 3, 2 / 3])
            third = np.searchsorted(cuts, values)
            names = [f"up to {cuts[0]:.3g}", "between", f"above {cuts[1]:.3g}"]
            own = int(np.searchsorted(cuts, float(base)))
            return [(name, n == own, table[third == n]) for n, name in enumerate(names)]
        keys = table[factor].map(canonical)
        return [
            (shown(value), canonical(value) == canonical(base), table[keys == canonical(value)])
            for value in levels
        ]

    def crossed(self, one: str, other: str, metric: str) -> pd.DataFrame | None:
        """Mean by two factors (rows: `one`); None unless some combination of both was tried."""
        table = self._known(metric)
        levels = [self._levels(name, table) for name in (one, other)]
        cells = np.full((len(levels[0]), len(levels[1])), np.nan)
        for row, first in enumerate(levels[0]):
            part = table[table[one].map(canonical) == canonical(first)]
            for column, second in enumerate(levels[1]):
                found = part[part[other].map(canonical) == canonical(second)][metric]
                cells[row, column] = found.mean() if len(found) else np.nan
        filled = np.isfinite(cells).sum()
        if min(cells.shape) < 2 or filled < 0.9 * cells.size:
            return None
        names = [pd.Index(values, dtype=object) for values in levels]
        return pd.DataFrame(cells, index=names[0], columns=names[1])

    def _known(self, metric: str) -> pd.DataFrame:
        table = self.table
        if metric not in table:
            return table.iloc[:0]
        return table[np.isfinite(table[metric].astype(float))]

    def _levels(self, factor: str, table: pd.DataFrame) -> list[Any]:
        """Values of a factor in the table: in the order of the study, or sorted numbers."""
        found = {canonical(value): value for value in table[factor]}
        listed = self.study["factors"][factor].get("values")
        if listed is None:
            return sorted(found.values(), key=lambda value: (isinstance(value, str), value))
        order = [canonical(value) for value in listed]
        rest = [key for key in found if key not in order]
        return [found[key] for key in [*rest, *order] if key in found]

    def _values(self, arm: str, metric: str) -> pd.Series:
        """Finite values of an arm, by seed."""
        table = self._known(metric)
        part = table[table["arm"] == arm]
        return part.set_index("seed")[metric].astype(float).sort_index()


def read_results(folder: str | os.PathLike[str]) -> Results:
    """Read the folder of a study, finished or not.

    Raises:
        ValueError: No study in it, or a damaged file.
    """
    folder = Path(folder)
    study = _read_definition(folder)
    return _results(folder, study, rows_of(folder))


def results_of(folder: Path, rows: Mapping[str, dict[str, Any]]) -> Results:
    """Results of a study's folder whose rows are known."""
    return _results(folder, _read_definition(folder), rows)


def _read_definition(folder: Path) -> dict[str, Any]:
    try:
        study = read_object(folder / STUDY_FILE)
        _check_study(study)
    except FileNotFoundError:
        raise ValueError(
            f"'folder' must be the folder of a study ({folder} has no {STUDY_FILE})."
        ) from None
    except ValueError as error:
        raise ValueError(f"{folder / STUDY_FILE} cannot be read ({error}).") from error
    return study


def _results(folder: Path, study: dict[str, Any], rows: Mapping[str, dict[str, Any]]) -> Results:
    if study["design"] == "optuna":
        chosen = proposed_rows(
            rows.values(), study["factors"], study["settings"], study["identity"]
        )
        chosen.sort(key=lambda row: (row["started"], row["seed"]))
    else:
        chosen = [rows[key] for key in study["trials"] if key in rows]
    for row in chosen:
        lacks = [key for key in _ROW if key not in row]
        lacks += [f"arm.{name}" for name in study["factors"] if name not in row.get("arm", {})]
        if lacks:
            raise ValueError(
                f"The trial {row['id']} in the {DATABASE} or trials of {folder} lacks "
                f"{', '.join(map(repr, lacks))}. Remove it; the trial is done again."
            )
    return Results(
        folder,
        study,
        trial_table(chosen, list(study["factors"])),
        metric_columns(chosen, list(study["factors"]), study["metric"]),
        {row["id"]: row["traceback"] for row in chosen if row.get("traceback")},
    )


def _check_study(study: Mapping[str, Any]) -> None:
    """Refuse a description of a study with a part of another kind than `Study` writes."""
    for key, kind in _STUDY.items():
        if key not in study or not isinstance(study[key], kind):
            name = getattr(kind, "__name__", "str or None")
            raise ValueError(f"{key!r} must be of type {name} (got {study.get(key)!r:.60})")
    for key in ("trials", "lower_is_better", "shown", "notes"):
        found = study.get(key, [])
        if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
            raise ValueError(f"{key!r} must be a list of words")
    for key in ("titles", "glossary"):
        found = study.get(key, {})
        if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
            raise ValueError(f"{key!r} must hold words")
    for name, tried in study["factors"].items():
        plain = isinstance(tried, dict) and isinstance(tried.get("values", []), list)
        if not plain or ("values" not in tried and "low" not in tried):
            raise ValueError(f"'factors.{name}' must hold values or a range")
        if name not in study["baseline"]:
            raise ValueError(f"'baseline' lacks {name!r}")
    for value in study["baseline"].values():
        canonical(value)


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Trial id -> row of a study's folder: its database, line files of earlier versions.

    Raises:
        ValueError: One of them is damaged, or there is a database and no optuna.
    """
    rows: dict[str, dict[str, Any]] = {}
    database = folder / DATABASE
    found = read_lines(folder / "trials")
    if database.is_file():
        url = sqlite_url(database)
        try:
            with open_storage(url) as storage:
                found += read_rows(storage)
        # Of a damaged database anything may be raised, by SQLite, SQLAlchemy or Optuna.
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{database} cannot be read ({reason}). Restore it from a copy, or remove it "
                "and run the study again."
            ) from error
    for row in found:
        keep_latest(rows, row)
    return rows


def write_shared_rows(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Copy rows of a database elsewhere into the folder, so that it can be read without that."""
    (folder / "trials").mkdir(exist_ok=True)
    with atomic_write(folder / "trials" / "shared.jsonl", overwrite=True) as draft:
        for row in rows:
            draft.write((json.dumps(encoded(row), allow_nan=False) + "\n").encode())


def proposed_rows(
    rows: Iterable[dict[str, Any]],
    factors: Iterable[str],
    settings: Mapping[str, Any],
    identity: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Rows that belong to a study whose arms are chosen on the way, so that no plan lists them.

    Args:
        rows: Of the folder.
        factors: Names.
        settings: Of the baseline; those of factors do not matter.
        identity: Of the study.
    """
    names, same = set(factors), canonical(identity)
    return [
        row
        for row in rows
        if row["arm"].keys() == names
        and canonical(row["identity"]) == same
        and canonical(row["config"]) == canonical({**settings, **row["arm"]})
    ]


def _trials(count: int) -> str:
    return "1 trial" if count == 1 else f"{count} trials"


def check_factor(name: str) -> None:
    """Refuse a factor without a readable name, or with that of another column of the table.

    Raises:
        ValueError: Names the taken ones.
    """
    if not name.strip() or not name.isprintable() or len(name) > _LONGEST:
        raise ValueError(
            f"'factors' must have names of at most {_LONGEST} printable characters (got "
            f"{name!r:.120}). Give it another name."
        )
    if name in _COLUMNS or name.startswith(_PREFIXES):
        raise ValueError(
            f"'factors' must not be called as a column of the results (got {name!r}; taken are "
            f"{sorted(_COLUMNS)} and what begins with {' or '.join(_PREFIXES)}). Give it another "
            "name."
        )


def metric_column(metric: str, factors: Iterable[str]) -> str:
    """What a metric is called in the results: its name, unless that is taken.

    Example:
        >>> [metric_column(name, ["k"]) for name in ("f1", "seconds", "k")]
        ['f1', 'metric.seconds', 'metric.k']
    """
    taken = metric in _COLUMNS or metric in factors or metric.startswith(_PREFIXES)
    return f"metric.{metric}" if taken else metric


def trial_table(rows: Sequence[Mapping[str, Any]], factors: Sequence[str]) -> pd.DataFrame:
    """One row a trial, see `Results.table`.

    Args:
        rows: As stored.
        factors: Names.
    """
    metrics = metric_columns(rows, factors, None)
    records = []
    for row in rows:
        found = {metric_column(name, factors): value for name, value in row["metrics"].items()}
        bad = [name for name, value in found.items() if not math.isfinite(value)]
        record: dict[str, Any] = {name: row["arm"][name] for name in factors}
        record["seed"] = row["seed"]
        for name in metrics:
            record[name] = found.get(name, math.nan)
        record |= {
            "seconds": row["seconds"],
            "peak_memory_mb": row["peak_memory_mb"],
            "status": row["status"],
            "nan": ", ".join(bad),
            "unread": ", ".join(row.get("unread", ())),
            "error": row.get("error", ""),
            "arm": arm_name(row["arm"]),
            "cost": row.get("cost", ""),
        }
        for package, number in row.get("versions", {}).items():
            record[f"version.{package}"] = number
        record |= {"python": row.get("python"), "git_commit": row.get("git_commit")}
        record |= {"worker": row.get("worker"), "finished": row.get("finished")}
        record |= {"attempt": row.get("attempt", 0), "trial": row["id"]}
        records.append(record)
    names = [*factors, "seed", "seconds", "status", "nan", "unread", "error", "arm", "trial"]
    table = pd.DataFrame(records) if records else pd.DataFrame(columns=names)
    for name in factors:
        # pandas would turn None into NaN and 4 into 4.0.
        table[name] = pd.Series([row["arm"][name] for row in rows], dtype=object)
    return table


def metric_columns(
    rows: Sequence[Mapping[str, Any]], factors: Sequence[str], first: str | None
) -> list[str]:
    """Columns of the metrics that occur, the one the study is about first."""
    found = dict.fromkeys(name for row in rows for name in row["metrics"])
    return [metric_column(name, factors) for name in sorted(found, key=lambda name: name != first)]
