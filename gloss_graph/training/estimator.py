"""Train and predict in three lines: texts or feature rows and labels in, a classifier out."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score
from torch import nn

from gloss_graph._internal.checks import check_choice
from gloss_graph._internal.labels import class_codes, label_array
from gloss_graph.runs import RunFolder
from gloss_graph.text import Corpus, FeatureEncoder, Splits, TextEncoder, load_encoder
from gloss_graph.text.corpora import string_list
from gloss_graph.training.config import FEATURE_RATES, RECIPES, TrainConfig, recipe_settings
from gloss_graph.training.outcome import THRESHOLD
from gloss_graph.training.predict import Run
from gloss_graph.training.run import train_text

_SETS = (list, tuple, set, frozenset)
_Documents = list[str] | NDArray[np.float32]


class Reason(NamedTuple):
    """A labeled training document that decided: its text (or id, of features), class and share."""

    text: str
    label: Any
    share: float


class Decision(NamedTuple):
    """What propagation says about a document: class, confidence in [0, 1] and its reasons."""

    label: Any
    confidence: float
    reasons: list[Reason]


class GraphGuidedClassifier(ModelHubMixin):
    """Fine-tune an encoder on a few labels and the graph of all documents.

    Args:
        encoder: `"minilm"`, a folder or Hugging Face id, a `SentenceTransformer`, a `TextEncoder`,
            or `"none"` for rows of features. Another `nn.Module` is applied to feature rows (n, D)
            and stays as it is; an adapter on top of it is trained.
        recipe: `"few-labels"`, `"full-labels"` or `"auto"`, which takes the former if most
            documents have no label.
        head: Head of `predict`: `"linear"`, the trained one, or `"propagation"` over the training
            documents.
        max_length: Tokens kept of a text. The default is made for a CPU: with 5,000 news stories
            two cores take under five minutes. Longer texts may gain from more.
        settings: Settings of `TrainConfig` by name, over those of the recipe.
        seed: Seed of everything random.
        verbose: Show progress bars.

    Attributes:
        classes_: (C,) class names or numbers, sorted.
        metrics_: Numbers of the training, as in `metrics.json` of a run folder.

    Example:
        >>> texts = ["graphs have nodes", "soup is hot", "edges join nodes", "soup with bread"] * 4
        >>> model = GraphGuidedClassifier(
        ...     settings={"warm_start_steps": 2, "graph_start_steps": 2}, verbose=False
        ... ).fit(texts[:4], ["graph", "food", "graph", "food"], unlabeled=texts[4:])
        >>> model.predict(["a hot soup"]).tolist()
        ['food']

    See also: `PropagationClassifier` for feature rows without training; `gloss-graph train`, whose
    run folders `load` reads.
    """

    def __init__(
        self,
        encoder: str | nn.Module = "minilm",
        *,
        recipe: str = "auto",
        head: str = "linear",
        max_length: int = 48,
        settings: Mapping[str, Any] | None = None,
        seed: int = 0,
        verbose: bool = True,
    ) -> None:
        check_choice("recipe", recipe, ("auto", *RECIPES))
        check_choice("head", head, ("linear", "propagation"))
        self.encoder, self.recipe, self.head, self.max_length = encoder, recipe, head, max_length
        self.settings, self.seed, self.verbose = dict(settings or {}), seed, verbose
        self._remove: Callable[[], object] = lambda: None
        self._run: Run | None = None

    def __repr__(self) -> str:
        state = "not fitted" if self._run is None else f"{len(self._run.label_names)} classes"
        return f"GraphGuidedClassifier({_name_of(self.encoder)}, recipe={self.recipe!r}, {state})"

    def fit(self, texts: Any, labels: Any, unlabeled: Any = None) -> GraphGuidedClassifier:
        """Train on documents.

        Args:
            texts: N strings (list, array, pandas Series); or feature rows (N, D), dense or sparse.
            labels: N classes, names or numbers; None, NaN and -1 mark unlabeled documents. For
                documents of several classes lists of classes, or a 0/1 matrix (N, C).
            unlabeled: More documents, without labels.

        Raises:
            TypeError: A text that is not a string, named by its position.
            ValueError: Lengths that disagree, no label, a single class, non-finite features.
        """
        documents = self._documents(texts, "texts")
        more = None if unlabeled is None else self._documents(unlabeled, "unlabeled")
        corpus, numbers = _corpus(documents, labels, more)
        labeled = sum(label >= 0 for label in corpus.labels)
        few = 2 * labeled < len(corpus) and not corpus.multilabel
        recipe = recipe_settings(self.recipe, few_labels=few)
        if corpus.features is not None:
            recipe |= FEATURE_RATES
        config = TrainConfig(**{**recipe, "pictures": False, "seed": self.seed, **self.settings})
        work = Path(tempfile.mkdtemp(prefix="gloss-graph-"))
        # The run is needed as long as this object; what it was before goes.
        self._remove()
        self._remove = weakref.finalize(self, rmtree, work, ignore_errors=True)
        encoder = self._encoder(corpus, work)
        run = work / "run"
        train_text(Splits(corpus), encoder, config, run, progress=self.verbose, save_steps=0)
        RunFolder(run).note(class_numbers=numbers)
        if (work / "encoder").is_dir():
            copytree(work / "encoder", RunFolder(run).encoder)
        self._take(run)
        return self

    def predict(self, texts: Any) -> NDArray[Any]:
        """Classes (B,) of documents, or label sets (B, C) of 0 and 1."""
        scores = self.predict_proba(texts)
        if self._fitted().multilabel:
            return (scores >= THRESHOLD).astype(np.int64)
        return self.classes_[scores.argmax(axis=1)]

    def predict_proba(self, texts: Any) -> NDArray[np.floating[Any]]:
        """Class probabilities (B, C), columns in the order of `classes_`.

        Raises:
            NotFittedError: Before `fit`.
        """
        run = self._fitted()
        if self.head == "linear":
            return run.linear(**self._arguments(texts)).numpy()
        found = run.predict(**self._arguments(texts), top=0)
        scores = found.explanation.probabilities
        # The head knows more than the graph about a row that no label reaches.
        return torch.where(scores.sum(dim=1, keepdim=True) > 0, scores, found.linear).numpy()

    def explain(self, texts: Any, top: int = 3) -> list[Decision]:
        """What propagation over the training documents says of B texts, with `top` reasons each."""
        run = self._fitted()
        found = run.predict(**self._arguments(texts), top=top).explanation
        best = self.classes_[found.probabilities.argmax(dim=1).numpy()].tolist()
        columns = (found.confidence, found.ids, found.shares)
        return [
            Decision(
                label,
                confidence,
                [
                    Reason(run.texts.get(n) or str(n), self._label_of[n], share)
                    for n, share in zip(ids, shares, strict=True)
                    if n >= 0 and share > 0
                ],
            )
            for label, confidence, ids, shares in zip(
                best, *(column.tolist() for column in columns), strict=True
            )
        ]

    def score(self, texts: Any, labels: Any) -> float:
        """Accuracy on labeled documents (of label sets: share of sets that are all right)."""
        predicted = self.predict(texts)
        if self._fitted().multilabel:
            _, truth = _label_sets(labels, self.classes_.tolist())
            sets = [set(np.flatnonzero(row).tolist()) for row in predicted]
            return float(np.mean([a == set(b or []) for a, b in zip(sets, truth, strict=True)]))
        return float(accuracy_score(label_array(labels), predicted))

    def save(self, folder: str | Path) -> Path:
        """Write a new run folder, which `load` and `gloss-graph predict --run` read.

        Raises:
            FileExistsError: The folder holds files.
        """
        run = self._fitted()
        with RunFolder(folder).claim() as claimed:
            copytree(run.folder, claimed.draft, dirs_exist_ok=True)
        return Path(folder).expanduser().absolute()

    @classmethod
    def load(
        cls, folder: str | Path, *, encoder: nn.Module | None = None, head: str = "linear"
    ) -> GraphGuidedClassifier:
        """Read a run folder that `save` or `gloss-graph train` wrote.

        A classifier that had one needs the `encoder`, the module that made the feature rows, again.
        """
        model = cls("none" if encoder is None else encoder, head=head, verbose=False)
        model._take(Path(folder).expanduser())
        if encoder is None:
            model.encoder = "none" if model._fitted().on_features else "saved"
        return model

    def _save_pretrained(self, save_directory: Path) -> None:
        copytree(self._fitted().folder, save_directory, dirs_exist_ok=True)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **settings: Any) -> GraphGuidedClassifier:
        folder, own = model_id, {k: v for k, v in settings.items() if k in ("encoder", "head")}
        if not Path(folder).is_dir():
            asked = ("revision", "cache_dir", "force_download", "local_files_only", "token")
            folder = snapshot_download(model_id, **{name: settings[name] for name in asked})
        # The mixin adds the settings of config.json that are named like those of the constructor.
        return cls.load(folder, **own)

    # ------------------------------------------------------------------ inside

    @property
    def on_features(self) -> bool:
        """Whether documents are rows of features."""
        if self._run is not None:
            return self._run.on_features
        reads_texts = hasattr(self.encoder, "tokenize")
        return self.encoder == "none" or (isinstance(self.encoder, nn.Module) and not reads_texts)

    def _fitted(self) -> Run:
        if self._run is None:
            raise NotFittedError("This GraphGuidedClassifier is not fitted. Call fit first.")
        return self._run

    def _take(self, folder: Path) -> None:
        run = Run(folder)
        self.classes_ = np.array(run.settings.get("class_numbers") or run.label_names)
        of_name = dict(zip(run.label_names, self.classes_.tolist(), strict=True))
        self._label_of = {n: of_name.get(label, label) for n, label in run.labels.items()}
        self.metrics_ = RunFolder(folder).read_metrics()
        self._run = run

    def _documents(self, given: Any, what: str) -> _Documents:
        if self.on_features:
            return self._features(given, what)
        if isinstance(given, str | bytes) or not isinstance(given, Iterable):
            raise TypeError(f"{what!r} must be a list of texts (got {type(given).__name__}).")
        try:
            return string_list(what, given)
        except ValueError as error:
            raise TypeError(str(error)) from None

    def _features(self, given: Any, what: str) -> NDArray[np.float32]:
        rows = np.asarray(given.toarray() if hasattr(given, "toarray") else given)
        if rows.dtype.kind not in "fiub" or rows.ndim != 2:
            raise ValueError(
                f"{what!r} must be rows of numbers (N, D), as encoder={_name_of(self.encoder)} "
                f"asks for (got {rows.dtype} {rows.shape}). For texts name an encoder of texts."
            )
        rows = rows.astype(np.float32)
        if not (finite := np.isfinite(rows).all(axis=1)).all():
            bad = int(finite.argmin())
            raise ValueError(f"{what!r} must be finite (row {bad} is not). Drop or fill it.")
        if isinstance(self.encoder, nn.Module) and not isinstance(self.encoder, FeatureEncoder):
            with torch.no_grad():
                return self.encoder.eval()(torch.from_numpy(rows)).float().numpy()
        return rows

    def _encoder(self, corpus: Corpus, work: Path) -> TextEncoder | FeatureEncoder:
        encoder, folder = self.encoder, work / "encoder"
        if corpus.features is not None:
            if isinstance(encoder, FeatureEncoder):
                return encoder
            return FeatureEncoder.scaled_to(corpus.features, seed=self.seed)
        if not isinstance(encoder, str):
            # Kept with the run, so that predictions have the untrained encoder at hand.
            cast(Any, encoder).save(str(folder))
            encoder = str(folder)
        return load_encoder(encoder, max_length=self.max_length)

    def _arguments(self, texts: Any) -> dict[str, Any]:
        name = "features" if self.on_features else "texts"
        return {name: self._documents(texts, "texts"), "progress": self.verbose}


def _name_of(encoder: str | nn.Module) -> str:
    return repr(encoder) if isinstance(encoder, str) else type(encoder).__name__


def _corpus(
    documents: _Documents, labels: Any, more: _Documents | None
) -> tuple[Corpus, list[Any] | None]:
    """The documents of a training, and their classes if these are numbers."""
    size, extra = len(documents), 0 if more is None else len(more)
    if not size:
        raise ValueError("'texts' must hold documents (got none).")
    sets: list[list[int] | None] | None = None
    values = labels.tolist() if hasattr(labels, "tolist") else labels
    listed = isinstance(values, Sequence) and any(isinstance(value, _SETS) for value in values)
    if listed or getattr(labels, "ndim", 1) == 2:
        names, sets = _label_sets(labels)
        codes, classes = np.zeros(len(sets), dtype=np.int64), np.array(names)
        sets = [*sets, *[None] * extra]
    else:
        classes, codes = class_codes(label_array(labels), what="labels")
    if len(codes) != size:
        raise ValueError(f"'labels' must hold one per text (got {len(codes)} for {size} texts).")
    if len(classes) < 2:
        raise ValueError(f"'labels' must be of at least two classes (got {classes.tolist()}).")
    texts, features = [""] * (size + extra), None
    if isinstance(documents, list):
        texts = [*documents, *(more if isinstance(more, list) else [])]
    else:
        features = documents if more is None else np.concatenate([documents, np.asarray(more)])
    corpus = Corpus(
        texts,
        [*codes.tolist(), *[-1] * extra],
        list(range(size + extra)),
        [str(name) for name in classes.tolist()],
        features=features,
        label_sets=sets,
    )
    return corpus, None if classes.dtype.kind in "USO" else classes.tolist()


def _label_sets(
    labels: Any, names: list[Any] | None = None
) -> tuple[list[Any], list[list[int] | None]]:
    """Classes, sorted unless they have `names`, and the class numbers of every document."""
    if getattr(labels, "ndim", 1) == 2:
        rows = np.asarray(labels, dtype=np.float64)
        unknown = np.isnan(rows).any(axis=1) | (rows == -1).any(axis=1)
        sets = [
            None if missing else np.flatnonzero(row).tolist()
            for missing, row in zip(unknown, rows, strict=True)
        ]
        return list(getattr(labels, "columns", range(rows.shape[1]))), sets
    members = [value if isinstance(value, _SETS) else None for value in labels]
    names = names or sorted({name for found in members for name in found or ()})
    number = {name: i for i, name in enumerate(names)}
    return names, [f if f is None else sorted(number[name] for name in f) for f in members]
