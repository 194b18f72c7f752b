"""Synthetic documents in clusters, and banks filled with them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gloss_graph.memory import MemoryBank

CLUSTERS = 64
# Rows of a cluster that are linked among each other: exact search of a million takes hours. Of
# clusters this small at most, the nearest rows are among them.
_BLOCK = 1024
_CHUNK = 16_384


def clusters_for_links(rows: int) -> int:
    """So many clusters that `filled_bank` gives nearly every row its nearest ones."""
    return max(CLUSTERS, 2 * rows // _BLOCK)


def clustered(
    rows: int, dim: int, classes: int, seed: int, clusters: int = CLUSTERS
) -> tuple[Tensor, Tensor, Tensor]:
    """Points (rows, dim) around centers, their classes (rows,) and clusters (rows,)."""
    generator = torch.Generator().manual_seed(seed)
    centers = F.normalize(torch.randn(clusters, dim, generator=generator), dim=1)
    cluster = torch.randint(clusters, (rows,), generator=generator)
    x = torch.randn(rows, dim, generator=generator).mul_(0.7 / dim**0.5)
    for part in torch.arange(rows).split(_CHUNK):
        x[part] += centers[cluster[part]]
    return x, cluster % classes, cluster


def filled_bank(
    x: Tensor,
    labels: Tensor,
    clusters: Tensor,
    k: int,
    *,
    dtype: torch.dtype = torch.float32,
    search: str = "auto",
    device: torch.device | str = "cpu",
) -> MemoryBank:
    """A full bank of `x` (N, D), its rows linked to the nearest in a block of their cluster."""
    bank = MemoryBank(x.size(0), x.size(1), k=k, dtype=dtype, search=search)
    bank.load_state_dict(bank_state(x, labels, clusters, k, dtype))
    return bank.to(device)


def bank_state(
    x: Tensor, labels: Tensor, clusters: Tensor, k: int, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The state dict of such a bank, in the form that every version since 0.1 reads."""
    n = x.size(0)
    rows = torch.empty(n, x.size(1), dtype=dtype)
    for part in torch.arange(n).split(_CHUNK):
        rows[part] = F.normalize(x[part], dim=1).to(dtype)
    slots = torch.full((n, k), -1, dtype=torch.int32)
    squared = torch.zeros(n, k)
    order, sizes = clusters.argsort(stable=True), clusters.bincount().tolist()
    for part in (block for cluster in order.split(sizes) for block in cluster.split(_BLOCK)):
        near, block = min(k, part.numel() - 1), rows[part].float()
        if near < 1:
            continue
        found = (block @ block.T).fill_diagonal_(-torch.inf).topk(near, dim=1).indices
        slots[part, :near] = part[found].int()
        for j in range(near):
            squared[part, j] = (block - block[found[:, j]]).square().sum(dim=1)
    number = {"cursor": 0, "count": n, "step": 1, "anonymous": 0}
    return {
        "rows": rows,
        "slot_labels": labels.long(),
        "slot_ids": torch.arange(n),
        "written_at": torch.zeros(n, dtype=torch.long),
        **{name: torch.tensor(value) for name, value in number.items()},
        "links.slots": slots,
        "links.slot_stamps": torch.ones(n, k, dtype=torch.int32),
        "links.squared": squared,
        "links.stamps": torch.ones(n, dtype=torch.int32),
    }
