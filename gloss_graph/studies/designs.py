"""Which arms a study tries: every combination, one change at a time, a Latin hypercube."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from scipy.stats import qmc

from gloss_graph._internal.search_space import Choice, Dimension, Range, Scalar
from gloss_graph.studies.trials import Arm, canonical

__all__ = ["DESIGNS", "arms_of", "factor_dimension"]

#: Name of a design -> what it does.
DESIGNS = {
    "grid": "every combination of the values",
    "one-at-a-time": "the baseline, and every value of one factor with the others at the baseline",
    "latin-hypercube": "as many arms as asked for, spread evenly over all factors at once",
    "optuna": "arms chosen one after another, where earlier ones scored best",
}


def factor_dimension(name: str, values: Any) -> Dimension:
    """What a factor tries, from a list of values, a `Range`, a `Choice` or `"low:high:log"`.

    Raises:
        ValueError: One value or none, a value twice, or something else altogether.

    Example:
        >>> str(factor_dimension("k", [4, 16])), str(factor_dimension("eta", "0.01:1:log"))
        ('4, 16', '0.01 to 1 (log)')
    """
    if isinstance(values, Range):
        return values
    if isinstance(values, str) and ":" in values:
        return _range(name, values)
    listed = values.values if isinstance(values, Choice) else values
    if isinstance(listed, (str, Mapping)) or not isinstance(listed, Iterable):
        raise ValueError(
            f"factor {name!r} must be a list of values or a range low:high (got {values!r})."
        )
    options = list(listed)
    try:
        choice = Choice(options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"factor {name!r}: {error}") from error
    odd = [value for value in options if isinstance(value, float) and not math.isfinite(value)]
    if odd:
        raise ValueError(f"factor {name!r} must hold finite values (got {odd[0]}).")
    if len(options) < 2:
        raise ValueError(
            f"factor {name!r} must have two values at least (got {options}). Fix it in 'baseline' "
            "instead, or give another value."
        )
    return choice


def _range(name: str, text: str) -> Range:
    parts = [part.strip() for part in text.split(":")]
    log = parts[2:] == ["log"]
    try:
        ends = [int(part) if part.lstrip("+-").isdigit() else float(part) for part in parts[:2]]
        step = None if log or len(parts) < 3 else float(parts[2])
        if len(parts) > 3:
            raise ValueError("too many parts")
        return Range(ends[0], ends[1], log=log, step=step)
    except ValueError as error:
        raise ValueError(
            f"factor {name!r} must be a range low:high, low:high:log or low:high:step (got "
            f"{text!r}: {error})."
        ) from error


def arms_of(
    design: str,
    factors: Mapping[str, Dimension],
    baseline: Mapping[str, Scalar],
    *,
    size: int | None = None,
    seed: int = 0,
) -> list[Arm]:
    """The arms of a design other than `optuna`, the baseline first, each once.

    Args:
        design: A key of `DESIGNS`.
        factors: What every factor tries.
        baseline: Value of every factor in the baseline.
        size: Arms of a Latin hypercube beside the baseline.
        seed: Of a Latin hypercube.

    Raises:
        ValueError: A range where a list is needed.

    Example:
        >>> factors = {"k": Choice([4, 16]), "rule": Choice(["harmonic", "poisson"])}
        >>> len(arms_of("grid", factors, {"k": 16, "rule": "harmonic"}))
        4
        >>> arms_of("one-at-a-time", factors, {"k": 16, "rule": "harmonic"})[1:]
        [{'k': 4, 'rule': 'harmonic'}, {'k': 16, 'rule': 'poisson'}]
    """
    base = {name: baseline[name] for name in factors}
    if design == "latin-hypercube":
        return _distinct([base, *_hypercube(factors, size or 0, seed)])
    levels = {name: _levels(name, tried, design) for name, tried in factors.items()}
    if design == "grid":
        crossed = [dict(zip(levels, values, strict=True)) for values in product(*levels.values())]
        return _distinct([base, *crossed])
    changed = [{**base, name: value} for name, values in levels.items() for value in values]
    return _distinct([base, *changed])


def _levels(name: str, tried: Dimension, design: str) -> Sequence[Scalar]:
    if isinstance(tried, Range):
        raise ValueError(
            f"factor {name!r} must be a list of values for design={design!r} (got the range "
            f"{tried}). List some, or take 'latin-hypercube' or 'optuna'."
        )
    return list(tried.values)


def _hypercube(factors: Mapping[str, Dimension], size: int, seed: int) -> list[Arm]:
    points = qmc.LatinHypercube(len(factors), seed=np.random.default_rng(seed)).random(size)
    return [
        {
            name: _at(tried, float(share))
            for (name, tried), share in zip(factors.items(), point, strict=True)
        }
        for point in points
    ]


def _at(tried: Dimension, share: float) -> Scalar:
    """The value a share in [0, 1) of the way through what a factor tries."""
    if isinstance(tried, Choice):
        values = list(tried.values)
        return values[min(int(share * len(values)), len(values) - 1)]
    if tried.integer and not tried.log:
        step = int(tried.step or 1)
        return tried.low + step * int(share * ((tried.high - tried.low) // step + 1))
    if tried.step is not None:
        count = round((tried.high - tried.low) / tried.step) + 1
        return tried.tidy(tried.low + tried.step * int(share * count))
    if tried.log:
        value = math.exp(math.log(tried.low) + share * math.log(tried.high / tried.low))
    else:
        value = tried.low + share * (tried.high - tried.low)
    return tried.tidy(round(value) if tried.integer else value)


def _distinct(arms: Iterable[Arm]) -> list[Arm]:
    return list({canonical(arm): arm for arm in arms}.values())


def check_used(used: Sequence[set[str]], factors: Iterable[str]) -> dict[str, int]:
    """Factors without effect in some arms -> in how many.

    Args:
        used: Settings that every arm of the study depends on.
        factors: Names.

    Raises:
        ValueError: A factor that no arm depends on.
    """
    idle = {name: sum(name not in known for known in used) for name in factors}
    useless = [name for name, count in idle.items() if count == len(used)]
    if useless:
        raise ValueError(
            f"factor {', '.join(map(repr, useless))} is not used by any arm, so all arms would be "
            f"equal in it. Leave it out; used here are {sorted(set().union(*used))}."
        )
    return {name: count for name, count in idle.items() if count}
