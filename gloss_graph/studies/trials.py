"""Trials of a study: what tells one from others, what running one gives, rows of results."""

from __future__ import annotations

import hashlib
import json
import math
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

from gloss_graph._internal.limits import load_json
from gloss_graph._internal.peak_memory import PeakMemory
from gloss_graph._internal.search_space import Scalar
from gloss_graph.runs.provenance import provenance

_LENGTH = 16
_MEGABYTE = 2.0**20

Arm: TypeAlias = dict[str, Scalar]
"""Factor -> value, for every factor of a study."""


@dataclass(frozen=True)
class Trial:
    """One arm with one seed.

    Attributes:
        id: Hash of everything it depends on.
        arm: Factor -> value.
        config: What the function is called with.
        seed: The seed.
    """

    id: str
    arm: Arm
    config: dict[str, Any]
    seed: int


def canonical(value: Any) -> str:
    """JSON in which equal values are equal strings: sorted keys, 1 for 1.0.

    Raises:
        ValueError: Something JSON cannot hold; names it.

    Example:
        >>> canonical({"b": 1.0, "a": None})
        '{"a":null,"b":1}'
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"A setting must be finite (got {value}).")
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise ValueError(
        f"A setting must be a number, a string, a flag, None, or lists and dictionaries of them "
        f"(got {type(value).__name__} {value!r:.60})."
    )


def trial_id(config: Mapping[str, Any], seed: int, identity: Mapping[str, Any]) -> str:
    """Sixteen hexadecimal digits that stand for a trial.

    Args:
        config: Every setting.
        seed: Of the trial.
        identity: What else the result depends on: data, encoder, cost.

    Example:
        >>> trial_id({"k": 4}, 0, {}) == trial_id({"k": 4.0}, 0, {})
        True
    """
    text = canonical({"config": config, "seed": seed, "identity": identity})
    return hashlib.sha256(text.encode()).hexdigest()[:_LENGTH]


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


def run_trial(
    trial: Trial,
    function: Callable[[dict[str, Any], int], Mapping[str, float]],
    baseline: Mapping[str, Any],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Run a trial and return its row, whether it succeeded or failed.

    Args:
        trial: The trial.
        function: `(config, seed) -> metrics`.
        baseline: Value of every factor in the baseline arm.
        about: What else the row says.

    Raises:
        ValueError: The function did not read any of the factors that tell it from the baseline.
    """
    config = TrackedConfig(trial.config)
    changed = {k: v for k, v in trial.arm.items() if v != baseline.get(k)}
    row: dict[str, Any] = {
        "id": trial.id,
        "arm": trial.arm,
        "seed": trial.seed,
        "changed": changed,
        "config": dict(trial.config),
        **about,
        **_provenance(),
        "started": _now(),
    }
    start, memory = time.perf_counter(), PeakMemory()
    idle: list[str] = []
    try:
        with memory:
            found = function(config, trial.seed)
        idle = sorted(config.unread & trial.arm.keys())
        row |= {"status": "ok", "metrics": checked_metrics(found)}
    except Exception as error:
        text = " ".join(str(error).split()) or "no message"
        row |= {
            "status": "failed",
            "metrics": {},
            "error": f"{type(error).__name__}: {text}",
            "traceback": traceback.format_exc(),
        }
    row |= {"seconds": time.perf_counter() - start, "finished": _now(), "unread": idle}
    row["peak_memory_mb"] = memory.peak / _MEGABYTE
    if row["status"] == "ok" and changed and changed.keys() <= set(idle):
        raise ValueError(
            f"factor {', '.join(map(repr, sorted(changed)))} was never read by the function, "
            f"though the arm {arm_name(trial.arm)!r} differs from the baseline in nothing else. "
            "Check the spelling, or leave the factor out."
        )
    return row


@cache
def _provenance() -> dict[str, Any]:
    found = provenance()
    del found["finished"]
    return found


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def checked_metrics(found: Any) -> dict[str, float]:
    """What a function gave back, as plain numbers.

    Raises:
        TypeError: No dictionary of numbers, or an empty one.
    """
    if not isinstance(found, Mapping) or not found:
        raise TypeError(
            f"'run' must return a dictionary of metrics, name -> number (got {found!r:.80})."
        )
    plain = {}
    for name, value in found.items():
        item = value.item() if hasattr(value, "item") else value
        if isinstance(item, bool) or not isinstance(item, Real):
            raise TypeError(f"'run' must return numbers (got {value!r:.80} for {name!r}).")
        plain[str(name)] = float(item)
    return plain


