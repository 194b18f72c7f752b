"""The front door: a training objective that looks at a batch through the graph of the corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from gloss_graph._internal.checks import check_choice, check_positive_int, check_range
from gloss_graph._internal.precision import full_precision
from gloss_graph._internal.processes import cpu_generator, step_generator
from gloss_graph._internal.settings import former_names, settings_of, shown, with_short_forms
from gloss_graph._internal.timing import StageClock
from gloss_graph.graph.bandwidth import BandwidthRule, check_fits_bank
from gloss_graph.graph.build import check_memory, document_data
from gloss_graph.graph.kernels import Kernel
from gloss_graph.graph.settings import KNNGraph
from gloss_graph.graph.visibility import LabelSplit
from gloss_graph.inference import BankInference, Explanation, GraphClassifier
from gloss_graph.inference.agreement import FoundClasses
from gloss_graph.losses import (
    FORMS,
    check_class_weight,
    check_multilabel,
    labeled_binary_cross_entropy,
    labeled_cross_entropy,
)
from gloss_graph.memory import MemoryBank
from gloss_graph.memory.batch import StepBatch, check_step
from gloss_graph.memory.storage import CheckedState
from gloss_graph.propagation import LabelPropagation, PropagationSettings
from gloss_graph.step.contrast import GraphClasses, check_contrast, contrast_loss
from gloss_graph.step.settings import Consistency, GraphContrast, Staleness
from gloss_graph.step.state import check_generator_state, check_objective_state, state_kept
from gloss_graph.step.terms import (
    GraphTargets,
    ObjectiveOutput,
    StepGraph,
    WarmStart,
    check_propagation,
    compare_hidden,
    consistency_loss,
)

# The short forms that have another name than the field of the part.
_SHORT_FORMS = {
    ("graph", "normalize"): "normalize_embeddings",
    ("consistency", "weight"): "consistency_weight",
    ("consistency", "start"): "consistency_start",
    ("consistency", "ramp"): "consistency_ramp",
}
# The settings that `repr` shows before those of the parts.
_SHOWN = (
    "num_classes",
    "multilabel",
    "loss",
    "visible_fraction",
    "memory_visible_fraction",
    "graph_weight",
    "frozen_weight",
)


class GraphGuidedObjective(CheckedState):
    r"""Graph-guided loss over the current batch and a memory bank.

    G-Loss (arXiv 2604.25853) with a view beyond the batch. A step masks the stored copies of the
    batch, searches, connects the batch to remembered documents, hides some labels, propagates the
    others over the graph, compares and then enqueues, in this order. With `logits` the loss is
    \(\lambda L_G + (1 - \lambda) L_{CE}\) (integrated mode), else \(L_G\) (standalone mode).
    Unlabeled rows add `consistency.weight` times \(L_C\), which pulls their logits toward the
    labels that the graph propagates to them. With a `contrast` documents of one class are pulled
    together and others pushed apart, over the classes that the graph of the bank finds; where
    labels are few it teaches the encoder most.

    A call that raises, and every call in `eval()`, leaves all state as it was.

    Args:
        num_classes: C.
        memory: The bank; None compares within the batch only.
        graph: How rows are connected. Its bandwidth sees only the labels that a step shows;
            `"interclass_min"` needs an objective without a bank.
        propagation: How labels propagate, or the name of a rule. A tolerance of 1e-4 leaves
            gradients errors of at most 3e-4 from `eta=0.2` on.
        loss: Form of \(L_G\): `"nll"`, `"published"`, `"released"` or `"scores"`. None is
            `"scores"` for the rule `"poisson"`, else `"nll"`.
        consistency: The term of unlabeled rows.
        staleness: How a step treats old rows of the bank.
        contrast: The contrast over the classes of the graph, which needs `memory`; None = none.
            With it \(L_G\) counts \(\lambda\) without `logits` too.
        views: Further views of documents for the classes of the `contrast`, such as their words
            (`gloss_graph.text.lexical_rows`): ids (n,) and rows (n, D') for each view; a row of
            zeros says nothing. They are no part of the state.
        visible_fraction: \(\gamma\) in [0, 1], share of the labeled batch rows whose label stays
            visible, stratified by class. With a bank it may be 0: every row is scored.
        memory_visible_fraction: Share of the bank's labels that stay visible.
        graph_weight: \(\lambda\) in [0, 1].
        frozen_weight: Weight in [0, 1] of the frozen similarity where `frozen` features are passed.
        multilabel: Labels are sets (or shares) (B, C); every class propagates by itself, and all
            terms are binary. Needs `MemoryBank(num_classes=C)`.
        warm_start: Start solves at the values of the step before, which are then part of the
            state. Pays for long solves (small `eta`); the loss changes by about 1e-3. Only for the
            rule `"harmonic"`; no effect with `gradient="unrolled"`.
        class_weight: (C,) weights of the classes in all terms but \(L_C\).
        generator: CPU generator of the visibility split; by default one made from `seed`.
        seed: Seed of that generator.

    The other arguments are short forms, each of the field of its name: `k` to `hops` and
    `normalize_embeddings` (`normalize`) of `KNNGraph`; `rule` to `gradient` of
    `LabelPropagation`; `consistency_weight`, `consistency_start`, `consistency_ramp`,
    `refresh_every` and `align` of `Consistency`; the rest of `Staleness`.

    Raises:
        TypeError: A part of another class.
        ValueError: A setting out of range or unknown, or a short form that contradicts its part.

    Gradients reach `embeddings` and `logits`. The objective computes in float32 at least,
    whatever autocast says. The bank and the generator's state travel in `state_dict()`. With
    several processes (`torch.distributed`) every bank takes the rows of all, in rank order, and
    `state_dict()` is bit-equal on all of them; graph and gradients stay local.

    Example:
        >>> import torch
        >>> bank = MemoryBank(capacity=1024, dim=16)
        >>> objective = GraphGuidedObjective(num_classes=2, memory=bank)
        >>> x = torch.randn(8, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
        >>> loss = objective(x, torch.arange(8) % 2, ids=torch.arange(8))
        >>> loss.backward()
        >>> len(bank), bool(x.grad.abs().sum() > 0)
        (8, True)
    """

    class_weight: Tensor | None

    @former_names(
        form="loss", anchor="frozen_weight", memory_start="warmup_steps", memory_ramp="ramp_steps"
    )
    def __init__(
        self,
        num_classes: int,
        *,
        memory: MemoryBank | None = None,
        graph: KNNGraph | None = None,
        propagation: LabelPropagation | str | None = None,
        loss: str | None = None,
        consistency: Consistency | None = None,
        staleness: Staleness | None = None,
        contrast: GraphContrast | None = None,
        views: Sequence[tuple[Tensor, Tensor]] = (),
        visible_fraction: float = 0.5,
        memory_visible_fraction: float = 1.0,
        graph_weight: float = 0.3,
        frozen_weight: float = 0.5,
        multilabel: bool = False,
        warm_start: bool = False,
        class_weight: Tensor | None = None,
        generator: torch.Generator | None = None,
        seed: int = 0,
        k: int | None = None,
        kernel: str | Kernel | None = None,
        bandwidth: float | str | BandwidthRule | None = None,
        symmetrize: str | None = None,
        batch_edges: str | None = None,
        hops: int | None = None,
        normalize_embeddings: bool | None = None,
        rule: str | None = None,
        normalization: str | None = None,
        eta: float | None = None,
        alpha: float | None = None,
        solver: str | None = None,
        tol: float | None = None,
        max_iter: int | None = None,
        gradient: str | None = None,
        consistency_weight: float | None = None,
        consistency_start: int | None = None,
        consistency_ramp: int | None = None,
        refresh_every: int | None = None,
        align: float | None = None,
        half_life: float | None = None,
        restandardize: bool | None = None,
        warmup_steps: int | None = None,
        ramp_steps: int | None = None,
    ) -> None:
        super().__init__()
        check_positive_int("num_classes", num_classes, minimum=1 if multilabel else 2)
        #: How rows are connected.
        self.graph = with_short_forms(
            "graph",
            graph,
            KNNGraph,
            k=k,
            kernel=kernel,
            bandwidth=bandwidth,
            symmetrize=symmetrize,
            batch_edges=batch_edges,
            hops=hops,
            normalize=normalize_embeddings,
        )
        if isinstance(propagation, str):
            if rule not in (None, propagation):
                raise ValueError(f"'rule' is {rule!r}, but {propagation!r} in 'propagation'.")
            propagation, rule = None, propagation
        if propagation is not None:
            check_propagation(propagation, num_classes, multilabel)
        settings = with_short_forms(
            "propagation",
            None if propagation is None else propagation.settings,
            PropagationSettings,
            rule=rule,
            normalization=normalization,
            eta=eta,
            alpha=alpha,
            solver=solver,
            tol=tol,
            max_iter=max_iter,
            gradient=gradient,
        )
        #: The term of unlabeled rows.
        self.consistency = with_short_forms(
            "consistency",
            consistency,
            Consistency,
            weight=consistency_weight,
            start=consistency_start,
            ramp=consistency_ramp,
            refresh_every=refresh_every,
            align=align,
        )
        #: How a step treats old rows of the bank.
        self.staleness = with_short_forms(
            "staleness",
            staleness,
            Staleness,
            half_life=half_life,
            restandardize=restandardize,
            warmup_steps=warmup_steps,
            ramp_steps=ramp_steps,
        )
        check_range("visible_fraction", visible_fraction, 0.0, 1.0)
        check_range("memory_visible_fraction", memory_visible_fraction, 0.0, 1.0)
        check_range("graph_weight", graph_weight, 0.0, 1.0)
        check_range("frozen_weight", frozen_weight, 0.0, 1.0)
        self.generator = cpu_generator(generator, seed)
        check_memory(memory, self.graph.normalize)
        if memory is not None and memory.capacity:
            check_fits_bank(self.graph.bandwidth)
        check_multilabel(multilabel, num_classes, memory, settings.rule, loss, self.graph.bandwidth)
        loss = loss or ("scores" if settings.rule == "poisson" else "nll")
        check_choice("loss", loss, FORMS)
        if settings.rule == "poisson" and loss in ("nll", "published"):
            raise ValueError(f"loss={loss!r} needs probabilities; rule='poisson' gives scores.")
        #: The form of the graph loss.
        self.loss = loss
        self.num_classes, self.memory, self.multilabel = num_classes, memory, multilabel
        self.visible_fraction = float(visible_fraction)
        self.memory_visible_fraction = float(memory_visible_fraction)
        self.graph_weight, self.frozen_weight = float(graph_weight), float(frozen_weight)
        columns = num_classes + multilabel  # label sets bring a column with their mass
        prior: Tensor | str | None = None
        if propagation is not None:
            prior = propagation.prior if propagation.keeps_leak else "none"
        #: The layer of a step: `propagation` with the short forms.
        self.propagation = LabelPropagation(
            **asdict(settings),
            prior=prior,
            num_classes=columns,
            fused=propagation is None or propagation.fused,
        )
        classifier = GraphClassifier(
            num_classes=num_classes,
            graph=self.graph,
            propagation=settings,
            align=self.consistency.align,
            multilabel=multilabel,
        )
        self.warm = WarmStart(memory, columns, settings.rule) if warm_start else None
        self.targets = GraphTargets(
            0 if memory is None else memory.capacity,
            classifier,
            self.consistency,
            self.staleness.half_life,
        )
        #: The classes of the `contrast`.
        self.classes = None
        if contrast is not None:
            bank = check_contrast(contrast, memory, multilabel)
            self.classes = GraphClasses(
                bank.capacity, classifier, contrast, self.staleness.half_life, views
            )
        elif views:
            raise ValueError("'views' need a 'contrast'. Pass contrast=GraphContrast().")
        self._inference = (
            None if memory is None else BankInference(memory, classifier, self.frozen_weight)
        )
        self.register_buffer("class_weight", check_class_weight(class_weight, num_classes))
        self._made_with = (warm_start, generator, seed)
        # What a step that raises puts back.
        self._state = [
            (part, name)
            for part in (self.targets, self.classes, self.warm)
            if part is not None
            for name, _ in part.named_buffers(recurse=False)
        ]
        #: Seconds by stage so far.
        self.seconds = StageClock()
        # The scores of a singular system need components, so a list of edges.
        self._graph = StepGraph(
            self.graph, self.staleness, memory, self.seconds, listed=settings.rule == "poisson"
        )
        #: The unweighted terms of the last call: `graph_loss`, `cross_entropy`, `consistency`.
        self.parts: dict[str, Tensor] = {}

    @classmethod
    def published(
        cls,
        num_classes: int,
        sigma: float,
        *,
        graph_weight: float = 0.5,
        visible_fraction: float = 0.5,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> GraphGuidedObjective:
        """The paper's in-batch form: Algorithm 1 (column-stochastic T) and eq. 1.

        Exact to rounding in float64. `sigma` is the bandwidth of the Gaussian.
        """
        return cls(
            num_classes,
            **_paper_parts(sigma, "column"),
            loss="published",
            graph_weight=graph_weight,
            visible_fraction=visible_fraction,
            generator=generator,
            seed=seed,
        )

    @classmethod
    def released(
        cls,
        num_classes: int,
        sigma: float,
        *,
        graph_weight: float = 0.5,
        visible_fraction: float = 0.5,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> GraphGuidedObjective:
        """What the paper's released code computes: the `hub` walk, F as logits, divided by |u|.

        Exact to rounding in float64. `sigma` is the bandwidth of the Gaussian.
        """
        return cls(
            num_classes,
            **_paper_parts(sigma, "hub"),
            loss="released",
            graph_weight=graph_weight,
            visible_fraction=visible_fraction,
            generator=generator,
            seed=seed,
        )

    def extra_repr(self) -> str:
        """Every setting the objective was made with, by part; the bank prints itself."""
        warm_start, generator, seed = self._made_with
        settings = {name: getattr(self, name) for name in _SHOWN} | {
            "warm_start": warm_start,
            "class_weight": self.class_weight,
            "generator": None if generator is None else torch.Generator,
            "seed": seed,
        }
        parts = {
            "graph": self.graph,
            "propagation": self.targets.classifier.propagation,
            "consistency": self.consistency,
            "staleness": self.staleness,
        }
        if self.classes is None:
            settings |= {"contrast": None, "views": 0}
        else:
            settings["views"] = self.classes.view_count
            parts["contrast"] = self.classes.contrast
        lines = [", ".join(f"{name}={shown(value)}" for name, value in settings.items())]
        for name, part in parts.items():
            values = [
                f"{_SHORT_FORMS.get((name, field), field)}={shown(getattr(part, field))}"
                for field in settings_of(type(part))
            ]
            lines.append(f"{name}=({', '.join(values)})")
        return "\n".join(lines)

    def get_extra_state(self) -> Tensor:
        """State of the visibility generator, a uint8 tensor."""
        return self.generator.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Restore the visibility generator."""
        check_generator_state(state)
        self.generator.set_state(state.cpu())

    def check_state(self, state: dict[str, Any], prefix: str = "", *, strict: bool = False) -> None:
        """Raise unless `state` has, under `prefix`, the entries of an objective like this one."""
        classes = 1 if self.multilabel else self.num_classes
        check_objective_state(self, self.memory, classes, state, prefix, strict)

    @overload
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        ids: Tensor | None = None,
        logits: Tensor | None = None,
        visible: Tensor | None = None,
        target_embeddings: Tensor | None = None,
        frozen: Tensor | None = None,
        return_output: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        ids: Tensor | None = None,
        logits: Tensor | None = None,
        visible: Tensor | None = None,
        target_embeddings: Tensor | None = None,
        frozen: Tensor | None = None,
        return_output: Literal[True],
    ) -> ObjectiveOutput: ...

    # Sparse, stateful and a small part of a step: compiled encoders run it as it is.
    @torch.compiler.disable
    @former_names(reference="target_embeddings")
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        ids: Tensor | None = None,
        logits: Tensor | None = None,
        visible: Tensor | None = None,
        target_embeddings: Tensor | None = None,
        frozen: Tensor | None = None,
        return_output: bool = False,
    ) -> Tensor | ObjectiveOutput:
        """Loss of one batch; enqueues the batch afterward when training.

        Args:
            embeddings: (B, D) floating, from any encoder.
            labels: (B,) integer in 0..C-1, -1 = unlabeled. With `multilabel` (B, C) floating in
                [0, 1], a row of NaN = unlabeled.
            ids: (B,) integer >= 0, stable document identities. Rows with the same id count as
                one document. Without ids the bank cannot mask the stored copy of a document.
            logits: (B, C) of a classifier head; adds its cross-entropy.
            visible: (B,) bool, pins the rows whose label stays visible instead of a random split.
            target_embeddings: (B, D) embeddings of the same rows without dropout, constants, which
                the bank stores and the targets are made from; `embeddings` by default.
            frozen: (B, D') features of the untrained encoder, constants. Rows are then compared by
                (1 - frozen_weight) learned + frozen_weight frozen cosine, and `memory.dim` is
                D + D'.
            return_output: Return an `ObjectiveOutput`, whose graph lists every edge, which costs
                time; the loss is the same up to rounding.

        Raises:
            TypeError: A value that is not a tensor.
            ValueError: Shapes, dtypes or devices that disagree; non-finite embeddings; labels
                outside -1..C-1 (or [0, 1]), or of the other kind; `visible` on an unlabeled row;
                rows of one id that differ in label or in `visible`. Bank, targets, warm start
                and generator are as before.
        """
        step = check_step(
            embeddings,
            labels,
            ids,
            logits=logits,
            visible=visible,
            target_embeddings=target_embeddings,
            frozen=frozen,
            memory=self.memory,
            num_classes=self.num_classes,
            multilabel=self.multilabel,
            normalize=self.graph.normalize,
            frozen_weight=self.frozen_weight,
        )
        with full_precision(step.batch.x.device.type), state_kept(self._state, self.generator):
            return self._step(step, return_output)

    if TYPE_CHECKING:
        __call__ = forward

    def _step(self, step: StepBatch, return_output: bool) -> Tensor | ObjectiveOutput:
        """Connect, hide, propagate, compare, then store, in this order."""
        batch, logits, steps = step.batch, step.logits, self.targets.steps
        compared, connection, zero = None, None, batch.x.new_zeros(())
        terms = dict.fromkeys(("graph_loss", "cross_entropy", "consistency"), zero)
        alone = logits is None and self.classes is None
        if self.graph_weight > 0 or alone or return_output:
            split = LabelSplit(
                self.visible_fraction,
                self.memory_visible_fraction,
                step_generator(self.generator, self.training),
                step.documents,
                step.visible,
            )
            # Labels are hidden before the weights are made: a bandwidth may depend on labels.
            made = self._graph.connect(
                batch, step.learned, steps, listed=return_output, split=split
            )
            with self.seconds.timed("propagation"):
                compared = compare_hidden(
                    self.propagation, made, batch.labels, self.loss, self.class_weight, self.warm
                )
            terms["graph_loss"] = compared.loss.to(batch.x.dtype)
            # Graph and lists of `embeddings` are not those of other target embeddings.
            connection = None if step.has_targets else made
        loss = terms["graph_loss"] if alone else self.graph_weight * terms["graph_loss"]
        if logits is not None:
            cross_entropy = (
                labeled_cross_entropy(logits, batch.labels, self.class_weight)
                if batch.targets is None
                else labeled_binary_cross_entropy(
                    logits, batch.labels, batch.targets, self.class_weight
                )
            )
            loss = loss + (1.0 - self.graph_weight) * cross_entropy
            terms["cross_entropy"] = cross_entropy
        if logits is not None and self.consistency.weight > 0:
            # A listed graph is the same up to rounding only.
            graph = None if return_output else connection
            with self.seconds.timed("targets"):
                found = consistency_loss(self.targets, self._graph, step, logits, graph)
            loss = loss + self.consistency.weight * found
            terms["consistency"] = found
        if self.classes is not None and self.memory is not None:
            generator = step_generator(self.generator, self.training)
            with self.seconds.timed("contrast"):
                found = contrast_loss(self.classes, self.memory, step, steps, generator)
            loss = loss + self.classes.contrast.weight * found
            terms["contrast"] = found
        self.parts = {name: term.detach() for name, term in terms.items()}
        output = None
        if return_output and compared is not None:
            # Before the rows are stored: the ages are those of this step.
            data = document_data(compared.connection, batch.ids, self.memory)
            data.seed_mask = compared.seeds
            output = ObjectiveOutput(
                loss=loss,
                **{"contrast": zero, **terms},
                propagated=compared.propagated,
                hidden=compared.hidden,
                graph=data,
                solver=compared.report,
            )
        if self.training:
            self.targets.steps = steps + 1
            if self.memory is not None:
                neighbors = None if connection is None else connection.neighbors
                with self.seconds.timed("enqueue"):
                    self.memory.store(step.constants, neighbors, of_all=True)
        return loss if output is None else output

    @former_names(anchor="frozen_weight")
    def predict(
        self,
        embeddings: Tensor,
        *,
        frozen: Tensor | None = None,
        ids: Tensor | None = None,
        mode: str = "inductive",
        frozen_weight: float | None = None,
        rule: str | None = None,
    ) -> Tensor:
        """Class probabilities by propagation over the bank, whatever loss it was trained with.

        Args:
            embeddings: (B, D) of the encoder in eval mode.
            frozen: (B, D') frozen features, if the bank was filled with them.
            ids: (B,) document ids >= 0. The answer about a stored document then does not depend
                on its label: it is the answer of a bank that never saw that label.
            mode: `"inductive"` attaches every row to the bank separately; `"transductive"` makes
                one graph over the bank and all rows.
            frozen_weight: Weight of the frozen similarity; by default the objective's with
                `frozen`, else 0.
            rule: Propagation rule instead of the objective's; `"poisson"` often does better with
                very few labels of few classes.

        Returns:
            (B, C), rows summing to 1, at least 0.001 / C each. A row that nothing reaches gets the
            class shares of the bank's labels. With label sets every entry is the probability of
            its class, in [0.0005, 0.9995].

        Raises:
            TypeError: A value that is not a tensor.
            ValueError: No bank, an empty one, one without a label; shapes or devices that
                disagree; an unknown mode; a `frozen_weight` without frozen features.

        Cost: one solve over the bank, kept until it changes, and another for each labeled document
        among `ids` whose label reaches unlabeled ones.
        """
        found = self._predictor().predict(embeddings, frozen, ids, mode, frozen_weight, rule, 0)
        return found.probabilities

    @former_names(anchor="frozen_weight")
    def explain(
        self,
        embeddings: Tensor,
        *,
        frozen: Tensor | None = None,
        ids: Tensor | None = None,
        mode: str = "inductive",
        frozen_weight: float | None = None,
        rule: str | None = None,
        top: int = 3,
    ) -> Explanation:
        """As `predict`, with confidence and the `top` labeled documents that decided most.

        With `ids`, a document is never named as a reason for itself.
        """
        return self._predictor().predict(embeddings, frozen, ids, mode, frozen_weight, rule, top)

    def found_classes(self) -> FoundClasses:
        """The classes of all M rows of the bank as it is now, as the `contrast` finds them.

        They can teach a classifier on `memory.embeddings` after training.

        Raises:
            ValueError: No contrast, or a bank without a label.
        """
        if self.classes is None or self.memory is None:
            raise ValueError("'contrast' is None, so no classes are found. Pass GraphContrast().")
        if not bool(self.memory.labeled.any()):
            raise ValueError(
                "'memory' holds no labeled document. Call memory.prefill(...) with some first."
            )
        return self.classes.find(self.memory)

    def _predictor(self) -> BankInference:
        if self._inference is None:
            raise ValueError("'memory' is None; predictions propagate over a bank. Pass one.")
        return self._inference


def _paper_parts(sigma: float, normalization: str) -> dict[str, Any]:
    """The parts of the paper's in-batch objective."""
    return {
        "graph": KNNGraph(bandwidth=sigma, batch_edges="all"),
        "propagation": LabelPropagation(normalization=normalization, eta=0.0, solver="dense"),
        "consistency": Consistency(weight=0.0),
    }
