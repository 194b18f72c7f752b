"""A text classifier that returns its embeddings, and ways to fit its linear head."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from transformers.utils import ModelOutput

from gloss_graph._internal.checks import check_range
from gloss_graph._internal.files import atomic_path
from gloss_graph._internal.folders import newest_whole, whole_folder, write_json
from gloss_graph._internal.limits import read_object
from gloss_graph.analysis.measures import classification_scores
from gloss_graph.graph import visible_split
from gloss_graph.text import FeatureEncoder, TextEncoder, load_saved_encoder
from gloss_graph.text.checkpoints import ENCODER_FILE

_HEAD, _SETTINGS = "head.safetensors", "classifier.json"
_STRENGTHS = (1.0, 10.0, 100.0, 1000.0)


@dataclass
class ClassifierOutput(ModelOutput):
    """`logits` (B, C) and `embeddings` (B, D) of one batch."""

    logits: Tensor | None = None
    embeddings: Tensor | None = None


class TextClassifier(nn.Module):
    """A text encoder with a linear head.

    Args:
        encoder: The encoder.
        label_names: Names of the C classes, at least two.
        dropout: Dropout on the embedding before the head; the returned embedding has none.
        seed: Seed of the head's initial weights.

    Example:
        >>> from gloss_graph.text import load_encoder
        >>> model = TextClassifier(load_encoder("minilm", max_length=16), ["no", "yes"])
        >>> batch = model.encoder.collate(model.encoder.tokenize(["a text"]))
        >>> model(**batch).logits.shape
        torch.Size([1, 2])
    """

    def __init__(
        self,
        encoder: TextEncoder | FeatureEncoder,
        label_names: list[str],
        *,
        dropout: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(label_names) < 2:
            raise ValueError(f"'label_names' must name at least two classes (got {label_names}).")
        check_range("dropout", dropout, 0, 1, open_high=True)
        self.encoder = encoder
        self.label_names = list(label_names)
        self.dropout = nn.Dropout(dropout)
        #: True leaves the head out: no logits, only the embeddings are trained.
        self.standalone = False
        self.head = nn.Linear(encoder.dim, len(label_names))
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.head.weight, std=0.02, generator=generator)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        features: Tensor | None = None,
    ) -> ClassifierOutput:
        """Logits (B, C) and embeddings (B, D) of tokenized texts (B, L), or of features (B, D)."""
        if isinstance(self.encoder, FeatureEncoder):
            embeddings = self.encoder(features)
        else:
            embeddings = self.encoder(input_ids, attention_mask, token_type_ids)
        logits = None if self.standalone else self.head(self.dropout(embeddings))
        return ClassifierOutput(logits=logits, embeddings=embeddings)

    @torch.no_grad()
    def head_logits(self, rows: Tensor) -> Tensor:
        """Logits (N, C) of the head for embeddings (N, D), on the CPU."""
        return self.head(rows.to(self.head.weight.device)).cpu()

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        self._text_encoder().gradient_checkpointing_enable(gradient_checkpointing_kwargs)

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """The same under the name and with the arguments of transformers 6."""
        self._text_encoder().model.activation_checkpointing_enable(*args, **kwargs)

    def _text_encoder(self) -> TextEncoder:
        if isinstance(self.encoder, FeatureEncoder):
            raise ValueError("'gradient_checkpointing' needs a text encoder (got features).")
        return self.encoder

    def save(self, folder: str | Path) -> Path:
        """Write encoder, tokenizer, head and label names to a new or formerly saved folder."""
        with whole_folder(folder, ENCODER_FILE) as fresh:
            self.write_files(fresh)
        return Path(folder).expanduser().absolute()

    def write_files(self, folder: Path) -> None:
        """Write what `save` writes into an empty folder."""
        self.encoder.write_files(folder)
        features = {"features": True} if isinstance(self.encoder, FeatureEncoder) else {}
        head = {name: value.contiguous().cpu() for name, value in self.head.state_dict().items()}
        with atomic_path(folder / _HEAD, overwrite=True) as draft:
            save_file(head, draft)
        settings = {"label_names": self.label_names, "dropout": self.dropout.p, **features}
        write_json(folder / _SETTINGS, settings)

    @classmethod
    def load(cls, folder: str | Path) -> TextClassifier:
        """Read a classifier that `save` wrote, in eval mode on the CPU."""
        folder = newest_whole(folder)
        try:
            names, dropout = _read_settings(folder / _SETTINGS)
            model = cls(load_saved_encoder(folder), names, dropout=dropout)
            model.head.load_state_dict(load_file(folder / _HEAD))
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"'folder' must be a classifier saved by gloss_graph ({folder}: {error})."
            ) from error
        return model.eval()


def _read_settings(file: Path) -> tuple[list[str], float]:
    """Names of the classes and dropout, checked."""
    settings = read_object(file)
    names, dropout = settings.get("label_names"), settings.get("dropout")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file} must list names under 'label_names' (got {names!r:.60})")
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)):
        raise ValueError(f"{file} must have a number for 'dropout' (got {dropout!r:.60})")
    return names, dropout


# ------------------------------------------------------------------ heads


def fit_balanced_head(
    classifier: TextClassifier, rows: Tensor, labels: Tensor, *, seed: int = 0
) -> float:
    """Fit the head as a class-balanced logistic regression, and return its tuned strength C.

    C is chosen on five held-out fifths of the labels; the default of 1 collapses on skewed draws.
    """
    scale = _unit_scale(rows)
    points, truth = (rows * scale).numpy(), labels.numpy()
    generator = torch.Generator().manual_seed(seed)
    right = dict.fromkeys(_STRENGTHS, 0.0)
    for _ in range(5):
        shown = visible_split(labels, 0.8, generator=generator).numpy()
        if shown.all() or np.unique(truth[shown]).size < 2:
            continue
        for strength in _STRENGTHS:
            guess = _logistic(strength, points[shown], truth[shown]).predict(points[~shown])
            right[strength] += classification_scores(guess, truth[~shown])["macro_f1"]
    # Without held-out documents all are equal: 10, which does not collapse rare classes.
    best = max(_STRENGTHS, key=lambda strength: (round(right[strength], 6), strength == 10.0))
    _set_head(classifier, _logistic(best, points, truth), scale)
    return best


def fit_propagated_head(
    classifier: TextClassifier, rows: Tensor, labels: Tensor, weights: Tensor
) -> None:
    """Fit the head to true or propagated labels (N,) of rows (N, D), which count by `weights`."""
    used, scale = weights > 0, _unit_scale(rows)
    points, truth, shares = (part[used].numpy() for part in (rows * scale, labels, weights))
    _set_head(classifier, _logistic(_STRENGTHS[1], points, truth, shares), scale)


def _unit_scale(rows: Tensor) -> float:
    """Factor that brings rows (N, D) to length 1 on average; 1 if all are zero."""
    length = float(rows.norm(dim=1).mean())
    return 1.0 / length if length > 0 else 1.0


@torch.no_grad()
def _set_head(classifier: TextClassifier, model: LogisticRegression, scale: float) -> None:
    """Write a fit on `scale * rows` into the head; classes it has not seen are never predicted."""
    weight = torch.zeros_like(classifier.head.weight)
    known = torch.from_numpy(model.classes_)
    slope, offset = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
    if known.numel() == 2 and slope.shape[0] == 1:
        slope, offset = np.vstack([-slope / 2, slope / 2]), np.hstack([-offset / 2, offset / 2])
    # Far below the others, yet within reach of training.
    bias = torch.full_like(classifier.head.bias, float(offset.min()) - 20.0)
    weight[known] = torch.from_numpy(slope * scale).to(weight)
    bias[known] = torch.from_numpy(offset).to(bias)
    classifier.head.load_state_dict({"weight": weight, "bias": bias})


def _logistic(
    strength: float, rows: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None
) -> LogisticRegression:
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=1000)
    with warnings.catch_warnings():
        # Many classes for few labels is what this is for.
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        return model.fit(rows, labels, sample_weight=weights)
