"""Arms of a study, and trials: an arm with a seed, its identity and its row of results."""

from __future__ import annotations

import hashlib
import json
import math
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cache
from itertools import product
from numbers import Real
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from scipy.stats import qmc

from gloss_graph._internal.peak_memory import PeakMemory
from gloss_graph._internal.settings import Choice, Dimension, Range, Scalar
from gloss_graph.runs.provenance import provenance

#: Name of a design -> which arms it tries.
DESIGNS = {
    "grid": "every combination of the values",
    "one-at-a-time": "the baseline, and every value of one factor with the others at the baseline",
    "latin-hypercube": "as many arms as asked for, spread evenly over all factors at once",
    "optuna": "arms chosen one after another, where earlier ones scored best",
}
_MEGABYTE = 2.0**20
# Parts of a row by kind, and those of them that a row may lack.
_MORE: dict[str, Any] = {
    **dict.fromkeys(("error", "traceback", "cost", "finished"), str),
    **{"versions": dict, "attempt": int, "unread": list},
}
_ROW: dict[str, Any] = {
    **dict.fromkeys(("id", "status", "started"), str),
    **dict.fromkeys(("arm", "config", "metrics", "identity"), dict),
    **{"seed": int, "seconds": (int, float), "peak_memory_mb": (int, float)},
    **_MORE,
}

Arm: TypeAlias = dict[str, Scalar]
"""Factor -> value, for every factor of a study."""


def factor_dimension(name: str, values: Any) -> Dimension:
    """Read what a factor tries: a list of values, a `Range`, a `Choice` or `"low:high:log"`."""
    if isinstance(values, Range):
        return values
    if isinstance(values, str) and ":" in values:
        try:
            return read_range(values)
        except ValueError as error:
            raise ValueError(
                f"factor {name!r} must be a range low:high, low:high:log or low:high:step (got "
                f"{values!r}: {error})."
            ) from error
    listed = values.values if isinstance(values, Choice) else values
    if isinstance(listed, (str, Mapping)) or not isinstance(listed, Iterable):
        raise ValueError(
            f"factor {name!r} must be a list of values or a range low:high (got {values!r})."
        )
    try:
        choice = Choice(listed)
    except (TypeError, ValueError) as error:
        raise ValueError(f"factor {name!r}: {error}") from error
    options = list(choice.probes())
    if any(isinstance(value, float) and not math.isfinite(value) for value in options):
        raise ValueError(f"factor {name!r} must hold finite values (got {options}).")
    if len(options) < 2:
        raise ValueError(
            f"factor {name!r} must have two values at least (got {options}). Fix it in 'baseline' "
            "instead, or give another value."
        )
    return choice


def read_range(text: str, number: Callable[[str], float] | None = None) -> Range:
    """Read `low:high`, `low:high:log` or `low:high:step`; whole numbers stay whole."""
    parts = [part.strip() for part in text.split(":")]
    log = parts[2:] == ["log"]
    low, high, *step = map(number or _number, parts[:2] if log else parts)
    if len(step) > 1:
        raise ValueError("too many parts")
    return Range(low, high, log=log, step=step[0] if step else None)


def _number(word: str) -> float:
    return int(word) if word.lstrip("+-").isdigit() else float(word)


