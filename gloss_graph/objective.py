"""The front door: a training objective that looks at a batch through the graph of the corpus."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gloss_graph._checks import (
    check_choice,
    check_mask,
    check_matrix,
    check_positive_int,
    check_range,
    check_tensor,
)
from gloss_graph._paper import PaperForms
from gloss_graph._precision import full_precision
from gloss_graph._timing import StageClock
from gloss_graph.graph.bandwidth import BandwidthRule, check_bandwidth
from gloss_graph.graph.build import (
    BATCH_EDGES,
    Connection,
    check_batch,
    check_memory,
    connect,
    document_data,
)
from gloss_graph.graph.kernels import Kernel, resolve_kernel
from gloss_graph.graph.symmetrize import SYMMETRIZE
from gloss_graph.graph.visibility import visible_split
from gloss_graph.losses import (
    FORMS,
    ObjectiveOutput,
    hidden_label_loss,
    labeled_cross_entropy,
)
from gloss_graph.memory import MemoryBank
from gloss_graph.memory.gather import enqueue_gathered
from gloss_graph.propagation import LabelPropagation


class GraphGuidedObjective(PaperForms, nn.Module):
    r"""Graph-guided loss over the current batch and a memory bank.

    G-Loss (arXiv 2604.25853) with a view beyond the batch: connect the batch to remembered
    documents, hide some labels, propagate the others over the graph, compare, backpropagate into
    the embeddings. With `logits` the loss is \(\lambda L_G + (1 - \lambda) L_{CE}\) (integrated
    mode), without them \(L_G\) (standalone mode).

    A step masks the batch's own stored copies, searches, connects, hides, propagates, compares
    and then enqueues, in this order. A call that raises leaves the bank as it was; in `eval()`
    nothing is enqueued.

    Shapes: B batch rows, M bank rows, N = B + M, C classes, D dimension.

    Args:
        num_classes: C.
        memory: The bank; None compares within the batch only.
        k: Neighbours a row in the graph.
        kernel: See `build_document_graph`.
        bandwidth: \(\sigma\), see `build_document_graph`.
        symmetrize: See `build_document_graph`.
        batch_edges: `"all"` connects all batch pairs, `"knn"` the k nearest in batch and bank
            together, `"auto"`: `"all"` if no remembered row takes part, else `"knn"`.
        hops: See `build_document_graph`; None uses the whole bank.
        visible_fraction: \(\gamma\) in [0, 1], share of the labeled batch rows whose label stays
            visible, stratified by class. With a bank 0 is meaningful: every row is scored.
        memory_visible_fraction: Share of the bank's labels that stay visible.
        graph_weight: \(\lambda\) in [0, 1].
        form: `"nll"`, `"published"`, `"released"`, `"scores"`; by default `"scores"` for
            `rule="poisson"`, else `"nll"`.
        rule: `"harmonic"`, `"spreading"`, `"poisson"`, see `LabelPropagation`.
        normalization: See `LabelPropagation`, as for `eta`, `alpha`, `solver`, `tol`,
            `max_iter` and `gradient`.
        normalize_embeddings: L2-normalise rows; must agree with the bank.
        class_weight: (C,) weights of the classes in both terms.
        generator: CPU generator of the visibility split; by default an own one.
        seed: Seed of the own generator.

    Raises:
        ValueError: A setting out of range or unknown.

    Gradients reach `embeddings` and `logits`. The objective computes in float32 at least,
    whatever autocast says. The bank and the generator's state travel in `state_dict()`. With
    several processes every bank takes the rows of all, in rank order; gradients stay local.

    Example:
        >>> import torch
        >>> bank = MemoryBank(capacity=1024, dim=16)
        >>> objective = GraphGuidedObjective(num_classes=2, memory=bank)
        >>> x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
        >>> loss = objective(x, torch.arange(8) % 2, ids=torch.arange(8))
        >>> loss.backward()
        >>> len(bank), bool(x.grad.abs().sum() > 0)
        (8, True)

    See also: `LabelPropagation` and `build_document_graph`, the parts, for graphs of your own;
    `published()` and `released()` for the paper's forms.
    """

    class_weight: Tensor | None

    def __init__(
        self,
        num_classes: int,
        *,
        memory: MemoryBank | None = None,
        k: int = 16,
        kernel: str | Kernel = "gaussian",
        bandwidth: float | str | BandwidthRule = "sqrt",
        symmetrize: str = "union",
        batch_edges: str = "auto",
        hops: int | None = None,
        visible_fraction: float = 0.5,
        memory_visible_fraction: float = 1.0,
        graph_weight: float = 0.5,
        form: str | None = None,
        rule: str = "harmonic",
        normalization: str = "hub",
        eta: float | None = None,
        alpha: float = 0.9,
        solver: str = "auto",
        tol: float = 1e-5,
        max_iter: int = 1000,
        gradient: str = "implicit",
        normalize_embeddings: bool = True,
        class_weight: Tensor | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_positive_int("num_classes", num_classes, minimum=2)
        check_positive_int("k", k)
        check_bandwidth(bandwidth)
        check_choice("symmetrize", symmetrize, SYMMETRIZE)
        check_choice("batch_edges", batch_edges, BATCH_EDGES)
        check_range("visible_fraction", visible_fraction, 0.0, 1.0)
        check_range("memory_visible_fraction", memory_visible_fraction, 0.0, 1.0)
        check_range("graph_weight", graph_weight, 0.0, 1.0)
        if hops is not None:
            check_positive_int("hops", hops)
        check_memory(memory, normalize_embeddings)
        form = form or ("scores" if rule == "poisson" else "nll")
        check_choice("form", form, FORMS)
        if rule == "poisson" and form in ("nll", "published"):
            raise ValueError(f"form={form!r} needs probabilities; rule='poisson' gives scores.")
        self.num_classes, self.memory, self.k = num_classes, memory, k
        self.kernel, self.bandwidth, self.symmetrize = resolve_kernel(kernel), bandwidth, symmetrize
        self.batch_edges, self.hops = batch_edges, hops
        self.visible_fraction, self.graph_weight = float(visible_fraction), float(graph_weight)
        self.memory_visible_fraction = float(memory_visible_fraction)
        self.form, self.normalize_embeddings = form, normalize_embeddings
        self.propagation = LabelPropagation(
            rule,
            normalization,
            eta=eta,
            alpha=alpha,
            num_classes=num_classes,
            solver=solver,
            tol=tol,
            max_iter=max_iter,
            gradient=gradient,
        )
        self.register_buffer("class_weight", _check_class_weight(class_weight, num_classes))
        if generator is None:
            generator = torch.Generator().manual_seed(seed)
        if generator.device.type != "cpu":
            raise ValueError("'generator' must be a CPU generator.")
        self.generator = generator
        #: Seconds spent so far in each stage.
        self.seconds = StageClock()

    def extra_repr(self) -> str:
        """Settings that are not part of a sub-module."""
        bandwidth = getattr(self.bandwidth, "__name__", repr(self.bandwidth))
        return (
            f"num_classes={self.num_classes}, k={self.k}, bandwidth={bandwidth}, "
            f"form={self.form!r}, visible_fraction={self.visible_fraction}, "
            f"graph_weight={self.graph_weight}, batch_edges={self.batch_edges!r}, "
            f"symmetrize={self.symmetrize!r}, hops={self.hops}"
        )

    def get_extra_state(self) -> Tensor:
        """State of the visibility generator, a uint8 tensor."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the visibility generator."""
        if not isinstance(state, Tensor) or state.dtype != torch.uint8:
            raise ValueError("The generator state must be a uint8 tensor (foreign state_dict?).")
        self.generator.set_state(state.cpu())

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        ids: Tensor | None = None,
        logits: Tensor | None = None,
        visible: Tensor | None = None,
        return_output: bool = False,
    ) -> Tensor | ObjectiveOutput:
        """Loss of one batch; enqueues the batch afterwards when training.

        Args:
            embeddings: (B, D) floating, from any encoder.
            labels: (B,) integer in 0..C-1, -1 = unlabeled (the row conducts, and is not scored).
            ids: (B,) integer >= 0, stable document identities. Rows with the same id count as
                one document. Without ids the bank cannot mask a document's own stored copy.
            logits: (B, C) of a classifier head; adds its cross-entropy.
            visible: (B,) bool, pins the rows whose label stays visible instead of a random split.
            return_output: Return an `ObjectiveOutput` instead of the loss.

        Returns:
            Scalar loss, or the whole output.

        Raises:
            TypeError: A value that is not a tensor.
            ValueError: Shapes, dtypes or devices that disagree; non-finite embeddings; labels
                outside -1..C-1; `visible` on an unlabeled row. The bank is untouched.
        """
        labels, ids = self._check(embeddings, labels, ids, logits)
        visible = self._check_visible(labels, visible)
        with full_precision(embeddings.device.type):
            x = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
            connection = self._connect(x, labels, ids)
            visible, seeds = self._split(connection, labels, ids, visible)
            hidden = (labels >= 0) & ~visible
            with self.seconds.timed("propagation"):
                graph_loss, propagated, report = hidden_label_loss(
                    self.propagation, connection, seeds, hidden, self.form, self.class_weight
                )
            zero = torch.zeros_like(graph_loss)
            cross_entropy, loss = zero, graph_loss
            if logits is not None:
                cross_entropy = labeled_cross_entropy(logits, labels, self.class_weight)
                share = self.graph_weight
                loss = share * graph_loss + (1.0 - share) * cross_entropy
        # The graph of this step, so taken before its rows are stored.
        data = None
        if return_output:
            data = document_data(connection, ids, self.memory)
            data.seed_mask = seeds
        if self.memory is not None and self.training:
            with self.seconds.timed("enqueue"):
                enqueue_gathered(self.memory, x.detach(), labels, ids, connection.neighbors)
        if data is None:
            return loss
        return ObjectiveOutput(
            loss=loss,
            graph_loss=graph_loss,
            cross_entropy=cross_entropy,
            consistency=zero,
            propagated=propagated,
            hidden=hidden,
            graph=data,
            solver=report,
        )

    def _check(
        self, embeddings: Tensor, labels: Tensor, ids: Tensor | None, logits: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        labels, ids = check_batch(embeddings, labels, ids, self.memory, self.normalize_embeddings)
        size = embeddings.size(0)
        if size == 0:
            raise ValueError("'embeddings' must hold at least one row (got 0).")
        low, high = torch.stack(torch.aminmax(labels)).tolist()
        if low < -1 or high >= self.num_classes:
            raise ValueError(
                f"'labels' must lie in 0..{self.num_classes - 1}, or be -1 for unlabeled "
                f"(got {low}..{high})."
            )
        if logits is not None:
            check_tensor("logits", logits)
            if logits.shape != (size, self.num_classes):
                raise ValueError(
                    f"'logits' must have shape ({size}, {self.num_classes}) "
                    f"(got {tuple(logits.shape)})."
                )
            check_matrix("logits", logits)
        return labels, ids

    @staticmethod
    def _check_visible(labels: Tensor, visible: Tensor | None) -> Tensor | None:
        if visible is None:
            return None
        check_mask("visible", visible, labels.numel())
        visible = visible.to(labels.device)
        if bool((visible & (labels < 0)).any()):
            raise ValueError("'visible' marks rows whose label is -1 (unlabeled).")
        return visible

    def _connect(self, x: Tensor, labels: Tensor, ids: Tensor | None) -> Connection:
        neighbors = None
        if self.memory is not None:
            with self.seconds.timed("search"):
                neighbors = self.memory.neighbors(x, ids, self.k)
        with self.seconds.timed("graph"):
            return connect(
                x,
                labels,
                ids,
                memory=self.memory,
                k=self.k,
                kernel=self.kernel,
                bandwidth=self.bandwidth,
                symmetrize=self.symmetrize,
                batch_edges=self.batch_edges,
                hops=self.hops,
                normalize_embeddings=self.normalize_embeddings,
                neighbors=neighbors,
            )

    def _split(
        self, connection: Connection, labels: Tensor, ids: Tensor | None, visible: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Batch rows (B,) and nodes (N,) whose label is shown in this step."""
        y = connection.y[connection.size :]
        remembered, supplied = y >= 0, None
        if y.numel():
            if self.memory_visible_fraction < 1.0:
                share = self.memory_visible_fraction
                remembered = visible_split(y, share, generator=self.generator)
            supplied = y[remembered]
        if visible is None:
            visible = visible_split(
                labels,
                self.visible_fraction,
                generator=self.generator,
                ids=ids,
                supplied=supplied,
            )
        return visible, torch.cat([visible, remembered]) if y.numel() else visible


def _check_class_weight(class_weight: Tensor | None, num_classes: int) -> Tensor | None:
    if class_weight is None:
        return None
    weight = torch.as_tensor(class_weight, dtype=torch.float32)
    if weight.shape != (num_classes,) or not bool((weight >= 0).all()) or not float(weight.sum()):
        raise ValueError(
            f"'class_weight' must have shape ({num_classes},) with values >= 0, not all 0 "
            f"(got {tuple(weight.shape)})."
        )
    return weight
