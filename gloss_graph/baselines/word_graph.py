"""One graph of documents and words: TF-IDF between them, pointwise mutual information of words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_choice, check_positive_int
from gloss_graph.baselines.cleaning import STOP_WORDS, clean_documents
from gloss_graph.baselines.layers import csr_tensor

COUNTINGS = ("pairs", "windows")
# Windows whose words are paired at a time, which bounds the memory of the product.
_CHUNK = 50_000
# Pairs that are kept before they are added up, which bounds the memory too.
_PAIRS = 10_000_000


def word_document_graph(
    texts: Sequence[str],
    *,
    window: int = 20,
    min_count: int = 5,
    stop_words: Iterable[str] = STOP_WORDS,
    counting: str = "pairs",
    cleaning: str = "unicode",
) -> Data:
    r"""Build the graph of TextGCN: the documents, then their words, undirected.

    A document and a word are joined by \(tf \cdot \log(N / df)\) with the raw count tf; two words
    by \(\log \frac{p(i, j)}{p(i) p(j)}\) over sliding windows, where that is positive.

    Args:
        texts: N documents of all parts: training, validation, test, unlabeled.
        window: Words of a window. A shorter document is one window.
        min_count: Words seen less often are left out; 1 keeps all.
        stop_words: Words left out; empty to keep all. TextGCN leaves none out of MR.
        counting: How often two words meet: "pairs" of their places in all windows (the released
            code's, behind the published scores) or "windows" that hold both (the paper's words).
        cleaning: "unicode" keeps the letters of every script; "published" those of ASCII alone,
            as the released code does. Words end at spaces.

    Returns:
        `edge_index` (2, E) int64, both directions, sorted, without self-loops; `edge_weight` (E,)
        float32, positive; `num_documents` N; `words`, the names of the nodes N, N + 1, ...;
        `empty`, positions of the documents without a word, which are nodes without edges.

    Raises:
        ValueError: No document, no word left, or a setting out of range.

    Cost: O(T window) time for T words of running text; memory linear in the edges and in T.

    Example:
        >>> graph = word_document_graph(["green tea", "black tea"], min_count=1)
        >>> graph.num_documents, graph.words, graph.num_nodes
        (2, ['black', 'green', 'tea'], 5)

    See Also:
        :func:`normalized_adjacency` for what a GCN multiplies by.
    """
    check_positive_int("window", window, minimum=2)
    check_choice("counting", counting, COUNTINGS)
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"'texts' must hold a document (got {texts!r}). Give a list of strings.")
    documents = clean_documents(
        texts, min_count=min_count, stop_words=stop_words, cleaning=cleaning
    )
    names, flat, lengths = _numbered(documents)
    if not names:
        ascii_only = " Letters outside ASCII are no words with cleaning='published'."
        raise ValueError(
            f"'texts' must hold a word that is kept (got none in {len(texts)} documents: words "
            f"seen less than {min_count} times and stop words are left out). Lower min_count to "
            f"1 or pass stop_words=().{ascii_only if cleaning == 'published' else ''}"
        )
    terms = _tf_idf(flat, lengths, len(names))
    meeting = _pmi(flat, lengths, len(names), window, counting)
    whole = sparse.bmat([[None, terms], [terms.T, meeting]], format="csr")
    whole.sort_indices()
    rows = np.repeat(np.arange(whole.shape[0]), np.diff(whole.indptr))
    edge_index = np.stack([rows, whole.indices.astype(np.int64)])
    return Data(
        edge_index=torch.from_numpy(edge_index),
        edge_weight=torch.from_numpy(whole.data.astype(np.float32)),
        num_nodes=whole.shape[0],
        num_documents=len(documents),
        words=names,
        empty=np.flatnonzero(lengths == 0).tolist(),
    )


def normalized_adjacency(graph: Data) -> Tensor:
    """`normalized_matrix` as torch's sparse CSR, float32.

    Example:
        >>> graph = word_document_graph(["green tea", "milk tea"], min_count=1)
        >>> dense = normalized_adjacency(graph).to_dense()
        >>> torch.equal(dense, dense.T), bool(dense[0, 0] < 1)
        (True, True)
    """
    return csr_tensor(normalized_matrix(graph))


def normalized_matrix(graph: Data) -> sparse.csr_matrix:
    r"""\(D^{-1/2} (A + I) D^{-1/2}\), (n, n), which is symmetric.

    Args:
        graph: With `edge_index`, `edge_weight` and `num_nodes`, without self-loops.
    """
    size = int(graph.num_nodes)
    rows, columns = graph.edge_index.numpy()
    weights = graph.edge_weight.numpy().astype(np.float64)
    matrix = sparse.csr_matrix((weights, (rows, columns)), (size, size))
    matrix = (matrix + sparse.identity(size, format="csr")).tocsr()
    scale = 1.0 / np.sqrt(np.asarray(matrix.sum(axis=1)).ravel())
    matrix = sparse.diags(scale) @ matrix @ sparse.diags(scale)
    matrix = matrix.tocsr()
    matrix.sort_indices()
    return matrix


def _numbered(documents: list[list[str]]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of the words, their numbers in one running text, words of each document."""
    names = sorted({word for words in documents for word in words})
    number = {word: place for place, word in enumerate(names)}
    flat = np.array([number[word] for words in documents for word in words], dtype=np.int64)
    return names, flat, np.array([len(words) for words in documents], dtype=np.int64)


