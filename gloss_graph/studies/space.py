"""The settings a search can try, gathered from the components that declare them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from gloss_graph._internal.search_space import Choice, Dimension, Range, Scalar
from gloss_graph.training.config import (
    SETTINGS,
    TrainConfig,
    check_value,
    parse_value,
    setting_named,
)
from gloss_graph.training.losses import LOSSES

__all__ = [
    "PAPER_PARAMETERS",
    "SEARCH_SPACE",
    "check_space",
    "default_parameters",
    "parse_choice",
    "parse_range",
    "parse_setting",
    "search_space",
]


#: Setting of a training -> what a search tries for it unless told otherwise.
SEARCH_SPACE: dict[str, Dimension] = {
    name: one.search for name, one in SETTINGS.items() if one.search is not None
}
#: What the paper's G-Loss-O searches.
PAPER_PARAMETERS = ("bandwidth", "visible_fraction", "graph_weight", "learning_rate")


def default_parameters(loss: str) -> tuple[str, ...]:
    """What to search with a loss: the paper's four, or those of them the loss depends on."""
    return LOSSES[loss].searched if loss in LOSSES else PAPER_PARAMETERS


def search_space(
    names: Iterable[str], extra: Mapping[str, Dimension] | None = None
) -> dict[str, Dimension]:
    """What to try for each of some settings.

    Args:
        names: Settings with a declared range, see `SEARCH_SPACE`.
        extra: Ranges and choices that replace declared ones or add settings.

    Raises:
        ValueError: A name without declared range; lists those that have one.

    Example:
        >>> {name: str(tried) for name, tried in search_space(["bandwidth", "k"]).items()}
        {'bandwidth': '0.1 to 10 (log)', 'k': '4 to 64 (log)'}
    """
    extra = extra or {}
    space: dict[str, Dimension] = {}
    for name in names:
        if name not in SEARCH_SPACE and name not in extra:
            raise ValueError(
                f"'params' must be among {sorted(SEARCH_SPACE)} (got {name!r}). Give another "
                "setting a range (name=low:high) or a choice (name=one,two)."
            )
        space[name] = extra.get(name) or SEARCH_SPACE[name]
    return {**space, **extra}


def check_space(config: TrainConfig, space: Mapping[str, Dimension]) -> None:
    """Raise unless every value of the space is one the training would accept.

    Raises:
        ValueError: An empty space; a name that is no setting; a range for a setting that is not a
            number, or beyond what it may be; a choice with a wrong value.
    """
    if not space:
        raise ValueError("'space' must hold a setting to try (got none). Try 'learning_rate'.")
    for name, tried in space.items():
        kinds = setting_named(name).kinds
        if isinstance(tried, Range) and not {int, float} & set(kinds):
            raise ValueError(
                f"'{name}' must be given a choice (name=one,two), not a range (got {tried})."
            )
        for value in tried.probes():
            check_value(name, value)
            try:
                _replaced(config, name, value)
            except ValueError as error:
                raise ValueError(f"{name}={value!r} cannot be tried: {error}") from error


def parse_range(text: str) -> tuple[str, Range]:
    """Name and range from `name=low:high`, `name=low:high:log` or `name=low:high:STEP`.

    Raises:
        ValueError: Another form; a name that is no setting; a range that is none.

    Example:
        >>> parse_range("bandwidth=0.1:2:log")
        ('bandwidth', Range(low=0.1, high=2.0, log=True, step=None))
    """
    name, _, written = text.partition("=")
    one = setting_named(name.strip())
    kinds = one.kinds
    parts = [part.strip() for part in written.split(":")]
    log = len(parts) == 3 and parts[2] == "log"
    number = int if int in kinds and float not in kinds else float
    try:
        low, high, *step = [number(part) for part in (parts[:2] if log else parts)]
        if len(step) > 1:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"'range' must read name=low:high, name=low:high:log or name=low:high:step, with "
            f"{'whole ' if number is int else ''}numbers (got {text!r})."
        ) from None
    try:
        return one.name, Range(low, high, log=log, step=step[0] if step else None)
    except ValueError as error:
        raise ValueError(f"'range' of {name.strip()!r}: {error}") from error


def parse_choice(text: str) -> tuple[str, Choice]:
    """Name and choice from `name=one,two`.

    Raises:
        ValueError: Another form; a name that is no setting; a value of the wrong type.

    Example:
        >>> parse_choice("rule=harmonic,poisson")
        ('rule', Choice(values=('harmonic', 'poisson')))
    """
    name, found, written = text.partition("=")
    one = setting_named(name.strip())
    if not found:
        raise ValueError(f"'choice' must read name=one,two (got {text!r}).")
    values = [parse_value(one.name, part.strip()) for part in written.split(",")]
    try:
        return one.name, Choice(values)
    except ValueError as error:
        raise ValueError(f"'choice' of {name.strip()!r}: {error}") from error


def parse_setting(text: str) -> tuple[str, Scalar]:
    """Name and value from `name=value`.

    Raises:
        ValueError: Another form; a name that is no setting; a value of the wrong type.

    Example:
        >>> parse_setting("class_balance=true"), parse_setting("bandwidth=local")
        (('class_balance', True), ('bandwidth', 'local'))
    """
    name, found, written = text.partition("=")
    one = setting_named(name.strip())
    if not found:
        raise ValueError(f"'set' must read name=value (got {text!r}).")
    return one.name, parse_value(one.name, written.strip())


def _replaced(config: TrainConfig, name: str, value: Any) -> TrainConfig:
    return replace(config, **{name: value})
