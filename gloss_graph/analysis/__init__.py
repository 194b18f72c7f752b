"""Look at the document graph, at a training and at runs side by side: export and pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gloss_graph.analysis.evaluation import evaluation_markdown
from gloss_graph.analysis.export import EDGE_KINDS, to_networkx, write_graphml

if TYPE_CHECKING:
    from gloss_graph.analysis.plots import (
        plot_evaluation,
        plot_graph,
        plot_importance,
        plot_slices,
        plot_stage_times,
        plot_training,
        plot_tuning,
    )

__all__ = [
    "EDGE_KINDS",
    "evaluation_markdown",
    "plot_evaluation",
    "plot_graph",
    "plot_importance",
    "plot_slices",
    "plot_stage_times",
    "plot_training",
    "plot_tuning",
    "to_networkx",
    "write_graphml",
]


def __getattr__(name: str) -> Any:
    # Pictures are loaded on first use: who only trains does not wait for matplotlib.
    if name in __all__:
        from gloss_graph.analysis import plots

        return getattr(plots, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