def arms_of(
    design: str, factors: Mapping[str, Dimension], base: Arm, *, size: int | None = None
) -> list[Arm]:
    """List the arms of a design other than `optuna`, the baseline first, each once.

    Example:
        >>> factors = {"k": Choice([4, 16]), "rule": Choice(["harmonic", "poisson"])}
        >>> arms_of("one-at-a-time", factors, {"k": 16, "rule": "harmonic"})[1:]
        [{'k': 4, 'rule': 'harmonic'}, {'k': 16, 'rule': 'poisson'}]
    """
    arms: list[Arm]
    if design == "latin-hypercube":
        cube = qmc.LatinHypercube(len(factors), seed=np.random.default_rng(0))
        shares = [dict(zip(factors, map(float, p), strict=True)) for p in cube.random(size or 0)]
        arms = [{name: _at(factors[name], at) for name, at in one.items()} for one in shares]
    else:
        for name, tried in factors.items():
            if isinstance(tried, Range):
                raise ValueError(
                    f"factor {name!r} must be a list of values for design={design!r} (got the "
                    f"range {tried}). List some, or take 'latin-hypercube' or 'optuna'."
                )
        levels = {name: tried.probes() for name, tried in factors.items()}
        if design == "grid":
            arms = [dict(zip(levels, values, strict=True)) for values in product(*levels.values())]
        else:
            arms = [{**base, name: value} for name, values in levels.items() for value in values]
    return list({canonical(arm): arm for arm in (base, *arms)}.values())


def _at(tried: Dimension, share: float) -> Scalar:
    """The value at a share in [0, 1) of what a factor tries."""
    if isinstance(tried, Choice):
        values = tried.probes()
        return values[int(share * len(values))]
    if tried.log:
        value = math.exp(math.log(tried.low) + share * math.log(tried.high / tried.low))
        return tried.tidy(round(value) if tried.integer else value)
    step = tried.step or (1 if tried.integer else None)
    if step is None:
        return tried.tidy(tried.low + share * (tried.high - tried.low))
    count = round((tried.high - tried.low) / step) + 1
    return tried.tidy(tried.low + step * int(share * count))


@dataclass(frozen=True)
class Trial:
    """One arm with one seed; the id is a hash of everything that the result depends on."""

    id: str
    arm: Arm
    config: dict[str, Any]
    seed: int

    def __str__(self) -> str:
        return f"{arm_name(self.arm)}, seed {self.seed}"


def canonical(value: Any) -> str:
    """Write JSON in which equal values are equal strings: sorted keys, 1 for 1.0.

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
    if isinstance(value, (int, str, type(None))):
        return value
    raise ValueError(
        f"A setting must be a number, a string, a flag, None, or lists and dictionaries of them "
        f"(got {type(value).__name__} {value!r:.60})."
    )


def trial_id(config: Mapping[str, Any], seed: int, identity: Mapping[str, Any]) -> str:
    """Hash all that a result depends on into sixteen hexadecimal digits."""
    text = canonical({"config": config, "seed": seed, "identity": identity})
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def arm_name(arm: Mapping[str, Any]) -> str:
    """Name an arm by its values."""
    return ", ".join(f"{name}={shown(value)}" for name, value in arm.items())


def shown(value: Any) -> str:
    """Format a setting."""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def run_trial(
    trial: Trial,
    function: Callable[[dict[str, Any], int], Mapping[str, float]],
    baseline: Mapping[str, Any],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """Run a trial and return its row with the entries `about`, whether it succeeded or failed.

    A function that reads none of the factors that differ from the baseline is a `ValueError`.
    """
    config, idle = TrackedConfig(trial.config), set[str]()
    changed = {k: v for k, v in trial.arm.items() if v != baseline.get(k)}
    row: dict[str, Any] = {**vars(trial), "changed": changed}
    row |= {**about, **_provenance(), "started": _now()}
    start, memory = time.perf_counter(), PeakMemory()
    try:
        with memory:
            found = function(config, trial.seed)
        idle = config.unread & trial.arm.keys()
        row |= {"status": "ok", "metrics": _checked_metrics(found)}
    except Exception as error:
        row |= {"status": "failed", "metrics": {}, "error": error_text(error)}
        row["traceback"] = traceback.format_exc()
    row |= {"seconds": time.perf_counter() - start, "finished": _now(), "unread": sorted(idle)}
    row["peak_memory_mb"] = memory.peak / _MEGABYTE
    if row["status"] == "ok" and changed and changed.keys() <= idle:
        raise ValueError(
            f"factor {', '.join(map(repr, sorted(changed)))} was never read by the function, "
            f"though the arm {arm_name(trial.arm)!r} differs from the baseline in nothing else. "
            "Check the spelling, or leave the factor out."
        )
    return row


def error_text(error: BaseException) -> str:
    """Kind and message of an error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'no message'}"


