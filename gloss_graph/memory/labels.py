"""Labels as a bank keeps them: a class number per row, or a row of targets, a column per class."""

from __future__ import annotations

import torch
from torch import Tensor

from gloss_graph._internal.checks import check_index_vector, check_tensor


def read_labels(
    labels: Tensor | None, size: int, num_classes: int | None, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Checked labels of `size` rows as class numbers and targets.

    Args:
        labels: (B,) integer, -1 = unlabeled; with `num_classes` (B, C) floating in [0, 1], a row
            of NaN = unlabeled. None: all unlabeled.
        size: B.
        num_classes: C of label sets, None for class numbers.
        device: Device of the results.

    Returns:
        Class numbers (B,) long and None; with `num_classes` 0 (labeled) or -1, and targets
        (B, C), zeros in unlabeled rows.

    Raises:
        TypeError: Not a tensor.
        ValueError: Shape, dtype, a class number < -1, a target outside [0, 1], a row that is
            partly NaN.
    """
    if num_classes is not None:
        return _read_targets(labels, size, num_classes, device)
    if labels is None:
        return torch.full((size,), -1, device=device), None
    check_tensor("labels", labels)
    if labels.is_floating_point() and labels.dim() == 2:
        raise ValueError(
            f"'labels' must be class numbers of shape ({size},) (got {labels.dtype} "
            f"{tuple(labels.shape)}). Use labels.argmax(dim=1) for one class per row, or "
            "multilabel=True and MemoryBank(num_classes=...) for label sets and shares."
        )
    check_index_vector("labels", labels, size)
    if size and int(labels.min()) < -1:
        raise ValueError(f"'labels' must be >= -1, -1 = unlabeled (got {int(labels.min())}).")
    return labels.to(device).long(), None


def _read_targets(
    labels: Tensor | None, size: int, num_classes: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    if labels is None:
        none = torch.full((size,), -1, device=device)
        return none, torch.zeros(size, num_classes, dtype=torch.float32, device=device)
    check_tensor("labels", labels)
    if labels.shape != (size, num_classes) or not labels.is_floating_point():
        raise ValueError(
            f"'labels' must be floating of shape ({size}, {num_classes}), one column per class, "
            f"a row of NaN = unlabeled (got {labels.dtype} {tuple(labels.shape)}). Multi-hot "
            "integers: call .float()."
        )
    labels = labels.detach().to(device)
    missing = labels.isnan()
    unlabeled = missing.all(dim=1)
    partly = (missing.any(dim=1) & ~unlabeled).nonzero()
    if partly.numel():
        raise ValueError(
            f"'labels' must be NaN in a whole row (unlabeled) or nowhere in it (got both in row "
            f"{int(partly[0])})."
        )
    targets = torch.where(unlabeled.unsqueeze(1), 0.0, labels)
    outside = ((targets < 0) | (targets > 1)).any(dim=1).nonzero()
    if outside.numel():
        row = int(outside[0])
        raise ValueError(
            f"'labels' must lie in [0, 1] (got {float(targets[row].min()):g}.."
            f"{float(targets[row].max()):g} in row {row})."
        )
    return -unlabeled.long(), targets


def join_targets(known: Tensor, targets: Tensor) -> Tensor:
    """Targets (B, C) with rows of NaN where `known` (B,) is negative."""
    return torch.where((known >= 0).unsqueeze(1), targets, torch.nan)


def is_labeled(labels: Tensor) -> Tensor:
    """Which rows (B,) bool of class numbers (B,) or targets (B, C) carry a label."""
    return labels >= 0 if labels.dim() == 1 else ~labels[:, 0].isnan()


def check_same_targets(ids: Tensor | None, known: Tensor, targets: Tensor) -> None:
    """Raise unless rows with one id (B,) carry the same label set.

    Raises:
        ValueError: Names the id.
    """
    if ids is None:
        return
    unique, document = ids.unique(return_inverse=True)
    first = torch.full_like(unique, ids.numel())
    first = first.scatter_reduce(0, document, torch.arange(ids.numel(), device=ids.device), "amin")
    one = first[document]
    clash = ((targets != targets[one]).any(dim=1) | (known != known[one])).nonzero()
    if clash.numel():
        row = int(clash[0])
        raise ValueError(
            f"'labels' must agree for rows with the same id (id {int(ids[row])} has other labels "
            f"in rows {int(one[row])} and {row})."
        )
