"""The checked inputs of a propagation: label rows, priors and undirected weighted graphs."""

from __future__ import annotations

import torch
from torch import Tensor

from gloss_graph._internal.checks import check_mask, check_tensor, is_integer
from gloss_graph._internal.precision import widen
from gloss_graph.propagation.operators import Rows, csr_product, rows_of


def label_rows(
    y: Tensor, seed_mask: Tensor | None, num_classes: int | None
) -> tuple[Tensor, Tensor]:
    """Label rows (N, C) of the seeds, zeros elsewhere, and the seeds (N,) bool.

    Only the rows of seeds are read, but for the number of classes, which by default is the
    largest label + 1 of all rows.

    Raises:
        TypeError: A value that is not a tensor.
        ValueError: Shapes, dtypes, entries or labels out of range, no label at all.
    """
    check_tensor("y", y)
    if y.is_floating_point():
        if y.dim() != 2 or y.size(1) == 0:
            raise ValueError(f"'y' of floating dtype must be (N, C) (got {tuple(y.shape)}).")
        if seed_mask is None:
            raise ValueError("'seed_mask' is needed when 'y' holds distributions (N, C).")
    elif y.dim() != 1 or not is_integer(y):
        raise ValueError(
            f"'y' must be (N,) integers or (N, C) floats (got {y.dtype} {tuple(y.shape)})."
        )
    seeds = y >= 0 if seed_mask is None else seed_mask
    check_mask("seed_mask", seeds, y.size(0))
    if y.is_floating_point():
        if num_classes is not None and y.size(1) != num_classes:
            raise ValueError(f"'y' must have {num_classes} columns (got {y.size(1)}).")
        rows = torch.where(seeds.unsqueeze(1), y, 0.0)
        if not bool((rows >= 0).all()) or bool(torch.isinf(rows).any()):
            raise ValueError("'y' must be finite and >= 0 in the rows of seeds.")
        return rows, seeds
    if num_classes is None:
        num_classes = int(y.max()) + 1 if y.numel() else 0
        if num_classes < 1:
            raise ValueError("'y' holds no label (all are negative); pass num_classes.")
    seen = torch.where(seeds, y.long(), 0)
    low, high = map(int, torch.aminmax(seen)) if seen.numel() else (0, 0)
    if low < 0:
        raise ValueError("'seed_mask' marks rows whose label is -1 (unlabeled).")
    if high >= num_classes:
        raise ValueError(f"'y' must be below num_classes={num_classes} (got {high}).")
    # Not the default dtype, which must not decide in which precision a graph is solved.
    one_hot = torch.zeros(y.numel(), num_classes, dtype=torch.float32, device=y.device)
    return one_hot.scatter_(1, seen.unsqueeze(1), seeds.float().unsqueeze(1)), seeds


def check_prior(name: str, prior: Tensor) -> Tensor:
    """A class prior (C,) in float64, scaled to sum 1.

    Raises:
        ValueError: Not a vector of finite values >= 0 with a positive sum.
    """
    prior = torch.as_tensor(prior, dtype=torch.float64)
    if prior.dim() != 1 or not bool((prior >= 0).all()) or not 0 < float(prior.sum()) < torch.inf:
        raise ValueError(f"'{name}' must be (C,) finite values >= 0 with a positive sum.")
    return prior / prior.sum()


def check_graph(
    edge_index: Tensor, edge_weight: Tensor, num_nodes: int, trusted: bool
) -> tuple[Rows, Tensor]:
    """Pattern and weights, in the pattern's order and a `safe_unit`, of a checked undirected graph.

    Self-loops are set to 0. `trusted` skips the check for direction.

    Raises:
        ValueError: Shape, dtype, indices or weights out of range, a directed graph.
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
    if edge_index.numel():
        low, high = int(edge_index.min()), int(edge_index.max())
        if low < 0 or high >= num_nodes:
            raise ValueError(
                f"'edge_index' must lie in 0..{num_nodes - 1}, the rows of 'y' (got {low}..{high})."
            )
    top = largest_weight(edge_weight)
    rows = rows_of(edge_index, num_nodes)
    weight = edge_weight.contiguous() if rows.order is None else edge_weight[rows.order]
    loops = rows.row == rows.target
    if bool(loops.any()):
        weight = torch.where(loops, 0.0, weight)
    if not trusted:
        _check_undirected(rows, weight.detach())
    return rows, safe_unit(weight, top)


def is_extreme(top: float) -> bool:
    """Whether weights of which `top` is the largest are better scaled before they are used."""
    return top != 0.0 and not 1e-3 < top < 1e3


def safe_unit(weight: Tensor, top: float) -> Tensor:
    """Weights of which `top` is the largest, scaled to a largest value of 1 where it is extreme.

    No propagation depends on their unit. In float64, where a weight that float32 holds cannot be
    lost by the division.
    """
    return widen(weight) / top if is_extreme(top) else weight


def largest_weight(weight: Tensor) -> float:
    """The largest of edge weights of any shape, 0 if there is none.

    Raises:
        ValueError: Weights negative or not finite.
    """
    if weight.numel() == 0:
        return 0.0
    low, top = map(float, torch.aminmax(weight.detach()))
    # Also false for NaN, which is what aminmax gives if there is one.
    if not 0.0 <= low <= top < float("inf"):
        raise ValueError("'edge_weight' must be finite and >= 0 (got NaN, inf or negative).")
    return top


def _check_undirected(rows: Rows, weight: Tensor) -> None:
    """Compare W z with Wᵀ z, node by node, for a fixed z without structure: O(E), no sort."""
    number = torch.arange(rows.pointer.numel() - 1, dtype=torch.float64, device=weight.device)
    z, w = torch.cos(1.0 + number**2 * 0.7), weight.double()
    both = torch.stack([z, torch.ones_like(z)], dim=1)
    forward, scale = csr_product(rows.pointer, rows.column, w, both).T
    backward = torch.zeros_like(z).index_add(0, rows.target, w * z[rows.row])
    scale = torch.maximum(scale, torch.zeros_like(z).index_add(0, rows.target, w))
    # Relative to every node's own ties: a weak node counts like the others.
    if bool(((forward - backward).abs() > 1e-5 * scale).any()):
        raise ValueError(
            "'edge_index' must be undirected: both directions of a pair with the same weight. "
            "Use torch_geometric.utils.to_undirected(edge_index, edge_weight, reduce='mean')."
        )
