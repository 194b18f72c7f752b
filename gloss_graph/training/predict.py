"""A finished run as a predictor: by its linear head and by propagation over its bank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gloss_graph._internal.checks import check_positive_int
from gloss_graph.inference import Explanation
from gloss_graph.objective import GraphGuidedObjective
from gloss_graph.runs import RunFolder
from gloss_graph.text import UNLABELED, Corpus, FeatureEncoder, TextEncoder, load_encoder
from gloss_graph.training.checkpoints import load_objective
from gloss_graph.training.classifier import TextClassifier
from gloss_graph.training.config import TrainConfig
from gloss_graph.training.setup import make_objective


class Prediction(NamedTuple):
    """Predictions for B documents.

    Attributes:
        explanation: By propagation over the training documents.
        linear: Class probabilities (B, C) of the linear head; for label sets one per class.
    """

    explanation: Explanation
    linear: Tensor


class Run:
    """A run folder that `train_text` wrote, ready to predict.

    Attributes:
        settings: Content of its `config.json`.
        label_names: Names of the C classes.
        classifier: Encoder and linear head.
        objective: The objective with its bank, in eval mode.
        texts: Texts of the labeled training documents, by id; of pairs, `texts_b` the second ones.
        labels: Their class names, of label sets joined.
        multilabel: Whether documents have sets of classes.
        on_features: Whether it was trained on precomputed features; `on_pairs`, on pairs of texts.

    Raises:
        ValueError: The folder is missing, damaged or holds something else.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder, files = Path(folder), RunFolder(folder)
        try:
            self.settings = files.settings()
            if (model := self.settings.get("model")) is not None:
                raise ValueError(
                    f"it is of --model {model}, which has no bank to propagate over; its "
                    "predictions.csv holds the classes of all its documents"
                )
            config, bank = _config_and_bank(files.config, self.settings)
            files.check_digests(self.settings)
            self.classifier = TextClassifier.load(files.model)
            self.label_names = self.classifier.label_names
            used, data = files.read_labels_used(), self.settings.get("data")
            data = data if isinstance(data, dict) else {}
            if data.get("classes") not in (None, self.label_names):
                raise ValueError(
                    f"config.json has the classes {data['classes']!r}, model/classifier.json has "
                    f"{self.label_names}"
                )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"'run' must be a folder written by gloss-graph train ({folder}: {error})."
            ) from error
        self.multilabel: bool = bank["multilabel"]
        self.on_features = isinstance(self.classifier.encoder, FeatureEncoder)
        self.on_pairs = bool(data.get("pairs"))
        self.texts: dict[int, str] = dict(zip(used.ids, used.texts, strict=True))
        self.labels: dict[int, str] = dict(zip(used.ids, used.labels, strict=True))
        self.texts_b: dict[int, str] = dict(zip(used.ids, used.texts_b or [], strict=False))
        self._frozen_dim: int = bank["frozen_dim"]
        self.objective = self._objective(files.objective, config, bank)

    def _objective(
        self, file: Path, config: TrainConfig, bank: dict[str, Any]
    ) -> GraphGuidedObjective:
        capacity, classes = bank["capacity"], len(self.label_names)

        def refusal(problem: str) -> ValueError:
            advice = "Put back the file that training wrote."
            return ValueError(f"The bank of a run must fit the run ({file} {problem}). {advice}")

        try:
            with safe_open(file, framework="pt") as stored:
                found = stored.get_slice("memory.slot_labels").get_shape()
        except (OSError, SafetensorError) as error:
            raise ValueError(f"The bank of the run cannot be read ({file}: {error}).") from error
        if found != [capacity]:  # before one of that size is made
            raise refusal(f"has the shape {found}, not the size {capacity} of config.json")
        objective = make_objective(
            replace(config, loss="gloss", memory_size=capacity),
            classes,
            self.classifier.encoder.dim,
            capacity,
            frozen_dim=bank["frozen_dim"],
            sixth=1,
            targets=bank["targets"],
            multilabel=self.multilabel,
        )
        load_objective(objective, file)
        memory = objective.memory
        # Label sets have a column per class, whose number the state itself must match.
        if memory and not self.multilabel and (highest := int(memory.labels.max())) >= classes:
            raise refusal(f"has class {highest} of {classes}")
        return objective.eval()

    def predict(
        self,
        texts: Sequence[str] | None = None,
        texts_b: Sequence[str] | None = None,
        *,
        features: np.ndarray | None = None,
        ids: Tensor | None = None,
        mode: str = "inductive",
        anchor: float | None = None,
        rule: str | None = None,
        top: int = 3,
        progress: bool = False,
    ) -> Prediction:
        """Predict documents.

        Args:
            texts: B documents; not needed with features.
            texts_b: Their second texts, for a run on pairs.
            features: (B, D), for a run on features.
            ids: (B,) ids of training documents (`labels_used.csv`), or of none: each is predicted
                as if its label were unknown. Without ids a stored copy counts as another document.
            mode: "inductive" or "transductive", as in `GraphGuidedObjective.explain`.
            anchor: Weight of the frozen similarity, None for that of the training.
            rule: Rule of propagation, None for that of the training.
            top: Labeled documents to name.
            progress: Show progress bars.

        Raises:
            ValueError: The documents are not of the kind that the run was trained on, or `anchor`
                needs an encoder that is out of reach or has changed.
        """
        corpus = self._corpus(texts, texts_b, features)
        rows, frozen = self.classifier.encoder.embed(corpus, progress=progress), None
        if self._frozen_dim and anchor != 0.0:
            if corpus.features is not None:
                # The adapter of features starts as the identity.
                frozen = torch.from_numpy(corpus.features)
            else:
                frozen = self._untrained.embed(corpus, progress=progress)
        explanation = self.objective.explain(
            rows, frozen=frozen, ids=ids, mode=mode, frozen_weight=anchor, rule=rule, top=top
        )
        return Prediction(explanation, self._linear(rows))

    def linear(
        self,
        texts: Sequence[str] | None = None,
        texts_b: Sequence[str] | None = None,
        *,
        features: np.ndarray | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Class probabilities (B, C) of the linear head alone; documents as in `predict`."""
        corpus = self._corpus(texts, texts_b, features)
        return self._linear(self.classifier.encoder.embed(corpus, progress=progress))

    def _linear(self, rows: Tensor) -> Tensor:
        logits = self.classifier.head_logits(rows)
        return logits.sigmoid() if self.multilabel else logits.softmax(dim=1)

    def _corpus(
        self, texts: Sequence[str] | None, texts_b: Sequence[str] | None, features: Any
    ) -> Corpus:
        wanted = "features" if self.on_features else "texts"
        given = features if self.on_features else texts
        if given is None or (features is not None) != self.on_features:
            raise ValueError(f"'{wanted}' must be given, as the run was trained on {wanted}.")
        if not self.on_features and (texts_b is not None) != self.on_pairs:
            rule, kind = ("given", "pairs") if self.on_pairs else ("left out", "single texts")
            raise ValueError(f"'texts_b' must be {rule}, as the run was trained on {kind}.")
        size = len(given)
        return Corpus(
            [""] * size if texts is None else list(texts),
            [UNLABELED] * size,
            list(range(size)),
            self.label_names,
            None if texts_b is None else list(texts_b),
            features=features,
        )

    @cached_property
    def _untrained(self) -> TextEncoder:
        settings, kept = self.settings, RunFolder(self.folder).encoder
        name = str(kept) if kept.is_dir() else settings.get("encoder_name") or ""
        if not name:
            raise ValueError("The run does not name its encoder for frozen features. Use anchor=0.")
        encoder = load_encoder(name, pooling=settings["pooling"], max_length=settings["max_length"])
        if encoder.source_files != settings.get("encoder_files", encoder.source_files):
            raise ValueError(
                f"The run {self.folder} was trained from the encoder in {name}, which has changed "
                "since. Put its files back, or do without them by anchor=0 (--anchor 0)."
            )
        return encoder


def _config_and_bank(file: Path, settings: Mapping[str, Any]) -> tuple[TrainConfig, dict[str, Any]]:
    """The settings of the training, and those of its bank."""
    try:
        config = TrainConfig.from_flat(settings)
        bank = {"targets": False, "multilabel": False, **settings["bank"]}
        for name in ("capacity", "frozen_dim"):
            check_positive_int(f"bank.{name}", bank[name], minimum=0)
        for name in ("targets", "multilabel"):
            if not isinstance(bank[name], bool):
                raise ValueError(f"'bank.{name}' must be true or false (got {bank[name]!r})")
    except KeyError as error:
        raise ValueError(f"{file} lacks {error}") from error
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: {error}") from error
    return config, bank
