"""The labeled documents that decide the propagated labels of documents, with their mass."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from scipy import linalg, sparse
from scipy.sparse.csgraph import connected_components
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_choice, check_positive_int, check_range
from gloss_graph._internal.moved import moved_names
from gloss_graph.export.attributes import clean_text
from gloss_graph.export.graph_arrays import GraphArrays, read_arrays
from gloss_graph.propagation import LabelPropagation, node_factors

#: Kinds of rows of `NodeExplanation.table`.
DOCUMENT, OTHERS, PRIOR, UNREACHABLE = "document", "other documents", "prior", "unreachable"
#: With less mass, a document counts as one that no label reaches.
LEAST_MASS = 1e-12
_BLOCK = 256  # labels whose masses are solved for at a time
# Up to this many unlabeled documents their system is factored once, dense, for all labels: seconds
# where iterations for thousands of labels take minutes.
_DENSE = 5000
_moved = moved_names(__name__, {"gloss_graph.visualization": ["plot_explanation"]})


@dataclass(frozen=True)
class NodeExplanation:
    """Why propagation gives a document its label.

    Attributes:
        node: Position of the document in the graph.
        doc_id: Its identity.
        label: Its label, "" for none; it is hidden from the propagation.
        text: Its text, "" if the graph has none.
        predicted: The class with the most mass, "" if no label reaches the document.
        classes: Class -> mass of its labels, descending, without the prior.
        table: A row per deciding document, `kind`, `node`, `doc_id`, `label`, `mass`, `text`, by
            mass; then the rest, so that `mass` sums to 1: `"other documents"` beyond `top`,
            `"prior"` (mass that leaked), `"unreachable"` (no label can be reached and nothing
            leaks). `node` and `doc_id` of these are -1.
    """

    node: int
    doc_id: int
    label: str
    text: str
    predicted: str
    classes: pd.Series
    table: pd.DataFrame

    def head(self, top: int) -> NodeExplanation:
        """The `top` documents of most mass; the others are summed in `"other documents"`."""
        check_positive_int("top", top)
        document = self.table["kind"] == DOCUMENT
        kept = document & (document.cumsum() <= top)
        if kept.equals(document):
            return self
        others = (document & ~kept) | (self.table["kind"] == OTHERS)
        row = (OTHERS, -1, -1, "", self.table["mass"][others].sum(), "")
        summed = pd.DataFrame([row], columns=self.table.columns)
        parts = [self.table[kept], summed, self.table[~kept & ~others]]
        return replace(self, table=pd.concat(parts, ignore_index=True))

    def to_networkx(self) -> nx.Graph:
        """A bipartite graph: the document (`bipartite` 0) and the rows of `table` (1).

        Nodes are positions, or the kind of a row that is not a document; edges have the mass as
        `weight`. All attributes are plain values.
        """
        graph = nx.Graph()
        known = {"kind": "explained", "doc_id": self.doc_id, "label": self.label}
        known |= {"predicted": self.predicted, "text": clean_text(self.text)}
        graph.add_node(self.node, bipartite=0, **known)
        for kind, node, doc_id, label, mass, text in self.table.itertuples(index=False):
            name = node if kind == DOCUMENT else kind
            known = {"kind": kind, "doc_id": doc_id, "label": label}
            graph.add_node(name, bipartite=1, **known, predicted="", text=clean_text(text))
            graph.add_edge(self.node, name, weight=mass)
        return graph

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the explanation; deprecated, call `gloss_graph.visualization.plot_explanation`."""
        warnings.warn(
            "NodeExplanation.plot is deprecated. Call plot_explanation(explanation, path) from "
            "gloss_graph.visualization.",
            DeprecationWarning,
            stacklevel=2,
        )
        return _moved("plot_explanation")(self, path)

    def __str__(self) -> str:
        labeled = f", labeled {self.label}" if self.label else ""
        lines = [f"Document {self.doc_id}{labeled}: {self.predicted or 'no label reaches it'}"]
        for row in self.table.itertuples(index=False):
            what = f"{row.doc_id}  {row.label}  {clean_text(row.text, 80)}".rstrip()
            what = what if row.kind == DOCUMENT else row.kind
            lines.append(f"  {100 * row.mass:5.1f} %  {what}".replace("\n", " "))
        return "\n".join(lines)


