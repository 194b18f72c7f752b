"""Measures of document graphs, of their classes and embeddings, and the words of their groups."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.stats import skew
from sklearn import metrics
from sklearn.feature_extraction.text import CountVectorizer
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_choice, check_positive_int
from gloss_graph._internal.labels import stratified_sample
from gloss_graph.export.graph_arrays import GraphArrays, read_arrays, read_embeddings
from gloss_graph.text.corpora import string_list

#: Scope of the measures of the whole graph; the scope of a class is its name.
GRAPH = "graph"
# `\w` has neither the vowel signs of Indic scripts nor the joiners within Persian words.
_MARKS = "".join(c for c in map(chr, range(0x300, 0xFE30)) if unicodedata.category(c)[0] == "M")
_WORD = rf"[^\W\d_][\w{_MARKS}\u200c\u200d]+"


def measures(
    graph: Data,
    *,
    embeddings: Tensor | None = None,
    communities: bool | np.ndarray = True,
    silhouette_limit: int = 4096,
    seed: int = 0,
) -> pd.DataFrame:
    r"""Measure a document graph, and every class of it, in one tidy table.

    With weights W, labels as one-hot rows Y, m edges among labeled documents, d degrees there and
    \(D_c\) the sum of d over class c:

    - `nodes`, `labeled`, `edges` (undirected), `components`, `largest_component` (share of
      documents), `isolated` (documents without an edge), `degree_mean`, `degree_max`.
    - `reach_every_class`: share of documents in whose component every class has a visible label
      (`seed_mask`).
    - `in_degree_skew`, hubness: the skew of how often a document is listed as a neighbor, if the
      graph has `in_degree` (N,); otherwise `degree_skew`, that of the degree.
    - `edge_homophily`, the share h of edges within a class, and `adjusted_homophily`
      \((h - s) / (1 - s)\), \(s = \sum_c D_c^2 / (2m)^2\) (Platonov et al., 2023): 0 is the
      value expected from the degrees of the classes alone. Both unweighted.
    - `label_modularity`, weighted, of the classes; `louvain_communities`, their number,
      `louvain_modularity`, and `louvain_nmi`, `louvain_ari`, their agreement with the labels.
    - `smoothness`: \(\mathrm{tr}(Y^T L Y) / \mathrm{tr}(Y^T D Y)\), in [0, 1]: the share of the
      weight that leaves its class; 0 is smooth.
    - `macro_silhouette` of the L2-normalized embeddings (mean over classes of their means).

    Edges with an unlabeled end count only for degrees, components and communities. A measure that
    is not defined (no label, no edge, one class, no embeddings) is NaN.

    Of a class, whose name is the `scope`: `nodes`, `degree_mean`, `reach_every_class`;
    `homophily`, the share of its edge ends whose other end is of the class; its term of
    `label_modularity`; `smoothness` \(y_c^T L y_c / y_c^T D y_c\); `largest_community`, the share
    of the class in the community that holds most of it; `silhouette`; and, if the graph has texts,
    in the column `words` its most telling words (`group_words`).

    `embeddings` (N, D) are by default `graph.x`; of more than `silhouette_limit` labeled documents
    the silhouette is that of a stratified sample. Known `communities` (N,), -1 for none, are used
    where given; False leaves them out, which take most of the time.

    Raises:
        ValueError: A directed graph, label sets, or columns that do not fit.

    Cost: O(E), about 20 µs per edge for communities, and O(n² D) for n sampled silhouettes.

    Example:
        >>> edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> table = measures(Data(edge_index=edges, y=torch.tensor([0, 0, 1])))
        >>> table.set_index(["scope", "measure"]).loc[("graph", "edge_homophily"), "value"]
        np.float64(0.5)

    See also: `measures_summary`, which prints them; `compare_measures`, for two graphs.
    """
    check_positive_int("silhouette_limit", silhouette_limit)
    documents = read_arrays(graph)
    rows = read_embeddings(graph, embeddings, documents.size)
    known = np.flatnonzero(documents.y >= 0)
    classes = np.unique(documents.y[known])
    part = np.empty(0, dtype=np.int64)
    if documents.size:
        _, part = connected_components(documents.links, directed=False)
    reach = np.full(documents.size, np.nan)
    if classes.size:
        seeds = np.unique([part[documents.seeds], documents.y[documents.seeds]], axis=1)
        reach = (np.bincount(seeds[0], minlength=part.max() + 1) == classes.size)[part]
    inner = _Inner(documents, documents.y)
    whole = _structure(documents, part, graph.get("in_degree"))
    whole |= {"reach_every_class": _mean(reach), **_homophily(inner)}
    found = None
    if np.ndim(communities) or communities:
        found = _communities(documents, communities, seed)
        groups, truth = found[known], documents.y[known]
        nmi, ari = metrics.normalized_mutual_info_score, metrics.adjusted_rand_score
        whole |= {
            "louvain_communities": found.max(initial=-1) + 1,
            "louvain_modularity": _homophily(_Inner(documents, found))["label_modularity"],
            "louvain_nmi": nmi(truth, groups) if known.size else np.nan,
            "louvain_ari": ari(truth, groups) if known.size else np.nan,
        }
    silhouettes: dict[int, float] = {}
    if rows is not None and known.size:
        chosen = known[stratified_sample(documents.y[known], silhouette_limit, seed=seed)]
        labels = torch.from_numpy(documents.y[chosen])
        _, silhouettes = _silhouettes(rows[torch.from_numpy(chosen)], labels)
    whole["macro_silhouette"] = _mean(np.array(list(silhouettes.values()), dtype=float))
    values = [(GRAPH, measure, float(value), "") for measure, value in whole.items()]
    words = {} if documents.text is None else group_words(documents.text, documents.y)
    degree = np.diff(documents.adjacency.indptr)
    for label in classes.tolist():
        member = documents.y == label
        of_class = {
            "nodes": member.sum(),
            "degree_mean": _mean(degree[member]),
            "reach_every_class": _mean(reach[member]),
            **_class_ties(inner, label),
        }
        if found is not None:
            of_class["largest_community"] = np.bincount(found[member]).max() / member.sum()
        of_class["silhouette"] = silhouettes.get(label, np.nan)
        # The number keeps two classes of one name apart.
        name = documents.name(label)
        scope = name if name != GRAPH and documents.names.count(name) == 1 else f"{name} ({label})"
        telling = ", ".join(words.get(label, []))
        values += [(scope, measure, float(value), telling) for measure, value in of_class.items()]
    table = pd.DataFrame(values, columns=["scope", "measure", "value", "words"])
    return table.drop(columns="words") if documents.text is None else table


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below else float("nan")


def _structure(documents: GraphArrays, part: np.ndarray, in_degree: Any) -> dict[str, float]:
    degree = np.diff(documents.adjacency.indptr)
    sizes = np.bincount(part)
    name = "degree_skew" if in_degree is None else "in_degree_skew"
    listed = degree if in_degree is None else torch.as_tensor(in_degree).cpu().numpy().ravel()
    if listed.size != documents.size:
        raise ValueError(
            f"'graph.in_degree' must have {documents.size} entries, one per document "
            f"(got {listed.size})."
        )
    uneven = listed.size > 0 and listed.min() < listed.max()
    return {
        "nodes": documents.size,
        "labeled": (documents.y >= 0).sum(),
        "edges": documents.adjacency.nnz / 2,
        "components": sizes.size,
        "largest_component": _ratio(sizes.max(initial=0), documents.size),
        "isolated": (degree == 0).sum(),
        "degree_mean": _mean(degree),
        "degree_max": degree.max(initial=0),
        # The skew of a constant is 0 / 0; nothing stands out.
        name: skew(listed.astype(float)) if uneven else (0.0 if listed.size else np.nan),
    }


class _Inner:
    """Edges among documents of some groups (N,), both directions: ends' groups, weights (E',)."""

    def __init__(self, documents: GraphArrays, groups: np.ndarray) -> None:
        entries = sparse.coo_array(documents.adjacency)
        row, column = groups[entries.row], groups[entries.col]
        keep = (row >= 0) & (column >= 0)
        self.row, weight = row[keep], entries.data[keep]
        # No measure depends on the scale, but squares of very small weights would be 0.
        self.weight = weight / (weight.max(initial=0.0) or 1.0)
        self.same = self.row == column[keep]
        size = int(groups.max(initial=-1)) + 1
        self.volume = np.bincount(self.row, self.weight, minlength=size)
        self.degree = np.bincount(self.row, minlength=size)


def _homophily(inner: _Inner) -> dict[str, float]:
    ends = float(inner.row.size)
    homophily = _ratio(inner.same.sum(), ends)
    chance = _ratio((inner.degree.astype(float) ** 2).sum(), ends**2)
    total = inner.weight.sum()
    within = _ratio(inner.weight[inner.same].sum(), total)
    return {
        "edge_homophily": homophily,
        "adjusted_homophily": _ratio(homophily - chance, 1.0 - chance),
        "label_modularity": within - _ratio((inner.volume**2).sum(), total**2),
        "smoothness": 1.0 - within,
    }


def _class_ties(inner: _Inner, label: int) -> dict[str, float]:
    mine = inner.row == label
    total, volume = inner.weight.sum(), inner.volume[label]
    within = inner.weight[mine & inner.same].sum()
    return {
        "homophily": _mean(inner.same[mine]),
        "label_modularity": _ratio(within, total) - _ratio(volume**2, total**2),
        "smoothness": 1.0 - _ratio(within, volume),
    }


def _communities(documents: GraphArrays, given: bool | np.ndarray, seed: int) -> np.ndarray:
    """Community (N,) of every document; a document without an edge is alone in one."""
    chosen = isinstance(given, bool)
    found = louvain_communities(documents.adjacency, seed=seed) if chosen else np.array(given)
    if found.shape != (documents.size,) or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(
            f"'communities' must be a boolean or {documents.size} integers, one per document (got "
            f"{found.dtype} of the shape {found.shape})."
        )
    alone = np.flatnonzero(found < 0)
    found[alone] = found.max(initial=-1) + 1 + np.arange(alone.size)
    return found


def louvain_communities(adjacency: sparse.csr_array, *, seed: int = 0) -> np.ndarray:
    """Louvain communities (Blondel et al. 2008) of a symmetric weight matrix (N, N), largest first.

    Returns the community (N,) int64 of every node, 0 the largest; -1 for nodes without an edge,
    which an entry of 0 is not. The `seed` orders the visits of nodes.

    Cost: about 10 s at 20,000 nodes and 250,000 edges.

    Example:
        >>> two = nx.disjoint_union(nx.complete_graph(4), nx.complete_graph(3))
        >>> louvain_communities(nx.to_scipy_sparse_array(two, format="csr")).tolist()
        [0, 0, 0, 0, 1, 1, 1]
    """
    adjacency = adjacency.astype(np.float64)
    # The scale does not matter, but squares of very small or large weights leave the range.
    adjacency.data /= adjacency.data.max(initial=0.0) or 1.0
    adjacency.eliminate_zeros()
    found = np.full(adjacency.shape[0], -1, dtype=np.int64)
    linked = np.flatnonzero(np.diff(adjacency.indptr))
    if not linked.size:
        return found
    graph = nx.from_scipy_sparse_array(sparse.triu(adjacency, format="coo"))
    graph = graph.subgraph(linked.tolist())
    parts = nx.community.louvain_communities(graph, weight="weight", seed=seed)
    for rank, part in enumerate(sorted(parts, key=lambda part: (-len(part), min(part)))):
        found[list(part)] = rank
    return found


def classification_scores(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy and macro-F1 of the labeled rows, over the classes that occur among them.

    Both arrays (N,) hold class numbers; rows labeled -1 are left out. At least one must be labeled.

    Example:
        >>> classification_scores(np.array([0, 1, 1]), np.array([0, 1, 0]))["accuracy"]
        0.6666666666666666
    """
    labeled = labels >= 0
    if not labeled.any():
        raise ValueError("'labels' must hold a label >= 0 (got none).")
    predicted, labels = predicted[labeled], labels[labeled]
    return {
        "accuracy": float(metrics.accuracy_score(labels, predicted)),
        "macro_f1": float(metrics.f1_score(labels, predicted, average="macro", zero_division=0)),
    }


