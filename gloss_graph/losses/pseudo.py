"""Pseudo-labels: the rival that trusts the classifier instead of the graph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gloss_graph._internal.checks import check_matrix, check_positive_int, check_range
from gloss_graph._internal.processes import any_process, gather_rows, share_of_mean
from gloss_graph.losses.graph import labeled_cross_entropy
from gloss_graph.losses.schedule import is_seen, ramped, unseen_mean, updated_mean
from gloss_graph.propagation.alignment import align_classes, class_shares


class PseudoLabelLoss(nn.Module):
    """Cross-entropy of labeled rows plus that of confident pseudo-labels of unlabeled ones.

    FixMatch (Sohn et al., 2020) without text augmentation, with the distribution alignment of
    ReMixMatch (Berthelot et al., 2020); the teacher's logits come from outside (an exponential
    moving average of the model, Tarvainen & Valpola, 2017).

    Args:
        num_classes: C.
        prior: (C,) class shares of the labeled documents.
        threshold: Smallest aligned probability a pseudo-label needs.
        weight: Weight of the pseudo-label term.
        start: Training steps before it.
        ramp: Steps in which its weight then rises.
    """

    mass: Tensor
    prior: Tensor
    steps: Tensor

    def __init__(
        self,
        num_classes: int,
        prior: Tensor | None = None,
        *,
        threshold: float = 0.8,
        weight: float = 1.0,
        start: int = 40,
        ramp: int = 40,
    ) -> None:
        super().__init__()
        check_positive_int("num_classes", num_classes, minimum=2)
        check_range("threshold", threshold, 0.0, 1.0)
        self.threshold, self.weight = threshold, weight
        self.start, self.ramp = start, ramp
        if prior is None:
            prior = class_shares(torch.empty(0, dtype=torch.long), num_classes)
        self.register_buffer("prior", prior.float())
        self.register_buffer("mass", unseen_mean(num_classes))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.parts: dict[str, Tensor] = {}

    def forward(self, logits: Tensor, labels: Tensor, teacher_logits: Tensor) -> Tensor:
        """Loss of one batch.

        Args:
            logits: (B, C) of the model.
            labels: (B,) long, -1 = unlabeled.
            teacher_logits: (B, C), constants.

        Raises:
            ValueError: Logits that are no finite matrix.
        """
        check_matrix("logits", logits)
        check_matrix("teacher_logits", teacher_logits)
        cross_entropy = labeled_cross_entropy(logits, labels)
        unlabeled = labels < 0
        pseudo = logits.sum().float() * 0.0
        some = bool(unlabeled.any())
        if any_process(some, labels.device) if self.training else some:
            target = self._aligned(teacher_logits[unlabeled].float().softmax(dim=1))
            confident = target.amax(dim=1) >= self.threshold
            losses = torch.nn.functional.cross_entropy(
                logits[unlabeled].float(), target.argmax(dim=1), reduction="none"
            )
            strength = ramped(int(self.steps), self.start, self.ramp)
            if self.training:
                strength *= share_of_mean(losses.numel(), labels.device)
            pseudo = pseudo + strength * (losses * confident).sum() / max(1, losses.numel())
        if self.training:
            self.steps += 1
        self.parts = {"cross_entropy": cross_entropy.detach(), "consistency": pseudo.detach()}
        return cross_entropy + self.weight * pseudo

    @torch.no_grad()
    def _aligned(self, probabilities: Tensor) -> Tensor:
        # With several processes the running mean is that of the rows of all.
        rows = gather_rows(probabilities) if self.training else probabilities
        mean = rows.mean(dim=0)
        if self.training:
            self.mass = updated_mean(self.mass, mean)
        mass = self.mass if is_seen(self.mass) else mean
        return align_classes(probabilities, self.prior, mass, 1.0)
