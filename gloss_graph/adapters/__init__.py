"""Adapters: the objective in trainers of other libraries, each behind an extra of its own."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gloss_graph.adapters.lightning import GraphGuidedModule
    from gloss_graph.adapters.sentence_transformers import (
        GraphGuidedLoss,
        ObjectiveCheckpoint,
        document_ids,
    )

__all__ = ["GraphGuidedLoss", "GraphGuidedModule", "ObjectiveCheckpoint", "document_ids"]

_MODULES = {
    "GraphGuidedLoss": "sentence_transformers",
    "GraphGuidedModule": "lightning",
    "ObjectiveCheckpoint": "sentence_transformers",
    "document_ids": "sentence_transformers",
}


def __getattr__(name: str) -> Any:
    """Import an adapter when it is asked for: the others' libraries may be absent."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
