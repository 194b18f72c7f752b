"""The graph of a whole corpus, from a run, a bank, an encoder and a file, or plain features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Data

from gloss_graph._internal.checks import check_choice, check_matrix, check_positive_int, check_range
from gloss_graph._internal.precision import unit_rows
from gloss_graph.analysis.sources import Source, read_source
from gloss_graph.graph.bandwidth import (
    BandwidthRule,
    check_bandwidth,
    estimate_bandwidth,
    local_scales,
)
from gloss_graph.graph.kernels import Kernel, cosine_kernel, resolve_kernel, weigh
from gloss_graph.graph.links import SYMMETRIZE, symmetrize_links
from gloss_graph.neighbors.corpus import corpus_neighbors
from gloss_graph.text import Corpus, FeatureEncoder, TextEncoder

__all__ = ["document_graph"]


@torch.no_grad()
def document_graph(
    source: Source,
    labels: Any = None,
    ids: Any = None,
    *,
    texts: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
    documents: Corpus | str | Path | None = None,
    encoder: TextEncoder | FeatureEncoder | str | None = None,
    text: str = "text",
    label: str | None = None,
    text_b: str | None = None,
    max_length: int | None = None,
    k: int = 16,
    symmetrize: str = "union",
    kernel: str | Kernel = "gaussian",
    bandwidth: float | str | BandwidthRule = "sqrt",
    min_weight: float = 0.0,
    normalize_embeddings: bool = True,
    keep_features: bool = False,
    exact_up_to: int = 50_000,
    probes: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Data:
    r"""Build the k-nearest-neighbor graph of a whole corpus, with its texts and labels.

    Edges and weights are those of `build_document_graph`. Up to `exact_up_to` documents every pair
    is compared; beyond, FAISS's inverted file finds nearly all neighbors (`recall` says how many).
    The same input gives the same graph.

    | source                                    | documents                                        |
    | ----------------------------------------- | ------------------------------------------------ |
    | a run folder                              | the training documents in the run's memory bank  |
    | a run folder, with `documents`            | other documents, embedded by its trained encoder |
    | `MemoryBank`, or a file of its state      | the stored rows                                  |
    | a table or `Corpus`, with `encoder`       | the documents, embedded by the encoder           |
    | (N, D) array, tensor, or a features file  | the rows, with `documents` for texts and labels  |

    The texts of a run are read again from its training files if these have not changed; the rows
    of a run with frozen features are the joint rows, learned and frozen. A bank's state is a
    `.safetensors` or `.pt` file of a bank or an objective, as `memory/` of a run holds. A features
    file is one that `read_features` takes, except `.parquet`, which is a table of documents here.

    Shapes: N documents, E directed edges, D width of the embeddings.

    Args:
        source: One of the table above.
        labels: (N,) integers, -1 = unlabeled; they replace those of the source.
        ids: (N,) distinct integers >= 0; they replace those of the source.
        texts: N strings; they replace those of the source.
        label_names: C class names; they replace those of the source.
        documents: Table or corpus, for a run or for features.
        encoder: `"minilm"`, a hub id, a folder or an encoder, for a table or corpus.
        text: Column of the texts.
        label: Column of the labels, by default `label` if there is one.
        text_b: Column of the second texts of pairs.
        max_length: Tokens kept per document, by default the encoder's.
        k: Neighbors per document. With k >= N - 1 all documents are connected.
        symmetrize: `"union"`: an edge if either document lists the other; `"mutual"`: if both do.
        kernel: Kernel of the edge weights, as in `build_document_graph`.
        bandwidth: \(\sigma\), a number or a rule, as in `build_document_graph`.
        min_weight: Edges of a smaller weight are dropped; documents may become isolated.
        normalize_embeddings: L2-normalize rows first.
        keep_features: Keep the rows (N, D) as `x`.
        exact_up_to: Most documents for an exact search.
        probes: Cells of the inverted file compared per document, by default 1 in 16.
        seed: Seed of the inverted file, and of the sample that measures its recall.
        progress: Show progress bars.

    Returns:
        `Data` with `edge_index` (2, E) long, undirected, coalesced, no self-loops; `edge_weight`
        (E,); `y` (N,) long; `doc_id` (N,) long; `seed_mask` (N,) bool = labeled; `in_degree` (N,)
        long, how many documents list one among their k, before edges are made undirected or
        dropped; `bandwidth`, scalar, NaN for `"local"`; `text`, N strings, and `label_names`, C
        strings, if known; `k`, `symmetrize`, `min_weight`, `search` (`"exact"` or `"ivf"`) and
        `recall`. A graph of fewer than two documents has no edges; documents that are all equal
        are connected to k others each, with weight 1.

    Raises:
        TypeError: A source of another kind.
        ValueError: Settings out of range; files, lengths or names that do not fit; features that
            are not finite; texts that are not strings.
        OSError: A missing file.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> data = document_graph(x, [0, -1, 1], texts=["tea", "cup", "train"], k=1, bandwidth=1.0)
        >>> data.edge_index.tolist(), data.text[1]
        ([[0, 1, 1, 2], [1, 0, 2, 1]], 'cup')

    See also: `write_graph` and `to_networkx`, for the result; `build_document_graph`, for a batch
    and a bank, with gradient.
    """
    check_positive_int("k", k)
    check_choice("symmetrize", symmetrize, SYMMETRIZE)
    check_bandwidth(bandwidth)
    check_range("min_weight", min_weight, 0.0, 1.0)
    check_positive_int("exact_up_to", exact_up_to, 0)
    if probes is not None:
        check_positive_int("probes", probes)
    chosen_kernel = resolve_kernel(kernel)
    if chosen_kernel is cosine_kernel and not normalize_embeddings:
        raise ValueError("kernel='cosine' needs normalize_embeddings=True.")
    found = read_source(
        source,
        documents=documents,
        encoder=encoder,
        labels=labels,
        ids=ids,
        texts=texts,
        label_names=label_names,
        columns={"text": text, "label": label, "text_b": text_b},
        max_length=max_length,
        progress=progress,
    )
    check_matrix("source", found.rows, normalized=normalize_embeddings)
    rows = found.rows.float()
    x = unit_rows(rows) if normalize_embeddings else rows
    neighbors = corpus_neighbors(
        x, k, exact_up_to=exact_up_to, probes=probes, seed=seed, progress=progress
    )
    squared = neighbors.squared_distances
    listed = squared.isfinite()
    origin, _ = listed.nonzero(as_tuple=True)
    edge_index, link = symmetrize_links(origin, neighbors.indices[listed], x.size(0), symmetrize)
    sigma, squared_sigma = _bandwidth(bandwidth, x, found.labels, squared, edge_index)
    weight = weigh(chosen_kernel, squared[listed].index_select(0, link), squared_sigma)
    kept = weight >= min_weight
    data = Data(
        edge_index=edge_index[:, kept],
        edge_weight=weight[kept],
        y=found.labels,
        num_nodes=x.size(0),
        doc_id=found.ids,
        seed_mask=found.labels >= 0,
        in_degree=torch.bincount(neighbors.indices[listed], minlength=x.size(0)),
        bandwidth=sigma,
    )
    if found.texts is not None:
        data.text = found.texts
    if found.label_names is not None:
        data.label_names = found.label_names
    if keep_features:
        data.x = rows
    data.k, data.symmetrize, data.min_weight = k, symmetrize, float(min_weight)
    data.search, data.recall = neighbors.search, neighbors.recall
    return data


def _bandwidth(
    bandwidth: float | str | BandwidthRule,
    x: Tensor,
    labels: Tensor,
    squared: Tensor,
    edge_index: Tensor,
) -> tuple[Tensor, Tensor]:
    """The scalar σ and σ² as the kernel takes it, one value or one per edge."""
    unknown = x.new_tensor(float("nan"))
    if x.size(0) == 0:
        return unknown, x.new_ones(())
    if bandwidth == "local":
        scales = local_scales(squared)
        return unknown, scales[edge_index[0]] * scales[edge_index[1]]
    sigma = estimate_bandwidth(bandwidth, x, labels)
    return sigma, sigma.square()
