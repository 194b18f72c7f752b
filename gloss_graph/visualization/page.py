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
from gloss_graph.analysis.label_masses import TopMasses, top_masses
from gloss_graph.analysis.measures import louvain_communities
from gloss_graph.analysis.words import group_words
from gloss_graph.export.attributes import text_column
from gloss_graph.export.graph_arrays import GraphArrays, read_arrays
from gloss_graph.visualization import style
from gloss_graph.visualization.graph_pictures import community_looks, community_names
from gloss_graph.visualization.layout import place_adjacency, sample_nodes

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
    """Write the document graph as one interactive HTML file: map, search, texts, reasons.

    The page pans, zooms and searches (text or id); a click shows a document's text, labels and
    neighbors, and the labeled documents that decide it. It is one file that loads nothing from the
    network, which its content security policy also forbids. Texts are always shown as text;
    control characters become U+FFFD.

    Masses are those of harmonic propagation on the whole graph, solved before the page is written
    with one right side per labeled document (tolerance 1e-10); those of a labeled document hide
    its label. The propagated label is the class with the most mass.

    Labels outside `seed_mask` are shown but decide nothing. `texts`, shortened to `max_text`
    characters, and `label_names` replace those of the graph. With more documents than `max_nodes`
    the map shows a random-walk sample; masses still come from the whole graph. A document has
    `explanations` deciding documents; 0 leaves out masses and propagated labels. With a leak `eta`
    of 0 every walk ends in a label. `progress` shows a bar on stderr.

    The path ends in `.html` or `.htm`; an existing file is replaced only with `overwrite`.

    Raises:
        ValueError: A directed or damaged graph, texts that are not strings or of another number,
            or a setting out of range.
        FileExistsError: The file exists and `overwrite` is false.
        OSError: The file cannot be written.

    Cost: the places, O(N + E) per step, and O((E + N) L) per iteration for L labels: about half a
    minute at 5,000 documents with 500 labels.

    Example:
        >>> import tempfile, torch
        >>> edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> graph = Data(edge_index=edges, y=torch.tensor([0, -1, 1]))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_html(graph, Path(folder) / "graph.html", texts=["tea", "?", "rain"]).name
        'graph.html'

    See also: `plot_communities`, for paper; `write_graph`, for Gephi.
    """
    target = Path(path)
    if target.suffix.lower() not in _ENDING:
        raise ValueError(f"'path' must end in .html or .htm (got {os.fspath(path)!r}).")
    check_positive_int("explanations", explanations, minimum=0)
    check_positive_int("max_nodes", max_nodes)
    if max_text is not None:
        check_positive_int("max_text", max_text)
    check_range("eta", eta, 0.0, float("inf"), open_high=True)
    documents = read_arrays(graph, label_names)
    words = graph.get("text") if texts is None else texts
    cleaned = [""] * documents.size
    if words is not None:
        cleaned = text_column(words, "texts", documents.size, max_text)
    # A target that cannot be written fails before minutes of work.
    with atomic_write(target, overwrite=overwrite) as draft:
        rows = np.arange(documents.size)
        if rows.size > max_nodes:
            links = nx.from_scipy_sparse_array(documents.links)
            rows = np.array(sample_nodes(links, max_nodes, seed=seed), dtype=np.int64)
        masses = None
        if explanations and documents.seeds.any():
            masses = top_masses(documents, rows, top=explanations, eta=eta, progress=progress)
        content = _content(documents, rows, masses, cleaned, seed)
        content |= {"title": title, "eta": eta}
        draft.write(_page(title, content).encode("utf-8", "backslashreplace"))
    return target


def _content(
    documents: GraphArrays, rows: np.ndarray, masses: TopMasses | None, texts: list[str], seed: int
) -> dict[str, Any]:
    """The data of the page as JSON types; documents are named by their place in `docs`."""
    shown = len(rows)
    cut = sparse.csr_array(documents.links[rows][:, rows])
    ends = cut.tocoo()
    one_way = ends.row < ends.col
    y = documents.y[rows]
    communities = louvain_communities(cut, seed=seed)
    named = community_names(communities, y, documents.names)
    shown_texts = [texts[i] for i in rows]
    deciding = np.unique(masses.nodes[masses.nodes >= 0]) if masses else np.empty(0, np.int64)
    # Deciding documents that are not on the map follow those that are.
    listed = np.concatenate([rows, np.setdiff1d(deciding, rows)])
    place = np.full(documents.size, -1, dtype=np.int64)
    place[listed] = np.arange(listed.size)
    content: dict[str, Any] = {
        "total": documents.size,
        "shown": shown,
        "labels": _coloring(y, documents.names, style.class_looks(y, documents.names), shown_texts),
        "communities": _coloring(
            communities, named, community_looks(communities, named), shown_texts
        ),
        "docs": {
            "id": documents.ids[listed].tolist(),
            "text": [texts[i] for i in listed],
            "label": documents.y[listed].tolist(),
            "seed": documents.seeds[listed].astype(int).tolist(),
            "community": communities.tolist(),
            "degree": np.diff(documents.links.indptr)[listed].tolist(),
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


def _coloring(
    values: np.ndarray,
    names: Sequence[str],
    looks: Sequence[style.ClassLook],
    texts: list[str],
) -> dict[str, Any]:
    """Names of the values, the looks with the most telling words, and the look of each value."""
    words = group_words(texts, values, top=4)
    look_of = [-1] * len(names)
    drawn = []
    for place, look in enumerate(looks):
        members = np.unique(values[look.members]).tolist()
        if look.hollow:
            continue
        for value in members:
            look_of[value] = place
        telling = ", ".join(words[members[0]]) if len(members) == 1 else ""
        kept = {"name": look.name, "color": look.color, "marker": look.marker}
        drawn.append({**kept, "words": telling})
    return {"names": list(names), "looks": drawn, "look": look_of}


def _page(title: str, content: dict[str, Any]) -> str:
    """Fill the template; only the pieces that it names by hash may style or run."""
    css = _part("page.css")
    script = "\n".join(_part(name) for name in _SCRIPTS)
    # Without "<" in the data no text can close the element or open a comment.
    data = json.dumps(content, separators=(",", ":"), allow_nan=False)
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    values = {
        "TITLE": html.escape(title),
        "STYLE": css,
        "STYLE_HASH": _hash(css),
        "SCRIPT": script,
        "SCRIPT_HASH": _hash(script),
        "DATA": data,
    }
    # One pass over the template, so that no document can hold a key.
    pieces = re.split(r"@([A-Z_]+)@", _part("page.html"))
    pieces[1::2] = [values[key] for key in pieces[1::2]]
    return "".join(pieces)


def _part(name: str) -> str:
    return (files("gloss_graph.visualization") / "page_parts" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(
        hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()
    ).decode("ascii")
