"""Documents worth a second look: contradicted labels, near-duplicates, isolated documents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from rich.console import Console, Group
from rich.markup import escape
from rich.progress import track
from rich.table import Table
from rich.text import Text
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_positive_int, check_range
from gloss_graph.analysis.explanation import LEAST_MASS, check_labeled, exact_layer
from gloss_graph.export.attributes import clean_text
from gloss_graph.export.graph_arrays import GraphArrays, read_arrays, read_embeddings
from gloss_graph.propagation import node_factors

_TEXT = 56  # characters of a text that a printed table shows
_PAIRS = 200_000  # compared at a time
_CHUNK = 128  # right sides per solve
# A walk that always comes back, up to rounding, meets no other label.
_RETURNS = 1.0 - 1e-9
# Arriving mass below this share of a label's return is rounding.
_RESOLVED = 1e-9
# Tables of a summary: title, and headings of the columns before the text.
_SUMMARY = {
    "disagreeing": (
        "{count:,} of {labels:,} labels contradicted",
        {"doc_id": "id", "label": "label", "suggested": "others say", "suspicion": "suspicion"},
    ),
    "duplicates": (
        "{count:,} near-duplicates with different labels",
        {"node": "node", "other": "and", "label": "label", "other_label": "but"}
        | {"similarity": "similarity"},
    ),
    "bleeding": (
        "Classes that run into each other",
        {"label": "class", "other": "and", "documents": "documents", "share": "share"},
    ),
    "isolated": (
        "{count:,} documents no other label reaches",
        {"doc_id": "id", "label": "label", "degree": "neighbors"},
    ),
}
Spread: TypeAlias = Callable[[Tensor], Tensor]


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
        suggested, label = self.table["suggested"], self.table["label"]
        other = (suggested != "") & (suggested != label) & self.table["suspicion"].notna()
        return self.table[other]

    def summary(self, top: int = 10) -> Group:
        """Tables of at most `top` rows for a rich console: suspects, duplicates, mixed classes."""
        check_positive_int("top", top)
        parts: list[Text | Table] = []
        for name, (title, columns) in _SUMMARY.items():
            rows = getattr(self, name)
            if len(rows) or name == "disagreeing":
                title = title.format(count=len(rows), labels=len(self.table))
                parts += [Text(title, style="bold"), _printed(rows.head(top), columns)]
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

    Raises:
        ValueError: A directed graph, no labeled document, or label sets.

    Cost: one solve, O((E + N C) iterations), if all documents are labeled; otherwise as much again
    for every 128 right sides.

    Example:
        >>> pairs = torch.tensor([[0, 0, 1, 3, 3, 4], [1, 2, 2, 4, 5, 5]])  # two triangles
        >>> edges = torch.cat([pairs, pairs.flip(0)], dim=1)
        >>> found = audit(Data(edge_index=edges, y=torch.tensor([0, 0, 1, 1, 1, 1])))
        >>> found.table["suspicion"].tolist()
        [1.0, 0.5, 0.5, 0.0, 0.0, 0.0]
        >>> found.disagreeing[["node", "label", "suggested"]].values.tolist()[0]
        [2, '1', '0']

    See also: `explain`, which names the documents that contradict a label.
    """
    check_range("duplicate_similarity", duplicate_similarity, 0.0, 1.0, open_low=True)
    documents = read_arrays(graph)
    rows = read_embeddings(graph, embeddings, documents.size)
    check_labeled(documents)
    hidden = hidden_labels(documents, normalization, eta, max_columns, probes, seed, progress)
    mass = hidden.mass.numpy()
    duplicates = _near_duplicates(documents, graph, rows, duplicate_similarity)
    table = _suspects(documents, mass, duplicates)
    confusion, bleeding = _confusion(documents, table)
    alone = np.flatnonzero(mass.sum(axis=1) <= LEAST_MASS)
    degree = np.diff(documents.adjacency.indptr)[alone]
    isolated = _described(documents, alone, {"degree": degree})
    return Audit(table, duplicates, isolated, confusion, bleeding, hidden.exact)


class Hidden(NamedTuple):
    """Label mass that arrives at every document while the label of that document is hidden.

    `mass` (N, C) float64 >= 0, with rows that sum to 1 less the mass that leaked or met no label;
    `returning` (N,), the h of seeds; `exact`, False if h was estimated.
    """

    mass: Tensor
    returning: Tensor
    exact: bool


