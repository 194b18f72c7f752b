"""The table of a study's trials: what its columns are called, and its rows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

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


def arm_name(arm: Mapping[str, Any]) -> str:
    """What an arm is called; other values, other names.

    Example:
        >>> arm_name({"k": 4, "eta": 0.50})
        'k=4, eta=0.5'
    """
    return ", ".join(f"{name}={shown(value)}" for name, value in arm.items())


def shown(value: Any) -> str:
    """A setting as people write it."""
    if isinstance(value, float):
        return f"{value:.12g}"
    return str(value)
