"""One interactive page of the document graph."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex
from scipy import sparse
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_positive_int, check_range
from gloss_graph._internal.files import atomic_write
from gloss_graph.analysis.explanation import TopMasses, top_masses
from gloss_graph.analysis.measures import group_words, louvain_communities
from gloss_graph.export.attributes import clean_text
from gloss_graph.export.graph_arrays import GraphArrays, read_arrays
from gloss_graph.export.networkx_graphs import data_columns, with_given
from gloss_graph.visualization import style
from gloss_graph.visualization.graph_pictures import community_names
from gloss_graph.visualization.layout import edge_list, place_nodes, sample_nodes

__all__ = ["write_html"]

_SCRIPTS = ("data.js", "view.js", "select.js", "panel.js")
# Columns of the graph that the page shows in another way.
_SHOWN = {"doc_id", "text", "label", "predicted", "seed"}
_STEPS = 8  # of a color scale, about


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
    neighbors, and the labeled documents that decide it. A box or a lasso selects documents, which
    can be saved as CSV; labels can be corrected and saved as a CSV file that `read_table` takes,
    texts as the page holds them. It loads nothing from the network, which its content security
    policy also forbids; control characters in texts become U+FFFD.

    Colors show the label, the propagated label, the community, the number of neighbors, how far
    the other labels contradict a label (`suspicion`, see `audit`) or agree on the propagated one
    (`confidence`), and every column of the graph that `to_networkx` keeps: `predicted` (with
    `correct`), `split`, any tensor (N,) or list of N strings. Numbers get a color scale.

    Masses are those of harmonic propagation on the whole graph with one right side per labeled
    document (tolerance 1e-10); those of a labeled document hide its label. The propagated label is
    the class with the most mass. With a leak `eta` of 0 every walk ends in a label.

    Labels outside `seed_mask` are shown but decide nothing. `texts`, shortened to `max_text`
    characters, and `label_names` replace those of the graph. With more documents than `max_nodes`
    the map shows a random-walk sample; masses still come from the whole graph. A document has
    `explanations` deciding documents; 0 leaves out masses and propagated labels.

    Raises:
        ValueError: A path without `.html` or `.htm`, a directed or damaged graph, texts that are
            not strings or of another number, or a setting out of range.
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
    """
    target = Path(path)
    if target.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"'path' must end in .html or .htm (got {os.fspath(path)!r}).")
    check_positive_int("explanations", explanations, minimum=0)
    check_positive_int("max_nodes", max_nodes)
    check_range("eta", eta, 0.0, float("inf"), open_high=True)
    documents = read_arrays(graph, label_names)
    named = with_given(graph, {"text": texts, "label_names": label_names})
    known = data_columns(named, max_text).nodes
    # A target that cannot be written fails before minutes of work.
    with atomic_write(target, overwrite=overwrite) as draft:
        rows = np.arange(documents.size)
        if rows.size > max_nodes:
            links = nx.from_scipy_sparse_array(documents.links)
            rows = np.array(sample_nodes(links, max_nodes, seed=seed), dtype=np.int64)
        masses = None
        if explanations and documents.seeds.any():
            masses = top_masses(documents, rows, top=explanations, eta=eta, progress=progress)
        content = _content(documents, rows, masses, known, seed)
        cut = max_text is not None and any(len(text) > max_text for text in named.get("text") or ())
        content |= {"title": title, "max_text": max_text if cut else None}
        draft.write(_page(title, content).encode("utf-8", "backslashreplace"))
    return target