class TrackedConfig(dict[str, Any]):
    """A configuration that remembers which of its settings were read.

    Reading it as a whole (`**config`, `dict(config)`, a loop) counts as reading all of it.

    Example:
        >>> config = TrackedConfig(k=4, eta=0.2)
        >>> config["k"], sorted(config.unread)
        (4, ['eta'])
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        #: Settings that have not been read so far.
        self.unread: set[str] = set(super().keys())

    def __getitem__(self, name: str) -> Any:
        self.unread.discard(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """As of a dictionary."""
        self.unread.discard(name)
        return super().get(name, default)

    def pop(self, name: str, *default: Any) -> Any:
        """As of a dictionary."""
        self.unread.discard(name)
        return super().pop(name, *default)

    # Defined, so that `**config` and `{**config}` come by here too.
    def __iter__(self) -> Iterator[str]:
        self.unread.clear()
        return super().__iter__()

    def keys(self) -> Any:
        """As of a dictionary."""
        self.unread.clear()
        return super().keys()

    def values(self) -> Any:
        """As of a dictionary."""
        self.unread.clear()
        return super().values()

    def items(self) -> Any:
        """As of a dictionary."""
        self.unread.clear()
        return super().items()

    def copy(self) -> dict[str, Any]:
        """A plain dictionary."""
        self.unread.clear()
        return dict(super().items())

    def __or__(self, other: Any) -> Any:
        self.unread.clear()
        return dict(super().items()) | other

    def __ror__(self, other: Any) -> Any:
        self.unread.clear()
        return other | dict(super().items())


def keep_latest(rows: dict[str, dict[str, Any]], row: Mapping[str, Any]) -> None:
    """Add a row to those by id, unless a later attempt is there."""
    older = rows.get(row["id"])
    if older is None or older.get("attempt", 0) <= row.get("attempt", 0):
        rows[row["id"]] = dict(row)


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """Rows of the JSON line files that studies kept before version 0.2, one file per process.

    Raises:
        ValueError: A line that is no row, other than a torn last one.
    """
    rows = []
    for file in sorted(folder.glob("*.jsonl")):
        whole, newline, _ = file.read_bytes().rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if newline else [], start=1):
            try:
                row = decoded(load_json(line))
                check_row(row)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{file} must hold a row of a trial in every line (line {number}: {error})."
                    " Remove the line; its trial is done again."
                ) from error
            rows.append(row)
    return rows


def check_row(row: Any) -> None:
    """Refuse a row without identity, or with a part of another kind than `Runner` writes."""
    if not isinstance(row, dict):
        raise ValueError("it holds no object")
    for key in ("id", "status"):
        if not isinstance(row.get(key), str):
            raise ValueError(f"{key!r} must be a word")
    for key in ("arm", "config", "metrics", "versions", "identity"):
        if not isinstance(row.get(key, {}), dict):
            raise ValueError(f"{key!r} must be an object")
    for key in ("seed", "attempt"):
        if not isinstance(row.get(key, 0), int) or isinstance(row.get(key, 0), bool):
            raise ValueError(f"{key!r} must be a whole number")
    for key, value in {
        "seconds": row.get("seconds", 0.0),
        "peak_memory_mb": row.get("peak_memory_mb", 0.0),
        **{f"metrics.{name}": value for name, value in row.get("metrics", {}).items()},
    }.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ValueError(f"{key!r} must be a number")
    unread = row.get("unread", [])
    if not isinstance(unread, list) or not all(isinstance(name, str) for name in unread):
        raise ValueError("'unread' must be a list of names")
    for key in ("error", "traceback", "cost", "started", "finished"):
        if not isinstance(row.get(key, ""), str):
            raise ValueError(f"{key!r} must be a word")


def encoded(value: Any) -> Any:
    """The value for JSON, which has no NaN; none may vanish, so they become strings."""
    if isinstance(value, Mapping):
        return {str(key): encoded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [encoded(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def decoded(value: Any) -> Any:
    """What `encoded` was made from."""
    if isinstance(value, dict):
        if value.keys() == {"float"} and value["float"] in ("nan", "inf", "-inf"):
            return float(value["float"])
        return {key: decoded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [decoded(inner) for inner in value]
    return value
