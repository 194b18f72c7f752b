"""Where a result came from: versions, commit, date."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gloss_graph.text import Corpus

_PACKAGES = ("gloss-graph", "torch", "torch-geometric", "transformers", "faiss-cpu", "numpy")


def provenance() -> dict[str, object]:
    """Package versions, the git commit of the package's checkout if it is one, and the time."""
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "versions": versions,
        "python": platform.python_version(),
        "git_commit": _commit(),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def documents_digest(parts: Iterable[Corpus | None]) -> str:
    """Sixteen hexadecimal digits of texts, labels, class names and features; a part may be None."""
    digest = hashlib.sha256()
    for part in parts:
        if part is not None:
            content: list[Any] = [part.texts, part.texts_b, part.labels, part.label_names]
            if part.label_sets is not None:
                content.append(part.label_sets)
            digest.update(json.dumps(content).encode())
            if part.features is not None:
                digest.update(part.features.tobytes())
    return digest.hexdigest()[:16]


def weights_digest(model: nn.Module) -> str:
    """Sixteen hexadecimal digits of the parameters and buffers of a model."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        digest.update(content.numpy().tobytes())
    return digest.hexdigest()[:16]


def _commit() -> str | None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
