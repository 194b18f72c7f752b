"""The settings of a document graph."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gloss_graph._internal.checks import check_choice, check_positive_int
from gloss_graph._internal.settings import Range, setting

# What needs torch is imported by the first part that is made, so that settings are read without.
if TYPE_CHECKING:
    from torch_geometric.data import Data

    from gloss_graph.graph.bandwidth import BandwidthRule
    from gloss_graph.graph.kernels import Kernel

SYMMETRIZE = ("union", "mutual")
BATCH_EDGES = ("auto", "knn", "all")


@dataclass(frozen=True, kw_only=True)
class KNNGraph:
    r"""How documents are connected: a k-nearest-neighbor graph with weighted edges.

    Weights are \(w_{ij} = \exp(-\|x_i - x_j\|^2 / (2\sigma^2))\), \(w_{ii} = 0\) (G-Loss, arXiv
    2604.25853, eq. 2).

    It is also a PyG transform: called on a `Data`, it connects the rows of `data.pos`, or of
    `data.x` if there are no positions, as `build_document_graph` does, within each graph of
    `data.batch`, and returns a copy with `edge_index`, `edge_weight` and `bandwidth`.

    Attributes:
        k: Neighbors per row.
        kernel: `"gaussian"`, `"cosine"` (of unit rows, no bandwidth), or a callable
            `(squared, squared_bandwidth) -> weight`.
        bandwidth: \(\sigma\): a number, `"sqrt"`, `"inflection"`, `"interclass_min"`, `"local"`
            or a callable, see `estimate_bandwidth`. No gradient flows through it.
            `"interclass_min"` is made from labels: hide those that an answer must not know.
        symmetrize: `"union"` or `"mutual"`; a remembered row lists a batch row if it is closer
            than the farthest neighbor it has stored.
        batch_edges: `"all"` connects all batch pairs, `"knn"` each batch row to its k nearest in
            batch and bank together. `"auto"` is `"knn"` for a corpus, and in a training step
            `"all"` as long as no remembered row takes part.
        hops: Keep only remembered rows within this many links of the batch; None keeps all.
        normalize: L2-normalize rows first; must agree with the bank.

    Raises:
        ValueError: A setting out of range or unknown, or one that excludes another.

    Example:
        >>> KNNGraph(k=30, bandwidth="local")
        KNNGraph(k=30, kernel='gaussian', bandwidth='local', symmetrize='union',
        batch_edges='auto', hops=None, normalize=True)
        >>> import torch
        >>> from torch_geometric.data import Data
        >>> points = Data(pos=torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]]))
        >>> KNNGraph(k=1, normalize=False)(points).edge_index.tolist()
        [[0, 1, 1, 2], [1, 0, 2, 1]]
    """

    k: int = setting(16, "Neighbors per row in the graph.", search=Range(4, 64, log=True))
    kernel: str | Kernel = setting("gaussian", "Kernel: gaussian or cosine.")
    bandwidth: float | str | BandwidthRule = setting(
        "sqrt",
        "Bandwidth: a number, sqrt, inflection, interclass_min or local.",
        search=Range(0.1, 10.0, log=True),
    )
    symmetrize: str = setting("union", "Keep a link of either row (union) or of both (mutual).")
    batch_edges: str = setting("auto", "Pairs within a batch: all, knn or auto.")
    hops: int | None = setting(
        None, "Propagate over remembered rows within this many links; none = the whole bank."
    )
    normalize: bool = setting(True, "L2-normalize the rows.")

    def __post_init__(self) -> None:
        from gloss_graph.graph.bandwidth import check_bandwidth
        from gloss_graph.graph.kernels import cosine_kernel

        check_positive_int("k", self.k)
        check_bandwidth(self.bandwidth)
        check_choice("symmetrize", self.symmetrize, SYMMETRIZE)
        check_choice("batch_edges", self.batch_edges, BATCH_EDGES)
        if self.hops is not None:
            check_positive_int("hops", self.hops)
        if not isinstance(self.normalize, bool):
            raise ValueError(f"'normalize' must be True or False (got {self.normalize!r}).")
        if self.weight is cosine_kernel and not self.normalize:
            raise ValueError(
                "kernel='cosine' needs normalize_embeddings=True, which is "
                "KNNGraph(normalize=True)."
            )

    @property
    def weight(self) -> Kernel:
        """The kernel as a function `(squared, squared_bandwidth) -> weight`."""
        from gloss_graph.graph.kernels import resolve_kernel

        return resolve_kernel(self.kernel)

    def __call__(self, data: Data) -> Data:
        """Return a shallow copy of `data` whose edges connect its rows."""
        from gloss_graph.graph.build import with_edges

        return with_edges(data, self)
