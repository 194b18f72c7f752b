"""A labeled corpus without a download: what the scientific Python stack says about itself."""

from __future__ import annotations

import ast
import functools
import gc
import importlib.util
import inspect
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from gloss_graph.text.corpora import Corpus, Splits
from gloss_graph.text.masking import MASK, mask_docstring

__all__ = ["TOPICS", "docstring_corpus"]

TOPICS: Mapping[str, str] = MappingProxyType(
    {
        "clustering and projection": (
            "sklearn/cluster sklearn/covariance sklearn/cross_decomposition "
            "sklearn/decomposition sklearn/manifold sklearn/mixture scipy/cluster"
        ),
        "data preparation": (
            "sklearn/compose sklearn/datasets sklearn/feature_extraction "
            "sklearn/feature_selection sklearn/impute sklearn/preprocessing"
        ),
        "distributed computing": (
            "torch/distributed/algorithms torch/distributed/checkpoint "
            "torch/distributed/elastic torch/distributed/rpc"
        ),
        "files": "pandas/io scipy/io",
        "geometry and calculus": "scipy/integrate scipy/interpolate scipy/spatial",
        "graph networks": "torch_geometric/nn",
        "graph theory": "networkx/algorithms networkx/generators",
        "linear algebra": "numpy/linalg scipy/linalg scipy/sparse torch/linalg",
        "model evaluation": "sklearn/inspection sklearn/metrics sklearn/model_selection",
        "neural layers": "torch/nn/functional.py torch/nn/modules torch/nn/utils",
        "optimization": "scipy/optimize torch/optim",
        "plotting": (
            "matplotlib/axes matplotlib/axis.py matplotlib/collections.py "
            "matplotlib/colorbar.py matplotlib/colors.py matplotlib/figure.py "
            "matplotlib/legend.py matplotlib/lines.py matplotlib/patches.py "
            "matplotlib/text.py matplotlib/ticker.py mpl_toolkits/mplot3d"
        ),
        "signals and images": "numpy/fft scipy/fft scipy/ndimage scipy/signal torch/fft",
        "special functions": "numpy/polynomial scipy/special torch/special",
        "statistics": "scipy/stats torch/distributions",
        "supervised learning": (
            "sklearn/ensemble sklearn/gaussian_process sklearn/linear_model "
            "sklearn/naive_bayes.py sklearn/neighbors sklearn/neural_network sklearn/svm "
            "sklearn/tree"
        ),
        "tables and dates": (
            "pandas/core/groupby pandas/core/indexes pandas/core/resample.py "
            "pandas/core/series.py pandas/core/strings pandas/core/window"
        ),
        "text generation": "transformers/generation",
    }
)
"""Topic to the folders and files, relative to where packages are installed, that speak of it."""

MIN_DOCUMENTS = 2_000
"""What the pool of documents holds at least, whatever versions are installed."""

# fmt: off
_PACKAGES = frozenset({
    "geometric", "huggingface", "matplotlib", "mpl", "networkx", "np", "numpy", "nx", "pandas",
    "pd", "plt", "pyg", "pyplot", "pytorch", "scikit", "scipy", "sklearn", "torch", "transformers",
})
# fmt: on
_MIN_WORDS = 8
_MIN_PER_TOPIC = 10
_SKIPPED = re.compile(r"/(?:tests?|testing|_vendor|externals|_?test_[^/]*|[^/]*_test)(?:/|\.py$)")


class _Document(NamedTuple):
    topic: str
    text: str


def docstring_corpus(*, max_documents: int = 4_000, seed: int = 0) -> Splits:
    """Build a topic classification corpus from the docstrings of installed packages.

    A document is the summary and extended description of one public function, class or method of
    a package that this one depends on, at most 600 characters; its class is the topic
    (:data:`TOPICS`) of the subpackage it was found in. Names that would give the class away
    (packages, subpackages, modules, the object's own name, every identifier) are masked, code,
    references and addresses are removed, and texts that open alike are kept once, or not at all
    where their topics differ.

    Sources are parsed, never imported, so nothing of the packages runs, and the corpus does not
    depend on what is already imported. The same installed versions and the same seed give the
    same documents in the same order; other versions give other documents. Documents keep their
    ids whatever the seed and the size.

    Args:
        max_documents: Size of the corpus. Large topics are cut first, down to a common size.
        seed: Of the cut, the split and the order.

    Returns:
        Training, validation and test part: 60, 10 and 30 percent of every class.

    Raises:
        ValueError: If ``max_documents`` leaves fewer than ten documents for a class.
        RuntimeError: If the installed packages give fewer than 2,000 documents, or a topic fewer
            than ten; the message says which packages are missing.

    Cost: about ten seconds for the first call of a process; later calls reuse the parsed pool.

    Example:
        >>> train = docstring_corpus(max_documents=400).train
        >>> train.num_classes, train.label_names[:2]
        (18, ['clustering and projection', 'data preparation'])

    See Also:
        :func:`~gloss_graph.text.read_splits` for documents of your own.
    """
    fewest = _MIN_PER_TOPIC * len(TOPICS)
    if max_documents < fewest:
        raise ValueError(
            f"'max_documents' must be at least {fewest}, ten for each of {len(TOPICS)} topics "
            f"(got {max_documents}). Ask for more documents."
        )
    pool = _pool()
    names = sorted(TOPICS)
    topics = np.array([names.index(document.topic) for document in pool])
    members = [np.flatnonzero(topics == number) for number in range(len(names))]
    most = _common_limit([len(group) for group in members], max_documents)
    rng = np.random.default_rng(seed)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for group in members:
        drawn = rng.permutation(group)[:most].tolist()
        val, test = round(0.1 * len(drawn)), round(0.4 * len(drawn))
        for part, positions in zip(
            parts, (drawn[test:], drawn[:val], drawn[val:test]), strict=True
        ):
            part.extend(positions)
    corpora = []
    for part in parts:
        order = rng.permutation(part).tolist()
        corpora.append(
            Corpus(
                texts=[pool[position].text for position in order],
                labels=[int(topics[position]) for position in order],
                ids=order,
                label_names=names,
                name="docstrings",
            )
        )
    return Splits(*corpora)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without cyclic garbage collection: trees have no cycles, and it nearly doubles the time."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


