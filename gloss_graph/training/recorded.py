"""Embeddings of a frozen encoder, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from gloss_graph._internal.files import atomic_write, clear_drafts
from gloss_graph.runs.provenance import documents_digest
from gloss_graph.text import Corpus, TextEncoder
from gloss_graph.text.checkpoints import folder_digest


def cache_folder() -> Path:
    """Folder for embeddings: `GLOSS_GRAPH_CACHE`, else `gloss-graph` in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    named = os.environ.get("GLOSS_GRAPH_CACHE") or f"{base}/gloss-graph"
    return Path(os.path.expanduser(named))


def encoder_identity(
    name: str, *, pooling: str | None = None, max_length: int | None = None
) -> dict[str, Any]:
    """Name and options that tell an encoder of `load_encoder` from others.

    A folder keeps its name when another model is saved there, so a digest of its files is added.

    Cost: reading the files of a folder once.

    Example:
        >>> encoder_identity("minilm", max_length=64)
        {'encoder': 'minilm', 'pooling': None, 'max_length': 64}
    """
    found: dict[str, Any] = {"encoder": name, "pooling": pooling, "max_length": max_length}
    folder = Path(name).expanduser()
    if name != "minilm" and folder.is_dir():
        found["files"] = folder_digest(folder)
    return found


def recorded_embeddings(
    parts: Mapping[str, Corpus],
    make_encoder: Callable[[], TextEncoder],
    identity: Mapping[str, Any] | None,
    *,
    folder: str | Path | None = None,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Embeddings (N, D) of every part by a frozen encoder; computed once, then read.

    They are kept in the `folder`, else in that of the user's cache, under the `identity` of the
    encoder, see `encoder_identity`; without it nothing is kept, as rows of another encoder could be
    taken for these. `make_encoder` is called only if nothing is kept. A folder that cannot be
    written gives a warning.
    """

    def embedded() -> dict[str, Tensor]:
        encoder = make_encoder().eval()
        # The batch is chosen for throughput; rows do not depend on it beyond rounding.
        return {
            name: encoder.embed(part, batch_size=64, progress=progress).float().contiguous()
            for name, part in parts.items()
        }

    if not identity:
        return embedded()
    content = repr([documents_digest(parts.values()), sorted(identity.items())])
    key = hashlib.sha256(content.encode()).hexdigest()[:20]
    file = Path(folder or cache_folder()) / "embeddings" / f"{key}.safetensors"
    if os.path.isfile(file):  # False too where the folder may not be looked into
        try:
            stored = load_file(file)
        except (SafetensorError, OSError):
            stored = {}
        if all(_fits(stored.get(name), part) for name, part in parts.items()):
            return {name: stored[name] for name in parts}
    rows = embedded()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Drafts of all names: a killed one may never be asked for again.
        clear_drafts(file.parent)
        with atomic_write(file, overwrite=True) as draft:
            draft.write(save(rows))
    except OSError as error:
        warnings.warn(
            f"The embeddings are not kept for the next time, as {file.parent} cannot be written "
            f"({error.strerror or error}). Name another folder in GLOSS_GRAPH_CACHE.",
            UserWarning,
            stacklevel=2,
        )
    return rows


def _fits(rows: Tensor | None, part: Corpus) -> bool:
    """Whether recorded rows are finite ones of the documents."""
    if rows is None or rows.dim() != 2 or len(rows) != len(part):
        return False
    return rows.is_floating_point() and bool(rows.isfinite().all())
