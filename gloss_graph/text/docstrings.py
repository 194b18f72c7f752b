"""A labeled corpus without a download: the docstrings of the scientific Python stack."""

from __future__ import annotations

import ast
import functools
import gc
import importlib.util
import inspect
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from gloss_graph._internal.checks import misfit
from gloss_graph.text.corpora import Corpus, Splits

__all__ = ["MASK", "TOPICS", "docstring_corpus", "mask_docstring"]

MASK = "NAME"
"""Replaces a masked name."""

TOPICS: Mapping[str, str] = {
    "dates and times": (
        "calendar.py datetime.py _pydatetime.py dateutil pandas/tseries pandas/core/resample.py "
        "pandas/core/tools pandas/core/arrays/datetimelike.py pandas/core/arrays/datetimes.py "
        "pandas/core/arrays/period.py pandas/core/arrays/timedeltas.py "
        "pandas/core/indexes/datetimelike.py pandas/core/indexes/datetimes.py "
        "pandas/core/indexes/period.py pandas/core/indexes/timedeltas.py"
    ),
    "files": (
        "bz2.py fsspec glob.py gzip.py pathlib pathlib.py shutil.py tarfile.py tempfile.py zipfile "
        "zipfile.py"
    ),
    "geometry": "scipy/spatial sympy/geometry",
    "graph neural networks": (
        "torch_geometric/datasets torch_geometric/nn torch_geometric/transforms"
    ),
    "graph theory": "networkx/algorithms networkx/generators",
    "linear algebra": "numpy/linalg scipy/linalg scipy/sparse sympy/matrices torch/linalg",
    "machine learning": (
        "sklearn/ensemble sklearn/inspection sklearn/linear_model sklearn/metrics "
        "sklearn/model_selection sklearn/neighbors sklearn/neural_network sklearn/svm sklearn/tree"
    ),
    "plotting": (
        "matplotlib/axes matplotlib/axis.py matplotlib/collections.py matplotlib/colorbar.py "
        "matplotlib/figure.py matplotlib/legend.py matplotlib/lines.py matplotlib/patches.py "
        "matplotlib/pyplot.py matplotlib/ticker.py mpl_toolkits/mplot3d"
    ),
    "signals": "numpy/fft scipy/fft scipy/signal torch/fft",
    "special functions": "scipy/special sympy/functions",
    "strings": (
        "difflib.py numpy/_core/defchararray.py numpy/_core/strings.py pandas/core/strings re "
        "string.py textwrap.py"
    ),
    "threads and tasks": "asyncio concurrent multiprocessing threading.py",
}
"""Topic to its folders and files, relative to the place where packages are installed."""

MIN_DOCUMENTS = 2_000
"""The fewest documents that the installed packages must give."""

# fmt: off
_PACKAGES = frozenset({
    "geometric", "huggingface", "matplotlib", "mpl", "networkx", "np", "numpy", "nx", "pandas",
    "pd", "plt", "pyg", "pyplot", "pytorch", "scikit", "scipy", "sklearn", "torch", "transformers",
})
# fmt: on
_MIN_WORDS = 12
_MIN_PER_TOPIC = 10
_SKIPPED = re.compile(r"/(?:tests?|testing|_vendor|externals|_?test_[^/]*|[^/]*_test)(?:/|\.py$)")

# Section headings of Google style (alone on a line), and field lists. Underlined headings of
# numpydoc are recognised by their underline.
_HEADINGS = (
    "args|arguments|attributes|examples?|inputs?|kwargs|keyword arg(?:ument)?s|keyword parameters"
    "|notes?|other parameters|outputs?|parameters|raises|references|returns?|see also|shapes?"
    "|usage|warnings?|warns|yields"
)
_SECTION = re.compile(
    rf"(?:[*]{{0,2}}(?:{_HEADINGS})[*:\s]*|:(?:param|type|returns?|rtype|raises)\b.*)$",
    re.IGNORECASE,
)
_UNDERLINE = re.compile(r"\s*([-=~^\"'*+#])\1{2,}\s*$")
_SIGNATURE = re.compile(r"[\w.]+\(.*\)\s*(?:->.*|:)?$")
_DROPPED_LINE = re.compile(
    r"\s*(?:>>>|\.\.\.(?:\s|$)|In \[\d+\]|import\s+\w|from\s+[\w.]+\s+import\b|[$%]\s|[|+=-]{3,})"
)
_DIRECTIVE = re.compile(r"\s*\.\.(?:\s|$)")

