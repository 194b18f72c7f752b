"""Propagation over a fixed set of documents as a classifier of these and of new ones."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from gloss_graph._internal.checks import check_matrix, check_range
from gloss_graph.graph.bandwidth import local_scales
from gloss_graph.graph.build import build_document_graph
from gloss_graph.graph.kernels import discounted, weigh
from gloss_graph.graph.links import corpus_links
from gloss_graph.graph.settings import KNNGraph
from gloss_graph.memory.batch import is_labeled
from gloss_graph.neighbors.exact import nearest_allowed, without_itself
from gloss_graph.propagation import LabelPropagation, PropagationSettings, node_factors
from gloss_graph.propagation.alignment import (
    align_classes,
    arrival_confidence,
    arrival_shares,
    class_factors,
    class_shares,
    entropy_confidence,
    row_shares,
    score_probabilities,
    score_spread,
    target_means,
    with_mass,
)

# Right sides solved at a time.
_COLUMNS = 256
# Share of the uniform distribution in every prediction, so that every class has a floor.
FLOOR = 1e-3


@dataclass(frozen=True, kw_only=True)
class GraphClassifier:
    """How labels are propagated over a corpus to classify its documents.

    Attributes:
        num_classes: C.
        graph: How documents are connected; `batch_edges` and `hops` do not apply to a corpus.
        propagation: Rule, normalization and damping; the solver is chosen by size.
        align: Power in [0, 1] of the class-mass alignment.
        multilabel: Whether labels are sets (N, C).

    Raises:
        ValueError: A setting out of range.
    """

    num_classes: int
    graph: KNNGraph = KNNGraph()
    propagation: PropagationSettings = PropagationSettings()
    align: float = 0.5
    multilabel: bool = False

    def __post_init__(self) -> None:
        check_range("align", self.align, 0.0, 1.0)

    def with_rule(self, rule: str, eta: float | None) -> GraphClassifier:
        """The same with another propagation rule and leak."""
        return replace(self, propagation=replace(self.propagation, rule=rule, eta=eta))

    def layer(self, columns: int | None = None) -> LabelPropagation:
        """A layer that returns hit mass: what leaks is lost instead of going to a prior.

        Label rows have `columns`, by default C, with label sets one more for their mass.
        """
        return LabelPropagation(
            self.propagation.rule,
            self.propagation.normalization,
            eta=self.propagation.leak,
            alpha=self.propagation.alpha,
            prior="none",
            num_classes=columns or self.num_classes + self.multilabel,
            tol=1e-4,
        )


class Attachment(NamedTuple):
    """Where rows join: known rows (B, k) long, -1 for none, weights (B, k) and total (B, 1)."""

    indices: Tensor
    weights: Tensor
    total: Tensor


class PropagationHead:
    """Labels propagated once over N documents.

    `hits` (N, C) is the label mass that arrives; with label sets one more column holds the mass
    of all labels. The exact neighbor search costs O(N² D), once; a prediction O(B N D).

    Args:
        rows: (N, D) embeddings, normalized here if the graph normalizes.
        labels: (N,) long, -1 = unlabeled; label sets (N, C) floating, rows of NaN = unlabeled.
        classifier: How they are connected and propagated over.
        trust: (N,) in (0, 1], factor of the edges of every row; None = 1.
    """

    @torch.no_grad()
    def __init__(
        self,
        rows: Tensor,
        labels: Tensor,
        classifier: GraphClassifier,
        trust: Tensor | None = None,
    ) -> None:
        corpus = replace(classifier.graph, batch_edges="knn", hops=None)
        check_matrix("rows", rows, normalized=corpus.normalize)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        self.rows = F.normalize(rows, dim=1) if corpus.normalize else rows
        self.classifier = classifier
        self.graph = build_document_graph(self.rows, graph=corpus)
        self.trust = trust
        if trust is not None:
            source, target = self.graph.edge_index
            both = trust[source] * trust[target]
            self.graph.edge_weight = discounted(self.graph.edge_weight, both)
        self.factors = node_factors(
            classifier.propagation.normalization,
            self.graph.edge_index,
            self.graph.edge_weight,
            labels.size(0),
        )
        self.relabel(labels)

    @torch.no_grad()
    def relabel(self, labels: Tensor) -> None:
        """Propagate other labels over the same graph."""
        self._solve(labels, ~is_labeled(labels))

    @torch.no_grad()
    def without(self, row: int) -> PropagationHead:
        """A head over the same graph that has never seen the label of `row`, which still conducts.

        The label is no input of its solve, so that no bit of the result depends on it.
        """
        other, labels = copy(self), self.labels.clone()
        labels[row] = torch.nan if labels.is_floating_point() else -1
        other._solve(labels, ~self.seeds)
        return other

    @property
    def spreading(self) -> Tensor:
        """Labeled rows (N,) bool whose label changes the value of other rows.

        A harmonic label ends at labeled neighbors, so a row with no other neighbors is left out.
        """
        if self.classifier.propagation.rule != "harmonic":
            return self.seeds
        source, target = self.graph.edge_index
        out = (self.graph.edge_weight > 0) & ~self.seeds[target]
        return self.seeds & torch.zeros_like(self.seeds).index_fill(0, source[out], True)

    def _solve(self, labels: Tensor, free: Tensor) -> None:
        """Propagate; class masses and the spread of scores are those of the rows `free` (N,)."""
        self.labels, self.seeds = labels, is_labeled(labels)
        classifier = self.classifier
        self.prior = self.prior_of(None)
        if classifier.multilabel:
            self.mass = self.prior
            self.hits = self._propagate(with_mass(self._label_rows(), self.seeds))
            return
        self.hits = self._propagate(self._label_rows())
        self._some_free = bool(free.any())
        some = self.hits[free] if self._some_free else self.hits
        self.mass = row_shares(some).mean(dim=0) if self._some_free else self.prior
        if classifier.propagation.rule == "poisson":
            self.spread = score_spread(
                some * class_factors(self.prior, self.mass, classifier.align).to(some)
            )

    def _label_rows(self) -> Tensor:
        """Labels as rows (N, C), one-hot or sets; those of unlabeled rows are not to be read."""
        if self.classifier.multilabel:
            return self.labels.nan_to_num(0.0).to(self.rows)
        return F.one_hot(self.labels.clamp(min=0), self.classifier.num_classes).to(self.rows)

    def prior_of(self, own: Tensor | None) -> Tensor:
        """Class shares (C,) of the labels (the mean of label sets).

        For rows `own` (n,) the shares (n, C) without the label of each; -1 leaves nothing out.
        """
        classifier = self.classifier
        sets = self._label_rows()
        if own is None or not bool(own.numel()):
            if classifier.multilabel:
                return target_means(sets, self.seeds)
            return class_shares(self.labels, classifier.num_classes).to(sets)
        known = (own >= 0) & self.seeds[own]
        empty = 0.5 if classifier.multilabel else 1.0 / classifier.num_classes
        # In float64 sums of classes and of whole sets are exact, so no trace of `own` is left.
        sets = sets.double()
        left = sets[self.seeds].sum(dim=0) - sets[own] * known.unsqueeze(1)
        count = (self.seeds.count_nonzero() - known.long()).unsqueeze(1)
        return torch.where(count > 0, left / count.clamp(min=1), empty).to(self.rows)

    def _propagate(self, seed_rows: Tensor) -> Tensor:
        """Hit mass (N, c) for label rows (N, c) of the seeds."""
        if not bool(self.seeds.any()):
            return torch.zeros_like(seed_rows)
        layer = self.classifier.layer(seed_rows.size(1))
        return layer.propagate_labels(
            seed_rows, self.graph.edge_index, self.graph.edge_weight, self.seeds, trusted=True
        ).values

    def probabilities(self, hits: Tensor, own: Tensor | None = None) -> Tensor:
        """Aligned class probabilities (n, C) of hit mass (n, C); rows without mass stay 0.

        For the scores of `rule="poisson"` see `score_probabilities`. Label sets get the probability
        of every class, not aligned; rows without mass get the mean of all sets.

        Args:
            hits: The mass that arrived.
            own: (n,) long, the labeled row that each must not depend on, or -1.
        """
        if self.classifier.propagation.rule != "poisson":
            return self.votes(hits, own)
        prior = self.prior if own is None else self.prior_of(own)
        mass = self.mass if self._some_free else prior
        factors = class_factors(prior, mass, self.classifier.align)
        return score_probabilities(hits * factors.to(hits), self.spread)

    def votes(self, hits: Tensor, own: Tensor | None = None) -> Tensor:
        """As `probabilities`, but for Poisson scores the aligned shares of the positive ones.

        They decide alike and say which classes are ruled out, which tells other views of the
        documents more; but they are no probabilities: of two classes one always has everything.
        """
        prior = self.prior if own is None else self.prior_of(own)
        if self.classifier.multilabel:
            return arrival_shares(hits, prior).clamp(0.0, 1.0)
        mass = self.mass if self._some_free else prior
        return align_classes(row_shares(hits), prior, mass, self.classifier.align)

    def confidence(self, hits: Tensor, probabilities: Tensor) -> Tensor:
        """How far to trust `probabilities(hits)` (n, C): (n,) in [0, 1], 0 without mass."""
        if self.classifier.multilabel:
            return arrival_confidence(hits, probabilities)
        return entropy_confidence(probabilities)

    @torch.no_grad()
    def attach(self, queries: Tensor, own: Tensor | None = None) -> Attachment:
        """Connect new rows (B, D) to the known ones, which they do not change.

        Each query leaves out the known row `own` (B,) that is the same document; -1 for none.
        """
        x = queries.to(self.rows.dtype)
        x = F.normalize(x, dim=1) if self.classifier.graph.normalize else x
        k = min(self.classifier.graph.k, self.rows.size(0))
        none = torch.empty(0, dtype=torch.long, device=x.device)
        found = nearest_allowed(x, self.rows, k + (own is not None), none)
        if own is not None:
            found = without_itself(found, own)
        squared, indices = found
        missing = (indices < 0) | torch.isinf(squared)
        squared = squared.masked_fill(missing, 0.0)
        weights = weigh(
            self.classifier.graph.weight, squared.flatten(), self._squared_sigma(squared, indices)
        )
        weights = weights.view_as(squared) * self.factors[indices.clamp(min=0)]
        if self.trust is not None:
            weights = weights * self.trust[indices.clamp(min=0)]
        weights = weights.masked_fill(missing, 0.0)
        total = (1.0 + self.classifier.propagation.leak) * weights.sum(dim=1, keepdim=True)
        total = torch.where(total > 0, total, 1.0)
        return Attachment(indices.masked_fill(missing, -1), weights, total)

    def known(self, positions: Tensor) -> Attachment:
        """Known rows (B,) long, as if they were attached to themselves."""
        one = self.rows.new_ones(positions.numel(), 1)
        return Attachment(positions.unsqueeze(1), one, one)

    def _squared_sigma(self, squared: Tensor, indices: Tensor) -> Tensor:
        if self.classifier.graph.bandwidth != "local":
            return self.graph.bandwidth.square().flatten()
        scales = local_scales(squared).unsqueeze(1)
        return (scales * self._scales[indices.clamp(min=0)]).flatten()

    @cached_property
    def _scales(self) -> Tensor:
        """Self-tuning scales (N,) of the known rows; O(N² D), so once."""
        return local_scales(corpus_links(self.rows, self.classifier.graph.k)[2])

    def hits_of(self, attached: Attachment, values: Tensor | None = None) -> Tensor:
        """Hit mass (B, C) that attached rows receive from `values` (N, C), by default `hits`."""
        values = self.hits if values is None else values
        weights = attached.weights.to(values.dtype)
        taken = torch.einsum("bk,bkc->bc", weights, values[attached.indices.clamp(min=0)])
        return taken / attached.total.to(values.dtype)

    @torch.no_grad()
    def deciding(self, attached: Attachment, top: int) -> tuple[Tensor, Tensor]:
        """The labeled rows that gave most of the hit mass of B attached rows.

        Returns:
            Row numbers (B, top) long, -1 where there are fewer, and their shares (B, top) of the
            mass, descending.
        """
        size = attached.indices.size(0)
        every = self.seeds.nonzero().squeeze(1)
        names = torch.empty(size, 0, dtype=torch.long, device=self.rows.device)
        best, total = self.rows.new_zeros(size, 0), self.rows.new_zeros(size, 1)
        if top and 0 < size < every.numel():
            # One right side per row, else one per seed, whichever are fewer.
            blocks = zip(*(field.split(_COLUMNS) for field in attached), strict=True)
            part = torch.cat([self._arrived(Attachment(*block)) for block in blocks])
            part = part[:, every].clamp(min=0.0)
            total = part.sum(dim=1, keepdim=True)
            best, order = part.topk(min(top, every.numel()), dim=1)
            names = every[order]
        elif top and size:
            for seeds in every.split(_COLUMNS):
                sent = self.rows.new_zeros(self.rows.size(0), seeds.numel())
                sent[seeds, torch.arange(seeds.numel(), device=seeds.device)] = 1.0
                part = self.hits_of(attached, self._propagate(sent)).clamp(min=0.0).to(best.dtype)
                total = total + part.sum(dim=1, keepdim=True)
                best = torch.cat([best, part], dim=1)
                names = torch.cat([names, seeds.expand(size, -1)], dim=1)
                best, order = best.topk(min(top, best.size(1)), dim=1)
                names = names.gather(1, order)
        names = F.pad(names, (0, top - names.size(1)), value=-1)
        best = F.pad(best, (0, top - best.size(1)))
        names = names.masked_fill(best <= 0, -1)
        return names, best / torch.where(total > 0, total, 1.0)

    def _arrived(self, attached: Attachment) -> Tensor:
        """Label mass (b, N) of every seed at b rows: the adjoint, one right side per row."""
        start = self.rows.new_zeros(attached.indices.size(0), self.rows.size(0))
        shares = (attached.weights / attached.total).to(start)
        start.scatter_add_(1, attached.indices.clamp(min=0), shares)
        start = start.T.contiguous()
        labels = torch.zeros_like(start, requires_grad=True)
        with torch.enable_grad():
            return torch.autograd.grad(self._propagate(labels), labels, start)[0].T
