"""Embeddings of a frozen encoder, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from gloss_graph._files import atomic_write, clear_drafts
from gloss_graph.text import Corpus, TextEncoder
from gloss_graph.training.provenance import documents_digest

# What of a model folder decides its embeddings: weights, settings, vocabulary.
_KINDS = (".safetensors", ".json", ".txt", ".model")
_BLOCK = 2**20


def cache_folder() -> Path:
    """Where embeddings are kept: `GLOSS_GRAPH_CACHE`, else `gloss-graph` in the user's cache."""
    named = os.environ.get("GLOSS_GRAPH_CACHE")
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "gloss-graph"


def encoder_identity(
    name: str, *, pooling: str | None = None, max_length: int | None = None
) -> dict[str, Any]:
    """What tells an encoder of `load_encoder` from others; of a folder also what it holds.

    A folder keeps its name when another model is saved there, so its files are part of it.

    Cost: reading the files of a folder once.

    Example:
        >>> encoder_identity("minilm", max_length=64)
        {'encoder': 'minilm', 'pooling': None, 'max_length': 64}
    """
    found: dict[str, Any] = {"encoder": name, "pooling": pooling, "max_length": max_length}
    folder = Path(name).expanduser()
    if name != "minilm" and folder.is_dir():
        found["files"] = _folder_digest(folder)
    return found


def _folder_digest(folder: Path) -> str:
    digest = hashlib.sha256()
    files = [*folder.glob("*"), *folder.glob("*_Pooling/*")]
    for file in sorted(file for file in files if file.suffix in _KINDS and file.is_file()):
        digest.update(f"{file.relative_to(folder)} {file.stat().st_size}\n".encode())
        with file.open("rb") as content:
            while block := content.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()[:16]


def recorded_embeddings(
    parts: Mapping[str, Corpus],
    make_encoder: Callable[[], TextEncoder],
    identity: Mapping[str, Any] | None,
    *,
    folder: str | Path | None = None,
    progress: bool = False,
) -> dict[str, Tensor]:
    """Embeddings (N, D) of every part by a frozen encoder; computed once, then read.

    Args:
        parts: The documents, by name.
        make_encoder: Loads the encoder, called only if nothing is recorded.
        identity: What tells the encoder from others, see `encoder_identity`. Without it nothing is
            kept, as the rows of another encoder could be taken for these.
        folder: Where they are kept, see `cache_folder`.
        progress: Show a bar while they are computed.
    """
    if not identity:
        return _embedded(parts, make_encoder, progress)
    content = repr([documents_digest(parts.values()), sorted(identity.items())])
    key = hashlib.sha256(content.encode()).hexdigest()[:20]
    file = Path(folder or cache_folder()) / "embeddings" / f"{key}.safetensors"
    if file.is_file():
        try:
            stored = load_file(file)
        except (SafetensorError, OSError):
            stored = {}
        if all(name in stored and len(stored[name]) == len(part) for name, part in parts.items()):
            return {name: stored[name] for name in parts}
    rows = _embedded(parts, make_encoder, progress)
    file.parent.mkdir(parents=True, exist_ok=True)
    # Of all names: what was begun and killed may never be asked for again.
    clear_drafts(file.parent)
    with atomic_write(file, overwrite=True) as draft:
        draft.write(save(rows))
    return rows


def _embedded(
    parts: Mapping[str, Corpus], make_encoder: Callable[[], TextEncoder], progress: bool
) -> dict[str, Tensor]:
    encoder = make_encoder().eval()
    # The batch is chosen for throughput; rows do not depend on it beyond rounding.
    return {
        name: encoder.embed(part, batch_size=64, progress=progress).float().contiguous()
        for name, part in parts.items()
    }
