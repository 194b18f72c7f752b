"""What a propagation accepts: label rows, priors and undirected weighted graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from gloss_graph._checks import INTEGER_DTYPES, check_tensor
from gloss_graph.propagation.operators import Rows, SparseOperator, rows_of


def one_hot_labels(y: Tensor, num_classes: int | None) -> Tensor:
    """Label rows (N, C): floating `y` as it is, integer `y` one-hot with zeros for negatives.

    Raises:
        TypeError: Not a tensor.
        ValueError: Shape, dtype, non-finite or negative entries, a label >= C, no label at all.
    """
    check_tensor("y", y)
    if y.is_floating_point():
        if y.dim() != 2 or y.size(1) == 0:
            raise ValueError(f"'y' of floating dtype must be (N, C) (got {tuple(y.shape)}).")
        if num_classes is not None and y.size(1) != num_classes:
            raise ValueError(f"'y' must have {num_classes} columns (got {y.size(1)}).")
        if not bool((y >= 0).all()) or bool(torch.isinf(y).any()):
            raise ValueError("'y' must be finite and >= 0.")
        return y
    if y.dim() != 1 or y.dtype not in INTEGER_DTYPES:
        raise ValueError(
            f"'y' must be (N,) integers or (N, C) floats (got {y.dtype} {tuple(y.shape)})."
        )
    largest = int(y.max()) if y.numel() else -1
    if num_classes is None:
        if largest < 0:
            raise ValueError("'y' holds no label (all are negative); pass num_classes.")
        num_classes = largest + 1
    if largest >= num_classes:
        raise ValueError(f"'y' must be below num_classes={num_classes} (got {largest}).")
    one_hot = torch.zeros(y.numel(), num_classes, device=y.device)
    known = (y >= 0).float().unsqueeze(1)
    return one_hot.scatter_(1, y.long().clamp(min=0).unsqueeze(1), known)


def check_prior(name: str, prior: Tensor | None) -> Tensor | None:
    """A class prior scaled to sum 1, or None.

    Raises:
        ValueError: Not a vector of finite values >= 0 with a positive sum.
    """
    if prior is None:
        return None
    prior = torch.as_tensor(prior, dtype=torch.float64)
    if prior.dim() != 1 or not bool((prior >= 0).all()) or not 0 < float(prior.sum()) < torch.inf:
        raise ValueError(f"'{name}' must be (C,) finite values >= 0 with a positive sum.")
    return prior / prior.sum()


def check_graph(
    edge_index: Tensor, edge_weight: Tensor, num_nodes: int, trusted: bool
) -> tuple[Rows, Tensor]:
    """Pattern and weights, in the pattern's order, of a checked undirected graph.

    Weights are scaled to a largest value of 1 (no propagation depends on their unit), which keeps
    narrow kernels within the range of float32; self-loops are set to 0.

    Raises:
        ValueError: Shape, dtype, indices out of range, weights negative or not finite, a directed
            graph.
    """
    if edge_index.dim() != 2 or edge_index.size(0) != 2 or edge_index.dtype != torch.long:
        raise ValueError(
            f"'edge_index' must be long of shape (2, E) "
            f"(got {edge_index.dtype} {tuple(edge_index.shape)})."
        )
    if edge_weight.dim() != 1 or edge_weight.numel() != edge_index.size(1):
        raise ValueError(
            f"'edge_weight' must have shape ({edge_index.size(1)},) "
            f"(got {tuple(edge_weight.shape)})."
        )
    if not trusted and edge_index.numel():
        low, high = int(edge_index.min()), int(edge_index.max())
        if low < 0 or high >= num_nodes:
            raise ValueError(
                f"'edge_index' must lie in 0..{num_nodes - 1}, the rows of 'y' (got {low}..{high})."
            )
    top = largest_weight(edge_weight)
    rows = rows_of(edge_index, num_nodes)
    weight = edge_weight if rows.order is None else edge_weight[rows.order]
    if not trusted:
        weight = torch.where(rows.row == rows.target, 0.0, weight)
        _check_undirected(rows, weight.detach())
    return rows, weight / top if top not in (0.0, 1.0) else weight


def check_full(weight: Tensor) -> Tensor:
    """Weights (N, N) of an undirected graph with a zero diagonal, scaled as by `check_graph`.

    Raises:
        ValueError: Weights negative or not finite.
    """
    top = largest_weight(weight)
    # One pass less over the matrix where its unit does no harm.
    return weight if 1e-3 < top < 1e3 or top == 0.0 else weight / top


def largest_weight(weight: Tensor) -> float:
    """The largest of edge weights of any shape, 0 if there is none.

    Raises:
        ValueError: Weights negative or not finite.
    """
    if weight.numel() == 0:
        return 0.0
    low, top = torch.stack(torch.aminmax(weight.detach())).tolist()
    # Also false for NaN, which is what aminmax gives if there is one.
    if not 0.0 <= low <= top < float("inf"):
        raise ValueError("'edge_weight' must be finite and >= 0 (got NaN, inf or negative).")
    return float(top)


def _check_undirected(rows: Rows, weight: Tensor) -> None:
    """Compare W z with Wᵀ z for a fixed z without structure: O(E), no sort."""
    z = torch.cos(1.0 + torch.arange(rows.num_nodes, device=weight.device).double() ** 2 * 0.7)
    w = weight.double()
    ones = torch.ones_like(z)
    forward, scale = SparseOperator(rows, w, None).multiply(torch.stack([z, ones], dim=1)).T
    backward = torch.zeros_like(z).index_add(0, rows.target, w * z[rows.row])
    if not torch.allclose(forward, backward, rtol=0.0, atol=1e-5 * float(scale.amax() + 1e-300)):
        raise ValueError(
            "'edge_index' must be undirected: both directions of a pair with the same weight. "
            "Use torch_geometric.utils.to_undirected(edge_index, edge_weight, reduce='mean')."
        )
