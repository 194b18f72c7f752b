"""The labeled documents that decided a document's propagated label, with their mass."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
import pandas as pd
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_positive_int
from gloss_graph._internal.moved import moved_names
from gloss_graph.analysis.label_masses import check_labeled, node_masses
from gloss_graph.export.attributes import clean_text
from gloss_graph.export.graph_arrays import read_arrays

#: Kinds of rows of `NodeExplanation.table`.
DOCUMENT, OTHERS, PRIOR, UNREACHABLE = "document", "other documents", "prior", "unreachable"
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
        left = pd.DataFrame([row], columns=self.table.columns)
        parts = [self.table[kept], left, self.table[~kept & ~others]]
        return replace(self, table=pd.concat(parts, ignore_index=True))

    def to_networkx(self) -> nx.Graph:
        """A bipartite graph: the document (`bipartite` 0) and the rows of `table` (1).

        Nodes are positions, or the kind of a row that is not a document; edges have the mass as
        `weight`. All attributes are plain values.
        """
        graph = nx.Graph()
        explained = {"kind": "explained", "doc_id": self.doc_id, "label": self.label}
        text = clean_text(self.text)
        graph.add_node(self.node, bipartite=0, **explained, predicted=self.predicted, text=text)
        for row in self.table.itertuples(index=False):
            name = int(row.node) if row.kind == DOCUMENT else str(row.kind)
            known = {"kind": str(row.kind), "doc_id": int(row.doc_id), "label": str(row.label)}
            text = clean_text(str(row.text))
            graph.add_node(name, bipartite=1, **known, predicted="", text=text)
            graph.add_edge(self.node, name, weight=float(row.mass))
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
            what = f"{row.label}  {clean_text(str(row.text), 80)}"
            what = f"{row.doc_id}  {what}".rstrip() if row.kind == DOCUMENT else row.kind
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

    Returns:
        The explanation. If no label can be reached all mass is on `"prior"`, or on
        `"unreachable"` for `eta = 0`.

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
    mass, leaked, reached = node_masses(documents, node, normalization, eta)
    order = mass.argsort(kind="stable")[::-1]
    order = order[mass[order] > 0]
    rest = {PRIOR: leaked, UNREACHABLE: 0.0 if reached or eta > 0 else 1.0}
    rest = {kind: left for kind, left in rest.items() if left > 0}
    nowhere, blank = [-1] * len(rest), [""] * len(rest)
    table = pd.DataFrame(
        {
            "kind": [DOCUMENT] * order.size + list(rest),
            "node": order.tolist() + nowhere,
            "doc_id": documents.ids[order].tolist() + nowhere,
            "label": documents.named(documents.y[order]) + blank,
            "mass": mass[order].tolist() + list(rest.values()),
            "text": documents.texts_of(order) + blank,
        }
    )
    classes = pd.Series(
        {name: mass[documents.y == c].sum() for c, name in enumerate(documents.names)},
        name="mass",
        dtype=float,
    )
    classes = classes[classes > 0].sort_values(ascending=False, kind="stable")
    whole = NodeExplanation(
        node=node,
        doc_id=int(documents.ids[node]),
        label=documents.name(int(documents.y[node])),
        text=documents.text_of(node),
        predicted=str(classes.index[0]) if len(classes) else "",
        classes=classes,
        table=table,
    )
    return whole if top is None else whole.head(top)
