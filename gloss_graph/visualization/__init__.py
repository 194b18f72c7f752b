"""Pictures of a document graph and of a training, and the interactive page.

- A graph as a map: `plot_graph`, a sample with predictions; `plot_communities`, all documents;
  `write_html`, to search and correct; `write_graph` (`gloss_graph.export`), for Gephi.
- A graph in numbers: `plot_degrees`; `plot_adjacency`, which classes edges join; `plot_reach`, or
  `reach_curves` for its numbers. One document of it: `plot_explanation`.
- A training: `plot_training`; `plot_stage_times`; `plot_embeddings`, `plot_graph_change` and
  `plot_similarities` for the same documents before, after and on the way.

Every `plot_*` function returns a matplotlib figure outside any pyplot state, and saves it if `path`
is given: as PNG, PDF or SVG by its suffix, replacing an older picture. The names of classes are
`label_names`, by default those of the graph or their numbers. The same `seed` gives the same
picture.
"""

from gloss_graph._internal.extras import require

require("matplotlib", extra="analysis")

from gloss_graph.visualization.before_after import (
    plot_embeddings,
    plot_graph_change,
    plot_similarities,
)
from gloss_graph.visualization.charts import (
    plot_adjacency,
    plot_degrees,
    plot_reach,
    plot_stage_times,
    plot_training,
    reach_curves,
)
from gloss_graph.visualization.graph_pictures import plot_communities, plot_explanation, plot_graph
from gloss_graph.visualization.page import write_html

__all__ = [
    "plot_adjacency",
    "plot_communities",
    "plot_degrees",
    "plot_embeddings",
    "plot_explanation",
    "plot_graph",
    "plot_graph_change",
    "plot_reach",
    "plot_similarities",
    "plot_stage_times",
    "plot_training",
    "reach_curves",
    "write_html",
]