@functools.cache
@_collector_paused()
def _pool() -> tuple[_Document, ...]:
    """Every document, in the order of topics, files and lines."""
    subpackages = {
        name.lower().removesuffix(".py")
        for paths in TOPICS.values()
        for name in re.split(r"[ /]", paths)
    }
    names = subpackages | _PACKAGES
    found: dict[str, _Document] = {}
    topics_of: defaultdict[str, set[str]] = defaultdict(set)
    missing: list[str] = []
    for topic in sorted(TOPICS):
        for source in TOPICS[topic].split():
            files = _files(source)
            if not files:
                missing.append(source)
            for module, file in files:
                own_path = {
                    part.strip("_") for part in module.lower().removesuffix(".py").split("/")
                }
                for own_names, doc in _docstrings(file):
                    text = mask_docstring(doc, names | own_path | own_names)
                    words = re.findall(r"[A-Za-z]{2,}", text)
                    if len(words) - words.count(MASK) < _MIN_WORDS:
                        continue
                    opening = re.sub(r"[^a-z]", "", text.lower())[:80]
                    topics_of[opening].add(topic)
                    found.setdefault(opening, _Document(topic, text))
    pool = tuple(found[opening] for opening, topics in topics_of.items() if len(topics) == 1)
    small = [
        topic
        for topic in sorted(TOPICS)
        if sum(document.topic == topic for document in pool) < _MIN_PER_TOPIC
    ]
    if len(pool) < MIN_DOCUMENTS or small:
        raise RuntimeError(
            f"The installed packages give {len(pool)} documents (at least {MIN_DOCUMENTS} are "
            f"needed); too few for: {', '.join(small) or 'the total'}; not found: "
            f"{', '.join(missing) or 'nothing'}. Install these packages with their sources, or "
            "read documents of your own with read_splits."
        )
    return pool


def _files(source: str) -> list[tuple[str, Path]]:
    """Python files below a folder or of a file such as ``scipy/stats``, with relative names."""
    package = source.split("/")[0]
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return []
    for location in (spec and spec.submodule_search_locations) or ():
        site = Path(location).parent
        root = site / source
        files = [root] if root.is_file() else root.rglob("*.py")
        named = sorted((file.relative_to(site).as_posix(), file) for file in files)
        if named:
            return [(name, file) for name, file in named if not _SKIPPED.search(name)]
    return []


def _docstrings(file: Path) -> Iterator[tuple[set[str], str]]:
    """Docstrings of a file's public objects with the lower-case names of each object."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's sources
            tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    yield from _definitions(tree.body, frozenset())
    for statement in tree.body:
        call = getattr(statement, "value", None)
        if isinstance(call, ast.Call):
            yield from _attached_docstring(call)


def _definitions(body: list[ast.stmt], outer: frozenset[str]) -> Iterator[tuple[set[str], str]]:
    for node in body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("_"):
            continue
        own_names = outer | {node.name.lower()}
        doc = ast.get_docstring(node)
        if doc:
            yield set(own_names), doc
        if isinstance(node, ast.ClassDef):
            yield from _definitions(node.body, own_names)


def _attached_docstring(call: ast.Call) -> Iterator[tuple[set[str], str]]:
    """The docstring given to a compiled object: ``add_newdoc("erf", "...")`` and the like."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name.lstrip("_") not in ("add_docstr", "add_newdoc") or len(call.args) < 2:
        return
    target = call.args[0]
    own_name = (
        getattr(target, "value", "")
        if isinstance(target, ast.Constant)
        else getattr(target, "attr", "")
    )
    doc: ast.expr = call.args[1]
    while isinstance(doc, ast.Call | ast.Attribute):  # r"""...""".format(...)
        doc = doc.func if isinstance(doc, ast.Call) else doc.value
    if isinstance(doc, ast.Constant) and isinstance(doc.value, str):
        yield {str(own_name).lower()}, inspect.cleandoc(doc.value)


def _common_limit(sizes: list[int], total: int) -> int:
    """The largest limit per class with which the classes hold at most ``total`` documents."""
    limit = 0
    left = total
    for done, size in enumerate(sorted(sizes)):
        share = left // (len(sizes) - done)
        if size > share:
            return share
        left -= size
        limit = size
    return limit