_INLINE: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"Read more in the :ref:`[^`]*`\.?"), " "),  # the signature of one library
    (re.compile(r":math:`[^`]*`|\$[^$\n]{1,200}\$"), " "),
    (re.compile(r":[\w:+-]+:`[^`]*`"), f" {MASK} "),
    (re.compile(r"`([^`<]*?)\s*<[^`>]*>`_{1,2}"), r"\1"),
    (re.compile(r"https?://\S+|www\.\S+|\b(?:doi|arXiv):\S+", re.IGNORECASE), " "),
    (re.compile(r"\[[\w#*-]{1,12}\]_|\|[\w -]+\|_{0,2}"), " "),
    (re.compile(r"%\(\w+\)s|\{\{?[^{}\n]*\}?\}|\$\{?\w+\}?"), " "),
    # Inline code: a plain lower-case word (usually a parameter) reads on, other code is masked.
    (re.compile(r"``?([a-z]+)``?"), r"\1"),
    (re.compile(r"``?[^`\n]*``?"), f" {MASK} "),
    (re.compile(r"\b[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+(?:\(\))?|\b\w+\([^()\s]*\)"), f" {MASK} "),
    # Identifiers by their shape: snake_case, camelCase and CapWords, letters before a digit.
    (re.compile(r"\b\w*_\w*\b|\b[A-Za-z]*[a-z][A-Z]\w*"), MASK),
    (re.compile(r"\b[A-Z]{2,}[a-z]\w+|\b[A-Za-z]+\d\w*"), MASK),
    (re.compile(r"[*]{1,2}|::|\\[A-Za-z]*"), " "),
)
_WORD = re.compile(r"[A-Za-z]+")
_REPEATED = re.compile(rf"\b{MASK}(?:\W+{MASK}\b)+")
_SPACE_BEFORE_POINT = re.compile(r"\s+(?=[,.;:)])")


def docstring_corpus(*, max_documents: int = 4_000, seed: int = 0) -> Splits:
    """Build a topic classification corpus from the docstrings of installed packages.

    A document is the summary and description of one public function, class or method, at most 600
    characters; its class is the topic (`TOPICS`) of its subpackage. Names that would reveal the
    class (packages, modules, the object, every identifier) are masked, code, references and
    addresses are removed. Of texts with one opening the first is kept, or none where their topics
    differ.

    Sources are parsed and never run. The same installed versions and the same seed give the same
    documents in the same order. A document keeps its id whatever the seed and the size.

    Args:
        max_documents: Size of the corpus. Large topics are cut first, down to a common size.
        seed: Seed of the cut, the split and the order.

    Returns:
        Training, validation and test part: 60, 10 and 30 percent of every class.

    Raises:
        ValueError: `max_documents` leaves fewer than ten documents for a class.
        RuntimeError: Packages are missing, so that there are fewer than 2,000 documents.

    Cost: about ten seconds for the first call of a process; later calls reuse the parsed pool.

    Example:
        >>> train = docstring_corpus(max_documents=400).train
        >>> train.num_classes, train.label_names[:2]
        (12, ['dates and times', 'files'])
    """
    names = sorted(TOPICS)
    fewest = _MIN_PER_TOPIC * len(names)
    if max_documents < fewest:
        rule = f"be at least {fewest}, ten for each of {len(names)} topics"
        raise misfit("max_documents", rule, max_documents)
    pool = _pool()
    topics = np.array([names.index(topic) for topic, _ in pool])
    sizes = np.bincount(topics)
    # The largest common limit with which the classes fit.
    most = next(n for n in range(sizes.max(), 0, -1) if np.minimum(sizes, n).sum() <= max_documents)
    rng = np.random.default_rng(seed)
    parts: list[list[int]] = [[], [], []]
    for topic in range(len(names)):
        drawn = rng.permutation(np.flatnonzero(topics == topic))[:most].tolist()
        val, test = round(0.1 * len(drawn)), round(0.4 * len(drawn))
        for part, share in zip(parts, (drawn[test:], drawn[:val], drawn[val:test]), strict=True):
            part.extend(share)
    corpora = []
    for part in parts:
        order = rng.permutation(part).tolist()
        texts, labels = [pool[place][1] for place in order], topics[order].tolist()
        corpora.append(Corpus(texts, labels, order, names, name="docstrings"))
    return Splits(*corpora)


@functools.cache
def _pool() -> tuple[tuple[str, str], ...]:
    """Topic and text of every document, in the order of topics, files and lines."""
    running = gc.isenabled()
    gc.disable()  # Syntax trees have no cycles; looking for them nearly doubles the time.
    try:
        pool, missing = _collected()
    finally:
        if running:
            gc.enable()
    counts = Counter(topic for topic, _ in pool)
    small = [topic for topic in sorted(TOPICS) if counts[topic] < _MIN_PER_TOPIC]
    if len(pool) < MIN_DOCUMENTS or small:
        raise RuntimeError(
            f"The installed packages give {len(pool)} documents (at least {MIN_DOCUMENTS} are "
            f"needed); too few for: {', '.join(small) or 'the total'}; not found: "
            f"{', '.join(missing) or 'nothing'}. Install these packages with their sources."
        )
    return pool


