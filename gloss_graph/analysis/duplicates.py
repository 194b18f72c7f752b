"""Documents that say the same and are labeled differently."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph.analysis.graph_arrays import Documents

__all__ = ["near_duplicates"]

_CHUNK = 200_000


def near_duplicates(
    documents: Documents, graph: Data, rows: Tensor | None, least: float
) -> pd.DataFrame:
    """Pairs of labeled documents with different labels that are near-duplicates.

    Candidates are the edges of the graph, and documents of equal text (case and white space
    aside), of which each is compared with the first of every other label.

    Args:
        documents: The graph, read.
        graph: The graph, for its `bandwidth`.
        rows: (N, D) embeddings; None reads similarity off the weights, taken as Gaussian of unit
            rows, where the graph has one bandwidth.
        least: Least cosine similarity; equal texts have 1.

    Returns:
        `node`, `other`, `similarity`, `label`, `other_label`, `text`, `other_text`.

    Cost: O(E D).
    """
    source, target = documents.edge_index
    y = torch.from_numpy(documents.y)
    apart = (source < target) & (y[source] >= 0) & (y[target] >= 0) & (y[source] != y[target])
    edges = apart.nonzero().squeeze(1)
    similarity = _similarity(documents, graph, rows, edges)
    near = similarity >= least
    pairs = {
        (int(i), int(j)): float(s)
        for i, j, s in zip(source[edges[near]], target[edges[near]], similarity[near], strict=True)
    }
    pairs.update(dict.fromkeys(_equal_texts(documents), 1.0))
    order = sorted(pairs, key=lambda pair: (-pairs[pair], pair))
    left, right = [pair[0] for pair in order], [pair[1] for pair in order]
    return pd.DataFrame(
        {
            "node": np.array(left, dtype=np.int64),
            "other": np.array(right, dtype=np.int64),
            "similarity": np.array([pairs[pair] for pair in order], dtype=float),
            "label": documents.named(documents.y[left]) if left else [],
            "other_label": documents.named(documents.y[right]) if right else [],
            "text": [documents.text_of(i) for i in left],
            "other_text": [documents.text_of(j) for j in right],
        }
    )


def _similarity(documents: Documents, graph: Data, rows: Tensor | None, edges: Tensor) -> Tensor:
    """Cosine similarity (n,) of the ends of some edges, -1 where nothing tells."""
    source, target = documents.edge_index[:, edges]
    if rows is not None:
        unit = F.normalize(rows.float(), dim=1)
        parts = [
            (unit[source[part]] * unit[target[part]]).sum(dim=1)
            for part in torch.arange(edges.numel()).split(_CHUNK)
        ]
        return torch.cat(parts).clamp(-1.0, 1.0) if parts else source.float()
    sigma = graph.get("bandwidth")
    if sigma is None or not bool(torch.isfinite(torch.as_tensor(sigma)).all()):
        return torch.full((edges.numel(),), -1.0, dtype=torch.float32)
    # w = exp(-d² / (2σ²)) and d² = 2 - 2 cos.
    weight = documents.edge_weight[edges].clamp(min=1e-300, max=1.0)
    return 1.0 + float(torch.as_tensor(sigma)) ** 2 * weight.log()


def _equal_texts(documents: Documents) -> list[tuple[int, int]]:
    if documents.text is None:
        return []
    first: dict[str, dict[int, int]] = {}
    pairs = []
    for i in np.flatnonzero(documents.y >= 0).tolist():
        words = " ".join(documents.text[i].lower().split())
        if not words:
            continue
        label = int(documents.y[i])
        known = first.setdefault(words, {})
        pairs += [(j, i) for other, j in known.items() if other != label]
        known.setdefault(label, i)
    return pairs
