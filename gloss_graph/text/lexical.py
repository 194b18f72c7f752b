"""What the words of documents say by themselves: latent semantic analysis, without any encoder."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from torch import Tensor

from gloss_graph._internal.checks import check_positive_int
from gloss_graph.text.corpora import Corpus

__all__ = ["lexical_rows"]

# A word of one document joins it to no other, one of most documents joins all.
_LEAST_DOCUMENTS, _MOST_SHARE = 2, 0.5


def lexical_rows(corpus: Corpus, dim: int = 256, *, seed: int = 0) -> Tensor | None:
    """Rows of documents by the words they use, from the corpus alone.

    TF-IDF (sublinear counts; words of two documents at least and of half of them at most), reduced
    by a truncated SVD (latent semantic analysis, Deerwester et al., 1990). No label is read. The
    texts of a pair are taken together.

    Args:
        corpus: N documents.
        dim: D, or less where there are fewer words or documents.
        seed: Of the randomised SVD.

    Returns:
        (N, D) float32, zero where a document has none of these words; None where fewer than two
        words are left, as in a corpus of features only.

    Raises:
        ValueError: `dim` < 1.

    Example:
        >>> texts = ["oil rises", "oil falls", "wheat rises", "wheat falls"]
        >>> corpus = Corpus(texts, [-1] * 4, [0, 1, 2, 3], ["energy", "food"])
        >>> lexical_rows(corpus, 2).shape
        torch.Size([4, 2])
        >>> lexical_rows(corpus.select([0])) is None
        True
    """
    check_positive_int("dim", dim)
    texts = corpus.texts
    if corpus.texts_b is not None:
        texts = [" ".join(pair) for pair in zip(texts, corpus.texts_b, strict=True)]
    try:
        counts = CountVectorizer(dtype=np.float32).fit_transform(texts).tocsc()
    except ValueError:  # no word in any of them
        return None
    documents = np.diff(counts.indptr)
    joining = (documents >= _LEAST_DOCUMENTS) & (documents <= _MOST_SHARE * len(texts))
    if np.count_nonzero(joining) < 2:
        return None
    weights = TfidfTransformer(sublinear_tf=True).fit_transform(counts[:, joining])
    model = TruncatedSVD(min(dim, *weights.shape), random_state=seed)
    return torch.from_numpy(model.fit_transform(weights)).float()
