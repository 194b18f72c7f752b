"""Rows in a few bits an entry: product quantisation by codebooks that no data trains."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any, Union

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import ndtri
from torch import Tensor, nn

BITS = (2, 4, 8)
_CODEWORDS = 256
_SAMPLES = 256 * _CODEWORDS
# Entries decoded at a time when all rows are asked for.
_TILE_ENTRIES = 8_000_000


def check_bits(name: str, bits: object) -> None:
    """Raise unless `bits` is a number of bits an entry can have.

    Raises:
        ValueError: Names the argument.
    """
    if type(bits) is not int or bits not in BITS:
        raise ValueError(f"'{name}' must be 2, 4, 8 or None (got {bits!r}).")


class QuantizedRows(nn.Module):
    r"""What a bank of `bits` keeps its rows in; reads and writes like a (capacity, D) tensor.

    Product quantisation (Jégou et al., 2011) of rows turned by one random rotation: whatever the
    data, entries of a turned row are close to normal (Zandieh et al., 2025, arXiv 2504.19874), so
    one codebook made for the normal distribution serves every group of 8 / `bits` entries. There
    is nothing to train, and nothing that goes stale as the encoder drifts. A row takes D `bits` / 8
    bytes and four more for its length, which is kept.

    Args:
        capacity: Rows.
        dim: D.
        bits: An entry: 2, 4 or 8.

    Raises:
        ValueError: Other `bits`.
    """

    codes: Tensor
    scale: Tensor
    codebook: Tensor
    rotation: Tensor

    def __init__(self, capacity: int, dim: int, bits: int) -> None:
        super().__init__()
        check_bits("bits", bits)
        self.bits, self.dim, group = bits, dim, 8 // bits
        groups = -(-dim // group)
        self.register_buffer("codes", torch.zeros(capacity, groups, dtype=torch.uint8))
        # Of the length a row had to that of its codewords.
        self.register_buffer("scale", torch.zeros(capacity, dtype=torch.float32))
        self.register_buffer("codebook", torch.tensor(_codebook(group)))
        self.register_buffer("rotation", torch.tensor(_rotation(dim)))
        self.turned = TurnedRows(self)

    @property
    def dtype(self) -> torch.dtype:
        """Of what is read: float32."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self.codes.device

    def size(self, axis: int) -> int:
        """Rows (0) or dimension (1)."""
        return (self.codes.size(0), self.dim)[axis]

    def turn(self, x: Tensor) -> Tensor:
        """Rows (n, D) as the stored ones are turned."""
        return x @ self.rotation.to(x.dtype)

    def __getitem__(self, index: Any) -> Tensor:
        """Rows as what is left of them (..., D), float32."""
        back = self.rotation.float().T
        if not isinstance(index, slice):
            return self.turned[index] @ back
        # Codes take four times their memory while they are looked up.
        start, stop, step = index.indices(self.codes.size(0))
        parts = torch.arange(start, stop, step).split(_TILE_ENTRIES // self.dim)
        out = back.new_empty(sum(len(part) for part in parts), self.dim)
        for part, own in zip(parts, out.split(_TILE_ENTRIES // self.dim), strict=True):
            torch.mm(self.turned[part.to(self.device)], back, out=own)
        return out

    def __setitem__(self, slots: Tensor, x: Tensor) -> None:
        if slots.numel() == 0:
            return
        x = x.float()
        length = torch.linalg.vector_norm(x, dim=1)
        # Entries of a unit row have variance 1 / D.
        unit = self.turn(x) * (self.dim**0.5 / length.clamp(min=1e-30)).unsqueeze(1)
        codes = self._encoded(unit)
        own = torch.linalg.vector_norm(self._codewords(codes), dim=1)
        self.codes[slots] = codes
        self.scale[slots] = (length / own).to(self.scale.dtype)

    def zero_(self) -> None:
        """Forget every row."""
        self.codes.zero_()
        self.scale.zero_()

    def _encoded(self, unit: Tensor) -> Tensor:
        group = self.codebook.size(1)
        unit = F.pad(unit, (0, -unit.size(1) % group))
        if group == 1:
            words = self.codebook.float().squeeze(1)
            found = torch.bucketize(unit, (words[1:] + words[:-1]) / 2)
        elif unit.device.type == "cpu":
            coder: Any = faiss.ProductQuantizer(unit.size(1), self.codes.size(1), 8)
            words = self.codebook.float().expand(self.codes.size(1), -1, -1).contiguous()
            faiss.copy_array_to_vector(words.numpy().ravel(), coder.centroids)
            return torch.from_numpy(coder.compute_codes(unit.contiguous().numpy()))
        else:
            words = self.codebook.float()
            parts = unit.view(-1, group).split(_TILE_ENTRIES // _CODEWORDS)
            found = torch.cat([torch.cdist(part, words).argmin(dim=1) for part in parts])
        return found.view(unit.size(0), -1).to(torch.uint8)

    def _codewords(self, codes: Tensor) -> Tensor:
        """Of codes (..., groups), side by side: (..., D)."""
        return F.embedding(codes.int(), self.codebook.float()).flatten(-2)[..., : self.dim]


class TurnedRows:
    """Stored rows as they lie, turned: distances are the same, and reading them costs less.

    Args:
        rows: Whose.
        size: How many of them; all if None.
    """

    dtype = torch.float32

    def __init__(self, rows: QuantizedRows, size: int | None = None) -> None:
        self._rows, self._size = rows, size

    @property
    def device(self) -> torch.device:
        """Where the codes are."""
        return self._rows.device

    @property
    def _version(self) -> int:
        return version_of(self._rows.codes)

    def size(self, axis: int) -> int:
        """Rows (0) or dimension (1)."""
        return self._rows.size(axis) if axis or self._size is None else self._size

    def first(self, size: int) -> TurnedRows:
        """The first rows."""
        return TurnedRows(self._rows, size)

    def __getitem__(self, index: Any) -> Tensor:
        """Turned rows (..., D), float32."""
        if self._size is not None and isinstance(index, slice):
            index = slice(*index.indices(self._size))
        rows = self._rows
        return rows._codewords(rows.codes[index]) * rows.scale[index].float().unsqueeze(-1)


def saved_rows(state: Mapping[str, Tensor], prefix: str) -> Tensor | None:
    """The rows (capacity, D) of a bank's state, whatever they are kept in; None if it has none."""
    plain = state.get(f"{prefix}rows")
    names = ("codes", "scale", "codebook", "rotation")
    parts = {
        name: state[f"{prefix}rows.{name}"] for name in names if f"{prefix}rows.{name}" in state
    }
    if plain is not None or len(parts) < len(names):
        return plain
    bits = 8 // parts["codebook"].size(1)
    rows = QuantizedRows(parts["codes"].size(0), parts["rotation"].size(0), bits)
    rows.load_state_dict(parts)
    return rows[:]


#: Rows of a bank, and what is searched.
Rows = Union[Tensor, QuantizedRows]  # noqa: UP007 - an alias, evaluated on 3.10
Searched = Union[Tensor, TurnedRows]  # noqa: UP007


def searched(rows: Rows, size: int | None = None) -> Searched:
    """Rows as they are searched and measured: distances among them are those of `rows`.

    With `size` the first ones only, without reading them.
    """
    if isinstance(rows, QuantizedRows):
        return rows.turned if size is None else rows.turned.first(size)
    return rows[:size] if size is not None else rows


def version_of(rows: Searched) -> int:
    """Grows with every write into the rows; 0 of inference tensors, which do not count them."""
    if isinstance(rows, Tensor) and rows.is_inference():
        return 0
    return rows._version


def asked(queries: Tensor, rows: Rows) -> Tensor:
    """Queries (B, D) as `searched(rows)` understands them."""
    return rows.turn(queries) if isinstance(rows, QuantizedRows) else queries


@cache
def _codebook(group: int) -> np.ndarray:
    """(256, group) codewords for entries that are standard normal."""
    if group == 1:
        # The best points lie as the cube root of the density (Panter & Dite, 1951).
        places = (np.arange(_CODEWORDS) + 0.5) / _CODEWORDS
        words: np.ndarray = (3**0.5 * ndtri(places)).astype(np.float32)[:, None]
        return words
    draw = np.random.default_rng(0).standard_normal((_SAMPLES, group)).astype(np.float32)
    kmeans = faiss.Kmeans(group, _CODEWORDS, niter=40, seed=0, max_points_per_centroid=256)
    kmeans.train(draw)
    return np.asarray(kmeans.centroids)


@lru_cache(maxsize=8)
def _rotation(dim: int) -> np.ndarray:
    """A random orthogonal matrix (dim, dim)."""
    draw = np.random.default_rng(dim).standard_normal((dim, dim))
    turned: np.ndarray = np.linalg.qr(draw)[0].astype(np.float32)
    return turned
