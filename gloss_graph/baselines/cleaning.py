"""Documents to words, as TextGCN (and Kim's CNN before it) cleans them, in every script."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

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

_NOT_ASCII = re.compile(r"[^A-Za-z0-9(),!?'`]")
_RULES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"('s|'ve|n't|'re|'d|'ll)", r" \1"),
        (r"([,!()?])", r" \1 "),
    )
]


class _Characters(dict[int, str]):
    """The replacements of characters, filled on first use.

    Letters, marks and numbers of every script stay, and so does the punctuation of the published
    cleaning. Characters without a width, such as the joiners of Persian and Hindi, vanish. All
    others separate words.
    """

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind = unicodedata.category(character)
        if kind[0] in "LMN" or character in "(),!?'`":
            self[code] = character
        else:
            self[code] = "" if kind == "Cf" else " "
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
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text.lower().split()


def cleaning_notes(texts: Iterable[str], cleaning: str) -> list[str]:
    """Warnings about texts whose words the cleaning does not find."""
    notes, total, letters, lost, unspaced = [], 0, 0, 0, 0
    for text in texts:
        total += 1
        if text.isascii():
            letters += sum(map(str.isalpha, text))
            continue
        found = [character for character in text if character.isalpha()]
        letters += len(found)
        lost += sum(not character.isascii() for character in found)
        # Six characters are more than a word of these scripts has.
        if len(_UNSPACED.findall(text)) >= 6 * len(text.split()):
            unspaced += 1
    if cleaning == "published" and lost > 0.05 * letters:
        notes.append(
            f"The cleaning 'published' leaves out {100 * lost / letters:.0f} % of the letters of "
            "the documents, all that are not ASCII. Take 'unicode' (--cleaning unicode)."
        )
    elif cleaning == "unicode" and unspaced > 0.05 * total:
        notes.append(
            f"{unspaced:,} of {total:,} documents have few words, as they are in a script without "
            "spaces between words, and words end at spaces here. Separate the words by spaces "
            "first, with a segmenter of the language."
        )
    return notes


def clean_documents(
    texts: Iterable[str],
    *,
    min_count: int = 5,
    stop_words: Iterable[str] = STOP_WORDS,
    cleaning: str = "unicode",
) -> list[list[str]]:
    """Words of every document, without stop words and rare words.

    Args:
        texts: N documents.
        min_count: Words that are rarer in all documents together are left out; 1 keeps all.
        stop_words: Words to leave out.
        cleaning: "unicode" keeps the letters, marks and numbers of every script, composed (NFC).
            "published" is the cleaning of TextGCN's release: all but ASCII letters, digits and
            ``(),!?'` `` becomes a space.

    Returns:
        N lists, of which some may be empty.

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