@cache
def _provenance() -> dict[str, Any]:
    return {key: value for key, value in provenance().items() if key != "finished"}


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _checked_metrics(found: Any) -> dict[str, float]:
    """The metrics of a function as plain numbers; anything else is a `TypeError`."""
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


def _recorded(name: str) -> Any:
    """The method of `dict`, which notes what it reads: one setting, or all of them."""
    method, reads_one = getattr(dict, name), name in ("__getitem__", "get", "pop")

    def read(self: TrackedConfig, *given: Any) -> Any:
        self.unread -= {given[0]} if reads_one else self.unread
        return method(self, *given)

    return read


class TrackedConfig(dict[str, Any]):
    """A configuration that remembers in `unread` which of its settings were not read so far.

    Reading it as a whole (`**config`, `dict(config)`, a loop) counts as reading all of it.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        super().__init__(settings)
        self.unread: set[str] = set(settings)

    __getitem__, get, pop = map(_recorded, ("__getitem__", "get", "pop"))
    # With `__iter__` and `keys`, `**config` and `{**config}` count, too.
    __iter__, keys, values, items = map(_recorded, ("__iter__", "keys", "values", "items"))
    copy, __or__, __ror__ = map(_recorded, ("copy", "__or__", "__ror__"))


def keep_latest(rows: dict[str, dict[str, Any]], row: dict[str, Any]) -> None:
    """Add a row to those by id, unless a later attempt is known."""
    if row.get("attempt", 0) >= rows.get(row["id"], {}).get("attempt", 0):
        rows[row["id"]] = row


def write_row(row: Mapping[str, Any]) -> str:
    """Write a row as JSON, which has no NaN: such metrics become objects."""
    metrics = {
        name: value if math.isfinite(value) else {"float": str(value)}
        for name, value in row["metrics"].items()
    }
    return json.dumps({**row, "metrics": metrics}, allow_nan=False)


def read_row(text: str | bytes) -> dict[str, Any]:
    """Read what `write_row` wrote; a `ValueError` says why it is no row."""
    try:
        row = json.loads(text, object_hook=_float_object)
    except (TypeError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(row, dict):
        raise ValueError("it holds no object")
    check_parts(row, _ROW, optional=_MORE)
    for name, value in row["metrics"].items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ValueError(f"'metrics.{name}' must be a number")
    if not all(isinstance(name, str) for name in row.get("unread", ())):
        raise ValueError("'unread' must be a list of names")
    return row


def _float_object(found: dict[str, Any]) -> Any:
    known = found.keys() == {"float"} and found["float"] in ("nan", "inf", "-inf")
    return float(found["float"]) if known else found


def check_parts(
    content: Mapping[str, Any], kinds: Mapping[str, Any], *, optional: Iterable[str]
) -> None:
    """Refuse content that lacks a part, or has one of a type that is never written."""
    for key, kind in kinds.items():
        value = content.get(key)
        if key not in content and key not in optional:
            raise ValueError(f"{key!r} is missing")
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        if key in content and wrong:
            names = getattr(kind, "__name__", None) or " or ".join(k.__name__ for k in kind)
            raise ValueError(f"{key!r} must be of type {names} (got {value!r:.60})")


def read_lines(folder: Path) -> list[dict[str, Any]]:
    """Read rows from JSON line files; studies kept them so before version 0.2.

    The last line may be incomplete; any other line that is no row is a `ValueError`.
    """
    rows = []
    for file in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], start=1):
            try:
                rows.append(read_row(line))
            except ValueError as error:
                raise ValueError(
                    f"{file} must hold a row of a trial in every line (line {number}: {error})."
                    " Remove the line; its trial is done again."
                ) from error
    return rows
