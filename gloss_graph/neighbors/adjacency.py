"""The undirected graph among stored rows, kept in step with the neighbor lists.

Every slot of a bank has a list of neighbors. The graph that labels propagate over holds both
directions of every pair that at least one live list names, as sorted sparse rows (CSR):

    lists (directed links)           graph (undirected)

    slot 0:  2  -                    row     pointer   column     squared
    slot 1:  0                       0       0         1  2       .3  .1
    slot 2:  0  3                    1       2         0          .3
    slot 3:  -  -                    2       3         0  3       .1  .4
                                     3       5         2          .4
                                             6

Building it from the lists (`build_lists`) sorts all links: too slow for every training step over a
large bank. A step replaces the lists of a few slots only, so `updated` changes the rows that those
touch and moves the others in blocks. The result equals a new build bit for bit: where both ends
list a pair, the link with the larger source counts in either case.

Suppose that slot 1 is written and now lists 3 instead of 0:

    1. What the written rows had and have, as keys row * M + column:

           had  {1-0}            lost   {1-0, 0-1}     both ways, as the graph is undirected
           have {1-3}            gained {1-3, 3-1}

    2. Only the ends of lost and gained pairs change ("touched": 0, 1, 3). Their entries are read,
       the lost ones removed, the gained ones inserted in order, which gives the new pointer.

    3. Rows that keep their length keep their entries. Between rows that grow or shrink everything
       moves as one block:

           old   | 1  2 | 0 | 0  3 | 2 |
                   row 0 shrinks     row 3 grows
                        '-. block of rows 1 and 2 moves down by one
           new   | 2 | 3 | 0  3 | 1  2 |

    4. The touched rows are then written over what was moved there, and last the lengths of all
       links from or to the written slots.

Blocks move within the same memory (`Room`) if no one holds a view of the graph:
`SymmetricLinks.view` gives a step its own handle, and as long as that is alive an update goes to
another room (`take_room` reuses that of an earlier graph once its views are gone). A step thus
never sees its graph change, and a training run allocates nothing after the first few steps.
`_shift` moves blocks that overlap in an order in which none is overwritten before it was read:

           up    .---->.---->        the upper block first, it makes room
                 [  a  ][  b  ]
           down  <----.<----.        the lower block first

A bank that is written in large parts (more than one row in eight) is built from scratch.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

Ints = NDArray[Any]

# Share of spare room when buffers grow.
_HEADROOM = 0.1
# Rows that `build_lists` joins at a time.
_BLOCK_ROWS = 65_536


def union_rows(source: Ints, target: Ints, size: int) -> tuple[Ints, Ints, Ints]:
    """Undirected rows of directed links: pointer (size + 1,), column (E,), link (E,).

    Of a pair listed in both directions the later link counts, for both directions.
    """
    # Links are numbered from 1, so that no entry is an explicit zero.
    number = np.arange(1, source.size + 1, dtype=np.int32)
    forward = _sparse_rows(number, source, target, (size, size))
    both = forward.maximum(forward.T.tocsr())
    both.sort_indices()
    return both.indptr, both.indices, both.data - 1


def _sparse_rows(number: Ints, row: Ints, column: Ints, shape: tuple[int, int]) -> Any:
    matrix = sparse.coo_matrix((number, (row, column)), shape=shape).tocsr()
    matrix.sort_indices()
    return matrix


@dataclass(eq=False)
class SymmetricLinks:
    """Undirected graph over M slots: `pointer` (M + 1,), `column` (E,) int32, `squared` (E,).

    Hold a `view` as long as its tensors are used: when the last one is dropped, a later step writes
    to their memory, `room`, again.
    """

    pointer: Tensor
    column: Tensor
    squared: Tensor
    room: Room | None = None

    def view(self) -> SymmetricLinks:
        """A handle to the same graph; while it is held no update is made in place."""
        other = replace(self)
        if self.room is not None:
            self.room.views.add(other)
        return other

    @property
    def size(self) -> int:
        """M."""
        return self.pointer.numel() - 1

    def entries(self, rows: Ints) -> tuple[Ints, Ints]:
        """Positions (n,) of all entries of `rows`, and the row each belongs to."""
        pointer = self.pointer.numpy()
        return ragged(pointer[rows], pointer[rows + 1], rows)

    def among(self, rows: Ints) -> tuple[Ints, Ints, Ints]:
        """The graph among sorted `rows` (n,): pointer (n + 1,), column (E,), squared (E,)."""
        parts = (self.squared.numpy(), self.column.numpy(), self.pointer.numpy())
        whole = sparse.csr_matrix(parts, shape=(self.size, self.size), copy=False)
        part = whole[rows][:, rows]
        return part.indptr.astype(np.int32), part.indices.astype(np.int32, copy=False), part.data

    def within(self, rows: Ints, hops: int, left_out: Ints) -> Ints:
        """Sorted rows at most `hops` edges from one of `rows`, on paths that avoid `left_out`."""
        open_rows = np.ones(self.size, dtype=bool)
        open_rows[left_out] = False
        inside, front = np.zeros(self.size, dtype=bool), rows
        for hop in range(hops + 1):
            if hop:
                front = self.column.numpy()[self.entries(front)[0]]
            fresh = np.zeros(self.size, dtype=bool)
            fresh[front] = True
            front = np.flatnonzero(fresh & open_rows & ~inside)
            inside[front] = True
        return np.flatnonzero(inside)

    def touching(self, rows: Ints) -> Ints:
        """Positions of all entries in a row or a column of `rows`."""
        position, row = self.entries(rows)
        other = self.column.numpy()[position]
        pointer = self.pointer.numpy()
        back = _find(self.column.numpy(), pointer[other], pointer[other + 1], row)
        return np.concatenate([position, back])


def ragged(start: Ints, stop: Ints, owner: Ints) -> tuple[Ints, Ints]:
    """All integers of the ranges start..stop, one range after the other, and their owners."""
    start = start.astype(np.int64)
    counts = stop - start
    ends = counts.cumsum()
    first = np.repeat(start - (ends - counts), counts)
    return first + np.arange(first.size), np.repeat(owner, counts)


def _find(sorted_values: Ints, low: Ints, high: Ints, wanted: Ints) -> Ints:
    """Position of every `wanted` value, which is known to lie in its own range low..high."""
    low, high = low.astype(np.int64), high.astype(np.int64)
    while low.size and (high - low).max() > 1:
        middle = (low + high) // 2
        right = sorted_values[middle] <= wanted
        low, high = np.where(right, middle, low), np.where(right, high, middle)
    return low


class Room:
    """Memory for the entries of a graph, and the views of the graph that is in it."""

    def __init__(self, entries: int) -> None:
        room = int(entries * (1.0 + _HEADROOM))
        self.column = torch.empty(room, dtype=torch.int32)
        self.squared = torch.empty(room, dtype=torch.float32)
        self.views: weakref.WeakSet[SymmetricLinks] = weakref.WeakSet()

    def fits(self, entries: int) -> bool:
        """Whether no view is held and there is room for so many entries."""
        return len(self.views) == 0 and self.column.numel() >= entries

    def graph(self, pointer: Tensor) -> SymmetricLinks:
        """The graph of the first entries, as many as `pointer` counts."""
        total = int(pointer[-1])
        return SymmetricLinks(pointer, self.column[:total], self.squared[:total], self)


def take_room(rooms: list[Room], entries: int) -> Room:
    """A room for so many entries, with any content, of the last few `rooms` or a new one."""
    for room in rooms:
        if room.fits(entries):
            return room
    rooms[:] = [*[used for used in rooms if len(used.views)][-2:], Room(entries)]
    return rooms[-1]


def build_lists(lists: Tensor, squared: Tensor, live: Tensor, rooms: list[Room]) -> SymmetricLinks:
    """The graph of the live links of lists (M, k), built in blocks that need little memory."""
    size, k = lists.shape
    number = np.int32 if size * k < np.iinfo(np.int32).max else np.int64
    target, lives, length = lists.numpy().ravel(), live.numpy().ravel(), squared.reshape(-1)
    # An upper bound: memory that is never written is never resident.
    room = take_room(rooms, 2 * int(np.count_nonzero(lives)))
    pointer, filled = np.zeros(size + 1, dtype=np.int32), 0
    for start in range(0, size, _BLOCK_ROWS):
        stop = min(start + _BLOCK_ROWS, size)
        shape = (stop - start, size)
        outward = np.flatnonzero(lives[start * k : stop * k]) + start * k
        inward = np.flatnonzero(lives & (target >= start) & (target < stop))
        # Links are numbered from 1 by their place, so of a pair the larger source counts.
        forward = _sparse_rows(
            (outward + 1).astype(number), outward // k - start, target[outward], shape
        )
        back = _sparse_rows(
            (inward + 1).astype(number),
            target[inward] - start,
            (inward // k).astype(np.int32),
            shape,
        )
        both = forward.maximum(back)
        both.sort_indices()
        part = slice(filled, filled + both.nnz)
        room.column[part] = torch.from_numpy(both.indices.astype(np.int32, copy=False))
        room.squared[part] = length[torch.from_numpy(both.data.astype(np.int64) - 1)]
        pointer[start + 1 : stop + 1] = filled + both.indptr[1:]
        filled += both.nnz
    return room.graph(torch.from_numpy(pointer))


def listing(old: SymmetricLinks, slots: Ints, lists: Ints, live: Any) -> tuple[Ints, Ints]:
    """Rows that list one of `slots` by a live link, and the column of their list it stands in."""
    slots = slots[slots < old.size]
    position, slot = old.entries(slots)
    row = old.column.numpy()[position]
    which, column = (lists[row] == slot[:, None]).nonzero()
    row = row[which]
    kept = live(row, column)
    return row[kept], column[kept]


def updated(
    old: SymmetricLinks,
    written: Ints,
    links: tuple[Ints, Ints, NDArray[np.float32]],
    size: int,
    rooms: list[Room],
) -> SymmetricLinks:
    """The graph after a write, in the memory of `old` unless a view of that is held.

    `written` are the sorted slots whose lists were replaced, `links` the sources, targets and
    squared lengths of all live links from or to them.
    """
    fresh_key, fresh_squared = _undirected(links, size)
    fresh_row, fresh_column = fresh_key // size, fresh_key % size
    before = old.pointer.numpy().astype(np.int64)
    if size > old.size:
        before = np.concatenate([before, np.full(size - old.size, before[-1])])

    def entries(rows: Ints) -> tuple[Ints, Ints]:
        """Old positions and keys row * size + column, both (n,), of sorted rows."""
        position, row = ragged(before[rows], before[rows + 1], rows)
        return position, row * size + old.column.numpy()[position]

    # What the written rows lost and gained; all other pairs keep their place.
    is_written = np.zeros(size, dtype=bool)
    is_written[written] = True
    had, have = entries(written)[1], fresh_key[is_written[fresh_row]]
    lost = _both_ways(had[~_stand_in(had, have)], size)
    gained = _both_ways(have[~_stand_in(have, had)], size)
    touched = np.zeros(size, dtype=bool)
    touched[np.concatenate([lost, gained]) // size] = True
    rows = touched.nonzero()[0]
    position, key = entries(rows)
    kept = ~_stand_in(key, lost)
    key, length = key[kept], old.squared.numpy()[position[kept]]
    where = key.searchsorted(gained)
    key, length = np.insert(key, where, gained), np.insert(length, where, 0.0)
    counts = np.diff(before)
    counts[rows] = np.diff(key.searchsorted(np.append(rows, size) * size))
    pointer = np.zeros(size + 1, dtype=np.int32)
    counts.cumsum(out=pointer[1:])

    # Between rows that grow or shrink everything moves as one block, old entries of touched rows
    # too: those are written afterwards, and then the lengths of all links of written rows.
    resized = rows[counts[rows] != before[rows + 1] - before[rows]]
    first, last = np.concatenate([[0], resized + 1]), np.concatenate([resized, [size]])
    blocks = np.stack([before[first], before[last], pointer[first]], axis=1)
    room = _moved(old, int(pointer[-1]), blocks[blocks[:, 0] < blocks[:, 1]], rooms)
    column, squared = room.column.numpy(), room.squared.numpy()
    place = ragged(pointer[rows], pointer[rows + 1], rows)[0]
    column[place], squared[place] = (key % size).astype(np.int32), length
    place = _find(column, pointer[fresh_row], pointer[fresh_row + 1], fresh_column)
    squared[place] = fresh_squared
    return room.graph(torch.from_numpy(pointer))


def _undirected(
    links: tuple[Ints, Ints, NDArray[np.float32]], size: int
) -> tuple[Ints, NDArray[np.float32]]:
    """Sorted keys row * size + column (n,) of links, each both ways round, and their lengths."""
    source, target, squared = links
    key = np.concatenate([source * size + target, target * size + source])
    order = np.lexsort((np.tile(source, 2), key))
    key, squared = key[order], np.tile(squared, 2)[order]
    last = np.ones(key.size, dtype=bool)
    last[:-1] = key[1:] != key[:-1]
    return key[last], squared[last]


def _moved(old: SymmetricLinks, total: int, blocks: Ints, rooms: list[Room]) -> Room:
    """A room for `total` entries with the `blocks` of `old` where they belong."""
    room = old.room
    if room is not None and room.fits(total):
        _shift(room.column.numpy(), blocks)
        _shift(room.squared.numpy(), blocks)
    else:
        room = take_room(rooms, total)
        _place(old.column.numpy(), blocks, room.column.numpy())
        _place(old.squared.numpy(), blocks, room.squared.numpy())
    return room


def _stand_in(keys: Ints, others: Ints) -> Any:
    """Which of `keys` (n,) are among the sorted `others`, bool."""
    if others.size == 0:
        return np.zeros(keys.size, dtype=bool)
    place = np.minimum(others.searchsorted(keys), others.size - 1)
    return others[place] == keys


def _both_ways(keys: Ints, size: int) -> Ints:
    """Keys row * size + column (n,) and those of the same pairs turned round, sorted, each once."""
    return np.unique(np.concatenate([keys, keys % size * size + keys // size]))


def _place(values: Any, blocks: Ints, out: Any) -> None:
    """Copy blocks (start, stop, where to) of `values` into `out`."""
    for start, stop, target in blocks.tolist():
        out[target : target + stop - start] = values[start:stop]


def _shift(values: Any, blocks: Ints) -> None:
    """Move ascending blocks (start, stop, where to) within `values`, none over another."""
    up = blocks[blocks[:, 2] > blocks[:, 0]][::-1]
    down = blocks[blocks[:, 2] < blocks[:, 0]]
    _place(values, np.concatenate([up, down]), values)
