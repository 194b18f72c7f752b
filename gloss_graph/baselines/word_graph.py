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

COUNTINGS = ("pairs", "windows")
# Windows whose words are counted at a time, which bounds the memory of the product.
_CHUNK = 50_000


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
        min_count: Rarer words are left out; 1 keeps all.
        stop_words: Words to leave out, none of them in TextGCN's setting for MR.
        counting: Co-occurrences of two words: "pairs" of their places in all windows (as in the
            released code and the published scores) or "windows" that hold both (as in the paper).
        cleaning: "unicode" keeps the letters of every script; "published" those of ASCII alone,
            as the released code does. Words end at spaces.

    Returns:
        `edge_index` (2, E) int64, both directions, sorted, without self-loops; `edge_weight` (E,)
        float32, positive; `num_documents` N; `words`, the names of the nodes N, N + 1, ...;
        `empty`, positions of the documents without a word, which are nodes without edges.

    Raises:
        ValueError: No document, no word left, or a setting out of range.

    Cost: O(T window^2) time for T words of running text; memory linear in the edges and in T.

    Example:
        >>> graph = word_document_graph(["green tea", "black tea"], min_count=1)
        >>> graph.num_documents, graph.words, graph.num_nodes
        (2, ['black', 'green', 'tea'], 5)
    """
    check_positive_int("window", window, minimum=2)
    check_choice("counting", counting, COUNTINGS)
    if isinstance(texts, str) or not len(texts):
        raise ValueError(f"'texts' must hold a document (got {texts!r}). Give a list of strings.")
    documents = clean_documents(
        texts, min_count=min_count, stop_words=stop_words, cleaning=cleaning
    )
    names = sorted({word for words in documents for word in words})
    if not names:
        ascii_only = " Letters outside ASCII are no words with cleaning='published'."
        raise ValueError(
            f"'texts' must hold a word that is kept (got none in {len(texts)} documents: words "
            f"seen less than {min_count} times and stop words are left out). Lower min_count to "
            f"1 or pass stop_words=().{ascii_only if cleaning == 'published' else ''}"
        )
    number = {word: place for place, word in enumerate(names)}
    flat = np.array([number[word] for words in documents for word in words], dtype=np.int64)
    lengths = np.array([len(words) for words in documents], dtype=np.int64)
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
    r"""\(D^{-1/2} (A + I) D^{-1/2}\), (n, n), as torch's sparse CSR, float32.

    Example:
        >>> graph = word_document_graph(["green tea", "milk tea"], min_count=1)
        >>> dense = normalized_adjacency(graph).to_dense()
        >>> torch.equal(dense, dense.T), bool(dense[0, 0] < 1)
        (True, True)
    """
    return csr_tensor(normalized_matrix(graph))


def normalized_matrix(graph: Data) -> sparse.csr_matrix:
    """The matrix of `normalized_adjacency` in SciPy's form, float64."""
    size = int(graph.num_nodes)
    rows, columns = graph.edge_index.numpy()
    weights = graph.edge_weight.numpy().astype(np.float64)
    matrix = sparse.csr_matrix((weights, (rows, columns)), (size, size))
    matrix = (matrix + sparse.identity(size, format="csr")).tocsr()
    scale = sparse.diags(1.0 / np.sqrt(np.asarray(matrix.sum(axis=1)).ravel()))
    matrix = (scale @ matrix @ scale).tocsr()
    matrix.sort_indices()
    return matrix


def csr_tensor(matrix: sparse.csr_matrix) -> Tensor:
    """A SciPy matrix as torch's sparse CSR, float32, sharing nothing."""
    return torch.sparse_csr_tensor(
        torch.from_numpy(matrix.indptr.astype("int64")),
        torch.from_numpy(matrix.indices.astype("int64")),
        torch.from_numpy(matrix.data.astype("float32")),
        size=matrix.shape,
        check_invariants=False,
    )


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
    windows, seen = 0, np.zeros(size)
    met = sparse.csr_matrix((size, size))
    for counts in _windows(flat, lengths, size, window):
        windows += counts.shape[0]
        seen += np.bincount(counts.indices, minlength=size)
        if counting == "windows":
            counts.data[:] = 1.0
        met = met + sparse.triu(counts.T @ counts, k=1, format="csr")
    met = met.tocoo()
    value = np.log(met.data * windows / (seen[met.row] * seen[met.col]))
    keep = value > 0
    half = sparse.coo_matrix((value[keep], (met.row[keep], met.col[keep])), (size, size))
    return (half + half.T).tocsr()


def _windows(
    flat: np.ndarray, lengths: np.ndarray, size: int, window: int
) -> Iterator[sparse.csr_matrix]:
    """Counts of the words (V) in every window of the running text, some windows at a time."""
    length = np.repeat(lengths, lengths)
    place = np.arange(flat.size) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    starts = np.flatnonzero(place <= np.maximum(length - window, 0))
    for chunk in np.split(starts, range(_CHUNK, starts.size, _CHUNK)):
        held = np.minimum(window, length[chunk])
        bounds = np.append(0, held.cumsum())
        offset = np.arange(bounds[-1]) - np.repeat(bounds[:-1], held)
        words = flat[np.repeat(chunk, held) + offset]
        counts = sparse.csr_matrix((np.ones(words.size), words, bounds), (chunk.size, size))
        counts.sum_duplicates()
        yield counts
