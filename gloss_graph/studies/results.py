"""Results of a study: one tidy table, the table of arms, effects of factors."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gloss_graph._internal.limits import read_object
from gloss_graph.runs.comparison import arm_tables, mean_interval
from gloss_graph.studies.engine import open_storage, read_rows, sqlite_url
from gloss_graph.studies.trials import (
    arm_name,
    canonical,
    check_parts,
    keep_latest,
    read_lines,
    shown,
)

STUDY_FILE = "study.json"
#: File of the database, in the folder of a study.
DATABASE = "optuna.db"
# Columns of the table other than factors and metrics.
_FIRST = ("seed", "seconds", "peak_memory_mb", "status", "nan", "unread", "error", "arm", "cost")
_LAST = ("python", "git_commit", "worker", "finished", "attempt", "trial")
_PREFIXES = ("metric.", "version.")
# Characters of a name that still fit next to a picture.
_LONGEST = 60
# More values of a range than this are shown in thirds.
_MOST_LEVELS = 6
# Parts of a study's description by kind, and those of them that may be missing.
_MORE: dict[str, Any] = {
    **dict.fromkeys(("lower_is_better", "shown", "notes"), list),
    **dict.fromkeys(("titles", "glossary"), dict),
}
_STUDY: dict[str, Any] = {
    **dict.fromkeys(("name", "question", "design"), str),
    **dict.fromkeys(("factors", "baseline", "settings", "identity"), dict),
    **{"seeds": list, "trials": list, "metric": (str, type(None)), "minimize": bool},
    **_MORE,
}


@dataclass(frozen=True)
class Results:
    """Results of a study.

    Attributes:
        folder: Folder of the study.
        study: Its definition, the content of `study.json`.
        table: One row per trial: a column per factor, `seed`, a column per metric, `seconds`,
            `peak_memory_mb`, `status`, `nan` (metrics that were NaN), `unread`, `error`, `arm`,
            `cost`, versions, `git_commit`, `trial`.
        metrics: Names of the metrics, the one the study is about first; `metric.NAME` for one
            called as a factor or another column.
        tracebacks: Trial -> traceback of the trials that failed.
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
        return sorted(dict.fromkeys(self.table["arm"]), key=lambda arm: arm != self.baseline)

    @property
    def left(self) -> int:
        """Number of planned trials without a row."""
        return len(set(self.study["trials"]) - set(self.table["trial"]))

    def summary(self) -> pd.DataFrame:
        """One row per metric and arm: `n`, `mean`, `std`, `low`, `high` (95 % interval)."""
        return self._arm_tables[0].drop(columns="data")

    def tests(self) -> pd.DataFrame:
        """One row per metric and arm: paired by seed against the baseline, Holm-corrected."""
        return self._arm_tables[1].drop(columns=["data", "baseline"])

    @cached_property
    def _arm_tables(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        values = self.table[self.metrics].astype(float)
        rows = self.table[["arm", "seed"]].join(values.where(np.isfinite(values)))
        rows = rows.sort_values("arm", key=lambda arms: arms != self.baseline, kind="stable")
        return arm_tables({"": rows}, self.metrics, {"": self.baseline})

    def problems(self) -> list[str]:
        """List everything that a reader must know before trusting the numbers."""
        table, found = self.table, []
        for error, rows in table[table["status"] == "failed"].groupby("error", sort=False):
            arms = ", ".join(dict.fromkeys(rows["arm"]))
            found.append(f"{_trials(len(rows))} failed by {error} ({arms}).")
        for metric in self.metrics:
            bad = table[[metric in names.split(", ") for names in table["nan"]]]
            if len(bad):
                places = ", ".join(f"{row.arm} seed {row.seed}" for row in bad.itertuples())
                found.append(
                    f"{metric} is NaN or infinite in {_trials(len(bad))}: {places}. Means, tests "
                    "and pictures leave these out."
                )
        for names, rows in table[table["unread"] != ""].groupby("unread", sort=False):
            found.append(f"The function did not read {names} in {_trials(len(rows))}.")
        if self.left:
            found.append(f"{_trials(self.left)} of the plan have no result yet.")
        for column in ("git_commit", "version.gloss-graph", "version.torch"):
            if column in table and table[column].nunique() > 1:
                values = ", ".join(map(str, table[column].dropna().unique()))
                found.append(f"Trials were made with several {column.split('.')[-1]}: {values}.")
        return [*found, *self.study.get("notes", [])]

    @property
    def titles(self) -> dict[str, str]:
        """Metric -> its title, for metrics that have one."""
        titles = self.study.get("titles", {})
        return dict(zip(self._columns("titles"), titles.values(), strict=True))

    def title(self, metric: str) -> str:
        """Title of a metric, its name by default."""
        return self.titles.get(metric, metric)

    def scale(self, metric: str) -> float:
        """Factor between a stored value and the shown one: 100 for shares in per cent."""
        return 100.0 if self.title(metric).endswith("%") else 1.0

    def show(self, metric: str, value: float, *, sign: bool = False) -> str:
        """Format a value for a table, "" for NaN."""
        if math.isnan(value):
            return ""
        size = self._known(metric)[metric].abs().max()
        digits = 4 if size < 0.1 else 3 if size < 10 else 1 if size < 1000 else 0
        scale, plus = self.scale(metric), "+" if sign and value else ""
        return f"{scale * value:{plus}.{digits if scale == 1.0 else 1}f}"

    def lower_is_better(self, metric: str) -> bool:
        """Whether less of a metric is better."""
        first = metric in self.metrics[:1] and bool(self.study["minimize"])
        return first or metric in self._columns("lower_is_better")

    @property
    def shown(self) -> list[str]:
        """Metrics of the pictures, the one the study is about first."""
        wanted = [name for name in self._columns("shown") if name in self.metrics]
        return list(dict.fromkeys([*self.metrics[:1], *(wanted or self.metrics)]))[:3]

    def _columns(self, key: str) -> list[str]:
        """Columns of the metrics that the study lists under a key."""
        return [_metric_column(name, self.factors) for name in self.study.get(key, ())]

    def effect(self, factor: str, metric: str) -> pd.DataFrame:
        """Main effect of a factor: a row per value, in order.

        Of a crossed design every seed is averaged over the other factors first; of one factor at
        a time only arms count that differ from the baseline in this factor alone. Ranges are cut
        into thirds of their trials.

        Returns:
            Columns `level`, `baseline` (bool), `n` seeds, `mean` with `low`, `high`, and
            `difference` to the baseline's level with `gap_low`, `gap_high`, paired by
            seed; `seeds`, the means by seed.
        """
        table, base = self._known(metric), self.study["baseline"]
        if self.study["design"] == "one-at-a-time":
            for name in set(self.factors) - {factor}:
                table = table[table[name].map(canonical) == canonical(base[name])]
        levels = self._levels(factor, table)
        keys = table[factor].map(canonical)
        base_key: Any = canonical(base[factor])
        names: dict[Any, str] = {key: shown(value) for key, value in levels.items()}
        if "low" in self.study["factors"][factor] and len(levels) > _MOST_LEVELS:
            cuts = np.quantile(np.array([*levels.values()], dtype=float), [1 / 3, 2 / 3])
            keys = pd.Series(np.searchsorted(cuts, table[factor].astype(float)), table.index)
            base_key = np.searchsorted(cuts, float(base[factor]))
            names = {0: f"up to {cuts[0]:.3g}", 1: "between", 2: f"above {cuts[1]:.3g}"}
        means = table[metric].groupby([keys, table["seed"]]).mean().unstack().reindex(list(names))
        gaps = means - (means.loc[base_key] if base_key in names else math.nan)
        effects = []
        for key, level in names.items():
            seeds, gap = means.loc[key].dropna(), gaps.loc[key].dropna()
            low, high = mean_interval(seeds.to_numpy())
            gap_low, gap_high = mean_interval(gap.to_numpy())
            effects.append(
                {"level": level, "baseline": key == base_key, "n": len(seeds)}
                | {"mean": seeds.mean(), "low": low, "high": high, "difference": gap.mean()}
                | {"gap_low": gap_low, "gap_high": gap_high, "seeds": seeds}
            )
        return pd.DataFrame(effects)

    def crossed(self, one: str, other: str, metric: str) -> pd.DataFrame | None:
        """Mean by two factors (rows: `one`); None unless most combinations of both were tried."""
        table = self._known(metric)
        rows, columns = (self._levels(name, table) for name in (one, other))
        if min(len(rows), len(columns)) < 2:
            return None
        keys = [table[name].map(canonical).rename(name) for name in (one, other)]
        cells = table[metric].groupby(keys).mean().unstack()
        cells = cells.reindex(index=list(rows), columns=list(columns))
        if cells.notna().to_numpy().mean() < 0.9:
            return None
        cells.index, cells.columns = (
            pd.Index(list(levels.values()), dtype=object) for levels in (rows, columns)
        )
        return cells

    def _known(self, metric: str) -> pd.DataFrame:
        """Trials with a finite value of a metric."""
        return self.table[np.isfinite(self.table[metric].astype(float))]

    def _levels(self, factor: str, table: pd.DataFrame) -> dict[str, Any]:
        """Values of a factor in the table: in the order of the study, or sorted numbers."""
        found = {canonical(value): value for value in table[factor]}
        listed = self.study["factors"][factor].get("values")
        if listed is None:
            order = sorted(found, key=lambda key: (isinstance(found[key], str), found[key]))
        else:
            known = [canonical(value) for value in listed]
            order = [*(key for key in found if key not in known), *known]
        return {key: found[key] for key in order if key in found}


def _trials(count: int) -> str:
    return "1 trial" if count == 1 else f"{count} trials"


def read_results(folder: str | os.PathLike[str]) -> Results:
    """Read the folder of a study, finished or not.

    Raises:
        ValueError: No study in it, or a damaged file.
    """
    return results_of(Path(folder))


def results_of(folder: Path, rows: Mapping[str, dict[str, Any]] | None = None) -> Results:
    """Read the folder of a study, with its `rows` where they are known."""
    try:
        study = read_object(folder / STUDY_FILE)
        _check_study(study)
    except FileNotFoundError:
        raise ValueError(
            f"'folder' must be the folder of a study ({folder} has no {STUDY_FILE})."
        ) from None
    except ValueError as error:
        raise ValueError(f"{folder / STUDY_FILE} cannot be read ({error}).") from error
    rows = rows_of(folder) if rows is None else rows
    factors = list(study["factors"])
    if study["design"] == "optuna":
        chosen = proposed_rows(rows, factors, study["settings"], study["identity"])
        chosen.sort(key=lambda row: (row["started"], row["seed"]))
    else:
        chosen = [rows[key] for key in study["trials"] if key in rows]
    for row in chosen:
        if lacks := [name for name in factors if name not in row["arm"]]:
            raise ValueError(
                f"The arm of the trial {row['id']} in the {DATABASE} or trials of {folder} lacks "
                f"{', '.join(map(repr, lacks))}. Remove it; the trial is done again."
            )
    columns = {name: _metric_column(name, factors) for row in chosen for name in row["metrics"]}
    ordered = sorted(columns, key=lambda name: name != study["metric"])
    return Results(
        folder=folder,
        study=study,
        table=_trial_table(chosen, factors, columns),
        metrics=[columns[name] for name in ordered],
        tracebacks={row["id"]: row["traceback"] for row in chosen if row.get("traceback")},
    )


def _check_study(study: Mapping[str, Any]) -> None:
    """Refuse a description of a study whose parts have types that `Study` does not write."""
    check_parts(study, _STUDY, optional=_MORE)
    for key in ("trials", *_MORE):
        found = study.get(key, [])
        words = found.values() if isinstance(found, dict) else found
        if not all(isinstance(word, str) for word in words):
            raise ValueError(f"{key!r} must hold words")
    for name, tried in study["factors"].items():
        plain = isinstance(tried, dict) and isinstance(tried.get("values", []), list)
        if not plain or ("values" not in tried and "low" not in tried):
            raise ValueError(f"'factors.{name}' must hold values or a range")
        if name not in study["baseline"]:
            raise ValueError(f"'baseline' lacks {name!r}")
    canonical(study["baseline"])


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the rows of a study's folder by trial: its database, line files of earlier versions."""
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


def proposed_rows(
    rows: Mapping[str, dict[str, Any]],
    factors: Iterable[str],
    settings: Mapping[str, Any],
    identity: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Select the rows of a study whose arms are chosen on the way, so that no plan lists them."""
    names, same = set(factors), canonical(identity)
    return [
        row
        for row in rows.values()
        if row["arm"].keys() == names
        and canonical(row["identity"]) == same
        and canonical(row["config"]) == canonical({**settings, **row["arm"]})
    ]


def check_factor(name: str) -> None:
    """Refuse a factor without a readable name, or called as another column of the table."""
    if not name.strip() or not name.isprintable() or len(name) > _LONGEST:
        raise ValueError(
            f"'factors' must have names of at most {_LONGEST} printable characters (got "
            f"{name!r:.120}). Give it another name."
        )
    if _metric_column(name, ()) != name:
        raise ValueError(
            f"'factors' must not be called as a column of the results (got {name!r}; taken are "
            f"{sorted((*_FIRST, *_LAST))} and what begins with {' or '.join(_PREFIXES)}). Give it "
            "another name."
        )


def _metric_column(metric: str, factors: Iterable[str]) -> str:
    """Name the column of a metric: by its name, unless that is taken."""
    taken = metric in (*_FIRST, *_LAST, *factors) or metric.startswith(_PREFIXES)
    return f"metric.{metric}" if taken else metric


def _trial_table(
    rows: Sequence[Mapping[str, Any]], factors: Sequence[str], metrics: Mapping[str, str]
) -> pd.DataFrame:
    """One row per trial; `metrics` are the columns by metric."""
    records = []
    for row in rows:
        found = {metrics[name]: value for name, value in row["metrics"].items()}
        bad = [name for name, value in found.items() if not math.isfinite(value)]
        told = {"cost": "", "error": "", "attempt": 0, **row, "trial": row["id"]}
        told |= {"nan": ", ".join(bad), "unread": ", ".join(row.get("unread", ()))}
        told["arm"] = arm_name(row["arm"])
        records.append(
            {name: row["arm"][name] for name in factors}
            | {"seed": row["seed"]}
            | {name: found.get(name, math.nan) for name in metrics.values()}
            | {name: told[name] for name in _FIRST}
            | {f"version.{name}": number for name, number in row.get("versions", {}).items()}
            | {name: told.get(name) for name in _LAST}
        )
    columns = None if records else [*factors, *_FIRST, "trial"]
    table = pd.DataFrame(records, columns=columns)
    for name in factors:
        # pandas would turn None into NaN and 4 into 4.0.
        table[name] = pd.Series([row["arm"][name] for row in rows], dtype=object)
    return table