def macro_silhouette(embeddings: Tensor, labels: Tensor) -> float:
    """The `macro_silhouette` of `silhouette_scores`."""
    return silhouette_scores(embeddings, labels)["macro_silhouette"]


def micro_silhouette(embeddings: Tensor, labels: Tensor) -> float:
    """The `micro_silhouette` of `silhouette_scores`."""
    return silhouette_scores(embeddings, labels)["micro_silhouette"]


def silhouette_scores(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """Mean silhouettes of embeddings (N, D) after L2 normalization, at the cost of one, O(N² D).

    Rows labeled -1 are left out. Returns `macro_silhouette`, the mean over classes of their means,
    and `micro_silhouette`, the mean over rows; NaN below two classes or if every row has another
    class.

    Example:
        >>> scores = silhouette_scores(torch.eye(2).repeat(3, 1), torch.arange(6) % 2)
        >>> round(scores["micro_silhouette"], 3)
        1.0
    """
    values, means = _silhouettes(embeddings, labels)
    macro = float(np.mean(list(means.values()))) if means else float("nan")
    return {"macro_silhouette": macro, "micro_silhouette": _mean(values)}


def _silhouettes(embeddings: Tensor, labels: Tensor) -> tuple[np.ndarray, dict[int, float]]:
    """Silhouettes of the labeled rows and their mean per class; empty where they are undefined."""
    labeled = labels >= 0
    rows = torch.nn.functional.normalize(embeddings[labeled].float(), dim=1).numpy()
    of_row = labels[labeled].numpy()
    classes = np.unique(of_row)
    if not 2 <= classes.size < of_row.size:
        return np.empty(0), {}
    values = metrics.silhouette_samples(rows, of_row)
    return values, {int(label): values[of_row == label].mean() for label in classes}


def group_words(
    texts: Sequence[str],
    groups: Any,
    *,
    top: int = 5,
    stop_words: list[str] | str | None = "english",
) -> dict[Any, list[str]]:
    r"""Find the most telling words of every group of documents, by class-based TF-IDF.

    The weight of a word in a group is \(t \log(1 + A / f)\): t is its share of the group's words,
    f its count over all groups, A the mean number of words per group (BERTopic, Grootendorst,
    2022). A word starts with a letter of any script, has at least two characters, and is counted
    in lower case. Words of equal weight are in alphabetical order.

    The N `groups` are names or numbers, such as classes or communities; -1, None or NaN for a
    document without a group. `stop_words`, which are not counted, are `"english"`, a list for
    another language, or None.

    Returns:
        At most `top` words of every group, the most telling one first.

    Raises:
        ValueError: Texts that are not strings, another number of groups, or `top` below 1.

    Cost: about a second per 2 million words.

    Example:
        >>> group_words(["hot tea", "green tea", "the train is late"], ["drink", "drink", "rail"])
        {'drink': ['tea', 'green', 'hot'], 'rail': ['late', 'train']}

    See also: `louvain_communities`, for groups that a graph has without labels.
    """
    check_positive_int("top", top)
    if isinstance(stop_words, str):
        check_choice("stop_words", stop_words, ("english",))
    texts, column = string_list("texts", texts), pd.Series(groups)
    if len(column) != len(texts):
        raise ValueError(
            f"'groups' must hold one per document (got {len(column)} for {len(texts)})."
        )
    members = np.flatnonzero((column.notna() & (column != -1)).to_numpy())
    codes, names = pd.factorize(column.iloc[members], sort=True)
    found: dict[Any, list[str]] = {name: [] for name in names.tolist()}
    vectorizer = CountVectorizer(token_pattern=_WORD, stop_words=stop_words)
    split = vectorizer.build_analyzer()
    if not any(split(texts[row]) for row in members):
        return found
    by_document = vectorizer.fit_transform([texts[row] for row in members])
    place = (codes, np.arange(members.size))
    by_group = sparse.csr_array(sparse.csr_array((np.ones(members.size), place)) @ by_document)
    total = by_group.sum(axis=1)
    rarity = np.log1p(total.mean() / by_group.sum(axis=0))
    vocabulary = vectorizer.get_feature_names_out()
    for group, (start, end) in enumerate(zip(by_group.indptr, by_group.indptr[1:], strict=False)):
        words = by_group.indices[start:end]
        # Every count has the same divisor here; the vocabulary is in alphabetical order.
        weight = by_group.data[start:end] / max(total[group], 1) * rarity[words]
        best = np.lexsort((words, -weight))[:top]
        found[names[group]] = vocabulary[words[best]].tolist()
    return found
