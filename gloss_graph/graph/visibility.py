"""The stratified split of the rows of a step into visible and hidden labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gloss_graph._internal.checks import check_range
from gloss_graph.memory.batch import Documents, one_per_document


def visible_split(
    labels: Tensor,
    fraction: float,
    *,
    generator: torch.Generator,
    ids: Tensor | None = None,
    supplied: Tensor | None = None,
) -> Tensor:
    r"""Choose the labeled rows that keep their label in this step.

    Stratified: of a class with n documents, `fraction * n` keep their label (rounded at random,
    so the mean is exact) and at least one does when `0 < fraction`, unless `supplied` holds the
    class. Rows with the same id are one document and are shown or hidden together: otherwise a
    visible copy would reveal the label of the hidden one.

    Args:
        labels: (B,) long, -1 = unlabeled.
        fraction: Share \(\gamma\) in [0, 1]. 0 hides all, 1 none.
        generator: The only source of randomness (a CPU generator).
        ids: (B,) long document ids, optional.
        supplied: (n,) long, labels that other nodes of the graph show (repeats allowed).

    Returns:
        (B,) bool, `True` = label visible; unlabeled rows are `False`.

    Raises:
        ValueError: `fraction` outside [0, 1]; rows with one id and different labels.

    Example:
        >>> import torch
        >>> g = torch.Generator().manual_seed(0)
        >>> visible_split(torch.tensor([0, 0, 1, 1, -1]), 0.5, generator=g).sum()
        tensor(2)
    """
    check_range("visible_fraction", fraction, 0.0, 1.0)
    documents = None if ids is None else one_per_document("labels", labels, ids)
    return _split(labels, documents, fraction, generator, supplied)


class LabelSplit(NamedTuple):
    """Which labels a step shows: shares of those of the batch and of the remembered rows.

    Attributes:
        fraction: Share of the labels of the batch.
        memory_fraction: Share of the remembered labels.
        generator: The source of randomness.
        documents: Labels of the documents where rows have ids, or None.
        visible: (B,) bool replaces the random split of the batch.
    """

    fraction: float
    memory_fraction: float
    generator: torch.Generator
    documents: Documents | None
    visible: Tensor | None

    def shown(self, labels: Tensor, known: Tensor) -> Tensor:
        """Which of the `labels` (B,) of the batch and the `known` ones (n,) are shown (B + n,)."""
        remembered, supplied, visible = None, None, self.visible
        if known.numel():
            remembered = known >= 0
            if self.memory_fraction < 1.0:
                remembered = visible_split(known, self.memory_fraction, generator=self.generator)
            supplied = known[remembered]
        if visible is None:
            visible = _split(labels, self.documents, self.fraction, self.generator, supplied)
        return visible if remembered is None else torch.cat([visible, remembered])


def _split(
    labels: Tensor,
    documents: Documents | None,
    fraction: float,
    generator: torch.Generator,
    supplied: Tensor | None,
) -> Tensor:
    one = labels if documents is None else documents.values
    visible = _stratified(one.cpu(), fraction, generator, supplied).to(labels.device)
    return visible if documents is None else visible[documents.of_row]


def _stratified(
    labels: Tensor, fraction: float, generator: torch.Generator, supplied: Tensor | None
) -> Tensor:
    # The random numbers are torch's. The rest is many small steps, which are faster in NumPy.
    order = torch.randperm(labels.numel(), generator=generator).numpy()
    classes = labels.numpy()
    # Stable sort of shuffled rows by class: position within the class is a random rank.
    by_class = order[np.argsort(classes[order], kind="stable")]
    ordered = classes[by_class]
    values, counts = np.unique(ordered, return_counts=True)
    rank = np.arange(ordered.size) - (counts.cumsum() - counts).repeat(counts)
    rounding = torch.rand(values.size, generator=generator, dtype=torch.float64).numpy()
    keep = (fraction * counts + rounding).astype(np.int64)
    if fraction > 0:
        needed = True if supplied is None else ~np.isin(values, supplied.cpu().numpy())
        keep = np.maximum(keep, needed)
    keep[values < 0] = 0
    visible = np.empty(labels.numel(), dtype=bool)
    visible[by_class] = rank < keep.repeat(counts)
    return torch.from_numpy(visible)
