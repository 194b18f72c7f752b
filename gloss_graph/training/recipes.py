"""Recipes: named settings of a training run, for data of one kind."""

from __future__ import annotations

from typing import Any

from gloss_graph._internal.checks import check_choice

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


def recipe_settings(name: str, *, few_labels: bool) -> dict[str, Any]:
    """Settings of a recipe; `auto` is `few-labels` or `full-labels`.

    Documents of several classes have no contrastive stages: for them `few_labels` is False.

    Raises:
        ValueError: An unknown recipe.
    """
    check_choice("recipe", name, ("auto", *RECIPES))
    if name == "auto":
        name = "few-labels" if few_labels else "full-labels"
    return dict(RECIPES[name])
