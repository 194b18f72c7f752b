r"""Graph-guided training of encoders: memory bank, document graph, differentiable propagation.

**Import the objective** into a training loop:

- `GraphGuidedObjective`: the loss of a batch of embeddings, from labels that propagate over the
  graph of batch and bank; `ObjectiveOutput`, its parts.
- `MemoryBank`: the embeddings of earlier batches, with exact or approximate search.
- `KNNGraph`, `LabelPropagation`, `Consistency`, `GraphContrast`, `Staleness`: settings of the
  graph, of the propagation, of unlabeled rows, of the contrast over the classes the graph finds, of
  old rows. The first two also work alone, as a PyG transform and as a PyG layer.
- `GraphGuidedClassifier`: all of it by `fit` and `predict`, for texts or feature rows.
- `PropagationClassifier`: propagation without training, as a scikit-learn estimator.

**Export the graph** of a corpus, and look at it:

- `build_document_graph`: the weighted graph of a batch and a bank, or of a corpus.
- `knn_graph`: edges of the nearest neighbors, with the signature of PyG.
- `to_networkx`, `to_scipy`: the graph for NetworkX, scikit-learn, cleanlab and UMAP.
- `gloss_graph.export`: GraphML, GEXF, JSON, CSV, Parquet, and back.
- `gloss_graph.analysis`: measures, suspicious labels, explanations, words of groups.
- `gloss_graph.visualization`: pictures and the interactive page.
- `Explanation`: the labeled documents that decide a prediction.

**Run ablations** of the memory bank, and compare what came out:

- `graph_skill`, `GraphSkill`: before training, how well the graph recovers hidden labels.
- `gloss_graph.text`: corpora, encoders and features.
- `gloss_graph.training`: `train_text`, one run, with the settings of `TrainConfig`.
- `gloss_graph.studies`: `Study` for ablations, `tune_text` for searches.
- `gloss_graph.runs`: run folders, paired tests over seeds.
- `gloss_graph.reports`: the pages and tables of runs, comparisons and studies.
"""

from __future__ import annotations

from importlib import import_module

TYPE_CHECKING = False  # that of typing, which takes long to import
if TYPE_CHECKING:
    from gloss_graph.export import to_networkx, to_scipy
    from gloss_graph.graph import KNNGraph, build_document_graph
    from gloss_graph.inference import (
        Explanation,
        GraphSkill,
        PropagationClassifier,
        graph_skill,
    )
    from gloss_graph.memory import MemoryBank
    from gloss_graph.neighbors import knn_graph
    from gloss_graph.objective import GraphGuidedObjective, ObjectiveOutput
    from gloss_graph.propagation import LabelPropagation
    from gloss_graph.step import Consistency, GraphContrast, Staleness
    from gloss_graph.training import GraphGuidedClassifier

__version__ = "0.2.0"

__all__ = [
    "Consistency",
    "Explanation",
    "GraphContrast",
    "GraphGuidedClassifier",
    "GraphGuidedObjective",
    "GraphSkill",
    "KNNGraph",
    "LabelPropagation",
    "MemoryBank",
    "ObjectiveOutput",
    "PropagationClassifier",
    "Staleness",
    "__version__",
    "build_document_graph",
    "graph_skill",
    "knn_graph",
    "to_networkx",
    "to_scipy",
]

# Loaded on first use: the command line must be able to answer (and to be interrupted) before
# torch and the rest, which take seconds, are imported.
_HOMES = {
    "Consistency": "step",
    "Explanation": "inference",
    "GraphContrast": "step",
    "GraphGuidedClassifier": "training",
    "GraphGuidedObjective": "objective",
    "GraphSkill": "inference",
    "KNNGraph": "graph",
    "LabelPropagation": "propagation",
    "MemoryBank": "memory",
    "ObjectiveOutput": "objective",
    "PropagationClassifier": "inference",
    "Staleness": "step",
    "build_document_graph": "graph",
    "graph_skill": "inference",
    "knn_graph": "neighbors",
    "to_networkx": "export",
    "to_scipy": "export",
}
_ROOMS = (
    "analysis",
    "export",
    "graph",
    "inference",
    "losses",
    "memory",
    "neighbors",
    "objective",
    "propagation",
)


def __getattr__(name: str) -> object:
    if name in _ROOMS:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