def _collected() -> tuple[tuple[tuple[str, str], ...], list[str]]:
    """The documents, and the sources that are not installed."""
    subpackages = re.split(r"[ /]", " ".join(TOPICS.values()).lower())
    names = _PACKAGES.union(name.removesuffix(".py") for name in subpackages)
    found: dict[str, tuple[str, str]] = {}
    topics_of: defaultdict[str, set[str]] = defaultdict(set)
    missing: list[str] = []
    for topic in sorted(TOPICS):
        for source in TOPICS[topic].split():
            files = _files(source)
            if not files:
                missing.append(source)
            for module, file in files:
                path = module.lower().removesuffix(".py").split("/")
                for hidden, doc in docstrings_of(file):
                    text = mask_docstring(doc, {*names, *hidden, *(p.strip("_") for p in path)})
                    words = re.findall(r"[A-Za-z]{2,}", text)
                    if len(words) - words.count(MASK) < _MIN_WORDS:
                        continue
                    opening = re.sub(r"[^a-z]", "", text.lower())[:80]
                    topics_of[opening].add(topic)
                    found.setdefault(opening, (topic, text))
    pool = tuple(found[opening] for opening, topics in topics_of.items() if len(topics) == 1)
    return pool, missing


def _files(source: str) -> list[tuple[str, Path]]:
    """Python files below a folder or of a file such as `scipy/stats`, with relative names."""
    try:
        spec = importlib.util.find_spec(source.split("/")[0].removesuffix(".py"))
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    places = spec.submodule_search_locations or []
    if spec.has_location and spec.origin is not None and not places:
        places = [spec.origin]
    for site in (Path(place).parent for place in places):
        root = site / source
        files = [root] if root.is_file() else root.rglob("*.py")
        named = sorted((file.relative_to(site).as_posix(), file) for file in files)
        if named:
            return [(name, file) for name, file in named if not _SKIPPED.search(name)]
    return []


def docstrings_of(file: Path) -> Iterator[tuple[set[str], str]]:
    """Docstrings of a file's public objects with the lower-case names of each object."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the sources of others
            tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    yield from _definitions(tree.body, frozenset())
    # Those given to compiled objects: `add_newdoc("erf", "...")` and the like.
    for call in (getattr(statement, "value", None) for statement in tree.body):
        if not isinstance(call, ast.Call) or len(call.args) < 2:
            continue
        function = getattr(call.func, "attr", getattr(call.func, "id", ""))
        if function.lstrip("_") not in ("add_docstr", "add_newdoc"):
            continue
        # A string, or the object itself.
        named, doc = call.args[:2]
        name = getattr(named, "value" if isinstance(named, ast.Constant) else "attr", "")
        while isinstance(doc, ast.Call | ast.Attribute):  # r"""...""".format(...)
            doc = doc.func if isinstance(doc, ast.Call) else doc.value
        if isinstance(doc, ast.Constant) and isinstance(doc.value, str):
            yield {str(name).lower()}, inspect.cleandoc(doc.value)


def _definitions(body: list[ast.stmt], outer: frozenset[str]) -> Iterator[tuple[set[str], str]]:
    for node in body:
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, kinds) and not node.name.startswith("_"):
            names = outer | {node.name.lower()}
            if doc := ast.get_docstring(node):
                yield set(names), doc
            if isinstance(node, ast.ClassDef):
                yield from _definitions(node.body, names)


def mask_docstring(doc: str, names: Collection[str], *, max_characters: int = 600) -> str:
    r"""Turn a dedented docstring into a line of prose without code, references and `names`.

    The part above the first section is kept, up to the last word within `max_characters`.

    Example:
        >>> mask_docstring("Sorts with `np.sort`, see [1]_.\n\nArgs:\n    x: Data.", {"sorts"})
        'NAME with NAME, see.'
    """
    # Markup is dense at worst; four times the wanted length is enough raw text.
    text = "\n".join(_prose_lines(doc))[: 4 * max_characters]
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    text = _WORD.sub(lambda word: MASK if word[0].lower() in names else word[0], text)
    text = _REPEATED.sub(MASK, " ".join(text.split()))
    text = _SPACE_BEFORE_POINT.sub("", text)
    if len(text) > max_characters:
        text = text[: max_characters + 1].rpartition(" ")[0] or text[:max_characters]
    return text


def _prose_lines(doc: str) -> list[str]:
    """Lines above the first section, without code, directives and their bodies."""
    lines = doc.expandtabs().splitlines()
    if lines and _SIGNATURE.match(lines[0].strip()):
        lines = lines[1:]
    kept: list[str] = []
    block_indent: int | None = None  # inside a directive or a literal block, deeper lines go
    in_example = False  # between a prompt and the next blank line
    for line, following in pairwise([*lines, ""]):
        stripped, indent = line.strip(), len(line) - len(line.lstrip())
        if block_indent is not None and stripped:
            if indent > block_indent:
                continue
            block_indent = None
        if stripped and (_SECTION.match(stripped) or (kept and _UNDERLINE.match(following))):
            break
        in_example = bool(stripped) and (in_example or stripped.startswith(">>>"))
        if _DIRECTIVE.match(line):
            block_indent = indent
        elif not in_example and not _DROPPED_LINE.match(line) and not _UNDERLINE.match(line):
            if stripped.endswith("::"):
                block_indent = indent
            kept.append(line)
    return kept
