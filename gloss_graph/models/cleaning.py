"""Documents to words, as TextGCN (and Kim's CNN before it) cleans them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from gloss_graph._checks import check_positive_int

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

_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"[^A-Za-z0-9(),!?'`]", " "),
        (r"('s|'ve|n't|'re|'d|'ll)", r" \1"),
        (r"([,!()?])", r" \1 "),
    )
]


def split_words(text: str) -> list[str]:
    """Lower-case words, clitics and punctuation of a text.

    Letters outside ASCII part words, as in the papers: for another language give
    `word_document_graph` words of your own.

    Example:
        >>> split_words("It's GOOD, isn't it?")
        ['it', "'s", 'good', ',', 'is', "n't", 'it', '?']
    """
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text.lower().split()


def clean_documents(
    texts: Iterable[str],
    *,
    min_count: int = 5,
    stop_words: Iterable[str] = STOP_WORDS,
) -> list[list[str]]:
    """Words of every document, without stop words and rare words.

    Args:
        texts: N documents.
        min_count: Words seen less often in all documents together are left out; 1 keeps all.
        stop_words: Words to leave out; empty to keep all.

    Returns:
        N lists; one may be empty, its document is still there.

    Raises:
        ValueError: `min_count` below 1.

    Example:
        >>> clean_documents(["the old tea", "a tea"], min_count=2)
        [['tea'], ['tea']]
    """
    check_positive_int("min_count", min_count)
    documents = [split_words(text) for text in texts]
    return kept_words(documents, min_count=min_count, stop_words=stop_words)


def kept_words(
    documents: Sequence[Sequence[str]], *, min_count: int, stop_words: Iterable[str]
) -> list[list[str]]:
    """The documents without stop words and without words seen less than `min_count` times."""
    counts = Counter(word for words in documents for word in words)
    left_out = frozenset(stop_words)
    kept = {word for word, n in counts.items() if n >= min_count and word not in left_out}
    return [[word for word in words if word in kept] for words in documents]
