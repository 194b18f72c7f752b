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
from gloss_graph.visualization.layout import place_adjacency, sample_nodes

__all__ = ["write_html"]

_SCRIPTS = ("data.js", "view.js", "select.js", "panel.js")
_ENDING = (".html", ".htm")
_CLASS, _COMMUNITY = ("class", "classes"), ("community", "communities")
_MEANING = {
    "propagated": "The class that the labels of other documents give.",
    "community": "Groups that the edges form, found without labels (Louvain).",
    "suspicion": "How far the other labels contradict the label: 0 not at all, 1 all of them.",
    "confidence": "Share of the propagated class among the labels that arrive.",
    "neighbors": "Number of documents that an edge joins to it.",
}
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
    texts as the page holds them. It is one file that loads nothing from the network, which its
    content security policy also forbids. Texts are always shown as text; control characters become
    U+FFFD.

    Colors show the label, the propagated label, the community, the number of neighbors, how far
    the other labels contradict a label (`suspicion`, see `audit`) or agree on the propagated one
    (`confidence`), and every column of the graph that `to_networkx` keeps: `predicted` (with
    `correct`), `split`, any tensor (N,) or list of N strings. Numbers get a color scale.

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
    shown = len(rows)
    cut = sparse.csr_array(documents.links[rows][:, rows])
    ends = cut.tocoo()
    one_way = ends.row < ends.col
    deciding = np.unique(masses.nodes[masses.nodes >= 0]) if masses else np.empty(0, np.int64)
    # Deciding documents that are not on the map follow those that are.
    listed = np.concatenate([rows, np.setdiff1d(deciding, rows)])
    place = np.full(documents.size, -1, dtype=np.int64)
    place[listed] = np.arange(listed.size)
    degree = np.diff(documents.links.indptr)
    communities = louvain_communities(cut, seed=seed)
    found = _classes(documents, rows, listed, masses, known)
    named = community_names(communities, documents.y[rows], documents.names)
    found["community"] = _groups(communities, named, missing="isolated", word=_COMMUNITY)
    texts = known.get("text", [""] * documents.size)
    for name in ("label", "community"):
        _add_words(found[name], [texts[i] for i in rows.tolist()])
    numbers = {} if masses is None else _doubts(documents, rows, masses)
    for name, values in (numbers | {"neighbors": degree[rows]}).items():
        found[name] = _numbers(values)
    for name in (name for name in known if name not in _SHOWN):
        found[name] = _given([known[name][i] for i in rows.tolist()])
    content: dict[str, Any] = {
        "total": documents.size,
        "shown": shown,
        "palette": style.PALETTE,
        "columns": [
            {"name": name, "meaning": _MEANING.get(name, ""), **column}
            for name, column in found.items()
        ],
        "docs": {
            "id": documents.ids[listed].tolist(),
            "text": [texts[i] for i in listed.tolist()],
            "seed": documents.seeds[listed].astype(int).tolist(),
            "degree": degree[listed].tolist(),
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
        content["masses"] = {
            "by": [[int(place[j]) for j in line if j >= 0] for line in masses.nodes],
            "mass": [
                _rounded(mass[nodes >= 0])
                for nodes, mass in zip(masses.nodes, masses.mass, strict=True)
            ],
            "classes": [_rounded(line) for line in masses.by_class],
        }
    return content


def _classes(
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
        code = {clean_text(name): number for number, name in reversed(list(enumerate(names)))}
        classes["predicted"] = np.array([code.get(guess, -1) for guess in guesses], dtype=np.int64)
    every = np.concatenate(list(classes.values()))
    missing = {"label": "unlabeled", "propagated": "no label reaches it"}
    columns = {
        name: _groups(values, names, every, missing.get(name, "none"), _CLASS)
        for name, values in classes.items()
    }
    if "predicted" in known:
        right = np.where(y >= 0, (y != classes["predicted"]).astype(np.int64), -1)
        columns["correct"] = _groups(right, ["yes", "no"], missing="unlabeled")
    return columns


def _add_words(column: dict[str, Any], texts: list[str]) -> None:
    """Give the look of every group its most telling words."""
    words = group_words(texts, column["values"][: len(texts)], top=4)
    for place, look in enumerate(column["looks"]):
        members = [value for value, at in enumerate(column["look_of"]) if at == place]
        look["words"] = ", ".join(words.get(members[0], ())) if len(members) == 1 else ""


def _doubts(documents: GraphArrays, rows: np.ndarray, masses: TopMasses) -> dict[str, np.ndarray]:
    """How far the others contradict a label, and the share of the propagated class; else NaN."""
    y, total = documents.y[rows], masses.by_class.sum(axis=1)
    share = masses.by_class / np.where(masses.propagated >= 0, total, np.nan)[:, None]
    # As in an audit: no other label could support the only one of its class.
    others = np.bincount(documents.y[documents.seeds], minlength=share.shape[1])[y]
    told = (y >= 0) & (others > documents.seeds[rows])
    suspicion = np.where(told, 1 - share[np.arange(len(rows)), y], np.nan).clip(0, 1)
    return {"suspicion": suspicion.round(4), "confidence": share.max(axis=1, initial=0).round(4)}


def _given(values: list[Any]) -> dict[str, Any]:
    """A column of the graph: numbers get a scale, everything else a color per value."""
    if values and all(type(value) in (int, float) for value in values):
        return _numbers(np.array(values, dtype=np.float64))
    words = [("no", "yes")[value] if isinstance(value, bool) else str(value) for value in values]
    names = sorted(set(words) - {""})
    code = {word: place for place, word in enumerate(names)}
    return _groups(np.array([code.get(word, -1) for word in words], dtype=np.int64), names)


def _groups(
    values: np.ndarray,
    names: Sequence[str],
    every: np.ndarray | None = None,
    missing: str = "none",
    word: tuple[str, str] = ("value", "values"),
) -> dict[str, Any]:
    """A column of names: the number of a name per document, and a look per name.

    `every` are the values that share the looks; the map calls a group and groups `word`.
    """
    every = values if every is None else every
    look_of = [-1] * len(names)
    looks: list[dict[str, Any]] = []
    for look in style.class_looks(every, names):
        if look.hollow:
            continue
        members = np.unique(every[look.members]).tolist()
        for value in members:
            look_of[value] = len(looks)
        name = names[members[0]] if len(members) == 1 else f"{len(members)} other {word[1]}"
        looks.append({"name": name, "color": look.color, "marker": look.marker})
    return {
        "word": word,
        "missing": missing,
        "names": list(names),
        "looks": looks,
        "look_of": look_of,
        "values": values.tolist(),
    }


def _numbers(values: np.ndarray) -> dict[str, Any]:
    """A column of numbers: steps of a color scale as its groups, and the numbers themselves."""
    known = values[np.isfinite(values)].astype(np.float64)
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
        place = np.where(np.isfinite(values), np.searchsorted(edges, values, side="right"), -1)
        if not whole:
            least, most = step * np.floor(least / step), step * np.ceil(most / step)
        for start, stop in zip([least, *edges], [*(edges - whole), most], strict=True):
            ends = [f"{end:.0f}" if whole else f"{end + 0.0:.6g}" for end in (start, stop)]
            names.append(" – ".join(dict.fromkeys(ends)))
    colors = colormaps["viridis"](np.linspace(0, 0.96, max(len(names), 1)))
    return {
        "word": None,
        "missing": "none",
        "names": names,
        "looks": [
            {"name": word, "color": to_hex(color), "marker": "o"}
            for word, color in zip(names, colors, strict=False)
        ],
        "look_of": list(range(len(names))),
        "values": place.tolist(),
        "numbers": [
            None if not np.isfinite(v) else int(v) if whole else float(f"{v:.7g}")
            for v in values.tolist()
        ],
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]


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
