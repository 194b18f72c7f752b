"""Propagation over a fixed set of documents as a classifier of these and of new ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gloss_graph._checks import check_matrix
from gloss_graph.graph.bandwidth import BandwidthRule, local_scales
from gloss_graph.graph.build import build_document_graph
from gloss_graph.graph.distances import discounted, weigh
from gloss_graph.graph.kernels import Kernel
from gloss_graph.graph.links import corpus_links
from gloss_graph.memory.search import nearest_allowed
from gloss_graph.memory.targets import is_labeled
from gloss_graph.propagation import LabelPropagation
from gloss_graph.propagation.alignment import (
    align_classes,
    arrival_confidence,
    arrival_shares,
    class_shares,
    entropy_confidence,
    row_shares,
    target_means,
    with_mass,
)
from gloss_graph.propagation.factors import node_factors

_SEED_CHUNK = 256
# Share of the uniform distribution in every prediction: a class without labels keeps a floor.
FLOOR = 1e-3


@dataclass(frozen=True)
class HeadSettings:
    """How a corpus is connected and propagated over; names as in `GraphGuidedObjective`."""

    num_classes: int
    k: int
    kernel: Kernel
    bandwidth: float | str | BandwidthRule
    symmetrize: str
    normalize: bool
    rule: str
    normalization: str
    eta: float
    alpha: float
    align: float
    multilabel: bool = False

    def layer(self, num_classes: int) -> LabelPropagation:
        """A layer that returns hit mass: what leaks is lost, not given to a prior."""
        return LabelPropagation(
            self.rule,
            self.normalization,
            eta=self.eta,
            alpha=self.alpha,
            prior="none",
            num_classes=num_classes,
            tol=1e-4,
        )


class Attachment(NamedTuple):
    """Where new rows join: known rows (B, k) long, -1 for none, and their weights (B, k)."""

    indices: Tensor
    weights: Tensor


class PropagationHead:
    """Labels propagated once over N documents.

    Args:
        rows: (N, D) embeddings, normalised here if the settings say so.
        labels: (N,) long, -1 = unlabeled; of label sets (N, C) floating, rows of NaN = unlabeled.
        settings: Of graph and propagation.
        trust: (N,) in (0, 1], factor of the edges of every row; None = 1.

    `hits` (N, C) is the label mass that arrives, of label sets with one more column, the mass of
    all labels. The exact neighbour search costs O(N² D), once; a prediction O(B N D).
    """

    @torch.no_grad()
    def __init__(
        self,
        rows: Tensor,
        labels: Tensor,
        settings: HeadSettings,
        trust: Tensor | None = None,
    ) -> None:
        check_matrix("rows", rows, normalized=settings.normalize)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        self.rows = F.normalize(rows, dim=1) if settings.normalize else rows
        self.settings = settings
        self.graph = build_document_graph(
            self.rows,
            k=settings.k,
            kernel=settings.kernel,
            bandwidth=settings.bandwidth,
            symmetrize=settings.symmetrize,
            normalize_embeddings=settings.normalize,
        )
        self.trust = trust
        if trust is not None:
            source, target = self.graph.edge_index
            both = trust[source] * trust[target]
            self.graph.edge_weight = discounted(self.graph.edge_weight, both)
        self.factors = node_factors(
            settings.normalization, self.graph.edge_index, self.graph.edge_weight, labels.size(0)
        )
        self.relabel(labels)

    @torch.no_grad()
    def relabel(self, labels: Tensor) -> None:
        """Propagate other labels over the same graph."""
        classes = self.settings.num_classes
        self.labels, self.seeds = labels, is_labeled(labels)
        if self.settings.multilabel:
            targets = labels.nan_to_num(0.0).to(self.rows)
            self.prior = self.mass = target_means(targets, self.seeds)
            self.hits = self._propagate(with_mass(targets, self.seeds))
            return
        self.prior = class_shares(labels, classes).to(self.rows)
        self.hits = self._propagate(F.one_hot(labels.clamp(min=0), classes).to(self.rows))
        free = row_shares(self.hits)[~self.seeds]
        self.mass = free.mean(dim=0) if free.size(0) else self.prior

    def _propagate(self, seed_rows: Tensor) -> Tensor:
        """Hit mass (N, c) for label rows (N, c) of the seeds."""
        if not bool(self.seeds.any()):
            return torch.zeros_like(seed_rows)
        layer = self.settings.layer(seed_rows.size(1))
        return layer.propagate_labels(
            seed_rows, self.graph.edge_index, self.graph.edge_weight, self.seeds, trusted=True
        ).values

    def probabilities(self, hits: Tensor) -> Tensor:
        """Aligned class probabilities (n, C) of hit mass (n, C); rows without mass stay 0.

        Of label sets the probability of every class, not aligned; rows without mass get the mean
        of all sets.
        """
        if self.settings.multilabel:
            return arrival_shares(hits, self.prior).clamp(0.0, 1.0)
        return align_classes(row_shares(hits), self.prior, self.mass, self.settings.align)

    def confidence(self, hits: Tensor, probabilities: Tensor) -> Tensor:
        """How far to trust `probabilities(hits)` (n, C), in [0, 1] (n,); 0 without mass."""
        if self.settings.multilabel:
            return arrival_confidence(hits, probabilities)
        return entropy_confidence(probabilities)

    @torch.no_grad()
    def attach(self, queries: Tensor, own: Tensor | None = None) -> Attachment:
        """Connect new rows to the known ones, which they do not change.

        Args:
            queries: (B, D).
            own: (B,) long, the known row that is the query itself and must not be used, or -1.
        """
        x = queries.to(self.rows.dtype)
        x = F.normalize(x, dim=1) if self.settings.normalize else x
        k = min(self.settings.k, self.rows.size(0))
        none = torch.empty(0, dtype=torch.long, device=x.device)
        found = nearest_allowed(x, self.rows, k + (own is not None), none)
        indices, squared = found.indices, found.squared_distances
        if own is not None:
            allowed = indices != own.unsqueeze(1)
            # One column less: the own row if it was found, else the farthest.
            order = (~allowed).to(torch.int8).sort(dim=1, stable=True).indices[:, :k]
            squared = squared.masked_fill(~allowed, torch.inf).gather(1, order)
            indices = indices.masked_fill(~allowed, -1).gather(1, order)
        missing = (indices < 0) | torch.isinf(squared)
        squared = squared.masked_fill(missing, 0.0)
        weights = weigh(
            self.settings.kernel, squared.flatten(), self._squared_sigma(squared, indices)
        )
        weights = weights.view_as(squared) * self.factors[indices.clamp(min=0)]
        if self.trust is not None:
            weights = weights * self.trust[indices.clamp(min=0)]
        return Attachment(indices.masked_fill(missing, -1), weights.masked_fill(missing, 0.0))

    def _squared_sigma(self, squared: Tensor, indices: Tensor) -> Tensor:
        if self.settings.bandwidth != "local":
            return self.graph.bandwidth.square().flatten()
        own = local_scales(squared).unsqueeze(1)
        known = local_scales(corpus_links(self.rows, self.settings.k)[2])
        return (own * known[indices.clamp(min=0)]).flatten()

    def hits_of(self, attached: Attachment, values: Tensor | None = None) -> Tensor:
        """Hit mass (B, C) that attached rows receive from `values` (N, C), by default `hits`."""
        values = self.hits if values is None else values
        weights = attached.weights.to(values.dtype)
        total = (1.0 + self.settings.eta) * weights.sum(dim=1, keepdim=True)
        taken = torch.einsum("bk,bkc->bc", weights, values[attached.indices.clamp(min=0)])
        return taken / torch.where(total > 0, total, 1.0)

    @torch.no_grad()
    def deciding(self, rows: Tensor | Attachment, top: int) -> tuple[Tensor, Tensor]:
        """The labeled rows that gave most of the hit mass.

        Args:
            rows: Positions (B,) long of known rows, or attached new ones.
            top: How many.

        Returns:
            Row numbers (B, top) long, -1 where there are fewer, and their shares (B, top) of the
            mass, descending.
        """
        size = (rows.indices if isinstance(rows, Attachment) else rows).size(0)
        best = self.rows.new_zeros(size, 0)
        names = torch.empty(size, 0, dtype=torch.long, device=self.rows.device)
        total = self.rows.new_zeros(size, 1)
        if top == 0:
            return names, best
        for seeds in self.seeds.nonzero().squeeze(1).split(_SEED_CHUNK):
            given = self.rows.new_zeros(self.rows.size(0), seeds.numel())
            given[seeds, torch.arange(seeds.numel(), device=seeds.device)] = 1.0
            values = self._propagate(given)
            part = self.hits_of(rows, values) if isinstance(rows, Attachment) else values[rows]
            part = part.clamp(min=0.0).to(best.dtype)
            total = total + part.sum(dim=1, keepdim=True)
            best = torch.cat([best, part], dim=1)
            names = torch.cat([names, seeds.expand(size, -1)], dim=1)
            best, order = best.topk(min(top, best.size(1)), dim=1)
            names = names.gather(1, order)
        names = F.pad(names, (0, top - names.size(1)), value=-1)
        best = F.pad(best, (0, top - best.size(1)))
        names = names.masked_fill(best <= 0, -1)
        return names, best / torch.where(total > 0, total, 1.0)
