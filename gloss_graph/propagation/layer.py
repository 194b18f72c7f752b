"""Label propagation as a differentiable message-passing layer."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing

from gloss_graph._checks import (
    check_choice,
    check_mask,
    check_positive_int,
    check_range,
    check_tensor,
)
from gloss_graph._precision import full_precision
from gloss_graph.propagation.bank_operator import AnyOperator, BankOperator
from gloss_graph.propagation.bank_scaling import node_scaling
from gloss_graph.propagation.implicit import implicit_solve
from gloss_graph.propagation.inputs import check_full, check_graph, check_prior, one_hot_labels
from gloss_graph.propagation.normalize import NORMALIZATIONS, Scaling
from gloss_graph.propagation.operators import (
    FullOperator,
    MaskedOperator,
    SparseOperator,
    operator_of,
)
from gloss_graph.propagation.reach import reachable
from gloss_graph.propagation.rules import RULES, Problem, class_mass_normalize
from gloss_graph.propagation.solve import (
    DENSE_LIMIT,
    SOLVERS,
    DenseFactor,
    Propagation,
    SolverReport,
    System,
    conjugate_gradient,
    dense_solution,
    fixed_point,
    warn_unconverged,
)

# Share of a seed's mass below which a spreading row counts as not reached.
_LEAST_MASS = 1e-12
GRADIENTS = ("implicit", "unrolled")


class LabelPropagation(MessagePassing):
    r"""Propagate labels over a weighted undirected graph, with gradients to the edge weights.

    With a symmetric reweighting S of W (see `normalization`), its row sums D and T = D⁻¹S:

    - `"harmonic"` (Zhu et al., 2003, with a leak): seeds are clamped exactly, elsewhere
      \(((1 + \eta) D - S)_{uu} F_u = S_{ul} Y_l + \eta D_u \pi\). Rows sum to 1 (not with
      `"symmetric"` and `"column"`). \(\eta = 0\) is the closed form of G-Loss (arXiv 2604.25853,
      Algorithm 1); without damping few labels on a large graph collapse to one class.
    - `"spreading"` (Zhou et al., 2004): \(F = (1 - \alpha)(I - \alpha T)^{-1} Y\).
    - `"poisson"` (Calder et al., 2020): \((D - S) F = \kappa \sum_{j \in l} (y_j - \bar y) e_j\),
      for very few seeds. Scores, not probabilities: rows sum to 0. \(\kappa\), the mean degree,
      makes them independent of the unit of the weights; \(\bar y\) is taken per connected
      component (over the graph with `eta > 0`, which also screens the operator).

    Shapes: N nodes, E directed edges (both directions of a pair), C classes.

    Args:
        rule: `"harmonic"`, `"spreading"` or `"poisson"`.
        normalization: `"hub"` (weight is taken from hubs; the released code's), `"row"`,
            `"symmetric"` or `"column"` (the paper's Algorithm 1).
        eta: Leak >= 0 of `harmonic` (default 0.2) and `poisson` (default 0).
        alpha: Damping in (0, 1) of `spreading`.
        prior: Class prior (C,) the leak goes to, uniform by default; `"none"`: what leaks is lost,
            so that the result is hit mass, whose rows sum to less than 1.
        class_mass: Prior (C,), or `"uniform"`: rescale the classes of the unseeded rows so that
            their total mass follows it and normalise the rows (Zhu et al., 2003, sec. 4). For
            predictions; the leak's own mass is left out. Not for `poisson`.
        num_classes: C, needed when `y` holds indices; by default the largest label + 1.
        solver: `"cg"` (conjugate gradients), `"iterate"` (fixed-point message passing),
            `"dense"` (factorisation of the unknown block, O(n³)) or `"auto"`: dense up to 512
            unknowns, else cg.
        tol: Relative residual to stop at. `iterate` with `tol=0` runs `max_iter` steps.
        max_iter: Largest number of iterations.
        gradient: `"implicit"` (adjoint solve, memory O(E + N C)) or `"unrolled"` (autograd
            through the solver's own steps; with `cg` a class without seeds then gets no gradient
            in `y`, since its iterates are all zero).
        fused: Multiply by a CSR matrix; `False` sends explicit messages through PyG's gather and
            scatter (torch-scatter is used there when installed), to read or to instrument.

    Raises:
        ValueError: A setting out of range or unknown.

    Gradients reach `edge_weight` and float `y`, once differentiable. The solve runs in float32
    at least, whatever autocast says. Cost O((E + N C) iterations).

    Example:
        >>> import torch
        >>> edge_index = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> layer = LabelPropagation(eta=0.0, normalization="row")
        >>> layer(torch.tensor([0, -1, 1]), edge_index)[1]
        tensor([0.5000, 0.5000])
        >>> layer
        LabelPropagation(rule='harmonic', normalization='row', eta=0.0, solver='auto', tol=0.0001,
        max_iter=1000, gradient='implicit', fused=True)

    See also: `torch_geometric.nn.LabelPropagation` iterates a fixed number of steps without
    gradient; use it where labels are features and nothing is trained through them.
    """

    def __init__(
        self,
        rule: str = "harmonic",
        normalization: str = "hub",
        *,
        eta: float | None = None,
        alpha: float = 0.9,
        prior: Tensor | str | None = None,
        class_mass: Tensor | str | None = None,
        num_classes: int | None = None,
        solver: str = "auto",
        tol: float = 1e-4,
        max_iter: int = 1000,
        gradient: str = "implicit",
        fused: bool = True,
    ) -> None:
        super().__init__(aggr="sum")
        check_choice("rule", rule, RULES)
        check_choice("normalization", normalization, NORMALIZATIONS)
        check_choice("solver", solver, SOLVERS)
        check_choice("gradient", gradient, GRADIENTS)
        if eta is None:
            eta = 0.2 if rule == "harmonic" else 0.0
        check_range("eta", eta, 0.0, float("inf"), open_high=True)
        check_range("alpha", alpha, 0.0, 1.0, open_low=True, open_high=True)
        check_range("tol", tol, 0.0, 1.0, open_high=True)
        check_positive_int("max_iter", max_iter)
        if num_classes is not None:
            check_positive_int("num_classes", num_classes)
        if isinstance(class_mass, str):
            check_choice("class_mass", class_mass, ("uniform",))
        if class_mass is not None and rule == "poisson":
            raise ValueError("'class_mass' is not defined for rule='poisson' (signed scores).")
        self.rule, self.normalization, self.gradient = rule, normalization, gradient
        self.eta, self.alpha = float(eta), float(alpha)
        self.num_classes, self.class_mass, self.fused = num_classes, class_mass, fused
        self.solver, self.tol, self.max_iter = solver, float(tol), max_iter
        self.prior: Tensor | None
        if isinstance(prior, str):
            check_choice("prior", prior, ("none",))
        self.keeps_leak = not isinstance(prior, str) and class_mass is None
        checked = None if isinstance(prior, str) else check_prior("prior", prior)
        self.register_buffer("prior", checked, persistent=False)
        self._warned = False

    def __repr__(self) -> str:
        damping = f"alpha={self.alpha}" if self.rule == "spreading" else f"eta={self.eta}"
        return (
            f"{type(self).__name__}(rule={self.rule!r}, normalization={self.normalization!r}, "
            f"{damping}, solver={self.solver!r}, tol={self.tol}, max_iter={self.max_iter}, "
            f"gradient={self.gradient!r}, fused={self.fused})"
        )

    def forward(
        self,
        y: Tensor,
        edge_index: Tensor,
        edge_weight: Tensor | None = None,
        seed_mask: Tensor | None = None,
    ) -> Tensor:
        """Propagate the labels of the seeds to all nodes.

        Args:
            y: (N,) integer labels, -1 = none, or (N, C) floating label distributions. Only the
                rows of seeds are read.
            edge_index: (2, E) long, undirected: both directions present, equal weight. Repeated
                edges add up; self-loops count as 0.
            edge_weight: (E,) floating >= 0, ones by default.
            seed_mask: (N,) bool, the nodes whose label is known; by default `y >= 0` for integer
                labels.

        Returns:
            (N, C). Seeds keep their labels bit for bit under `harmonic`. A node no seed can reach
            gets zeros (the prior where `eta > 0`).

        Raises:
            TypeError: A value that is not a tensor.
            ValueError: Shapes or dtypes that disagree, a directed graph, negative or non-finite
                weights, labels outside 0..C-1.
        """
        return self.propagate_labels(y, edge_index, edge_weight, seed_mask).values

    def propagate_labels(
        self,
        y: Tensor,
        edge_index: Tensor,
        edge_weight: Tensor | None = None,
        seed_mask: Tensor | None = None,
        *,
        trainable_edges: Tensor | None = None,
        trusted: bool = False,
        prior: Tensor | None = None,
    ) -> Propagation:
        """As `forward`, with reach and solver report.

        Args:
            y: See `forward`.
            edge_index: See `forward`.
            edge_weight: See `forward`.
            seed_mask: See `forward`.
            trainable_edges: (n,) long, the edges whose weight needs a gradient; the others get
                0. Default all.
            trusted: Skip the O(E) check that the graph is undirected.
            prior: (C,) in place of the layer's, taken as it is (not scaled to sum 1).
        """
        labels, seeds = self._labels(y, seed_mask)
        check_tensor("edge_index", edge_index)
        if edge_weight is not None:
            check_tensor("edge_weight", edge_weight)
        with full_precision(edge_index.device.type):
            dtype = torch.float32 if edge_weight is None else edge_weight.dtype
            dtype = torch.promote_types(torch.promote_types(dtype, labels.dtype), torch.float32)
            if edge_weight is None:
                edge_weight = torch.ones(edge_index.size(1), device=edge_index.device)
            rows, weight = check_graph(edge_index, edge_weight.to(dtype), y.size(0), trusted)
            if rows.order is not None and trainable_edges is not None:
                position = rows.order.argsort()
                trainable_edges = position[trainable_edges]
            if trainable_edges is not None:
                some = weight.index_select(0, trainable_edges)
                weight = weight.detach().index_copy(0, trainable_edges, some)
            if self.fused:
                operator = operator_of(rows, weight, trainable_edges)
            else:
                operator = SparseOperator(rows, weight, trainable_edges)
            return self._run(operator, labels.to(dtype), seeds, prior)

    def propagate_full(
        self,
        y: Tensor,
        weight: Tensor,
        seed_mask: Tensor | None = None,
        *,
        prior: Tensor | None = None,
    ) -> Propagation:
        """As `propagate_labels` for the weight matrix of a graph that connects (nearly) all pairs.

        Args:
            y: See `forward`.
            weight: (N, N) floating >= 0, symmetric with a zero diagonal (not checked).
            seed_mask: See `forward`.
            prior: See `propagate_labels`.

        Raises:
            ValueError: Shapes that disagree, negative or non-finite weights, bad labels.
        """
        labels, seeds = self._labels(y, seed_mask)
        check_tensor("weight", weight)
        if weight.shape != (y.size(0), y.size(0)):
            raise ValueError(
                f"'weight' must have shape ({y.size(0)}, {y.size(0)}) (got {tuple(weight.shape)})."
            )
        with full_precision(weight.device.type):
            dtype = torch.promote_types(weight.dtype, labels.dtype)
            dtype = torch.promote_types(dtype, torch.float32)
            operator = FullOperator(check_full(weight.to(dtype)))
            return self._run(operator, labels.to(dtype), seeds, prior)

    def propagate_bank(
        self,
        y: Tensor,
        operator: BankOperator,
        seeds: Tensor,
        *,
        prior: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Propagation:
        """As `propagate_labels` for the graph of a batch and a bank (not for `"poisson"`).

        Args:
            y: See `forward`; without gradient.
            operator: Its weights; only those of the border get a gradient.
            seeds: (N,) bool.
            prior: See `propagate_labels`.
            start: (N, C) values that conjugate gradients start from, else 0.
        """
        labels, seeds = self._labels(y.detach(), seeds)
        with full_precision(labels.device.type):
            return self._run(operator, labels.to(operator.weight.dtype), seeds, prior, start)

    def _labels(self, y: Tensor, seed_mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Label rows (N, C), zero but for the seeds, and the seeds (N,)."""
        labels = one_hot_labels(y, self.num_classes)
        if seed_mask is None:
            if y.is_floating_point():
                raise ValueError("'seed_mask' is needed when 'y' holds distributions (N, C).")
            return labels, y >= 0
        check_mask("seed_mask", seed_mask, y.size(0))
        if not y.is_floating_point() and bool((seed_mask & (y < 0)).any()):
            raise ValueError("'seed_mask' marks rows whose label is -1 (unlabeled).")
        return torch.where(seed_mask.unsqueeze(1), labels, 0.0), seed_mask

    def _run(
        self,
        operator: AnyOperator,
        labels: Tensor,
        seeds: Tensor,
        prior: Tensor | None,
        start: Tensor | None = None,
    ) -> Propagation:
        reached = reachable(operator, seeds)

        scaling = node_scaling(self.normalization, operator, torch.ones_like(labels[:, 0]))
        problem = self._problem(operator, labels, seeds, reached, scaling, prior)
        solved, report = self._solve(problem, start)
        values = problem.assemble(solved)
        if self.rule == "spreading":
            # Damped to less than the solve resolves: ratios of such masses are rounding.
            least = _LEAST_MASS if report.solver == "dense" else max(_LEAST_MASS, self.tol)
            reached = reached & (values.detach().sum(dim=1) > least)
        if not bool(torch.isfinite(values.detach().sum())):
            raise ValueError(
                "Propagation gave NaN or inf in the solve. Check 'edge_weight' for values beyond "
                "the range of its dtype, or raise 'eta'."
            )
        if self.class_mass is not None:
            values = class_mass_normalize(values, labels, seeds, self.class_mass)
        self._warned = warn_unconverged(report, self.tol, self._warned)
        unreachable = reached.numel() - int(reached.count_nonzero())
        if isinstance(operator, BankOperator):
            unreachable -= operator.absent.numel()
        return Propagation(values, reached, report._replace(unreachable=unreachable))

    def _problem(
        self,
        operator: AnyOperator,
        labels: Tensor,
        seeds: Tensor,
        reached: Tensor,
        scaling: Scaling,
        prior: Tensor | None,
    ) -> Problem:
        classes = labels.size(1)
        prior = self.prior if prior is None else prior
        if prior is None:
            prior = labels.new_full((classes,), 1.0 / classes)
        if prior.numel() != classes:
            raise ValueError(f"'prior' must have {classes} entries (got {prior.numel()}).")
        damping = self.alpha if self.rule == "spreading" else self.eta
        leak = prior.to(labels) * float(self.keeps_leak)
        return RULES[self.rule](operator, labels, seeds, reached, scaling, damping, leak)

    def message_and_aggregate(self, adj_t: AnyOperator | MaskedOperator, x: Tensor) -> Tensor:
        """W x in one product: the fused form of `message` and its sum."""
        return adj_t.times(x)

    def message(self, x_j: Tensor, edge_weight: Tensor) -> Tensor:
        """The message a neighbour sends: its value times the edge's weight."""
        return edge_weight.unsqueeze(-1) * x_j

    def _times(self, operator: AnyOperator | MaskedOperator, x: Tensor) -> Tensor:
        if isinstance(operator, MaskedOperator) and not self.fused:
            return operator.clear(self._times(operator.whole, x))
        if self.fused or not isinstance(operator, SparseOperator):
            return self.message_and_aggregate(operator, x)
        n = operator.num_nodes
        edge_index = torch.stack([operator.rows.target, operator.rows.row])
        return self.propagate(edge_index, x=x, edge_weight=operator.weight, size=(n, n))

    def _solve(self, problem: Problem, start: Tensor | None) -> tuple[Tensor, SolverReport]:
        system, right = problem.system, problem.right
        start = None if start is None or problem.gather is None else problem.gather(start.to(right))
        unknowns, solver = system.diagonal.numel(), self.solver
        implicit = self.gradient == "implicit"
        if solver == "auto":
            solver = "dense" if unknowns <= DENSE_LIMIT else "cg"
        if solver == "dense":
            if implicit:
                solved = implicit_solve(system, right, DenseFactor())
            else:
                solved = dense_solution(system, right)
            return solved, SolverReport("dense", 1, 0.0, True)

        steps, error = 0, 0.0

        def run(system: System, right: Tensor) -> Tensor:
            nonlocal steps, error, start
            given = (partial(self._times, system.operator), system, right, self.tol, self.max_iter)
            first, start = start, None  # the adjoint solution is another one
            found = (
                fixed_point(*given) if solver == "iterate" else conjugate_gradient(*given, first)
            )
            solution, steps, error = found
            return solution

        solved = implicit_solve(system, right, run) if implicit else run(system, right)
        converged = error <= self.tol or (solver == "iterate" and self.tol == 0)
        return solved, SolverReport(solver, steps, error, converged)