def explain(
    graph: Data, node: int, *, normalization: str = "hub", eta: float = 0.2, top: int | None = 10
) -> NodeExplanation:
    r"""Find the labeled documents that decided a document's propagated label.

    Harmonic propagation gives document i the mean of the labels at which a random walk from i is
    absorbed, so the mass of labeled document j is the chance of ending there,
    \(\partial F_i / \partial y_j\): one adjoint solve of the same system, exact to rounding.
    With `eta > 0` the walk stops with chance eta / (1 + eta) at every step, and that mass goes to
    the class prior. A labeled document is explained with its label hidden.

    Labels are those of `seed_mask`; `node` is a position, 0..N-1. The normalization `"hub"` takes
    weight from hubs, `"row"` does not. The table has at most `top` documents; None keeps all that
    have any mass.

    If no label can be reached all mass is on `"prior"`, or on `"unreachable"` for `eta = 0`.

    Raises:
        ValueError: A directed graph, no document of that number, no labeled document, or label
            sets.

    Cost: O(E · iterations); a fraction of a second at 20,000 documents.

    Example:
        >>> import torch
        >>> edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> graph = Data(edge_index=edges, y=torch.tensor([0, -1, 1]))
        >>> explain(graph, 1, eta=0.0).table["mass"].tolist()
        [0.5, 0.5]

    See also: `plot_explanation`, for a picture; `audit`, which hides every label in turn;
    `GraphGuidedObjective.explain`, for documents that are not in a graph yet.
    """
    documents = read_arrays(graph)
    if isinstance(node, bool) or not isinstance(node, int) or not 0 <= node < documents.size:
        raise ValueError(
            f"'node' must be a document of the graph, 0..{documents.size - 1} (got {node!r}). "
            "Give its position, not its doc_id."
        )
    if top is not None:
        check_positive_int("top", top)
    check_labeled(documents)
    mass, leaked, reached = _node_masses(documents, node, normalization, eta)
    order = mass.argsort(kind="stable")[::-1]
    order = order[mass[order] > 0]
    labels, texts = documents.named(documents.y[order]), documents.texts_of(order)
    rows = [
        (DOCUMENT, i, documents.ids[i], label, mass[i], text)
        for i, label, text in zip(order.tolist(), labels, texts, strict=True)
    ]
    rest = {PRIOR: leaked, UNREACHABLE: float(not reached and eta == 0)}
    rows += [(kind, -1, -1, "", left, "") for kind, left in rest.items() if left > 0]
    by_class = {name: mass[documents.y == c].sum() for c, name in enumerate(documents.names)}
    classes = pd.Series(by_class, name="mass", dtype=float)
    classes = classes[classes > 0].sort_values(ascending=False, kind="stable")
    whole = NodeExplanation(
        node=node,
        doc_id=int(documents.ids[node]),
        label=documents.name(documents.y[node]),
        text=documents.text_of(node),
        predicted=str(classes.index[0]) if len(classes) else "",
        classes=classes,
        table=pd.DataFrame(rows, columns=["kind", "node", "doc_id", "label", "mass", "text"]),
    )
    return whole if top is None else whole.head(top)


def check_labeled(documents: GraphArrays) -> None:
    """Raise for a graph without a label that propagates."""
    if not documents.seeds.any():
        raise ValueError(
            "'graph' must hold a labeled document (got none: every 'y' is -1 or outside "
            "'seed_mask'). Label some documents first."
        )


def exact_layer(normalization: str, eta: float, prior: str | None = "none") -> LabelPropagation:
    """A harmonic layer whose solve is exact to rounding and whose values are shares of mass."""
    check_choice("normalization", normalization, ("hub", "row"))
    check_range("eta", eta, 0.0, float("inf"), open_high=True)
    return LabelPropagation(
        "harmonic", normalization, eta=eta, prior=prior, tol=1e-11, max_iter=20_000
    )


def _node_masses(
    documents: GraphArrays, node: int, normalization: str, eta: float
) -> tuple[np.ndarray, float, bool]:
    """Mass of every document at one (N,), the mass that leaked, and whether a label is reached."""
    layer = exact_layer(normalization, eta, prior=None)
    seeds = torch.from_numpy(documents.seeds.copy())
    seeds[node] = False
    # The values of labels and prior do not matter, only their gradients.
    labels = torch.zeros(documents.size, 1, dtype=torch.float64, requires_grad=True)
    prior = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        solved = layer.propagate_labels(
            labels, documents.edge_index, documents.edge_weight, seeds, trusted=True, prior=prior
        )
        value = solved.values[node, 0]
        if not value.requires_grad:
            return np.zeros(documents.size), 0.0, False
        masses, leaked = torch.autograd.grad(
            value, (labels, prior), allow_unused=True, materialize_grads=True
        )
    return masses.squeeze(1).clamp(min=0.0).numpy(), float(leaked), bool(solved.reached[node])


class TopMasses(NamedTuple):
    """The T labeled documents that decide n documents, largest mass first, padded with -1.

    Rows of `by_class` (n, C), of all labeled documents, sum to 1 less what leaked or met no label.
    """

    nodes: np.ndarray
    mass: np.ndarray
    by_class: np.ndarray

    @property
    def propagated(self) -> np.ndarray:
        """Class of the largest mass (n,), -1 where no label reaches."""
        if not self.by_class.shape[1]:
            return np.full(len(self.nodes), -1, dtype=np.int64)
        reached = self.by_class.max(axis=1) > LEAST_MASS
        return np.where(reached, self.by_class.argmax(axis=1), -1)


