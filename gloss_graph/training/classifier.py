"""A text classifier that hands out its embeddings: one encoder pass serves every loss."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.utils import ModelOutput

from gloss_graph._internal.files import atomic_path
from gloss_graph._internal.folders import newest_whole, whole_folder, write_json
from gloss_graph._internal.limits import read_object
from gloss_graph.text import FeatureEncoder, TextEncoder, load_saved_encoder
from gloss_graph.text.checkpoints import ENCODER_FILE

_HEAD, _SETTINGS = "head.safetensors", "classifier.json"


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
        dropout: Dropout on the embedding before the head; the embedding handed out has none.
        seed: Seed of the head's initial weights.

    Raises:
        ValueError: Fewer than two classes, or `dropout` outside [0, 1).

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
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"'dropout' must be in [0, 1) (got {dropout}).")
        self.encoder = encoder
        self.label_names = list(label_names)
        self.dropout = nn.Dropout(dropout)
        #: True leaves the head out: no logits, the embeddings alone are trained.
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
        """Logits (B, C) and embeddings (B, D) of tokenised texts, each input (B, L) long.

        With a `FeatureEncoder` of `features` (B, D) instead.
        """
        if isinstance(self.encoder, FeatureEncoder):
            embeddings = self.encoder(features)
        else:
            embeddings = self.encoder(input_ids, attention_mask, token_type_ids)
        logits = None if self.standalone else self.head(self.dropout(embeddings))
        return ClassifierOutput(logits=logits, embeddings=embeddings)

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None
    ) -> None:
        """Recompute activations in the backward pass instead of keeping them."""
        if isinstance(self.encoder, FeatureEncoder):
            raise ValueError("'gradient_checkpointing' needs a text encoder (got features).")
        self.encoder.gradient_checkpointing_enable(gradient_checkpointing_kwargs)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """The same by the name and the arguments that transformers uses on the way to version 6."""
        plain = every_n_layers == 1 and not offload
        options = {} if plain else {"every_n_layers": every_n_layers, "offload": offload}
        if isinstance(self.encoder, FeatureEncoder):
            raise ValueError("'gradient_checkpointing' needs a text encoder (got features).")
        self.encoder.model.activation_checkpointing_enable(
            activation_checkpointing_kwargs or {"use_reentrant": False}, **options
        )

    def save(self, folder: str | Path) -> Path:
        """Write encoder, tokenizer, head and label names to `folder`, all at once.

        A classifier or encoder saved there before is replaced; other contents are refused.

        Raises:
            ValueError: The folder holds something else.
        """
        with whole_folder(folder, ENCODER_FILE) as fresh:
            self.write_files(fresh)
        return Path(folder).expanduser().absolute()

    def write_files(self, folder: Path) -> None:
        """Write all `save` writes into an empty folder, for a `save` of more."""
        self.encoder.write_files(folder)
        settings: dict[str, Any] = {"label_names": self.label_names, "dropout": self.dropout.p}
        if isinstance(self.encoder, FeatureEncoder):
            settings["features"] = True
        head = {name: value.contiguous().cpu() for name, value in self.head.state_dict().items()}
        with atomic_path(folder / _HEAD, overwrite=True) as draft:
            save_file(head, draft)
        write_json(folder / _SETTINGS, settings)

    @classmethod
    def load(cls, folder: str | Path) -> TextClassifier:
        """Read a classifier that `save` wrote, in eval mode on the CPU.

        Raises:
            ValueError: A folder that is missing, damaged or holds something else.
        """
        folder = newest_whole(folder)
        try:
            settings = _settings(folder / _SETTINGS)
            model = cls(
                load_saved_encoder(folder), settings["label_names"], dropout=settings["dropout"]
            )
            model._load_head(folder / _HEAD)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"'folder' must be a classifier saved by gloss_graph ({folder}: {error})."
            ) from error
        return model.eval()

    def _load_head(self, file: Path) -> None:
        try:
            self.head.load_state_dict(load_file(file))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"{file} does not hold the weights of the head: {error}") from error


def _settings(file: Path) -> dict[str, Any]:
    """Names of the classes and dropout, checked."""
    settings = read_object(file)
    names, dropout = settings.get("label_names"), settings.get("dropout")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file} must list names under 'label_names' (got {names!r:.60})")
    if isinstance(dropout, bool) or not isinstance(dropout, (int, float)):
        raise ValueError(f"{file} must have a number for 'dropout' (got {dropout!r:.60})")
    return settings
