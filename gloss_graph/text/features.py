"""Features of documents: precomputed tables, the words of the texts, and an encoder over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from torch import Tensor, nn

from gloss_graph._internal import limits
from gloss_graph._internal.checks import check_positive_int, check_range, misfit
from gloss_graph._internal.eval_mode import evaluating
from gloss_graph._internal.folders import newest_whole, whole_folder, write_json
from gloss_graph.text.checkpoints import ENCODER_FILE
from gloss_graph.text.corpora import Corpus, Splits

_WEIGHTS = "features.safetensors"
FEATURES_FORMAT = "gloss_graph.FeatureEncoder"
_CHUNK = 4096


class FeatureEncoder(nn.Module):
    r"""Adapts precomputed features, of images, graphs, tables or texts, by a residual MLP.

    \(z = x + W_2\,\mathrm{GELU}(W_1 x)\) for scaled features x. Initially \(W_2 = 0\), so
    training starts from the geometry of the features.

    Args:
        dim: D, width of features and embeddings.
        hidden: Width of the hidden layer.
        dropout: Dropout before both layers.
        scale: Factor of the features; `scaled_to` takes it from data.
        seed: Seed of the initial weights.

    Raises:
        ValueError: A width below 1, `dropout` outside [0, 1), `scale` not above 0.
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden: int = 512,
        dropout: float = 0.1,
        scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_positive_int("dim", dim)
        check_positive_int("hidden", hidden)
        check_range("dropout", dropout, 0.0, 1.0, open_high=True)
        check_range("scale", scale, 0.0, float("inf"), open_low=True, open_high=True)
        self.dim, self.hidden, self.source = dim, hidden, "none"
        self.scale = float(scale)
        self.drop = nn.Dropout(dropout)
        self.inner, self.outer = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.inner.weight, std=dim**-0.5, generator=generator)
        for value in (self.inner.bias, self.outer.weight, self.outer.bias):
            nn.init.zeros_(value)

    @classmethod
    def scaled_to(cls, features: np.ndarray, *, seed: int = 0) -> FeatureEncoder:
        """An encoder whose scale brings features (N, D) to a mean square of 1."""
        square = float(np.square(features, dtype=np.float64).mean()) if len(features) else 0.0
        scale = square**-0.5 if square > 0 else 1.0
        return cls(features.shape[1], scale=scale, seed=seed)

    def __repr__(self) -> str:
        return f"FeatureEncoder(dim={self.dim}, hidden={self.hidden}, scale={self.scale:.4g})"

    def forward(self, features: Tensor) -> Tensor:
        """Embeddings (B, D) of features (B, D) float."""
        features = features * self.scale
        inner = torch.nn.functional.gelu(self.inner(self.drop(features)))
        return features + self.outer(self.drop(inner)).to(features.dtype)

    def describe(self) -> dict[str, Any]:
        """Settings, for the record of a run."""
        return {"encoder": repr(self), "encoder_name": self.source}

    def probe(self) -> dict[str, Tensor]:
        """A batch of one document, to try the encoder with."""
        return {"features": torch.zeros(1, self.dim, dtype=torch.float32)}

    def items(self, corpus: Corpus) -> list[dict[str, Tensor]]:
        """Features of every document, as items of a dataset."""
        return [{"features": row} for row in self._table(corpus)]

    def _table(self, corpus: Corpus) -> Tensor:
        if corpus.features is None:
            raise ValueError("The documents have no features, which this encoder needs.")
        columns = corpus.features.shape[1]
        if columns != self.dim:
            raise misfit("features", f"have {self.dim} columns", columns)
        return torch.from_numpy(corpus.features)

    def collate(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Stack the features of a batch (B, D)."""
        return {"features": torch.stack([item["features"] for item in items])}

    @torch.no_grad()
    def embed(self, corpus: Corpus, *, batch_size: int = 64, progress: bool = False) -> Tensor:
        """Embeddings (N, D) of a corpus on the CPU, without dropout; too fast for a bar."""
        device = self.inner.weight.device
        with evaluating(self):
            parts = [self(rows.to(device)).cpu() for rows in self._table(corpus).split(batch_size)]
        return torch.cat(parts)

    def save(self, folder: str | Path) -> Path:
        """Write weights (safetensors) and settings to a folder, atomically."""
        with whole_folder(folder, ENCODER_FILE) as fresh:
            self.write_files(fresh)
        return Path(folder).expanduser().absolute()

    def write_files(self, folder: Path) -> None:
        """Write weights and settings into an empty folder, for a `save` of more."""
        settings = {"format": FEATURES_FORMAT, "dim": self.dim, "hidden": self.hidden}
        settings |= {"dropout": self.drop.p, "scale": self.scale}
        state = {name: value.detach().cpu() for name, value in self.state_dict().items()}
        save_file(state, folder / _WEIGHTS)
        write_json(folder / ENCODER_FILE, settings)

    @classmethod
    def load(cls, folder: str | Path) -> FeatureEncoder:
        """Read an encoder that `save` wrote, in eval mode on the CPU."""
        folder = newest_whole(folder)
        try:
            settings = limits.read_object(folder / ENCODER_FILE)
            if settings["format"] != FEATURES_FORMAT:
                raise ValueError(f"unknown format {settings['format']!r}")
            options = {name: settings[name] for name in ("hidden", "dropout", "scale")}
            encoder = cls(settings["dim"], **options)
            encoder.load_state_dict(load_file(folder / _WEIGHTS))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            rule = "be a feature encoder saved by gloss_graph"
            raise misfit("folder", rule, f"{folder}: {error}") from error
        return encoder.eval()


def read_features(path: str | Path) -> np.ndarray:
    """Read a table of features (N, D), float32 and finite.

    `.npy` holds (N, D), `.pt` and `.safetensors` one tensor (N, D), `.parquet` numeric columns or
    one column of lists. The index that pandas stored is left out.

    Raises:
        ValueError: A file that is missing, damaged, of another format or shape, or not finite.
    """
    table = FeatureFile(path)
    return table[0 : len(table)]


class FeatureFile:
    """The rows of a file that `read_features` takes, checked; those of `.npy` stay on the disk."""

    def __init__(self, path: str | Path) -> None:
        self._path = path = Path(path)
        if path.suffix not in _READERS:
            raise misfit("features", f"end in one of {', '.join(_READERS)}", path.name)
        if not path.is_file():
            raise ValueError(f"'features' must be a file ({path} is none).")
        self._held: np.ndarray | None = None
        try:
            table = _READERS[path.suffix](path)
            if path.suffix != ".npy":
                table = self._held = np.asarray(table, dtype=np.float32)
            self.shape: tuple[int, ...] = table.shape
            odd = self._odd_row() if len(self.shape) == 2 else None
        except Exception as error:  # The errors of damaged files in four formats share no base.
            raise ValueError(f"'features' cannot be read from {path} ({error}).") from error
        if len(self.shape) != 2 or not self.shape[1]:
            raise misfit("features", "be a matrix (N, D)", f"shape {self.shape} in {path}")
        if odd is not None:
            raise ValueError(f"'features' must be finite (row {odd} of {path} is not).")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        if self._held is not None:
            return self._held[rows]
        # A copy: what stays mapped counts as memory of this process.
        return np.array(limits.map_array(self._path)[rows], dtype=np.float32)

    def _odd_row(self) -> int | None:
        """The first row that is not finite."""
        for start in range(0, len(self), _CHUNK):
            finite = np.isfinite(self[start : start + _CHUNK]).all(axis=1)
            if not finite.all():
                return start + int(finite.argmin())
        return None


def _torch(path: Path) -> Any:
    value = limits.read_tensors(path)
    if not isinstance(value, Tensor):
        raise ValueError(f"expected one tensor, got {type(value).__name__}")
    # A tensor may repeat a few numbers by strides of 0.
    limits.check_unpacked(path, value.numel() * value.element_size())
    return value.float().numpy()


def _safetensors(path: Path) -> Any:
    tensors = load_file(path)
    if len(tensors) != 1:
        raise ValueError(f"expected one tensor, got {sorted(tensors)}")
    return next(iter(tensors.values())).float().numpy()


def _parquet(path: Path) -> Any:
    # The index of a pandas table is left out: it says which row is which, and nothing about it.
    columns = limits.read_parquet(path).to_pandas()
    for name, values in columns.items():
        if any(isinstance(value, str) for value in values):
            raise ValueError(f"column {name!r} holds strings and not numbers: leave it out")
    return columns.iloc[:, 0].tolist() if columns.shape[1] == 1 else np.array(columns, order="C")


_READERS = {
    ".npy": limits.map_array,
    ".pt": _torch,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
}


def with_features(splits: Splits, table: np.ndarray) -> Splits:
    """Splits whose documents carry the features (N, D) of their row.

    Rows count through the training, validation, test and unlabeled file in this order, as the
    ids that `read_splits` gives.

    Raises:
        ValueError: The number of rows is not that of the documents.
    """
    if len(table) != splits.next_id:
        counts = {name: len(part) for name, part in splits.parts.items()}
        raise ValueError(
            f"'features' must have one row per document of all files, training, validation, test "
            f"and unlabeled in this order (got {len(table)} rows for {splits.next_id} documents, "
            f"{counts})."
        )
    carried = {name: replace(part, features=table[part.ids]) for name, part in splits.parts.items()}
    return replace(splits, **carried)


def lexical_rows(corpus: Corpus, dim: int = 256, *, seed: int = 0) -> Tensor | None:
    """Latent semantic analysis of the texts of N documents (Deerwester et al., 1990).

    TF-IDF (sublinear counts; words of at least two and at most half of the documents), reduced
    by a truncated SVD with `seed` to D = `dim`, or less where there are fewer words or documents.
    The texts of a pair are joined.

    Returns:
        (N, D) float32, zero where a document has none of these words; None where fewer than two
        words are left, as in a corpus of features only.

    Example:
        >>> texts = ["oil rises", "oil falls", "wheat rises", "wheat falls"]
        >>> corpus = Corpus(texts, [-1] * 4, [0, 1, 2, 3], ["energy", "food"])
        >>> lexical_rows(corpus, 2).shape
        torch.Size([4, 2])
    """
    check_positive_int("dim", dim)
    texts = corpus.texts
    if corpus.texts_b is not None:
        texts = [" ".join(pair) for pair in zip(texts, corpus.texts_b, strict=True)]
    # A word of one document joins it to no other, one of most documents joins all.
    model = TfidfVectorizer(min_df=2, max_df=0.5, sublinear_tf=True, dtype=np.float32)
    try:
        weights = model.fit_transform(texts)
    except ValueError:  # no word is left
        return None
    if weights.shape[1] < 2:
        return None
    reduction = TruncatedSVD(min(dim, *weights.shape), random_state=seed)
    return torch.from_numpy(reduction.fit_transform(weights)).float()