def _content(
    documents: GraphArrays,
    rows: np.ndarray,
    masses: TopMasses | None,
    known: Mapping[str, list[Any]],
    seed: int,
) -> dict[str, Any]:
    """The data of the page as JSON types; documents are named by their place in `docs`."""
    deciding = masses.nodes[masses.nodes >= 0] if masses else np.empty(0, np.int64)
    # Deciding documents that are not on the map follow those that are.
    listed = np.concatenate([rows, np.setdiff1d(deciding, rows)])
    links = sparse.csr_array(documents.links[rows][:, rows])
    ends, weight = edge_list(links)
    degree = np.diff(documents.links.indptr)
    texts = known.get("text", [""] * documents.size)
    columns = _columns(documents, rows, listed, masses, known)
    communities = louvain_communities(links, seed=seed)
    names = community_names(communities, documents.y[rows], documents.names)
    columns["community"] = _groups(communities, names, missing="isolated", word="community")
    for column in (columns["label"], columns["community"]):
        words = group_words([texts[i] for i in rows.tolist()], column["values"][: len(rows)], top=4)
        for number, look in enumerate(column["looks"]):
            members = [value for value, at in enumerate(column["look_of"]) if at == number]
            look["words"] = ", ".join(words.get(members[0], ())) if len(members) == 1 else ""
    numbers = {} if masses is None else _doubts(documents, rows, masses)
    for name, values in (numbers | {"neighbors": degree[rows]}).items():
        columns[name] = _numbers(values)
    for name, given in known.items():
        picked = [given[i] for i in rows.tolist()]
        if name in _SHOWN:
            continue
        if picked and all(type(value) in (int, float) for value in picked):
            columns[name] = _numbers(np.array(picked, dtype=np.float64))
        else:
            told = [("no", "yes")[v] if isinstance(v, bool) else str(v) for v in picked]
            names = sorted(set(told) - {""})
            columns[name] = _groups(_codes(told, names), names)
    content: dict[str, Any] = {
        "total": documents.size,
        "shown": len(rows),
        "palette": style.PALETTE,
        "columns": [{"name": name, **column} for name, column in columns.items()],
        "docs": {
            "id": documents.ids[listed].tolist(),
            "text": [texts[i] for i in listed.tolist()],
            "seed": documents.seeds[listed].astype(int).tolist(),
            "degree": degree[listed].tolist(),
            "place": np.round(place_nodes(links, seed=seed, iterations=400), 4).tolist(),
        },
        "edges": {
            "from": ends[:, 0].tolist(),
            "to": ends[:, 1].tolist(),
            "weight": _rounded(weight),
        },
        "masses": None,
    }
    if masses is not None:
        place = dict(zip(listed.tolist(), range(listed.size), strict=True))
        lines = list(zip(masses.nodes, masses.mass, strict=True))
        content["masses"] = {
            "by": [[place[node] for node in nodes.tolist() if node >= 0] for nodes, _ in lines],
            "mass": [_rounded(mass[nodes >= 0]) for nodes, mass in lines],
            "classes": [_rounded(line) for line in masses.by_class],
        }
    return content


def _columns(
    documents: GraphArrays,
    rows: np.ndarray,
    listed: np.ndarray,
    masses: TopMasses | None,
    known: Mapping[str, list[Any]],
) -> dict[str, dict[str, Any]]:
    """The columns that hold classes, which share their colors; the label comes first."""
    names, y = list(documents.names), documents.y[rows]
    classes = {"label": documents.y[listed]}
    if masses is not None:
        classes["propagated"] = masses.propagated
    if "predicted" in known:
        guesses = ["" if known["predicted"][i] == -1 else str(known["predicted"][i]) for i in rows]
        names += sorted(set(guesses) - {"", *map(clean_text, names)})
        classes["predicted"] = _codes(guesses, [clean_text(name) for name in names])
    every = np.concatenate(list(classes.values()))
    missing = {"label": "unlabeled", "propagated": "no label reaches it"}
    columns = {
        name: _groups(values, names, every, missing.get(name, "none"), "class")
        for name, values in classes.items()
    }
    if "predicted" in known:
        right = np.where(y >= 0, (y != classes["predicted"]).astype(np.int64), -1)
        columns["correct"] = _groups(right, ["yes", "no"], missing="unlabeled")
    return columns


