"""One interactive page of the document graph."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from scipy import sparse
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_positive_int, check_range
from gloss_graph._internal.files import atomic_write
from gloss_graph.analysis.communities import louvain_communities
from gloss_graph.analysis.matrix import GraphTable, graph_table
from gloss_graph.export.columns import text_column
from gloss_graph.visualization.layout import place_adjacency, sample_nodes
from gloss_graph.visualization.map_picture import community_looks, community_names
from gloss_graph.visualization.masses import TopMasses, top_masses
from gloss_graph.visualization.panels import ClassLook, class_looks

__all__ = ["write_html"]

_SCRIPTS = ("data.js", "view.js", "panel.js")
_ENDING = (".html", ".htm")


def write_html(
    graph: Data,
    path: str | os.PathLike[str],
    *,
    texts: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
    explanations: int = 5,
    max_nodes: int = 5000,
    max_text: int | None = 1000,
    eta: float = 0.2,
    seed: int = 0,
    title: str = "Document graph",
    overwrite: bool = False,
    progress: bool = False,
) -> Path:
    """Write the document graph as one HTML file to walk through: map, search, texts, reasons.

    The page pans, zooms and searches (text or id); a click shows a document's text, its labels,
    its neighbours and the labeled documents that decide it. It is one file that asks the network
    for nothing, which its content security policy also forbids. Texts are shown as text, whatever
    they hold; control characters become U+FFFD.

    Masses are those of harmonic propagation on the whole graph, solved before the page is written
    with one right side a labeled document (tolerance 1e-10); for a labeled document they are what
    the other labels say of it, its own hidden. The propagated label is the class of most mass.

    Args:
        graph: a document graph; `text` and `label_names` are used where present. Labels outside
            `seed_mask` are shown but decide nothing.
        path: the file, ending in `.html` or `.htm`.
        texts: the documents, in place of the graph's own.
        label_names: names of the classes, in place of the graph's own.
        explanations: labeled documents named for each document; 0 leaves masses and propagated
            labels out.
        max_nodes: with more documents a random-walk sample is on the map; masses still come from
            the whole graph.
        max_text: longest text in characters; None keeps all.
        eta: leak of the propagation; 0 lets every walk end in a label.
        seed: of sample, places and communities.
        title: of the page.
        overwrite: replace a file that is already there.
        progress: show a bar on stderr.

    Returns:
        The file.

    Raises:
        ValueError: a damaged graph, texts that are no strings or too few, or a setting out of
            range.
        FileExistsError: the file exists and `overwrite` is false.
        OSError: it cannot be written.

    Cost: the places, O(N + E) a step, and O((E + N) L) an iteration for L labels: about half a
    minute at 5,000 documents with 500 labels.

    Example:
        >>> import tempfile, torch
        >>> edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> graph = Data(edge_index=edges, y=torch.tensor([0, -1, 1]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_html(graph, Path(folder) / "graph.html", texts=["tea", "?", "rain"]).name
        'graph.html'

    See also: ``plot_communities``, for paper; ``write_graphml``, for Gephi.
    """
    target = Path(path)
    if target.suffix.lower() not in _ENDING:
        raise ValueError(f"'path' must end in .html or .htm (got {os.fspath(path)!r}).")
    check_positive_int("explanations", explanations, minimum=0)
    check_positive_int("max_nodes", max_nodes)
    if max_text is not None:
        check_positive_int("max_text", max_text)
    check_range("eta", eta, 0.0, float("inf"), open_high=True)
    table = graph_table(graph, label_names)
    size = len(table.labels)
    words = graph.get("text") if texts is None else texts
    cleaned = [""] * size if words is None else text_column(words, "texts", size, max_text)
    # Opened first: a target that cannot be written fails before minutes of work.
    with atomic_write(target, overwrite=overwrite) as draft:
        rows = _sample(table.adjacency, max_nodes, seed)
        masses = None
        if explanations and table.seeds.any():
            masses = top_masses(table, rows, top=explanations, eta=eta, progress=progress)
        content = _content(table, rows, masses, cleaned, seed)
        content |= {"title": title, "eta": eta}
        draft.write(_page(title, content).encode("utf-8", "backslashreplace"))
    return target


def _sample(adjacency: sparse.csr_array, max_nodes: int, seed: int) -> np.ndarray:
    size = adjacency.shape[0]
    if size <= max_nodes:
        return np.arange(size)
    graph = nx.from_scipy_sparse_array(adjacency)
    return np.array(sample_nodes(graph, max_nodes, seed=seed), dtype=np.int64)


def _content(
    table: GraphTable, rows: np.ndarray, masses: TopMasses | None, texts: list[str], seed: int
) -> dict[str, Any]:
    """What the page knows, as JSON types; documents by their place in `docs`."""
    shown = len(rows)
    cut = sparse.csr_array(table.adjacency[rows][:, rows])
    ends = cut.tocoo()
    one_way = ends.row < ends.col
    part = table._replace(adjacency=cut, labels=table.labels[rows])
    communities = louvain_communities(cut, seed=seed)
    named = community_names(communities, part)
    deciding = np.unique(masses.nodes[masses.nodes >= 0]) if masses else np.empty(0, np.int64)
    # Labeled documents that decide but are not on the map follow those that are.
    listed = np.concatenate([rows, np.setdiff1d(deciding, rows)])
    place = np.full(len(table.labels), -1, dtype=np.int64)
    place[listed] = np.arange(listed.size)
    content: dict[str, Any] = {
        "total": len(table.labels),
        "shown": shown,
        "labels": _coloring(
            part.labels, _class_names(table), class_looks(part.labels, table.names)
        ),
        "communities": _coloring(communities, named, community_looks(communities, named)),
        "docs": {
            "id": table.ids[listed].tolist(),
            "text": [texts[i] for i in listed],
            "label": table.labels[listed].tolist(),
            "seed": table.seeds[listed].astype(int).tolist(),
            "community": communities.tolist(),
            "degree": np.diff(table.adjacency.indptr)[listed].tolist(),
            "place": np.round(place_adjacency(cut, seed=seed, iterations=400), 4).tolist(),
        },
        "edges": {
            "from": ends.row[one_way].tolist(),
            "to": ends.col[one_way].tolist(),
            "weight": _rounded(ends.data[one_way]),
        },
        "masses": None,
    }
    if masses is not None:
        content["docs"]["propagated"] = masses.propagated.tolist()
        content["masses"] = {
            "by": [[int(place[j]) for j in line if j >= 0] for line in masses.nodes],
            "mass": [
                _rounded(mass[nodes >= 0])
                for nodes, mass in zip(masses.nodes, masses.mass, strict=True)
            ],
            "classes": [_rounded(line) for line in masses.by_class],
        }
    return content


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]


def _class_names(table: GraphTable) -> list[str]:
    if table.names is not None:
        return table.names
    return [str(label) for label in range(int(table.labels.max(initial=-1)) + 1)]


def _coloring(
    values: np.ndarray, names: Sequence[str], looks: Sequence[ClassLook]
) -> dict[str, Any]:
    """Names of the values, the looks they are drawn in and which look each value has."""
    look_of = [-1] * len(names)
    for place, look in enumerate(looks):
        for value in np.unique(values[look.members]).tolist():
            if value >= 0:
                look_of[value] = place
    drawn = [
        {"name": look.name, "color": look.color, "marker": look.marker}
        for look in looks
        if not look.hollow
    ]
    return {"names": list(names), "looks": drawn, "look": look_of}


def _page(title: str, content: dict[str, Any]) -> str:
    """Fill the template; only the three pieces named by hash may style or run."""
    style = _part("page.css")
    script = "\n".join(_part(name) for name in _SCRIPTS)
    # "<" never stands in the data, so no text can close the element or open a comment.
    data = json.dumps(content, separators=(",", ":"), allow_nan=False)
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    values = {
        "TITLE": html.escape(title),
        "STYLE": style,
        "STYLE_HASH": _hash(style),
        "SCRIPT": script,
        "SCRIPT_HASH": _hash(script),
        "DATA": data,
    }
    # One pass over the template: nothing a document says is taken for a key.
    pieces = re.split(r"@([A-Z_]+)@", _part("page.html"))
    pieces[1::2] = [values[key] for key in pieces[1::2]]
    return "".join(pieces)


def _part(name: str) -> str:
    return (files("gloss_graph.visualization") / "page_parts" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(
        hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()
    ).decode("ascii")
