"""Contrast of the batch with itself and the bank, over the classes that the graph finds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from gloss_graph._internal.checks import check_index_vector, check_matrix
from gloss_graph.inference.agreement import FoundClasses, ViewVotes, agreed_labels, view_votes
from gloss_graph.inference.head import GraphClassifier
from gloss_graph.memory import MemoryBank
from gloss_graph.memory.batch import StepBatch
from gloss_graph.step.settings import GraphContrast
from gloss_graph.step.terms import BankTable


class _View:
    """Rows of documents by id: those (M, D') of others are zeros."""

    def __init__(self, ids: Tensor, rows: Tensor, name: str) -> None:
        check_matrix(name, rows)
        check_index_vector(name, ids, rows.size(0))
        self.ids, order = ids.long().sort()
        self.rows = rows.detach().float()[order]
        if bool((self.ids[1:] == self.ids[:-1]).any()):
            raise ValueError(f"'{name}' must name every id once (some are there twice).")

    def rows_of(self, ids: Tensor) -> Tensor:
        if self.ids.numel() == 0:
            return self.rows.new_zeros(ids.numel(), self.rows.size(1)).to(ids.device)
        wanted = ids.to(self.ids.device)
        place = torch.searchsorted(self.ids, wanted).clamp(max=self.ids.numel() - 1)
        known = (self.ids[place] == wanted).unsqueeze(1)
        return torch.where(known, self.rows[place], 0.0).to(ids.device)


class GraphClasses(BankTable):
    """The class of every document of the bank, known or found, and the trust in it.

    Found over the whole bank every `refresh_every` steps and looked up by document in between.
    `views` are ids (n,) of documents and further rows (n, D') of them, for each view.
    """

    labels: Tensor
    trust: Tensor
    ids: Tensor
    found_at: Tensor
    without = "the contrast finds no classes"

    def __init__(
        self,
        capacity: int,
        classifier: GraphClassifier,
        contrast: GraphContrast,
        half_life: float | None = None,
        views: Sequence[tuple[Tensor, Tensor]] = (),
    ) -> None:
        super().__init__(classifier, half_life)
        self.contrast = contrast
        # Constants that the caller has: no part of the state.
        self._views = [_View(*view, f"views[{i}]") for i, view in enumerate(views)]
        self.register_buffer("labels", torch.full((capacity,), -1))
        self.register_buffer("trust", torch.zeros(capacity, dtype=torch.float32))
        self.register_buffer("ids", torch.full((capacity,), -1))
        self.register_buffer("found_at", torch.full((), -1))
        self._said: tuple[Tensor, Tensor, list[ViewVotes]] | None = None

    @property
    def view_count(self) -> int:
        """How many further views there are."""
        return len(self._views)

    def find(self, memory: MemoryBank) -> FoundClasses:
        """Classes and trust of the M rows of the bank, which holds a label."""
        rows, labels, decay = memory.embeddings.float(), memory.labels, self.trust_in(memory)
        return agreed_labels(rows, labels, self.classifier, self._votes(memory), decay)

    def _votes(self, memory: MemoryBank) -> list[ViewVotes]:
        """Votes of the further views, which training does not change."""
        ids, labels, said = memory.ids, memory.labels, self._said
        if said is None or not (torch.equal(said[0], ids) and torch.equal(said[1], labels)):
            rows = [view.rows_of(ids) for view in self._views]
            votes = [view_votes(view, labels, self.classifier) for view in rows]
            said = self._said = ids.clone(), labels.clone(), votes
        return said[2]

    def refresh(self, memory: MemoryBank, step: Tensor) -> None:
        """Find the classes again if it is time."""
        number, last = int(step), int(self.found_at)
        early = number < self.contrast.start
        if early or (last >= 0 and number - last < self.contrast.refresh_every):
            return
        if not self.can_solve(memory):
            return
        count, found = len(memory), self.find(memory)
        # New tensors, so that a step that raises later can go back to the old ones.
        self.labels = torch.cat([found.labels, self.labels[count:]])
        self.trust = torch.cat([found.trust.to(self.trust), self.trust[count:]])
        self.ids = torch.cat([memory.ids, self.ids[count:]])
        self.found_at = step.clone()

    def of_bank(self, memory: MemoryBank) -> FoundClasses:
        """As of the last search, for the rows whose document is still there; others have trust 0.

        Labels that the bank holds now go first.
        """
        count = len(memory)
        current, known = self.ids[:count] == memory.ids, memory.labeled
        labels = torch.where(known, memory.labels, self.labels[:count])
        trust = torch.where(current, self.trust[:count], 0.0)
        return FoundClasses(labels, torch.where(known, 1.0, trust))


def contrast_loss(
    classes: GraphClasses,
    memory: MemoryBank,
    step: StepBatch,
    number: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """The term of step `number`; a differentiable 0 where no two documents can be compared.

    While training the classes are found again if it is time. Gradients reach the batch rows, also
    as the other end of a pair; rows of the bank are constants.
    """
    if classes.training:
        classes.refresh(memory, number)
    batch, learned = step.batch, step.learned
    of_bank = classes.of_bank(memory)
    labels, trust = _of_batch(batch.labels, batch.slots, of_bank)
    x = F.normalize(batch.x[:, :learned], dim=1)
    others, other_labels, other_trust = [x], [labels], [trust.to(x)]
    slots = _drawn(of_bank, batch.slots, classes, generator)
    if slots.numel():
        others.append(F.normalize(memory.embeddings[slots, :learned].to(x), dim=1))
        other_labels.append(of_bank.labels[slots])
        # They were drawn by trust already.
        other_trust.append(x.new_ones(slots.numel()))
    counts = torch.cat(other_trust).repeat(x.size(0), 1)
    # A document is not compared with itself; the batch rows come first.
    names = torch.arange(x.size(0), device=x.device) if batch.ids is None else batch.ids
    counts[:, : x.size(0)].masked_fill_(names.unsqueeze(1) == names, 0.0)
    logits = x @ torch.cat(others).T / classes.contrast.temperature + _log(counts)
    positive = counts * (labels.unsqueeze(1) == torch.cat(other_labels))
    total = positive.sum(dim=1)
    each = -(logits.log_softmax(dim=1) * positive).sum(dim=1) / _nonzero(total)
    weight = trust.to(x) * (total > 0)
    return (each * weight).sum() / _nonzero(weight.sum())


def _of_batch(labels: Tensor, slots: Tensor | None, of_bank: FoundClasses) -> tuple[Tensor, Tensor]:
    """Class and trust (B,) of the batch rows: their label, else that of their stored copy."""
    trust = (labels >= 0).to(of_bank.trust)
    if slots is None or of_bank.labels.numel() == 0:
        return labels, trust
    found = (labels < 0) & (slots >= 0)
    place = slots.clamp(min=0)
    return (
        torch.where(found, of_bank.labels[place], labels),
        torch.where(found, of_bank.trust[place], trust),
    )


def _drawn(
    of_bank: FoundClasses,
    slots: Tensor | None,
    classes: GraphClasses,
    generator: torch.Generator,
) -> Tensor:
    """Slots (n,) of other documents than the batch's, by trust with equal class shares."""
    labels, trust = of_bank.labels.clamp(min=0), of_bank.trust
    total = trust.new_zeros(classes.classifier.num_classes).index_add_(0, labels, trust)
    weight = (trust / total[labels].clamp(min=torch.finfo(trust.dtype).tiny)).cpu()
    if slots is not None:
        weight[slots[slots >= 0].cpu()] = 0.0
    count = min(classes.contrast.rows, int(weight.count_nonzero()))
    if count == 0:
        return of_bank.labels[:0]
    return torch.multinomial(weight, count, generator=generator).to(of_bank.labels.device)


def _log(values: Tensor) -> Tensor:
    """Logarithm of values >= 0; of 0 a finite number that no softmax feels."""
    lowest = torch.finfo(values.dtype).min / 2
    return torch.where(values > 0, _nonzero(values).log(), lowest)


def _nonzero(values: Tensor) -> Tensor:
    """The values with 1 instead of 0, so that one can divide by them."""
    return torch.where(values > 0, values, 1.0)


def check_contrast(contrast: object, memory: MemoryBank | None, multilabel: bool) -> MemoryBank:
    """The bank; raises unless an objective over it can have this contrast."""
    if not isinstance(contrast, GraphContrast):
        raise TypeError(f"'contrast' must be a GraphContrast (got {type(contrast).__name__}).")
    if memory is None:
        raise ValueError("'contrast' needs 'memory', where its classes are found. Pass a bank.")
    if multilabel:
        raise ValueError("'contrast' must be None with multilabel=True: label sets overlap.")
    return memory
