"""Label propagation as a differentiable message-passing layer."""

from __future__ import annotations

import math
import warnings
from typing import ClassVar

import torch
from torch import Tensor
from torch_geometric.nn import MessagePassing

from gloss_graph._internal.checks import check_choice, check_positive_int, check_tensor
from gloss_graph._internal.precision import full_precision
from gloss_graph.propagation.dense import dense_solve
from gloss_graph.propagation.inputs import (
    check_graph,
    check_prior,
    label_rows,
    largest_weight,
    safe_unit,
)
from gloss_graph.propagation.normalize import scaled
from gloss_graph.propagation.operators import FullOperator, Operator, SparseOperator
from gloss_graph.propagation.rules import RULES, Problem, Task, class_mass_normalize
from gloss_graph.propagation.settings import PropagationSettings
from gloss_graph.propagation.solve import (
    DENSE_LIMIT,
    Propagation,
    SolverReport,
    System,
    conjugate_gradient,
    fixed_point,
    implicit_solve,
    positive_fixed_point,
    relative_residual,
)

# Leak of `harmonic` below which a solve is in float64 and checks its error, not only its residual.
_WEAK = 0.01
# Tolerance of the values relative to `tol`: a loss divides by the small ones.
_FORWARD = 0.2
# The same of a weakly damped solve that starts from the values of the step before.
_WARM = 0.03
# Tolerance from which on neither needs such a margin.
_FINE_ENOUGH = 1e-6
# Share of a seed's mass below which a spreading row counts as not reached.
_LEAST_MASS = 1e-12
# Residual that float64 can reach.
_FINEST = 1e-12
# Error that rounding leaves of a solve in float64.
_DENSE_ERROR = 1e-9


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
      component (over the graph with `eta > 0`, which also screens the operator). With
      \(\eta = 0\) every component is thus balanced by itself: one whose labels are all of one
      class has no sources, and its rows say nothing (all 0).

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
            their total mass follows it and normalize the rows (Zhu et al., 2003, sec. 4). For
            predictions; the leak's own mass is left out. Not for `poisson`.
        num_classes: C, needed when `y` holds indices; by default the largest label + 1.
        solver: `"cg"` (conjugate gradients), `"iterate"` (fixed-point message passing),
            `"dense"` (factorization of the unknown block, O(n³)) or `"auto"`: dense up to 512
            unknowns, else cg.
        tol: Relative residual to stop at. `iterate` with `tol=0` runs `max_iter` steps. Under
            `hub` and `row` an error of the values is at most `1 + 1 / eta` times as large
            (`harmonic`; `spreading`: relative to the mass of every row).
        max_iter: Largest number of iterations.
        gradient: `"implicit"` (adjoint solve, memory O(E + N C)) or `"unrolled"` (autograd
            through the factorization or the fixed-point steps, for comparison). `cg` is then
            solved by `iterate`'s steps: its own depend on the labels, and where they end early
            their derivative is not that of the solution.
        fused: Multiply by a CSR matrix; `False` sends explicit messages through PyG's gather and
            scatter (torch-scatter is used there when installed), to read or to instrument.

    Raises:
        ValueError: A setting out of range or unknown.

    Gradients reach `edge_weight` and float `y`; a second derivative raises. The solve runs in
    float32 at least, whatever autocast says, and in float64 where weights span so many powers of
    ten that products of them leave the range of float32, or where `eta` is below 0.01. Cost
    O((E + N C) iterations).

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

    # Without it PyG parses this file for the call of `propagate`, in every constructor.
    propagate_type: ClassVar = {"x": Tensor, "edge_weight": Tensor}

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
        #: The settings as a part, for what connects and propagates in the same way.
        self.settings = PropagationSettings(
            rule=rule,
            normalization=normalization,
            eta=eta,
            alpha=alpha,
            solver=solver,
            tol=tol,
            max_iter=max_iter,
            gradient=gradient,
        )
        if num_classes is not None:
            check_positive_int("num_classes", num_classes)
        if isinstance(class_mass, str):
            check_choice("class_mass", class_mass, ("uniform",))
        if class_mass is not None and rule == "poisson":
            raise ValueError("'class_mass' is not defined for rule='poisson' (signed scores).")
        self.rule, self.normalization, self.gradient = rule, normalization, gradient
        self.eta, self.alpha = self.settings.leak, float(alpha)
        self.num_classes, self.class_mass, self.fused = num_classes, class_mass, fused
        self.solver, self.tol, self.max_iter = solver, float(tol), max_iter
        # Whether next to nothing damps the system, so that it can be close to singular.
        self._weak = rule == "harmonic" and self.eta < _WEAK
        self.keeps_leak = not isinstance(prior, str) and class_mass is None
        if isinstance(prior, str):
            check_choice("prior", prior, ("none",))
            prior = None
        self.prior: Tensor | None
        checked = None if prior is None else check_prior("prior", prior)
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
            gets zeros (the prior where `eta > 0`). Without nodes, (0, C).

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

        `trainable_edges` (n,) long are the edges whose weight needs a gradient (default all), the
        others get 0. `trusted` skips the O(E) check that the graph is undirected. `prior` (C,) is
        used instead of the layer's, as it is (not scaled to sum 1).
        """
        labels, seeds = label_rows(y, seed_mask, self.num_classes)
        check_tensor("edge_index", edge_index)
        if edge_weight is None:
            edge_weight = torch.ones_like(edge_index[0], dtype=torch.float32)
        check_tensor("edge_weight", edge_weight)
        with full_precision(edge_index.device.type):
            dtype = _common_dtype(edge_weight, labels)
            rows, weight = check_graph(edge_index, edge_weight.to(dtype), y.size(0), trusted)
            if trainable_edges is not None:
                if rows.order is not None:
                    trainable_edges = rows.order.argsort()[trainable_edges]
                some = weight.index_select(0, trainable_edges)
                weight = weight.detach().index_copy(0, trainable_edges, some)
            sparse = SparseOperator(rows, weight, trainable_edges)
            operator = sparse.cheaper() if self.fused else sparse
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

        `weight` (N, N) is floating >= 0, symmetric with a zero diagonal (which is not checked).
        """
        labels, seeds = label_rows(y, seed_mask, self.num_classes)
        check_tensor("weight", weight)
        if weight.shape != (y.size(0), y.size(0)):
            raise ValueError(
                f"'weight' must have shape ({y.size(0)}, {y.size(0)}) (got {tuple(weight.shape)})."
            )
        with full_precision(weight.device.type):
            dtype = _common_dtype(weight, labels)
            weight = weight.to(dtype)
            operator = FullOperator(safe_unit(weight, largest_weight(weight)))
            return self._run(operator, labels.to(dtype), seeds, prior)

    def propagate_operator(
        self,
        y: Tensor,
        operator: Operator,
        seeds: Tensor,
        *,
        prior: Tensor | None = None,
        start: Tensor | None = None,
    ) -> Propagation:
        """As `propagate_labels` for a weight matrix in another form; `y` gets no gradient.

        A solve starts from the values `start` (N, C), else from 0.
        """
        labels, seeds = label_rows(y.detach(), seeds, self.num_classes)
        with full_precision(labels.device.type):
            return self._run(operator, labels.to(operator.weight.dtype), seeds, prior, start)

    def _run(
        self,
        operator: Operator,
        labels: Tensor,
        seeds: Tensor,
        prior: Tensor | None,
        start: Tensor | None = None,
    ) -> Propagation:
        nodes, classes = labels.shape
        if nodes == 0:
            return Propagation(labels + 0.0, seeds, SolverReport(self.solver, 0, 0.0, True))
        dtype = labels.dtype
        if self.rule == "poisson" and self.eta == 0:
            operator = operator.without_loose_edges()
        if self._weak and (self.solver in ("cg", "iterate") or nodes > DENSE_LIMIT):
            operator = operator.double()
        reached = operator.reach(seeds)
        if self.gradient == "unrolled":
            operator = operator.unrolled()
        operator, scaling = scaled(self.normalization, operator)
        labels = labels.to(operator.weight.dtype)
        prior = self.prior if prior is None else prior
        if prior is None:
            prior = labels.new_full((classes,), 1.0 / classes)
        if prior.numel() != classes:
            raise ValueError(f"'prior' must have {classes} entries (got {prior.numel()}).")
        task = Task(
            operator,
            scaling,
            labels,
            seeds,
            reached,
            damping=self.alpha if self.rule == "spreading" else self.eta,
            prior=prior.to(labels) * float(self.keeps_leak),
            # The readable reference iterates on the labels themselves.
            centered=self.solver != "iterate" and self.gradient == "implicit",
            start=start,
        )
        problem = RULES[self.rule](task)
        solved, report = self._solve(problem, reached)
        values = problem.assemble(solved)
        if self.rule == "spreading":
            # Beyond that a ratio of classes has no gradient to speak of, whatever the solver.
            reached = reached & (values.detach().sum(dim=1) > _LEAST_MASS)
        if self.class_mass is not None:
            values = class_mass_normalize(values, labels, seeds, self.class_mass)
        values = values.to(dtype)
        if not math.isfinite(values.detach().sum()):
            raise ValueError(
                f"Propagation gave NaN or inf in the solve. Check 'edge_weight' for values beyond "
                f"the range of {dtype}, or raise 'eta'."
            )
        self._warn(report)
        unreachable = nodes - int(reached.count_nonzero()) - operator.num_absent
        return Propagation(values, reached, report._replace(unreachable=unreachable))

    def message_and_aggregate(self, adj_t: Operator, x: Tensor) -> Tensor:
        """W x in one product: the fused form of `message` and its sum."""
        return adj_t.times(x)

    def message(self, x_j: Tensor, edge_weight: Tensor) -> Tensor:
        """The message that a neighbor sends: its value times the edge's weight."""
        return edge_weight.unsqueeze(-1) * x_j

    def _times(self, operator: Operator, x: Tensor) -> Tensor:
        if self.fused:
            return self.message_and_aggregate(operator, x)
        return operator.send(self._messages, x)

    def _messages(self, edge_index: Tensor, edge_weight: Tensor, x: Tensor) -> Tensor:
        size = (x.size(0), x.size(0))
        found: Tensor = self.propagate(edge_index, x=x, edge_weight=edge_weight, size=size)
        return found

    def _solve(self, problem: Problem, reached: Tensor) -> tuple[Tensor, SolverReport]:
        system, right = problem.system._replace(product=self._times), problem.right
        unknowns, solver = system.diagonal.numel(), self.solver
        implicit, positive = self.gradient == "implicit", self.rule == "spreading"
        if solver == "auto":
            solver = "dense" if unknowns <= DENSE_LIMIT else "cg"
        if solver == "dense":
            solved, residual = dense_solve(system, right, implicit=implicit, positive=positive)
            error = relative_residual(residual, right, system)
            return solved, SolverReport("dense", 1, error, error <= max(self.tol, _DENSE_ERROR))
        if not implicit:
            # Steps of conjugate gradients depend on the labels, and where they end early so do
            # the directions they have seen: their derivative is that of another function.
            solved, steps, error = fixed_point(system, right, self.tol, self.max_iter)
            return solved, self._report("iterate", steps, error)
        solve = _Iteration(self, solver, problem.guess, reached if positive else None)
        solved = implicit_solve(system, right, solve)
        return solved, solve.report

    def _report(self, solver: str, steps: int, error: float) -> SolverReport:
        converged = error <= self.tol or (solver == "iterate" and self.tol == 0)
        return SolverReport(solver, steps, error, converged)

    def _warn(self, report: SolverReport, what: str = "Label propagation") -> None:
        """Warn once, for the caller of `propagate_labels`, where a solve did not converge."""
        if report.converged or self._warned:
            return
        warnings.warn(
            f"{what} ({report.solver}) stopped after {report.iterations} iterations at "
            f"a relative residual of {report.residual:.1e} (tol={self.tol:.0e}). Raise 'max_iter' "
            "or 'eta', or loosen 'tol'.",
            UserWarning,
            stacklevel=4,
        )
        self._warned = True