def hidden_labels(
    documents: GraphArrays,
    normalization: str = "hub",
    eta: float = 0.2,
    max_columns: int = 512,
    probes: int = 256,
    seed: int = 0,
    progress: bool = False,
) -> Hidden:
    """Propagate with the label of every labeled document hidden in turn, for all at once.

    A seed i whose label is hidden is one more unknown. Eliminating the unlabeled documents leaves
    the equation of `audit` for it alone, with h_i the chance that a walk from i returns before it
    leaks or meets another seed. The error of an estimated h is about the mass that a label sends to
    other seeds, divided by the root of `probes`. Other documents have their usual masses.
    """
    check_positive_int("max_columns", max_columns)
    check_positive_int("probes", probes)
    layer = exact_layer(normalization, eta)
    size, edge_index, weight = documents.size, documents.edge_index, documents.edge_weight
    seeds, (source, target) = torch.from_numpy(documents.seeds), edge_index

    def spread(rows: Tensor) -> Tensor:
        return layer.propagate_labels(rows, edge_index, weight, seeds, trusted=True).values

    scaled = weight * node_factors(normalization, edge_index, weight, size)[target]
    total = scaled.new_zeros(size).index_add(0, source, scaled)
    share = scaled / torch.where(total > 0, total, 1.0)[source] / (1.0 + eta)
    walk = sparse.coo_array((share.numpy(), edge_index.numpy()), shape=(size, size))
    inner = (seeds[source] & ~seeds[target]).numpy()
    back = sparse.coo_array((walk.data[inner], (walk.row[inner], walk.col[inner])), walk.shape)

    classes = torch.from_numpy(documents.y).clamp(min=0)
    onehot = F.one_hot(classes, len(documents.names)).double()
    onehot = torch.where(seeds.unsqueeze(1), onehot, 0.0)
    values = spread(onehot)
    arrived = torch.from_numpy(walk.tocsr() @ values.numpy())
    columns = _columns(documents)
    exact = int(columns.max()) + 1 <= max_columns
    if exact:
        returning = _returning(spread, back, columns, progress)
    else:
        returning = _estimated(spread, back.tocsr(), seeds, probes, seed, progress)
    kept = torch.where(returning < _RETURNS, 1.0 - returning, torch.inf).unsqueeze(1)
    hidden = (arrived - returning.unsqueeze(1) * onehot) / kept
    # For every class alike, so that the rest does not depend on the class of the label.
    hidden = torch.where(hidden > _RESOLVED * returning.unsqueeze(1), hidden, 0.0)
    return Hidden(torch.where(seeds.unsqueeze(1), hidden, values), returning, exact)


def _columns(documents: GraphArrays) -> np.ndarray:
    """A column for every seed that touches unlabeled documents, -1 for the others (N,) int64.

    Seeds that share a column touch no common piece of unlabeled documents: their masses stay apart.
    """
    columns, piece = np.full((2, documents.size), -1, dtype=np.int64)
    free = np.flatnonzero(~documents.seeds)
    if not free.size:
        return columns
    piece[free] = connected_components(documents.adjacency[free][:, free], directed=False)[1]
    source, target = documents.edge_index.numpy()
    touch = documents.seeds[source] & (piece[target] >= 0)
    pairs = np.unique(np.stack([source[touch], piece[target[touch]]]), axis=1)
    touched: dict[int, list[int]] = defaultdict(list)  # seed -> pieces
    for node, number in pairs.T.tolist():
        touched[node].append(number)
    taken: dict[int, int] = defaultdict(int)  # piece -> its columns, as bits
    for node, pieces in touched.items():
        used = 0
        for number in pieces:
            used |= taken[number]
        bit = ~used & (used + 1)
        columns[node] = bit.bit_length() - 1
        for number in pieces:
            taken[number] |= bit
    return columns


def _returning(
    spread: Spread, back: sparse.coo_array, columns: np.ndarray, progress: bool
) -> Tensor:
    """Exact h (N,), by columns of seeds that do not meet."""
    h = np.zeros(columns.size)
    column = columns[back.row]
    for start in _steps(int(columns.max()) + 1, progress):
        nodes = np.flatnonzero((columns >= start) & (columns < start + _CHUNK))
        labels = torch.zeros(h.size, columns[nodes].max() - start + 1, dtype=torch.float64)
        labels[nodes, columns[nodes] - start] = 1.0
        edges = (column >= start) & (column < start + _CHUNK)
        values = spread(labels).numpy()[back.col[edges], column[edges] - start]
        h += np.bincount(back.row[edges], back.data[edges] * values, minlength=h.size)
    return torch.from_numpy(h).clamp(max=1.0)


def _estimated(
    spread: Spread, back: sparse.csr_array, seeds: Tensor, probes: int, seed: int, progress: bool
) -> Tensor:
    """Hutchinson's estimate of h (N,): random signs at the seeds, and the share that returns."""
    generator = torch.Generator().manual_seed(seed)
    h = torch.zeros(seeds.numel(), dtype=torch.float64)
    for start in _steps(probes, progress):
        width = min(_CHUNK, probes - start)
        sign = torch.randint(0, 2, (seeds.numel(), width), generator=generator) * 2.0 - 1.0
        sign = torch.where(seeds.unsqueeze(1), sign.double(), 0.0)
        # The layer takes only label mass >= 0.
        values = spread(sign.clamp(min=0.0)) - spread((-sign).clamp(min=0.0))
        h += (torch.from_numpy(back @ values.numpy()) * sign).sum(dim=1)
    return (h / probes).clamp(0.0, 1.0)


def _steps(total: int, progress: bool) -> Iterable[int]:
    starts = range(0, total, _CHUNK)
    silent = not progress or len(starts) < 2
    console = Console(stderr=True)
    return track(starts, "Hiding labels", console=console, transient=True, disable=silent)


