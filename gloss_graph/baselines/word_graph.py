"""Documents to words, and one graph of both: TF-IDF between them, mutual information of words."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import from_scipy_sparse_matrix, to_scipy_sparse_matrix

from gloss_graph._internal.checks import check_choice, check_positive_int

# NLTK's English list, which TextGCN takes; written out, as NLTK fetches it over the network.
STOP_WORDS: frozenset[str] = frozenset(
    """
    i me my myself we our ours ourselves you you're you've you'll you'd your yours yourself
    yourselves he him his himself she she's her hers herself it it's its itself they them their
    theirs themselves what which who whom this that that'll these those am is are was were be been
    being have has had having do does did doing a an the and but if or because as until while of at
    by for with about against between into through during before after above below to from up down
    in out on off over under again further then once here there when where why how all any both each
    few more most other some such no nor not only own same so than too very s t can will just don
    don't should should've now d ll m o re ve y ain aren aren't couldn couldn't didn didn't doesn
    doesn't hadn hadn't hasn hasn't haven haven't isn isn't ma mightn mightn't mustn mustn't needn
    needn't shan shan't shouldn shouldn't wasn wasn't weren weren't won won't wouldn wouldn't
    """.split()  # noqa: SIM905
)

CLEANINGS = ("unicode", "published")
COUNTINGS = ("pairs", "windows")
# Windows whose words are counted at a time, which bounds the memory of the product.
_CHUNK = 50_000

_NOT_ASCII = re.compile(r"[^A-Za-z0-9(),!?'`]")
_CLITICS = re.compile(r"('s|'ve|n't|'re|'d|'ll)")
_PUNCTUATION = re.compile(r"([,!()?])")


class _Characters(dict[int, str]):
    """The replacements of characters, filled on first use.

    Letters, marks, numbers and the punctuation of the published cleaning stay. Characters without a
    width, such as the joiners of Persian and Hindi, vanish. All others separate words.
    """

    def __missing__(self, code: int) -> str:
        character, kind = chr(code), unicodedata.category(chr(code))
        kept = kind[0] in "LMN" or character in "(),!?'`"
        self[code] = character if kept else "" if kind == "Cf" else " "
        return self[code]


# The typographic apostrophe, the punctuation of Chinese and Japanese, selectors of symbol colors.
_CHARACTERS = _Characters({ord(a): b for a, b in zip("’，！？（）", "',!?()", strict=True)})
_CHARACTERS |= dict.fromkeys(range(0xFE00, 0xFE10), "")
# Scripts that write no spaces between words: Thai, Lao, Myanmar, Khmer; Kana, Han.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]"
)


def split_words(text: str, cleaning: str = "unicode") -> list[str]:
    """Lower-case words, clitics and punctuation of a text; words end at spaces.

    Example:
        >>> split_words("It's GOOD, isn't it?")
        ['it', "'s", 'good', ',', 'is', "n't", 'it', '?']
        >>> split_words("Мотор, café"), split_words("Мотор, café", "published")
        (['мотор', ',', 'café'], [',', 'caf'])
    """
    if cleaning == "published":
        text = _NOT_ASCII.sub(" ", text)
    else:
        text = unicodedata.normalize("NFC", text).translate(_CHARACTERS)
    return _PUNCTUATION.sub(r" \1 ", _CLITICS.sub(r" \1", text)).lower().split()


def cleaning_notes(texts: Sequence[str], cleaning: str) -> list[str]:
    """Warnings about texts whose words the cleaning does not find."""
    letters = sum(sum(map(str.isalpha, text)) for text in texts)
    others = [text for text in texts if not text.isascii()]
    lost = sum(mark.isalpha() and not mark.isascii() for text in others for mark in text)
    # A word of these scripts has at most six characters.
    unspaced = sum(len(_UNSPACED.findall(text)) >= 6 * len(text.split()) for text in others)
    if cleaning == "published" and lost > 0.05 * letters:
        return [
            f"The cleaning 'published' leaves out {100 * lost / letters:.0f} % of the letters of "
            "the documents, all that are not ASCII. Take 'unicode' (--cleaning unicode)."
        ]
    if cleaning == "unicode" and unspaced > 0.05 * len(texts):
        return [
            f"{unspaced:,} of {len(texts):,} documents have few words, as they are in a script "
            "without spaces between words, and words end at spaces here. Separate the words by "
            "spaces first, with a segmenter of the language."
        ]
    return []


def clean_documents(
    texts: Iterable[str],
    *,
    min_count: int = 5,
    stop_words: Iterable[str] = STOP_WORDS,
    cleaning: str = "unicode",
) -> list[list[str]]:
    """Words of every document (N lists), without stop words and rare words.

    Words that occur less than `min_count` times in all documents together are rare. The cleaning
    "unicode" keeps the letters, marks and numbers of every script, composed (NFC). "published" is
    that of TextGCN's release: all but ASCII letters, digits and ``(),!?'` `` becomes a space.

    Raises:
        ValueError: `min_count` below 1, or an unknown cleaning.

    Example:
        >>> clean_documents(["the old tea", "a tea"], min_count=2)
        [['tea'], ['tea']]
    """
    check_positive_int("min_count", min_count)
    check_choice("cleaning", cleaning, CLEANINGS)
    documents = [split_words(text, cleaning) for text in texts]
    counts = Counter(word for words in documents for word in words)
    left_out = frozenset(stop_words)
    kept = {word for word, n in counts.items() if n >= min_count and word not in left_out}
    return [[word for word in words if word in kept] for words in documents]


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

    The N texts are those of all parts: training, validation, test, unlabeled. Their words are those
    of `clean_documents`; a document shorter than `window` words is one window. Co-occurrences of
    two words are "pairs" of their places in all windows (as in the released code and the published
    scores) or "windows" that hold both (as in the paper).

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
    edge_index, weight = from_scipy_sparse_matrix(whole)
    return Data(
        edge_index=edge_index,
        edge_weight=weight.float(),
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
    size, weight = int(graph.num_nodes), graph.edge_weight.double()
    matrix = to_scipy_sparse_matrix(graph.edge_index, weight, size).tocsr()
    matrix = (matrix + sparse.identity(size, format="csr")).tocsr()
    scale = sparse.diags(1.0 / np.sqrt(np.asarray(matrix.sum(axis=1)).ravel()))
    matrix = (scale @ matrix @ scale).tocsr()
    matrix.sort_indices()
    return matrix


def csr_tensor(matrix: sparse.csr_matrix) -> Tensor:
    """A copy of a SciPy matrix as torch's sparse CSR, float32."""
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