class _Iteration:
    """An iterative solve that the adjoint solve of the same matrix repeats, and its `report`.

    `start` (n, C) is a first guess or None; the rows `reached` (n,) bool must be resolved however
    small their mass is (None: relative to the largest column will do).
    """

    report: SolverReport

    def __init__(
        self, layer: LabelPropagation, solver: str, start: Tensor | None, reached: Tensor | None
    ) -> None:
        self.layer, self.solver = layer, solver
        self.start, self.reached = start, reached
        # The tolerance that turns out to be needed is that of the adjoint solve too.
        self.tol, self.left = layer.tol, layer.max_iter

    def __call__(self, system: System, right: Tensor) -> Tensor:
        layer, self.left = self.layer, self.layer.max_iter
        if system.adjoint:
            solution, error = self._solve(system, right, None)
        elif layer._weak and layer.tol > 0:
            solution, error = self._weakly_damped(system, right)
        else:
            if self.solver == "cg":
                self.tol = min(layer.tol, max(_FORWARD * layer.tol, _FINE_ENOUGH))
            solution, error = self._solve(system, right, self.start)
            self.tol = layer.tol
            if self.reached is not None and layer.tol > 0:
                solution, error = self._small(system, right, solution, error)
        report = layer._report(self.solver, layer.max_iter - self.left, error)
        if system.adjoint:
            layer._warn(report, "The gradient of label propagation")
        else:
            self.report = report
        return solution

    def _solve(self, system: System, right: Tensor, start: Tensor | None) -> tuple[Tensor, float]:
        method = fixed_point if self.solver == "iterate" else conjugate_gradient
        solution, steps, error = method(system, right, self.tol, self.left, start)
        self.left -= steps
        return solution, error

    def _weakly_damped(self, system: System, right: Tensor) -> tuple[Tensor, float]:
        """As `_solve`, until the error of a column whose solution is known to be 1 is small too.

        Where next to nothing damps the system a small residual says little about the error.
        """
        if self.start is not None:
            # A warm start leaves the slow modes, which the known column would have to begin with.
            self.tol = min(self.tol, max(_WARM * self.tol, _FINE_ENOUGH))
            return self._solve(system, right, self.start)
        known = (system.excess().detach() / system.null).unsqueeze(1)
        ones = torch.ones_like(system.null)
        if system.fixed is not None:
            ones = ones.index_fill(0, system.fixed, 0.0)
        size = torch.linalg.vector_norm(right, dim=0).amax()
        norm = torch.linalg.vector_norm(known)
        unit = torch.where(size * norm > 0, size / norm, 1.0)
        both, solution = torch.cat([right, unit * known], dim=1), None
        while True:
            solution, error = self._solve(system, both, solution)
            found = solution[:, -1] / (unit * system.null)
            off = float((found - ones).abs().amax()) if ones.numel() else 0.0
            known_well = off <= max(self.layer.tol, _DENSE_ERROR)
            if known_well or self.left <= 0 or self.tol < _FINEST:
                return solution[:, :-1].contiguous(), error if known_well else max(error, off)
            self.tol *= 0.1

    def _small(
        self, system: System, right: Tensor, solution: Tensor, error: float
    ) -> tuple[Tensor, float]:
        """Resolve the rows of small mass: by a tighter solve, else by an iteration that only adds.

        The error is then relative to the mass of every row.
        """
        if solution.numel() == 0 or self.reached is None or not bool(self.reached.any()):
            return solution, error
        unit = (system.diagonal * system.factor).unsqueeze(1)
        scale = float(torch.linalg.vector_norm(right / unit, dim=0).amax())
        tol, finest = self.layer.tol, 16.0 * torch.finfo(right.dtype).eps
        for _ in range(2):
            mass = (solution.sum(dim=1) / system.factor)[self.reached]
            least = max(float(mass.amin()), 0.0)
            if least > 0 and error * scale / least <= tol:
                return solution, error * scale / least
            self.tol = max(tol * least / scale, finest) if scale > 0 else finest
            solution, error = self._solve(system, right, solution)
        solution, steps, error = positive_fixed_point(
            system, right, self.reached, self.layer.alpha, tol, self.layer.max_iter
        )
        self.left -= steps
        return solution, error


def _common_dtype(weight: Tensor, labels: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(weight.dtype, labels.dtype), torch.float32)


@torch.no_grad()
def node_factors(
    normalization: str, edge_index: Tensor, edge_weight: Tensor, num_nodes: int
) -> Tensor:
    """Factors s (N,) with which a normalization scales the weight of every node's edges.

    In float64 if the graph, undirected edges (2, E) of weights (E,) among N nodes, needs it.
    """
    operator = SparseOperator(*check_graph(edge_index, edge_weight, num_nodes, trusted=True))
    return scaled(normalization, operator.cheaper())[1].factor
