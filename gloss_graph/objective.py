"""The front door: a training objective that looks at a batch through the graph of the corpus."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gloss_graph._internal.checks import check_positive_int
from gloss_graph._internal.precision import finite_gradient, full_precision
from gloss_graph._internal.processes import gather_rows, step_generator, world_size
from gloss_graph._internal.timing import StageClock
from gloss_graph._paper import PaperForms
from gloss_graph.graph.bandwidth import BandwidthRule, reads_labels
from gloss_graph.graph.build import Connection, connect, document_data
from gloss_graph.graph.checks import (
    check_batch,
    check_label_range,
    check_logits,
    check_views,
    check_visible,
)
from gloss_graph.graph.kernels import Kernel, resolve_kernel
from gloss_graph.graph.views import joint_view
from gloss_graph.graph.visibility import shown_nodes
from gloss_graph.inference import BankInference, HeadSettings, PropagationPredictor
from gloss_graph.losses import check_class_weight
from gloss_graph.memory import MemoryBank
from gloss_graph.memory.distributed import enqueue_gathered
from gloss_graph.memory.labels import join_targets
from gloss_graph.memory.state import check_forms, check_keys, check_limits, fit_cells
from gloss_graph.propagation import LabelPropagation
from gloss_graph.step import (
    Compared,
    GraphTargets,
    MemoryUse,
    ObjectiveOutput,
    WarmStart,
    check_settings,
    classification_loss,
    consistency_loss,
    hidden_label_loss,
)
from gloss_graph.step.staleness import MEMORY_SETTINGS


class GraphGuidedObjective(PaperForms, PropagationPredictor, nn.Module):
    r"""Graph-guided loss over the current batch and a memory bank.

    G-Loss (arXiv 2604.25853) with a view beyond the batch: connect the batch to remembered
    documents, hide some labels, propagate the others over the graph, compare, backpropagate into
    the embeddings. With `logits` the loss is \(\lambda L_G + (1 - \lambda) L_{CE}\) (integrated
    mode), without them \(L_G\) (standalone mode). Unlabeled rows add `consistency_weight` times
    \(L_C\): their logits are drawn to what the corpus graph says of them.

    A step masks the batch's own stored copies, searches, connects, hides, propagates, compares
    and then enqueues, in this order. A call that raises leaves all state as it was, and so does
    every call in `eval()`.

    Shapes: B batch rows, M bank rows, N = B + M, C classes, D dimension.

    Args:
        num_classes: C.
        memory: The bank; None compares within the batch only.
        multilabel: Labels are sets (or shares) (B, C), every class a column that propagates by
            itself; all terms are binary. Needs `MemoryBank(num_classes=C)`.
        k: Neighbours a row in the graph.
        kernel: See `build_document_graph`.
        bandwidth: \(\sigma\), see `build_document_graph`; only labels that a step shows count.
            `"interclass_min"`, made from labels, serves without a bank only.
        symmetrize: See `build_document_graph`.
        batch_edges: `"all"` connects all batch pairs, `"knn"` the k nearest in batch and bank
            together, `"auto"`: `"all"` if no remembered row takes part, else `"knn"`.
        hops: See `build_document_graph`; None uses the whole bank.
        warm_start: Start solves at the values of the step before, which are then part of the
            state. Pays for long solves (small `eta`), which then stop at a smaller residual; the
            loss is that of a cold start to about 1e-3. Only harmonic; without effect where
            `gradient="unrolled"` needs the steps of a cold start.
        visible_fraction: \(\gamma\) in [0, 1], share of the labeled batch rows whose label stays
            visible, stratified by class. With a bank 0 is meaningful: every row is scored.
        memory_visible_fraction: Share of the bank's labels that stay visible.
        graph_weight: \(\lambda\) in [0, 1].
        form: `"nll"`, `"published"`, `"released"`, `"scores"`; by default `"scores"` for
            `rule="poisson"`, else `"nll"`.
        rule: `"harmonic"`, `"spreading"`, `"poisson"`, see `LabelPropagation`.
        normalization: See `LabelPropagation`; so `eta`, `alpha`, `solver`, `max_iter`, `gradient`.
        tol: Relative residual of the solves; 1e-4 leaves gradients errors of 3e-4 or less from
            `eta=0.2` on.
        normalize_embeddings: L2-normalise rows; must agree with the bank.
        consistency_weight: Weight of \(L_C\), the cross-entropy of unlabeled rows (label -1)
            with what the graph propagates to them; needs `logits`.
        consistency_start: Training steps before the first target is used.
        consistency_ramp: Steps in which the weight of \(L_C\) then rises.
        refresh_every: With `ids`, targets come from one solve over the whole bank every so many
            steps; 0, or without bank or ids: from each step's own graph, all labels shown, with
            several processes that of all their batches.
        anchor: Weight of the frozen similarity where `frozen` features are passed.
        align: Power in [0, 1] of the class-mass alignment of targets and predictions.
        half_life: Steps in which the edges of a remembered row lose half their weight: an edge has
            the factor \(2^{-\mathrm{age}/h}\) for each remembered end. None = old rows count full.
        restandardize: Move remembered rows to the batch's mean and spread before search and graph.
            Lengths of inherited links stay those of the rows as stored.
        memory_start: Training steps before remembered rows take part in the graph of a step;
            until then it is the batch's own, and the bank fills. Solves over the whole bank
            (`refresh_every`) begin at `consistency_start`.
        memory_ramp: Steps in which the weight of their edges then rises to 1.
        class_weight: (C,) weights of the classes in all terms but \(L_C\).
        generator: CPU generator of the visibility split; by default one made from `seed`.
        seed: See `generator`.

    Raises:
        ValueError: A setting out of range or unknown.

    Gradients reach `embeddings` and `logits`. The objective computes in float32 at least,
    whatever autocast says. The bank and the generator's state travel in `state_dict()`. With
    several processes (`torch.distributed`) every bank takes the rows of all, in rank order, and
    `state_dict()` is bit-equal on all of them after every step; graph and gradients stay local.

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
        multilabel: bool = False,
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
        tol: float = 1e-4,
        max_iter: int = 1000,
        gradient: str = "implicit",
        warm_start: bool = False,
        normalize_embeddings: bool = True,
        consistency_weight: float = 1.0,
        consistency_start: int = 40,
        consistency_ramp: int = 40,
        refresh_every: int = 40,
        anchor: float = 0.5,
        align: float = 0.5,
        half_life: float | None = None,
        restandardize: bool = False,
        memory_start: int = 0,
        memory_ramp: int = 0,
        class_weight: Tensor | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> None:
        given = {name: value for name, value in locals().items() if name in _SETTINGS}
        super().__init__()
        form = check_settings(locals())
        check_positive_int("seed", seed, minimum=0)
        self.remembered = MemoryUse(half_life, restandardize, memory_start, memory_ramp)
        self.num_classes, self.memory, self.k = num_classes, memory, k
        self.multilabel = multilabel
        self.kernel, self.bandwidth, self.symmetrize = resolve_kernel(kernel), bandwidth, symmetrize
        self.batch_edges, self.hops, self.form = batch_edges, hops, form
        self.visible_fraction, self.graph_weight = float(visible_fraction), float(graph_weight)
        self.memory_visible_fraction = float(memory_visible_fraction)
        self.normalize_embeddings = normalize_embeddings
        self.propagation = LabelPropagation(
            rule,
            normalization,
            eta=eta,
            alpha=alpha,
            # Label sets bring a column of their own mass.
            num_classes=num_classes + multilabel,
            solver=solver,
            tol=tol,
            max_iter=max_iter,
            gradient=gradient,
        )
        self._settings = {**given, "form": form, "eta": self.propagation.eta}
        self.consistency_weight, self.anchor = float(consistency_weight), float(anchor)
        settings = HeadSettings(
            num_classes=num_classes,
            k=k,
            kernel=self.kernel,
            bandwidth=bandwidth,
            symmetrize=symmetrize,
            normalize=normalize_embeddings,
            rule=rule,
            normalization=normalization,
            eta=self.propagation.eta,
            alpha=alpha,
            align=align,
            multilabel=multilabel,
        )
        self.warm = WarmStart(memory, num_classes + multilabel, rule) if warm_start else None
        self.targets = GraphTargets(
            0 if memory is None else memory.capacity,
            settings,
            start=consistency_start,
            ramp=consistency_ramp,
            refresh_every=refresh_every,
            half_life=half_life,
        )
        self._inference = None if memory is None else BankInference(memory, settings, anchor)
        self.register_buffer("class_weight", check_class_weight(class_weight, num_classes))
        self.generator = generator or torch.Generator().manual_seed(seed)
        if self.generator.device.type != "cpu":
            raise ValueError("'generator' must be a CPU generator.")
        #: Seconds by stage so far.
        self.seconds = StageClock()
        #: The unweighted terms of the last call: `graph_loss`, `cross_entropy`, `consistency`.
        self.parts: dict[str, Tensor] = {}

    def extra_repr(self) -> str:
        """Every setting the objective was made with; the bank is a part of its own."""
        settings = (f"{name}={_shown(value)}" for name, value in self._settings.items())
        return ", ".join(settings) + str(self.remembered)

    def get_extra_state(self) -> Tensor:
        """State of the visibility generator, a uint8 tensor."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the visibility generator.

        Raises:
            ValueError: Not the state of a generator; it is as before.
        """
        _check_generator_state(state)
        self.generator.set_state(state.cpu())

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Restore what `state_dict()` gave; checked first, so if it raises nothing changed.

        Args:
            state_dict: Of an objective with the same settings.
            strict: Whether every entry must be there; the bank's all or none.
            assign: See `torch.nn.Module.load_state_dict`.

        Raises:
            RuntimeError: Entries are missing or foreign.
            ValueError: Another size, or values no objective has; names the entry.
        """
        if isinstance(state_dict, Mapping):
            state_dict = dict(state_dict)
            self._check_state(state_dict, "", strict)
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # An objective may be part of a model, whose loading asks nothing of it before.
        self._check_state(state_dict, prefix, strict=False)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _check_state(self, state: dict[str, Any], prefix: str, strict: bool) -> None:
        if self.memory is not None:
            fit_cells(self.memory.cells, state, f"{prefix}memory.")
        if strict:
            check_keys(self, state.keys())
        if self.memory is not None:
            self.memory.check_state(state, f"{prefix}memory.")
        check_forms(self, state, prefix)
        classes = self.num_classes if not self.multilabel else 1
        limits = {
            "memory.slot_labels": (-1, classes - 1),
            "targets.steps": (0, None),
            "targets.solved_at": (-1, None),
            "targets.table": (0.0, 1.0),
            "targets.table_ids": (None, None),
            "targets.confidence": (0.0, 1.0),
            "targets.mass": (-1.0, 1.0),
            "warm.values": (None, None),
            "class_weight": (0.0, None),
        }
        for name, (low, high) in limits.items():
            if prefix + name in state:
                check_limits(prefix + name, state[prefix + name], low, high)
        if f"{prefix}_extra_state" in state:
            _check_generator_state(state[f"{prefix}_extra_state"])

    @contextmanager
    def _state_kept(self) -> Iterator[None]:
        """Go back to the state of now if the block raises; the bank, written last, does so itself.

        Buffers of the parts are replaced in a step and never written in place.
        """
        parts = [part for part in (self.targets, self.warm) if part is not None]
        before = [(part, [*part.named_buffers(recurse=False)]) for part in parts]
        drawn = self.generator.get_state()
        try:
            yield
        except BaseException:
            for part, buffers in before:
                for name, value in buffers:
                    setattr(part, name, value)
            self.generator.set_state(drawn)
            raise

    # Sparse, stateful and a small part of a step: compiled encoders run it as it is.
    @torch.compiler.disable
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        ids: Tensor | None = None,
        logits: Tensor | None = None,
        visible: Tensor | None = None,
        reference: Tensor | None = None,
        frozen: Tensor | None = None,
        return_output: bool = False,
    ) -> Tensor | ObjectiveOutput:
        """Loss of one batch; enqueues the batch afterwards when training.

        Args:
            embeddings: (B, D) floating, from any encoder.
            labels: (B,) integer in 0..C-1, -1 = unlabeled (the row conducts, and is drawn to its
                target). With `multilabel` (B, C) floating in [0, 1], a row of NaN = unlabeled.
            ids: (B,) integer >= 0, stable document identities. Rows with the same id count as
                one document. Without ids the bank cannot mask a document's own stored copy.
            logits: (B, C) of a classifier head; adds its cross-entropy.
            visible: (B,) bool, pins the rows whose label stays visible instead of a random split.
            reference: (B, D) embeddings of the same rows without dropout, constants: what the bank
                stores and the targets are made from; `embeddings` by default.
            frozen: (B, D') features of the untrained encoder, constants. Rows are then compared
                by (1 - anchor) learned + anchor frozen cosine, and `memory.dim` is D + D'.
            return_output: Return an `ObjectiveOutput` instead of the loss. Its graph lists every
                edge, which costs time; the loss is the same up to rounding.

        Returns:
            Scalar loss, or the whole output.

        Raises:
            TypeError: A value that is not a tensor.
            ValueError: Shapes, dtypes or devices that disagree; non-finite embeddings; labels
                outside -1..C-1 (or [0, 1]), or of the other kind; `visible` on an unlabeled row;
                rows of one id that differ in label or in `visible`. Bank, targets, warm start
                and generator are as before.
        """
        beside = (self.memory, self.normalize_embeddings)
        check_views(embeddings, reference, frozen, *beside)
        view = joint_view(embeddings, frozen, self.anchor)
        sets = self.num_classes if self.multilabel else None
        labels, targets, ids = check_batch(view, labels, ids, *beside, sets)
        check_label_range(labels, self.num_classes)
        visible = check_visible(visible, labels, ids)
        if logits is not None:
            check_logits(logits, labels.numel(), self.num_classes)
        batch = (view, embeddings.size(1), labels, targets, ids)
        with self._state_kept():
            return self._step(*batch, visible, logits, reference, frozen, return_output)

    def _step(
        self,
        view: Tensor,
        learned: int,
        labels: Tensor,
        targets: Tensor | None,
        ids: Tensor | None,
        visible: Tensor | None,
        logits: Tensor | None,
        reference: Tensor | None,
        frozen: Tensor | None,
        return_output: bool,
    ) -> Tensor | ObjectiveOutput:
        """Loss of a checked batch."""
        with full_precision(view.device.type):
            x = finite_gradient(view.to(torch.promote_types(view.dtype, torch.float32)))
            stored = x.detach()
            if reference is not None:
                stored = joint_view(reference.detach(), frozen, self.anchor).to(x.dtype)
            compared, own = None, None
            if self.graph_weight > 0 or logits is None or return_output:
                compared = self._compare(x, labels, targets, ids, visible, learned, return_output)
                # Graph and lists of `embeddings` are not those of another view.
                own = compared.connection if reference is None else None
            graph_loss = x.new_zeros(()) if compared is None else compared.loss.to(x.dtype)
            cross_entropy = consistency = torch.zeros_like(graph_loss)
            loss = graph_loss
            if logits is not None:
                cross_entropy = classification_loss(logits, labels, targets, self.class_weight)
                if self.consistency_weight > 0:
                    known = (self.targets, self.memory, labels, ids, logits)
                    # The graph of an output lists every edge: the same up to rounding.
                    # A bandwidth made from labels is another where all of them are shown.
                    shared = self.training and world_size() > 1
                    alike = not (return_output or shared or reads_labels(self.bandwidth))
                    same = own if alike else None
                    given = (stored, labels, targets, ids, learned)
                    with self.seconds.timed("targets"):
                        consistency = consistency_loss(
                            *known, lambda: same or self._connect_constants(*given), self.training
                        )
                loss = self.graph_weight * graph_loss + (1.0 - self.graph_weight) * cross_entropy
                loss = loss + self.consistency_weight * consistency
        self.parts = {"graph_loss": graph_loss.detach(), "cross_entropy": cross_entropy.detach()}
        self.parts["consistency"] = consistency.detach()
        # The graph of this step, so taken before its rows are stored.
        data = None
        if return_output and compared is not None:
            data = document_data(compared.connection, ids, self.memory)
            data.seed_mask = compared.seeds
        if self.training:
            self.targets.steps = self.targets.steps + 1
            if self.memory is not None:
                neighbors = None if own is None else own.neighbors
                with self.seconds.timed("enqueue"):
                    kept = labels if targets is None else join_targets(labels, targets)
                    enqueue_gathered(self.memory, stored, kept, ids, neighbors)
        if data is None or compared is None:
            return loss
        return ObjectiveOutput(
            loss=loss,
            graph_loss=graph_loss,
            cross_entropy=cross_entropy,
            consistency=consistency,
            propagated=compared.propagated,
            hidden=compared.hidden,
            graph=data,
            solver=compared.report,
        )

    def _compare(
        self,
        x: Tensor,
        labels: Tensor,
        targets: Tensor | None,
        ids: Tensor | None,
        visible: Tensor | None,
        learned: int,
        listed: bool,
    ) -> Compared:
        """Connect, hide, propagate and compare."""

        def show(known: Tensor) -> Tensor:
            return shown_nodes(
                known,
                labels.numel(),
                self.visible_fraction,
                self.memory_visible_fraction,
                generator=step_generator(self.generator, self.training),
                ids=ids,
                visible=visible,
            )

        # Labels are hidden before the weights are made: a bandwidth may depend on labels.
        connection = self._connect(x, labels, targets, ids, learned, listed, show)
        seeds = connection.on_nodes(connection.shown)
        hidden = (labels >= 0) & ~connection.shown[: labels.numel()]
        with self.seconds.timed("propagation"):
            loss, propagated, report = hidden_label_loss(
                self.propagation, connection, seeds, hidden, self.form, self.class_weight, self.warm
            )
        return Compared(loss, connection, propagated, seeds, hidden, report)

    def _connect_constants(
        self, x: Tensor, labels: Tensor, targets: Tensor | None, ids: Tensor | None, learned: int
    ) -> Connection:
        """The graph that targets come from: while training, of the batches of all processes."""
        if self.training:
            x, labels = gather_rows(x), gather_rows(labels)
            targets = None if targets is None else gather_rows(targets)
            ids = None if ids is None else gather_rows(ids)
        return self._connect(x, labels, targets, ids, learned, False)

    def _connect(
        self,
        x: Tensor,
        labels: Tensor,
        targets: Tensor | None,
        ids: Tensor | None,
        learned: int,
        listed: bool,
        show: Callable[[Tensor], Tensor] | None = None,
    ) -> Connection:
        memory, neighbors = self.memory, None
        strength = self.remembered.strength(self.targets.steps)
        if memory is not None and strength > 0.0:
            with self.seconds.timed("search"):
                memory = self.remembered.view(memory, x, learned)
                neighbors = memory.neighbors(x, ids, self.k)
        else:
            memory = None
        # Scores of a singular system need the components, weights by age every edge: so a list.
        listed = listed or self.propagation.rule == "poisson" or self.remembered.weighs(strength)
        names = ("k", "kernel", "bandwidth", "symmetrize", "batch_edges", "hops")
        same: dict[str, Any] = {name: getattr(self, name) for name in names}
        same |= {"memory": memory, "neighbors": neighbors, "targets": targets, "listed": listed}
        same["show"] = show
        with self.seconds.timed("graph"):
            found = connect(x, labels, ids, normalize_embeddings=self.normalize_embeddings, **same)
            return self.remembered.weigh(found, memory, strength)


# The bank prints itself, and so does the use of it.
_PRINTED_APART = {"self", "memory", *MEMORY_SETTINGS}
_SETTINGS = inspect.signature(GraphGuidedObjective.__init__).parameters.keys() - _PRINTED_APART


def _shown(value: Any) -> str:
    """A setting as `repr` prints it."""
    if isinstance(value, Tensor):
        return str(value.tolist())
    if isinstance(value, torch.Generator):
        return "torch.Generator"
    return str(getattr(value, "__name__", repr(value)))


def _check_generator_state(state: Any) -> None:
    if not isinstance(state, Tensor) or state.dtype != torch.uint8:
        raise ValueError("The generator state must be a uint8 tensor (foreign state_dict?).")
    try:
        torch.Generator().set_state(state.cpu())
    except RuntimeError as error:
        raise ValueError(f"The generator state is not one of torch ({error}).") from error
