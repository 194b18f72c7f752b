"""Recipes: named settings of a training run, for data of one kind."""

from __future__ import annotations

from typing import Any

#: Recipe -> settings of `TrainConfig`. Chosen on unlabeled training documents of R8 and R52.
RECIPES: dict[str, dict[str, Any]] = {
    # Contrast on the labels, then over the corpus with the classes that views of it agree on; the
    # head is fitted to labels and graph at the end.
    "few-labels": {
        "loss": "gloss",
        "warm_start_steps": 60,
        "graph_start_steps": 60,
        "max_steps": 0,
    },
    # Cross-entropy and graph loss together, over all documents.
    "full-labels": {"loss": "gloss", "epochs": 3.0, "select": "last"},
}


def recipe_for(labeled: int, total: int, multilabel: bool) -> str:
    """The recipe `auto`: `few-labels` if most documents have no label, else `full-labels`.

    Documents of several classes have no contrastive stages and always take `full-labels`.
    """
    return "few-labels" if 2 * labeled < total and not multilabel else "full-labels"