def _tf_idf(flat: np.ndarray, lengths: np.ndarray, size: int) -> sparse.csr_matrix:
    """(N, V): raw count times log(N / documents with the word)."""
    owners = np.repeat(np.arange(lengths.size), lengths)
    counts = sparse.coo_matrix((np.ones(flat.size), (owners, flat)), (lengths.size, size)).tocsr()
    spread = np.bincount(counts.indices, minlength=size)
    counts.data *= np.log(lengths.size / spread[counts.indices])
    # A word of every document says nothing.
    counts.eliminate_zeros()
    return counts


def _pmi(
    flat: np.ndarray, lengths: np.ndarray, size: int, window: int, counting: str
) -> sparse.csr_matrix:
    """(V, V): positive pointwise mutual information of words, symmetric, zero diagonal."""
    length = np.repeat(lengths, lengths)
    place = np.arange(flat.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    # A word at `place` lies in the windows that start at `first`..`last` of its document.
    first = np.maximum(place - window + 1, 0)
    last = np.minimum(place, np.maximum(length - window, 0))
    seen = _windows_with(flat, first, last, place, size)
    windows = int(np.maximum(lengths - window + 1, 1)[lengths > 0].sum())
    if counting == "pairs":
        met = _pairs(flat, first, last, place, length, size, window)
    else:
        met = _shared_windows(flat, first, last, place, length, size)
    met = met.tocoo()
    value = np.log(met.data * windows / (seen[met.row] * seen[met.col]))
    keep = value > 0
    half = sparse.coo_matrix((value[keep], (met.row[keep], met.col[keep])), (size, size))
    return (half + half.T).tocsr()


def _windows_with(
    flat: np.ndarray, first: np.ndarray, last: np.ndarray, place: np.ndarray, size: int
) -> np.ndarray:
    """(V,): windows that hold each word, counting a window once."""
    order = np.lexsort((np.arange(flat.size), flat))
    # Windows in which this occurrence is the leftmost of its word.
    start = first[order].copy()
    again = flat[order][1:] == flat[order][:-1]
    document = np.cumsum(place == 0)[order]
    again &= document[1:] == document[:-1]
    previous = place[order][:-1]
    start[1:][again] = np.maximum(start[1:][again], previous[again] + 1)
    new = np.maximum(last[order] - start + 1, 0)
    return np.bincount(flat[order], weights=new, minlength=size)


def _pairs(
    flat: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    place: np.ndarray,
    length: np.ndarray,
    size: int,
    window: int,
) -> sparse.csr_matrix:
    """(V, V) upper: pairs of places of two words, each as often as windows hold it."""
    found = sparse.csr_matrix((size, size))
    waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for apart in range(1, last_apart := min(window, int(length.max()))):
        here = np.flatnonzero(place + apart < length)
        there = here + apart
        differ = flat[here] != flat[there]
        here, there = here[differ], there[differ]
        low = np.minimum(flat[here], flat[there]).astype(np.int32)
        high = np.maximum(flat[here], flat[there]).astype(np.int32)
        # The windows that hold both.
        waiting.append(((last[here] - first[there] + 1).astype(np.float32), low, high))
        if apart == last_apart - 1 or sum(part[0].size for part in waiting) > _PAIRS:
            shared, low, high = (np.concatenate(parts) for parts in zip(*waiting, strict=True))
            found = found + sparse.coo_matrix((shared, (low, high)), (size, size)).tocsr()
            waiting.clear()
    return found


def _shared_windows(
    flat: np.ndarray,
    first: np.ndarray,
    last: np.ndarray,
    place: np.ndarray,
    length: np.ndarray,
    size: int,
) -> sparse.csr_matrix:
    """(V, V) upper: windows that hold both of two words."""
    found = sparse.csr_matrix((size, size))
    for rows, columns, number in _incidences(flat, first, last, place):
        ones = np.ones(rows.size, dtype=np.float64)
        holds = sparse.coo_matrix((ones, (rows, columns)), (number, size)).tocsr()
        holds.data[:] = 1.0
        found = found + sparse.triu(holds.T @ holds, k=1, format="csr")
    return found


def _incidences(
    flat: np.ndarray, first: np.ndarray, last: np.ndarray, place: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Window and word of every occurrence, some documents at a time, with the windows' number."""
    starts = np.flatnonzero(place == 0)
    ends = np.append(starts[1:], flat.size)
    # Of a document: its last word lies in its last window.
    windows = last[ends - 1] + 1
    groups = np.cumsum(windows) // _CHUNK
    for group in np.unique(groups):
        chosen = np.flatnonzero(groups == group)
        words = np.arange(starts[chosen[0]], ends[chosen[-1]])
        offset = np.cumsum(windows[chosen]) - windows[chosen]
        offset = np.repeat(offset, ends[chosen] - starts[chosen])
        repeats = last[words] - first[words] + 1
        within = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        rows = np.repeat(offset + first[words], repeats) + within
        yield rows, np.repeat(flat[words], repeats), int(windows[chosen].sum())
