"""Propagation over a memory bank as an inference head."""

# Annotations are evaluated, since documentation reads the types of the fields.
from typing import NamedTuple

import torch
from torch import Tensor

from gloss_graph._internal.checks import (
    check_choice,
    check_device,
    check_matrix,
    check_positive_int,
    check_range,
)
from gloss_graph.inference.head import FLOOR, Attachment, GraphClassifier, PropagationHead
from gloss_graph.memory import MemoryBank
from gloss_graph.memory.batch import check_ids, is_labeled, joint_view, reweighted
from gloss_graph.propagation import RULES

MODES = ("inductive", "transductive")
_CHUNK = 4096
# Poisson sources spread without end; a little leak keeps them near their own clusters.
_POISSON_ETA = 0.02


class Explanation(NamedTuple):
    """Predictions with their reasons.

    Attributes:
        probabilities: (B, C), with label sets one per class.
        confidence: (B,), 1 - entropy / log C; with label sets the mean over classes with two
            outcomes each.
        ids: (B, top) long, the labeled documents that decided most, -1 for none.
        shares: (B, top), their part of the label mass that arrived.
    """

    probabilities: Tensor
    confidence: Tensor
    ids: Tensor
    shares: Tensor


class BankInference:
    """Predicts by propagation over a bank; the solve over the bank is kept until it changes.

    Args:
        memory: The bank; its rows may be joint views (learned and frozen).
        classifier: How its documents are connected and propagated over.
        frozen_weight: The weight the frozen view was stored with.
    """

    def __init__(
        self, memory: MemoryBank, classifier: GraphClassifier, frozen_weight: float
    ) -> None:
        self.memory, self.classifier, self.frozen_weight = memory, classifier, frozen_weight
        self._key: tuple[object, ...] = ()
        self._buffers: tuple[Tensor, ...] = ()
        self._head: PropagationHead | None = None

    @torch.no_grad()
    def predict(
        self,
        embeddings: Tensor,
        frozen: Tensor | None,
        ids: Tensor | None,
        mode: str,
        frozen_weight: float | None,
        rule: str | None = None,
        top: int = 0,
    ) -> Explanation:
        """Probabilities and `top` reasons; see `GraphGuidedObjective.predict` for the arguments."""
        check_choice("mode", mode, MODES)
        if rule is not None:
            check_choice("rule", rule, RULES)
            if rule == "poisson" and self.classifier.multilabel:
                raise ValueError(
                    "'rule' must not be 'poisson' with label sets: its scores are no probabilities."
                )
        check_matrix("embeddings", embeddings, normalized=self.classifier.graph.normalize)
        if ids is not None:
            check_ids(ids, embeddings.size(0))
        if frozen_weight is not None:
            check_range("frozen_weight", frozen_weight, 0.0, 1.0)
        check_positive_int("top", top, minimum=0)
        if not bool(self.memory.labeled.any()):
            what = "holds no labeled document" if len(self.memory) else "is empty"
            raise ValueError(
                f"'memory' {what}, there is nothing to propagate. Call memory.prefill(...) with "
                "labeled documents, or train first."
            )
        device = self.memory.rows.device
        check_device("'embeddings'", embeddings, "'memory'", device)
        queries, frozen_weight = self._view(embeddings, frozen, frozen_weight)
        own = None if ids is None else self.memory.slots_of(ids)
        classifier = self.classifier
        if rule is not None and rule != classifier.propagation.rule:
            classifier = classifier.with_rule(rule, _POISSON_ETA if rule == "poisson" else 0.2)
        if mode == "transductive":
            return self._together(queries, own, frozen_weight, classifier, top)
        head = self._solved(embeddings.size(1), frozen_weight, classifier)
        parts = [
            self._attached(head, part, None if own is None else own[i * _CHUNK :][:_CHUNK], top)
            for i, part in enumerate(queries.split(_CHUNK))
        ]
        return Explanation(*(torch.cat(field) for field in zip(*parts, strict=True)))

    def _view(
        self, embeddings: Tensor, frozen: Tensor | None, frozen_weight: float | None
    ) -> tuple[Tensor, float]:
        """Query rows and the weight of the frozen view that they are compared with."""
        extra = self.memory.dim - embeddings.size(1)
        if extra == 0:
            if frozen is not None or frozen_weight:
                raise ValueError(
                    "'frozen' and 'frozen_weight' need a bank that holds frozen features too (its "
                    f"dim is {self.memory.dim}, that of the embeddings alone). Leave them out."
                )
            return embeddings, self.frozen_weight
        if frozen is None:
            if frozen_weight:
                raise ValueError(
                    "'frozen' must hold the features of the untrained encoder for "
                    f"frozen_weight={frozen_weight} (got None). Pass them, or frozen_weight=0."
                )
            if extra < 0:
                raise ValueError(
                    f"'embeddings' must have {self.memory.dim} columns, as the bank "
                    f"(got {embeddings.size(1)})."
                )
            return embeddings, 0.0
        check_matrix("frozen", frozen)
        if frozen.size(1) != extra:
            raise ValueError(
                f"'frozen' must have {extra} columns, as the bank was filled with "
                f"(got {tuple(frozen.shape)})."
            )
        frozen_weight = self.frozen_weight if frozen_weight is None else frozen_weight
        return joint_view(embeddings, frozen, frozen_weight), frozen_weight

    def _rows(self, learned: int, frozen_weight: float) -> Tensor:
        """The bank's rows with another weight of the frozen view."""
        rows = self.memory.embeddings.float()
        if learned == self.memory.dim or frozen_weight == self.frozen_weight:
            return rows
        rows = reweighted(rows, learned, self.frozen_weight, frozen_weight)
        return rows[:, :learned] if frozen_weight == 0.0 else rows

    def _solved(
        self, learned: int, frozen_weight: float, classifier: GraphClassifier
    ) -> PropagationHead:
        memory = self.memory
        # Tensors count their writes; a reference keeps the id from being used again.
        self._buffers = (memory.rows, memory.slot_labels)
        if memory.slot_targets is not None:
            self._buffers = (*self._buffers, memory.slot_targets)
        state = [(id(buffer), buffer._version) for buffer in self._buffers]
        key = (*state, len(memory), learned, frozen_weight, classifier.propagation.rule)
        if self._head is None or key != self._key:
            self._head = PropagationHead(
                self._rows(learned, frozen_weight), memory.labels.clone(), classifier
            )
            self._key = key
        return self._head

    def _attached(
        self, head: PropagationHead, queries: Tensor, own: Tensor | None, top: int
    ) -> Explanation:
        """Every query attached to the bank, as if its stored copy had no label."""
        rows = queries if queries.size(1) == head.rows.size(1) else queries[:, : head.rows.size(1)]
        attached = head.attach(rows, own)
        if own is None:
            return self._explain(head, attached, None, top)
        hidden = (own >= 0) & head.spreading[own]
        groups = [(head, (~hidden).nonzero().squeeze(1))]
        groups += [
            (head.without(row), (own == row).nonzero().squeeze(1))
            for row in own[hidden].unique().tolist()
        ]
        answers = [
            self._explain(one, Attachment(*(part[where] for part in attached)), own[where], top)
            for one, where in groups
        ]
        order = torch.cat([where for _, where in groups]).argsort()
        return Explanation(*(torch.cat(field)[order] for field in zip(*answers, strict=True)))

    def _together(
        self,
        queries: Tensor,
        own: Tensor | None,
        frozen_weight: float,
        classifier: GraphClassifier,
        top: int,
    ) -> Explanation:
        """One graph over the bank and all queries, whose stored copies are left out."""
        kept = torch.ones(len(self.memory), dtype=torch.bool, device=queries.device)
        if own is not None:
            kept[own[own >= 0]] = False
        rows = self._rows(queries.size(1), frozen_weight)[kept]
        labels = self.memory.labels[kept]
        if not bool(is_labeled(labels).any()):
            raise ValueError("'ids' name every labeled document of the bank; none is left.")
        rows = torch.cat([rows[:, : queries.size(1)], queries.to(rows.dtype)])
        missing = torch.nan if labels.is_floating_point() else -1
        unknown = labels.new_full((queries.size(0), *labels.shape[1:]), missing)
        head = PropagationHead(rows, torch.cat([labels, unknown]), classifier)
        where = torch.arange(labels.size(0), rows.size(0), device=rows.device)
        return self._explain(head, head.known(where), None, top, self.memory.ids[kept])

    def _explain(
        self,
        head: PropagationHead,
        attached: Attachment,
        own: Tensor | None,
        top: int,
        ids: Tensor | None = None,
    ) -> Explanation:
        """Answers for attached rows; `ids` (n,) are those of the first rows of the head."""
        ids = self.memory.ids if ids is None else ids
        names, shares = head.deciding(attached, top)
        # Queries in the graph come last, have no label and are never named.
        names = torch.where(names >= 0, ids[names.clamp(min=0, max=ids.numel() - 1)], -1)
        hits = head.hits_of(attached)
        known = head.probabilities(hits, own)
        confidence = head.confidence(hits, known)
        if self.classifier.multilabel:
            return Explanation((1.0 - FLOOR) * known + FLOOR / 2.0, confidence, names, shares)
        # Rows that nothing reaches get the class shares of the labels.
        nothing = known.sum(dim=1, keepdim=True) == 0
        probabilities = torch.where(nothing, head.prior_of(own).to(known), known)
        probabilities = (1.0 - FLOOR) * probabilities + FLOOR / probabilities.size(1)
        return Explanation(probabilities, confidence, names, shares)
