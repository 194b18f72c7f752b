"""From embeddings to a sparse, weighted document graph."""

from typing import TYPE_CHECKING

from gloss_graph._internal.moved import moved_names

if TYPE_CHECKING:
    from gloss_graph.graph.bandwidth import BANDWIDTH_NAMES, estimate_bandwidth, local_scales
    from gloss_graph.graph.build import build_document_graph
    from gloss_graph.graph.kernels import KERNELS, cosine_kernel, gaussian_kernel
    from gloss_graph.graph.links import symmetrize_links
    from gloss_graph.graph.settings import KNNGraph
    from gloss_graph.graph.visibility import visible_split

__all__ = [
    "BANDWIDTH_NAMES",
    "KERNELS",
    "KNNGraph",
    "build_document_graph",
    "cosine_kernel",
    "estimate_bandwidth",
    "gaussian_kernel",
    "local_scales",
    "symmetrize_links",
    "visible_split",
]

# Loaded on first use: settings are read without torch.
__getattr__ = moved_names(
    __name__,
    {
        "gloss_graph.graph.bandwidth": ["BANDWIDTH_NAMES", "estimate_bandwidth", "local_scales"],
        "gloss_graph.graph.build": ["build_document_graph"],
        "gloss_graph.graph.kernels": ["KERNELS", "cosine_kernel", "gaussian_kernel"],
        "gloss_graph.graph.links": ["symmetrize_links"],
        "gloss_graph.graph.settings": ["KNNGraph"],
        "gloss_graph.graph.visibility": ["visible_split"],
    },
)