def _near_duplicates(
    documents: GraphArrays, graph: Data, rows: Tensor | None, least: float
) -> pd.DataFrame:
    """Near-duplicates with different labels among neighbors and documents of equal text, O(E D)."""
    y = torch.from_numpy(documents.y)
    source, target = documents.edge_index
    apart = (source < target) & (y[source] >= 0) & (y[target] >= 0) & (y[source] != y[target])
    similarity = _similarity(documents, graph, rows, apart)
    near = similarity >= least
    ends = documents.edge_index[:, apart][:, near].T.tolist()
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


def _similarity(documents: GraphArrays, graph: Data, rows: Tensor | None, chosen: Tensor) -> Tensor:
    """Cosine similarity (n,) of the ends of the chosen edges (E,) bool, -1 if unknown."""
    if rows is not None:
        parts = documents.edge_index[:, chosen].split(_PAIRS, dim=1)
        return torch.cat(
            [F.cosine_similarity(rows[i].float(), rows[j].float(), dim=1) for i, j in parts]
        )
    weight, sigma = documents.edge_weight[chosen], graph.get("bandwidth")
    if sigma is None or not bool(torch.as_tensor(sigma).isfinite().all()):
        return torch.full_like(weight, -1.0)
    # w = exp(-d² / (2σ²)) and d² = 2 - 2 cos.
    return 1.0 + float(sigma) ** 2 * weight.clamp(min=1e-300, max=1.0).log()


def _equal_texts(documents: GraphArrays) -> list[tuple[int, int]]:
    """Documents of equal text, up to case and white space: each and the first of other labels."""
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
    label = documents.y[node]
    arrived = mass[node].sum(axis=1)
    heard = arrived > LEAST_MASS
    share = mass[node] / np.where(heard, arrived, 1.0)[:, None]
    agreeing = share[np.arange(node.size), label]
    seeds = np.bincount(documents.y[documents.seeds], minlength=len(documents.names))
    alone = seeds[label] - documents.seeds[node] <= 0  # no other label of the class
    note = np.select(
        [~heard, alone, np.isin(node, duplicates[["node", "other"]])],
        ["isolated", "only label of its class", "near-duplicate with another label"],
        "",
    )
    found = {
        "suggested": documents.named(np.where(heard, share.argmax(axis=1), -1)),
        "suspicion": np.where(heard & ~alone, 1.0 - agreeing, np.nan).clip(0.0, 1.0),
        "support": np.where(heard, share.max(axis=1, initial=0.0), 0.0),
        "mass": arrived,
        "note": note,
    }
    # Among equally suspicious labels, those first whose neighbors agree and are close.
    return _described(documents, node, found).sort_values(
        ["suspicion", "support", "mass", "node"],
        ascending=[False, False, False, True],
        ignore_index=True,
    )


def _described(documents: GraphArrays, node: np.ndarray, found: dict[str, Any]) -> pd.DataFrame:
    """A row per document with what was found about it."""
    known = {"node": node, "doc_id": documents.ids[node]}
    labels, texts = documents.named(documents.y[node]), documents.texts_of(node)
    return pd.DataFrame({**known, "label": labels, **found, "text": texts})


def _confusion(documents: GraphArrays, table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Counts by given and suggested label, and the pairs of classes that are confused."""
    known, found = table[table["suggested"] != ""], set(table["label"])
    names = [name for name in dict.fromkeys(documents.names) if name in found]
    confusion = pd.crosstab(known["label"], known["suggested"])
    confusion = confusion.reindex(index=names, columns=names, fill_value=0).astype(int)
    counts = confusion.to_numpy()
    left, right = np.triu_indices(len(names), 1)
    both, size = (counts + counts.T)[left, right], counts.sum(axis=1)
    share = both / np.maximum(size[left] + size[right], 1)
    ends = np.array(names, dtype=object)
    bleeding = pd.DataFrame(
        {"label": ends[left], "other": ends[right], "documents": both, "share": share}
    )
    bleeding = bleeding[both > 0].sort_values(
        "share", ascending=False, kind="stable", ignore_index=True
    )
    return confusion.rename_axis(index="label", columns="suggested"), bleeding


def _printed(rows: pd.DataFrame, columns: dict[str, str]) -> Table:
    """A frame as a printed table, with its texts, cut, if there are any."""
    if "text" in rows and bool((rows["text"] != "").any()):
        columns = columns | {"text": "text"}
    shown = Table()
    for name, heading in columns.items():
        right = pd.api.types.is_numeric_dtype(rows[name])
        shown.add_column(heading, justify="right" if right else "left", no_wrap=name != "text")
    for row in rows[list(columns)].itertuples(index=False):
        shown.add_row(*(escape(_cell(*cell)) for cell in zip(columns, row, strict=True)))
    return shown


def _cell(name: str, value: Any) -> str:
    if name == "text":
        return clean_text(" ".join(value[:400].split()), _TEXT)
    if name == "similarity":
        return f"{value:.3f}"
    return f"{100 * value:.1f} %" if name in ("suspicion", "share") else str(value)
