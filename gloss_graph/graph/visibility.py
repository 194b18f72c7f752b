"""The stratified split of the rows of a step into visible and hidden labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gloss_graph._internal.checks import check_mask, check_range


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


class Documents(NamedTuple):
    """Values (n,) of the n documents of a batch, and which of them every row is (B,)."""

    values: Tensor
    of_row: Tensor


def check_visible(visible: Tensor | None, labels: Tensor, ids: Tensor | None) -> Tensor | None:
    """`visible` (B,) on the labels' device; raise unless it fits the labels and documents.

    Rows with one id are one document: one that shows the label would tell it to the others.
    """
    if visible is None:
        return None
    check_mask("visible", visible, labels.numel())
    visible = visible.to(labels.device)
    if bool((visible & (labels < 0)).any()):
        raise ValueError("'visible' marks rows whose label is -1 (unlabeled).")
    if ids is not None:
        one_per_document("visible", visible.long(), ids)
    return visible


def one_per_document(name: str, values: Tensor, ids: Tensor) -> Documents:
    """The documents of a batch, which the `ids` (B,) of its rows tell.

    Rows with one id and different values raise a ValueError that calls the values `name`.
    """
    unique, document_of = ids.unique(return_inverse=True)
    documents = values.new_full((unique.numel(),), -1)
    documents.scatter_reduce_(0, document_of, values, "amax")
    found = documents[document_of]
    if not torch.equal(found, values):
        row = int((found != values).nonzero()[0])
        raise ValueError(
            f"'{name}' must agree for rows with the same id, which are one document (id "
            f"{int(ids[row])} has {name} {int(values[row])} and {int(found[row])})."
        )
    return Documents(documents, document_of)


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
