"""What inverted lists depend on besides the rows: part of the state of a bank."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Cells(nn.Module):
    """The cells of inverted lists, and the cell every row was sorted into when it was written.

    Cells are found from the rows a bank has at one moment and stay while rows change, so they
    cannot be derived from the rows later. With them a restored bank searches bit for bit as the
    one that was saved.

    Args:
        capacity: Rows.
        dim: D.
        most: Largest number of cells.
    """

    centers: Tensor
    ranges: Tensor
    cell_of: Tensor
    count: Tensor
    found_at: Tensor
    overwritten: Tensor

    def __init__(self, capacity: int, dim: int, most: int) -> None:
        super().__init__()
        self.register_buffer("centers", torch.zeros(most, dim))
        # Least value and width of every dimension, by which the lists round their rows.
        self.register_buffer("ranges", torch.zeros(2, dim))
        self.register_buffer("cell_of", torch.full((capacity,), -1, dtype=torch.int32))
        # How many cells there are; 0 = none yet.
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        # Rows when the cells were found, and how many were overwritten since.
        self.register_buffer("found_at", torch.zeros((), dtype=torch.long))
        self.register_buffer("overwritten", torch.zeros((), dtype=torch.long))

    def reset(self) -> None:
        """Forget all cells."""
        self.cell_of.fill_(-1)
        for buffer in (self.centers, self.ranges, self.count, self.found_at, self.overwritten):
            buffer.zero_()

    def replace(self, centers: Tensor, ranges: Tensor, rows: int) -> None:
        """Take other cells: centers (c, D) and ranges (2, D), found from so many rows."""
        self.reset()
        self.centers[: centers.size(0)] = centers.to(self.centers)
        self.ranges.copy_(ranges)
        self.count.fill_(centers.size(0))
        self.found_at.fill_(rows)


def suitable_cells(rows: int) -> int:
    """About the square root of the rows; a power of two, so that it seldom changes."""
    return 1 << round(0.5 * math.log2(max(1, rows)))
