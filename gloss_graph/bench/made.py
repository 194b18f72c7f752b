"""Made documents in clusters, and banks filled with them."""

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
    """Points (rows, dim) around centres, their classes (rows,) and clusters (rows,)."""
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(clusters, dim, generator=generator), dim=1)
    own = torch.randint(clusters, (rows,), generator=generator)
    x = torch.randn(rows, dim, generator=generator).mul_(0.7 / dim**0.5)
    for part in torch.arange(rows).split(_CHUNK):
        x[part] += centres[own[part]]
    return x, own % classes, own


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
    """A full bank of `x` (N, D), every row linked to its nearest in a block of its own cluster."""
    bank = MemoryBank(x.size(0), x.size(1), k=k, dtype=dtype, search=search).to(device)
    device = bank.rows.device
    for part in torch.arange(x.size(0)).split(_CHUNK):
        where = part.to(device)
        bank.enqueue(x[part].to(device), labels[part].to(device), where, link=False)
    order, sizes = clusters.argsort(stable=True).to(device), clusters.bincount().tolist()
    blocks = [block for own in order.split(sizes) for block in own.split(_BLOCK)]
    for part in blocks:
        rows = bank.rows[part].float()
        near = min(k, part.numel() - 1)
        if near < 1:
            continue
        found = (rows @ rows.T).fill_diagonal_(-torch.inf).topk(near, dim=1).indices
        squared = torch.stack([(rows - rows[found[:, j]]).square().sum(1) for j in range(near)], 1)
        bank.links.replace(part, part[found], squared)
    return bank
