"""How much remembered rows count in the graph of a step: when, how old, in whose coordinates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gloss_graph._internal.checks import check_positive_int, check_range
from gloss_graph._internal.search_space import Dimension, Range
from gloss_graph.graph.build import Connection
from gloss_graph.graph.distances import discounted
from gloss_graph.losses.schedule import ramped
from gloss_graph.memory import MemoryBank
from gloss_graph.memory.drift import age_decay

SEARCH_SPACE: dict[str, Dimension] = {"half_life": Range(10.0, 10_000.0, log=True)}
#: Of `GraphGuidedObjective`, shown by `repr` where they are set.
MEMORY_SETTINGS = ("half_life", "restandardize", "memory_start", "memory_ramp")


@dataclass(frozen=True)
class MemoryUse:
    """What `GraphGuidedObjective` does about the drift of remembered rows; names as there."""

    half_life: float | None = None
    restandardize: bool = False
    start: int = 0
    ramp: int = 0

    def __post_init__(self) -> None:
        check_half_life(self.half_life)
        if not isinstance(self.restandardize, bool):
            raise ValueError(f"'restandardize' must be a bool (got {self.restandardize!r}).")
        check_positive_int("memory_start", self.start, minimum=0)
        check_positive_int("memory_ramp", self.ramp, minimum=0)

    def __str__(self) -> str:
        values = (self.half_life, self.restandardize, self.start, self.ramp)
        pairs = zip(MEMORY_SETTINGS, values, strict=True)
        return "".join(f", {name}={value}" for name, value in pairs if value)

    def strength(self, step: Tensor) -> float:
        """Factor in [0, 1] of the edges that touch a remembered row."""
        return ramped(int(step), self.start, self.ramp) if self.start or self.ramp else 1.0

    def weighs(self, strength: float) -> bool:
        """Whether the step's graph differs from the one the bank keeps."""
        return self.half_life is not None or self.restandardize or strength < 1.0

    def view(self, memory: MemoryBank, x: Tensor, learned: int) -> MemoryBank:
        """A bank as the step of batch rows x (B, D) sees it; the first `learned` columns drift."""
        return memory.restandardized(x, learned) if self.restandardize else memory

    def weigh(
        self, connection: Connection, memory: MemoryBank | None, strength: float
    ) -> Connection:
        r"""The connection with weights \(s_{ij} f_i f_j w_{ij}\).

        \(f = 2^{-\mathrm{age}/h}\) of a remembered row, 1 in the batch; s is the strength where
        an edge touches a remembered row, else 1. The product of both ends is a diagonal scaling of
        W: it stays symmetric, and positive semi-definite where W is. A walk goes to the neighbours
        of a node by the trust in them; the trust in the node itself cancels.
        """
        weight, slots = connection.edge_weight, connection.slots
        plain = self.half_life is None and strength == 1.0
        if plain or memory is None or weight is None or slots.numel() == 0:
            return connection
        source, target = connection.edge_index
        factor = weight.detach().new_ones(weight.numel())
        if self.half_life is not None:
            decay = age_decay(memory.age[slots], self.half_life).to(factor)
            trust = torch.cat([factor.new_ones(connection.size), decay])
            factor = trust[source] * trust[target]
        if strength < 1.0:
            touches = (source >= connection.size) | (target >= connection.size)
            factor = torch.where(touches, strength * factor, factor)
        return connection._replace(edge_weight=discounted(weight, factor))


def check_half_life(half_life: float | None) -> None:
    """Raise unless `half_life` is None or a positive number.

    Raises:
        ValueError: Names the value.
    """
    if half_life is not None:
        check_range("half_life", half_life, 0.0, float("inf"), open_low=True, open_high=True)