@torch.no_grad()
def top_masses(
    documents: GraphArrays,
    rows: np.ndarray,
    *,
    top: int = 5,
    eta: float = 0.2,
    normalization: str = "hub",
    progress: bool = False,
) -> TopMasses:
    r"""Find the `top` labeled documents of largest mass at each of the documents `rows` (n,).

    The mass of label j at i is the chance that a walk from i ends in j: one right side per label
    gives the masses M (U, L) of unlabeled documents. With \(K = S_{ll} + S_{lu} M\) and a the
    diagonal of the system, that of j at a labeled i, its label hidden, is
    \(K_{ij} / (a_i - K_{ii})\), without a further solve. Masses are exact to rounding or the
    solver's tolerance of 1e-11.

    Cost: with L labels that touch some of U unlabeled documents O(U³ + U² L) for U up to 5,000,
    O((E + N) L iterations) beyond, in blocks of O(256 N) memory.
    """
    size, count = documents.size, len(rows)
    seeds = np.flatnonzero(documents.seeds)
    nodes = np.full((count, top), -1, dtype=np.int64)
    mass = np.zeros((count, top))
    by_class = np.zeros((count, int(documents.y.max(initial=-1)) + 1))
    if not seeds.size or not count:
        return TopMasses(nodes, mass, by_class)
    layer = exact_layer(normalization, eta)
    entries = documents.links.tocoo()
    edges = torch.from_numpy(np.stack([entries.row, entries.col]).astype(np.int64))
    weight = torch.from_numpy(entries.data)
    factor = sparse.diags_array(node_factors(normalization, edges, weight, size).numpy())
    scaled = sparse.csr_array(factor @ documents.links @ factor)
    every = (1 + eta) * np.asarray(scaled.sum(axis=1)).ravel()
    diagonal, outward = every[rows], scaled[rows]
    # Only labels with an unlabeled neighbor send mass through others.
    touching = scaled @ (~documents.seeds).astype(float) > 0
    dense = _factored(documents, scaled, every) if touching[seeds].any() else None

    def spread(block: np.ndarray) -> np.ndarray:
        """Masses (N, b) of the labels `block` at all documents."""
        values = np.zeros((size, block.size))
        values[block, np.arange(block.size)] = 1.0
        some = touching[block]
        if not some.any():
            return values
        if dense is None:
            y, seen = torch.from_numpy(values[:, some]), torch.from_numpy(documents.seeds)
            solved = layer.propagate_labels(y, edges, weight, seen, trusted=True)
            values[:, some] = solved.values.numpy()
        else:
            free, solve = dense
            values[np.ix_(free, some)] = solve(scaled[free][:, block[some]].toarray())
        return values

    labeled = documents.seeds[rows]
    back = np.zeros(count)  # what returns to a labeled document, K_ii
    starts = range(0, seeds.size, _BLOCK)
    console = Console(stderr=True)
    for start in track(starts, "explanations", console=console, disable=not progress):
        block = seeds[start : start + _BLOCK]
        values = spread(block)
        found = np.maximum(values[rows], 0.0)
        found[labeled] = np.maximum((outward @ values)[labeled], 0.0)
        itself = rows[:, None] == block
        back[itself.any(axis=1)] = found[itself]
        found[itself] = 0.0
        for label in np.unique(documents.y[block]):
            by_class[:, label] += found[:, documents.y[block] == label].sum(axis=1)
        joined = np.concatenate([mass, found], axis=1)
        order = np.argsort(-joined, axis=1, kind="stable")[:, :top]
        names = np.concatenate([nodes, np.broadcast_to(block, (count, block.size))], axis=1)
        mass = np.take_along_axis(joined, order, axis=1)
        nodes = np.take_along_axis(names, order, axis=1)

    # A labeled document that meets only itself gets no mass.
    rest = np.where(labeled, diagonal - back, 1.0)
    scale = np.where(rest > 1e-9 * np.maximum(diagonal, 1e-300), 1 / np.maximum(rest, 1e-300), 0.0)
    mass, by_class = mass * scale[:, None], by_class * scale[:, None]
    return TopMasses(np.where(mass > LEAST_MASS, nodes, -1), mass, by_class)


def _factored(
    documents: GraphArrays, scaled: sparse.csr_array, diagonal: np.ndarray
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]] | None:
    """Unlabeled documents that labels reach and a solver of their system; None if too large."""
    _, part = connected_components(scaled, directed=False)
    free = np.flatnonzero(~documents.seeds & np.isin(part, part[documents.seeds]))
    pivot = diagonal[free]
    # A diagonal that underflows leaves nothing to divide by.
    if free.size > _DENSE or not (pivot > np.finfo(float).tiny).all():
        return None
    root = pivot[:, None] ** -0.5
    matrix = -(root * scaled[free][:, free].toarray() * root.T)
    matrix[np.diag_indices(free.size)] += 1.0
    try:
        factor = linalg.cho_factor(matrix, overwrite_a=True)
    except linalg.LinAlgError:
        return None  # weights of very different size
    return free, lambda right: root * linalg.cho_solve(factor, root * right)
