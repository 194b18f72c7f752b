"""Documents worth a second look: contradicted labels, near-duplicates, isolated documents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_positive_int, check_range
from gloss_graph.analysis.label_masses import check_labeled, hidden_labels
from gloss_graph.export.attributes import clean_text
from gloss_graph.export.graph_arrays import GraphArrays, read_arrays, read_embeddings

# With less mass, a document counts as one that no label reaches.
_LEAST_MASS = 1e-12
_TEXT = 56  # characters of a text that a printed table shows
_CHUNK = 200_000
# Tables of a summary: what they show, their title, and column -> heading.
_SUMMARY: tuple[tuple[str, str, dict[str, str]], ...] = (
    (
        "disagreeing",
        "{count:,} of {labels:,} labels contradicted",
        {"doc_id": "id", "label": "label", "suggested": "others say", "suspicion": "suspicion"}
        | {"text": "text"},
    ),
    (
        "duplicates",
        "{count:,} near-duplicates with different labels",
        {"node": "node", "other": "and", "label": "label", "other_label": "but"}
        | {"similarity": "similarity", "text": "text"},
    ),
    (
        "bleeding",
        "Classes that run into each other",
        {"label": "class", "other": "and", "documents": "documents", "share": "share"},
    ),
    (
        "isolated",
        "{count:,} documents no other label reaches",
        {"doc_id": "id", "label": "label", "degree": "neighbors", "text": "text"},
    ),
)


@dataclass(frozen=True)
class Audit:
    """The findings of an audit, as tables of which the worst cases come first.

    Attributes:
        table: A row per labeled document: `node`, `doc_id`, `label`, `suggested` (the class that
            other labels suggest, "" for none), `suspicion` (the share of arriving label mass that
            contradicts the label, in [0, 1]; NaN if no other label can tell: `note` says why),
            `support` (share of the suggested class), `mass` (all that arrives), `note` and `text`.
        duplicates: Pairs of near-duplicates with different labels: `node`, `other`, `similarity`,
            `label`, `other_label`, `text`, `other_text`.
        isolated: Documents, labeled or not, that no label of another document reaches: `node`,
            `doc_id`, `label`, `degree`, `text`.
        confusion: Counts of documents by given label (rows) and suggested label (columns).
        bleeding: Pairs of classes that are confused: `label`, `other`, `documents` (with one
            label, suggested the other), `share` of both classes.
        exact: False if the mass that returns to labels was estimated, see `audit`.
    """

    table: pd.DataFrame
    duplicates: pd.DataFrame
    isolated: pd.DataFrame
    confusion: pd.DataFrame
    bleeding: pd.DataFrame
    exact: bool

    @property
    def disagreeing(self) -> pd.DataFrame:
        """The rows of `table` whose suggested class differs from the label."""
        other = (self.table["suggested"] != "") & (self.table["suggested"] != self.table["label"])
        return self.table[other & self.table["suspicion"].notna()]

    def summary(self, top: int = 10) -> Group:
        """Tables of at most `top` rows for a rich console: suspects, duplicates, mixed classes."""
        check_positive_int("top", top)
        parts = []
        for name, title, columns in _SUMMARY:
            rows = getattr(self, name)
            if len(rows) or name == "disagreeing":
                said = title.format(count=len(rows), labels=len(self.table))
                parts.append(_printed(rows.head(top), said, columns))
        return Group(*parts)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({len(self.table)} labels, {len(self.disagreeing)} "
            f"contradicted, {len(self.duplicates)} duplicates with different labels, "
            f"{len(self.isolated)} isolated, exact={self.exact})"
        )


def audit(
    graph: Data,
    *,
    embeddings: Tensor | None = None,
    normalization: str = "hub",
    eta: float = 0.2,
    duplicate_similarity: float = 0.98,
    max_columns: int = 512,
    probes: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> Audit:
    r"""Rank labeled documents by how far the others contradict their label.

    Every label is hidden in turn and compared with the class that the others propagate to its
    document, without a solve per label. With \(F\) the propagation of all labels, \(T\) the walk,

    \(F_i^{(-i)} = ((T F)_i / (1 + \eta) - h_i y_i) / (1 - h_i)\),

    where h_i is the mass of i's label that comes back to it through unlabeled documents: 0 if all
    neighbors are labeled, otherwise exact up to `max_columns` right sides (labels whose unlabeled
    surroundings do not touch share one) and estimated from random `probes` beyond.

    Labels of `seed_mask` propagate; all of `y` are judged. The normalization `"hub"` takes weight
    from hubs, `"row"` does not; the larger the leak `eta`, the less far-away labels count.

    Near-duplicates have a cosine similarity of at least `duplicate_similarity` in `embeddings`
    (N, D), by default `graph.x`; without both, similarity follows from Gaussian weights if the
    graph has one `bandwidth`. Equal texts are duplicates in any case.

    Returns:
        The audit. The only document of a class has a note instead of a suspicion: no other label
        could support it.

    Raises:
        ValueError: A directed graph, no labeled document, or label sets.

    Cost: one solve, O((E + N C) iterations), if all documents are labeled; otherwise as much again
    for every 128 right sides.

    Example:
        >>> import torch
        >>> pairs = torch.tensor([[0, 0, 1, 3, 3, 4], [1, 2, 2, 4, 5, 5]])  # two triangles
        >>> edges = torch.cat([pairs, pairs.flip(0)], dim=1)
        >>> graph = Data(edge_index=edges, y=torch.tensor([0, 0, 1, 1, 1, 1]))
        >>> audit(graph).table["suspicion"].tolist()
        [1.0, 0.5, 0.5, 0.0, 0.0, 0.0]
        >>> audit(graph).disagreeing[["node", "label", "suggested"]].values.tolist()[0]
        [2, '1', '0']

    See also: `explain`, which names the documents that contradict a label.
    """
    check_range("duplicate_similarity", duplicate_similarity, 0.0, 1.0, open_low=True)
    documents = read_arrays(graph)
    rows = read_embeddings(graph, embeddings, documents.size)
    check_labeled(documents)
    hidden = hidden_labels(
        documents,
        normalization=normalization,
        eta=eta,
        max_columns=max_columns,
        probes=probes,
        seed=seed,
        progress=progress,
    )
    mass = hidden.mass.numpy()
    duplicates = _near_duplicates(documents, graph, rows, duplicate_similarity)
    table = _suspects(documents, mass, duplicates)
    confusion = _confusion(documents, table)
    alone = np.flatnonzero(mass.sum(axis=1) <= _LEAST_MASS)
    degree = np.diff(documents.adjacency.indptr)
    return Audit(
        table=table,
        duplicates=duplicates,
        isolated=_described(documents, alone, {"degree": degree[alone]}),
        confusion=confusion,
        bleeding=_bleeding(confusion),
        exact=hidden.exact,
    )


def _near_duplicates(
    documents: GraphArrays, graph: Data, rows: Tensor | None, least: float
) -> pd.DataFrame:
    """Near-duplicates with different labels among neighbors and documents of equal text, O(E D)."""
    source, target = documents.edge_index
    y = torch.from_numpy(documents.y)
    apart = (source < target) & (y[source] >= 0) & (y[target] >= 0) & (y[source] != y[target])
    edges = apart.nonzero().squeeze(1)
    similarity = _similarity(documents, graph, rows, edges)
    near = similarity >= least
    ends = torch.stack([source, target])[:, edges[near]].T.tolist()
    pairs = {(i, j): s for (i, j), s in zip(ends, similarity[near].tolist(), strict=True)}
    pairs.update(dict.fromkeys(_equal_texts(documents), 1.0))
    order = sorted(pairs, key=lambda pair: (-pairs[pair], pair))
    left, right = np.array(order, dtype=np.int64).reshape(-1, 2).T
    return pd.DataFrame(
        {
            "node": left,
            "other": right,
            "similarity": np.array([pairs[pair] for pair in order], dtype=float),
            "label": documents.named(documents.y[left]),
            "other_label": documents.named(documents.y[right]),
            "text": documents.texts_of(left),
            "other_text": documents.texts_of(right),
        }
    )


def _similarity(documents: GraphArrays, graph: Data, rows: Tensor | None, edges: Tensor) -> Tensor:
    """Cosine similarity (n,) of the ends of some edges, -1 if unknown."""
    source, target = documents.edge_index[:, edges]
    if rows is not None:
        ends = zip(source.split(_CHUNK), target.split(_CHUNK), strict=True)
        parts = [F.cosine_similarity(rows[i].float(), rows[j].float(), dim=1) for i, j in ends]
        return torch.cat(parts) if parts else source.float()
    sigma = graph.get("bandwidth")
    if sigma is None or not bool(torch.isfinite(torch.as_tensor(sigma)).all()):
        return torch.full((edges.numel(),), -1.0, dtype=torch.float32)
    # w = exp(-d² / (2σ²)) and d² = 2 - 2 cos.
    weight = documents.edge_weight[edges].clamp(min=1e-300, max=1.0)
    return 1.0 + float(torch.as_tensor(sigma)) ** 2 * weight.log()


def _equal_texts(documents: GraphArrays) -> list[tuple[int, int]]:
    """Pairs of documents with equal text, up to case and white space, and different labels.

    Each document is compared with the first of every other label.
    """
    first: dict[str, dict[int, int]] = {}
    pairs = []
    for i in np.flatnonzero(documents.y >= 0).tolist():
        if words := " ".join(documents.text_of(i).lower().split()):
            label = int(documents.y[i])
            known = first.setdefault(words, {})
            pairs += [(j, i) for other, j in known.items() if other != label]
            known.setdefault(label, i)
    return pairs


def _suspects(documents: GraphArrays, mass: np.ndarray, duplicates: pd.DataFrame) -> pd.DataFrame:
    node = np.flatnonzero(documents.y >= 0)
    given = documents.y[node]
    arrived = mass[node].sum(axis=1)
    heard = arrived > _LEAST_MASS
    share = mass[node] / np.where(heard, arrived, 1.0)[:, None]
    suggested = np.where(heard, share.argmax(axis=1), -1)
    agreeing = share[np.arange(node.size), given]
    # Other labels of a document's class.
    seeds = np.bincount(documents.y[documents.seeds], minlength=len(documents.names))
    alone = seeds[given] - documents.seeds[node] <= 0
    twins = set(duplicates["node"]) | set(duplicates["other"])
    note = np.select(
        [~heard, alone, [int(i) in twins for i in node]],
        ["isolated", "only label of its class", "near-duplicate with another label"],
        "",
    )
    found = {
        "suggested": documents.named(suggested),
        "suspicion": np.where(heard & ~alone, 1.0 - agreeing, np.nan).clip(0.0, 1.0),
        "support": np.where(heard, share.max(axis=1, initial=0.0), 0.0),
        "mass": arrived,
        "note": note,
    }
    table = _described(documents, node, found)
    # Among equally suspicious labels, those first whose neighbors agree and are close.
    order = ["suspicion", "support", "mass", "node"]
    table = table.sort_values(order, ascending=[False, False, False, True], na_position="last")
    return table.reset_index(drop=True)


def _described(documents: GraphArrays, node: np.ndarray, found: dict[str, Any]) -> pd.DataFrame:
    """A row per document with what was found about it."""
    known = {"node": node, "doc_id": documents.ids[node]}
    labels, texts = documents.named(documents.y[node]), documents.texts_of(node)
    return pd.DataFrame({**known, "label": labels, **found, "text": texts})


def _confusion(documents: GraphArrays, table: pd.DataFrame) -> pd.DataFrame:
    known = table[table["suggested"] != ""]
    found = set(documents.named(np.unique(documents.y[documents.y >= 0])))
    names = [name for name in dict.fromkeys(documents.names) if name in found]
    counts = pd.crosstab(known["label"], known["suggested"])
    counts = counts.reindex(index=names, columns=names, fill_value=0).astype(int)
    return counts.rename_axis(index="label", columns="suggested")


def _bleeding(confusion: pd.DataFrame) -> pd.DataFrame:
    counts = confusion.to_numpy()
    both = counts + counts.T
    left, right = np.triu_indices(len(confusion), 1)
    size = counts.sum(axis=1)
    pairs = pd.DataFrame(
        {
            "label": confusion.index.to_numpy()[left],
            "other": confusion.index.to_numpy()[right],
            "documents": both[left, right],
            "share": both[left, right] / np.maximum(size[left] + size[right], 1),
        }
    )
    pairs = pairs[pairs["documents"] > 0]
    return pairs.sort_values("share", ascending=False, kind="stable").reset_index(drop=True)


def _printed(rows: pd.DataFrame, title: str, columns: dict[str, str]) -> Group:
    """A frame as a printed table under its title, texts cut and left out if there are none."""
    shown = Table()
    if "text" in columns and not bool((rows["text"] != "").any()):
        columns = {name: heading for name, heading in columns.items() if name != "text"}
    for name, heading in columns.items():
        right = pd.api.types.is_numeric_dtype(rows[name])
        justify: Literal["left", "right"] = "right" if right else "left"
        shown.add_column(heading, justify=justify, no_wrap=name != "text")
    for _, row in rows.iterrows():
        shown.add_row(*(escape(_cell(name, row[name])) for name in columns))
    return Group(Text(title, style="bold"), shown)


def _cell(name: str, value: Any) -> str:
    if name == "text":
        return clean_text(" ".join(value[:400].split()), _TEXT)
    if name == "similarity":
        return f"{value:.3f}"
    return f"{100 * value:.1f} %" if name in ("suspicion", "share") else str(value)