def _doubts(documents: GraphArrays, rows: np.ndarray, masses: TopMasses) -> dict[str, np.ndarray]:
    """How far the others contradict a label, and the share of the propagated class; else NaN."""
    y, total = documents.y[rows], masses.by_class.sum(axis=1)
    share = masses.by_class / np.where(masses.propagated >= 0, total, np.nan)[:, None]
    # As in an audit: no other label could support the only one of its class.
    others = np.bincount(documents.y[documents.seeds], minlength=share.shape[1])[y]
    told = (y >= 0) & (others > documents.seeds[rows])
    suspicion = np.where(told, 1 - share[np.arange(len(rows)), y], np.nan).clip(0, 1)
    return {"suspicion": suspicion.round(4), "confidence": share.max(axis=1, initial=0).round(4)}


def _codes(words: Sequence[str], names: Sequence[str]) -> np.ndarray:
    """First place of every word among the names, -1 for none."""
    code = {name: place for place, name in reversed(list(enumerate(names)))}
    return np.array([code.get(word, -1) for word in words], dtype=np.int64)


def _groups(
    values: np.ndarray,
    names: Sequence[str],
    every: np.ndarray | None = None,
    missing: str = "none",
    word: str = "value",
) -> dict[str, Any]:
    """A column of names: the number of a name per document, and a look per name.

    `every` are the values that share the looks; the map calls a group `word`.
    """
    every = values if every is None else every
    look_of = [-1] * len(names)
    looks: list[dict[str, Any]] = []
    for look in style.class_looks(every, names, word=word):
        if look.hollow:
            continue
        members = np.unique(every[look.members]).tolist()
        for value in members:
            look_of[value] = len(looks)
        name = names[members[0]] if len(members) == 1 else look.name
        looks.append({"name": name, "color": look.color, "marker": look.marker})
    return {
        "word": (word, style.plural(word)),
        "missing": missing,
        "names": list(names),
        "looks": looks,
        "look_of": look_of,
        "values": values.tolist(),
    }


def _numbers(values: np.ndarray) -> dict[str, Any]:
    """A column of numbers: steps of a color scale as its groups, and the numbers themselves."""
    finite = np.isfinite(values)
    known = values[finite].astype(np.float64)
    whole = bool((known == np.round(known)).all())
    place, names = np.full(values.size, -1, dtype=np.int64), []
    if known.size:
        least, most = float(known.min()), float(known.max())
        # A few extreme values must not take all colors.
        low, high = np.quantile(known, [0.02, 0.98])
        low, high = (low, high) if low < high else (least, most)
        power = 10.0 ** np.floor(np.log10(max(high - low, 1e-12) / _STEPS))
        step = next(power * f for f in (1, 2, 5, 10) if power * f * _STEPS >= high - low)
        step = max(step, 1.0) if whole else step
        edges = step * np.arange(np.floor(low / step) + 1, np.floor(high / step) + 1)
        place = np.where(finite, np.searchsorted(edges, values, side="right"), -1)
        if not whole:
            least, most = step * np.floor(least / step), step * np.ceil(most / step)
        for ends in zip([least, *edges], [*(edges - whole), most], strict=True):
            shown = [f"{end:.0f}" if whole else f"{end + 0.0:.6g}" for end in ends]
            names.append(" – ".join(dict.fromkeys(shown)))
    colors = map(to_hex, colormaps["viridis"](np.linspace(0, 0.96, max(len(names), 1))))
    kept = zip(values.tolist(), finite.tolist(), strict=True)
    return {
        "word": None,
        "missing": "none",
        "names": names,
        "looks": [
            {"name": name, "color": color, "marker": "o"}
            for name, color in zip(names, colors, strict=False)
        ],
        "look_of": list(range(len(names))),
        "values": place.tolist(),
        "numbers": [(int(v) if whole else float(f"{v:.7g}")) if fine else None for v, fine in kept],
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]


def _page(title: str, content: dict[str, Any]) -> str:
    """Fill the template; only the pieces that it names by hash may style or run."""
    parts = files("gloss_graph.visualization") / "page_parts"
    css, frame, *scripts = (
        (parts / name).read_text(encoding="utf-8") for name in ("page.css", "page.html", *_SCRIPTS)
    )
    script = "\n".join(scripts)
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
    pieces = re.split(r"@([A-Z_]+)@", frame)
    pieces[1::2] = [values[key] for key in pieces[1::2]]
    return "".join(pieces)


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()
    return base64.b64encode(digest).decode("ascii")
