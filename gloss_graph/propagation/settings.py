"""The settings of label propagation."""

from __future__ import annotations

from dataclasses import dataclass

from gloss_graph._internal.checks import check_choice, check_positive_int, check_range
from gloss_graph._internal.settings import Range, setting

GRADIENTS = ("implicit", "unrolled")
# The leak of `harmonic` where none is given.
_LEAK = 0.2


@dataclass(frozen=True, kw_only=True)
class PropagationSettings:
    """What `LabelPropagation` is made with; its docstring says what each setting means.

    Raises:
        ValueError: A setting out of range or unknown.
    """

    rule: str = setting("harmonic", "Propagation rule: harmonic, spreading or poisson.")
    normalization: str = setting("hub", "Normalization: hub, row, symmetric or column.")
    eta: float | None = setting(
        None,
        "Leak of the harmonic rule (none = 0.2) and of poisson (none = 0).",
        search=Range(0.01, 1.0, log=True),
    )
    alpha: float = setting(0.9, "Damping of the spreading rule.", search=Range(0.5, 0.99))
    solver: str = setting("auto", "Solver: auto, cg, iterate or dense.")
    tol: float = setting(1e-4, "Relative residual at which a solve stops.")
    max_iter: int = setting(1000, "Most iterations of a solve.")
    gradient: str = setting("implicit", "Gradient: implicit (adjoint solve) or unrolled.")

    def __post_init__(self) -> None:
        # They need torch, without which settings are read.
        from gloss_graph.propagation.normalize import NORMALIZATIONS
        from gloss_graph.propagation.rules import RULES
        from gloss_graph.propagation.solve import SOLVERS

        check_choice("rule", self.rule, RULES)
        check_choice("normalization", self.normalization, NORMALIZATIONS)
        check_choice("solver", self.solver, SOLVERS)
        check_choice("gradient", self.gradient, GRADIENTS)
        if self.eta is not None:
            check_range("eta", self.eta, 0.0, float("inf"), open_high=True)
        check_range("alpha", self.alpha, 0.0, 1.0, open_low=True, open_high=True)
        check_range("tol", self.tol, 0.0, 1.0, open_high=True)
        check_positive_int("max_iter", self.max_iter)

    @property
    def leak(self) -> float:
        """The value of `eta`, that of the rule where none was given."""
        if self.eta is not None:
            return float(self.eta)
        return _LEAK if self.rule == "harmonic" else 0.0
