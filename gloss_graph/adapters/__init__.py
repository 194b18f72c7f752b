"""The objective in trainers of other libraries, which need extras."""

from gloss_graph._internal.moved import moved_names

__all__ = ["GraphGuidedLoss", "GraphGuidedModule", "ObjectiveCheckpoint", "document_ids"]

# Imported on first use: the libraries of the others may be absent.
__getattr__ = moved_names(
    __name__,
    {
        f"{__name__}.lightning": ["GraphGuidedModule"],
        f"{__name__}.sentence_transformers": [
            "GraphGuidedLoss",
            "ObjectiveCheckpoint",
            "document_ids",
        ],
    },
)
