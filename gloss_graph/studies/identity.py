"""What makes a trial this trial: a hash of everything it depends on."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["TrackedConfig", "canonical", "trial_id"]

_LENGTH = 16


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
        #: Settings nobody has asked for so far.
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
