"""The paper's in-batch forms as constructors."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Form = TypeVar("Form", bound="PaperForms")


class PaperForms:
    """Constructors of the G-Loss forms (arXiv 2604.25853), exact to rounding in float64."""

    @classmethod
    def published(
        cls: type[Form],
        num_classes: int,
        sigma: float,
        *,
        graph_weight: float = 0.5,
        visible_fraction: float = 0.5,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> Form:
        r"""The paper's in-batch form: Algorithm 1 (column-stochastic T) and eq. 1.

        `sigma` is the Gaussian's bandwidth; the other settings are those of the class.
        """
        split = (visible_fraction, generator, seed)
        return cls._in_batch(num_classes, sigma, "column", "published", graph_weight, *split)

    @classmethod
    def released(
        cls: type[Form],
        num_classes: int,
        sigma: float,
        *,
        graph_weight: float = 0.5,
        visible_fraction: float = 0.5,
        generator: torch.Generator | None = None,
        seed: int = 0,
    ) -> Form:
        r"""What the paper's released code computes: the `hub` walk, F as logits, divided by |u|.

        `sigma` is the Gaussian's bandwidth; the other settings are those of the class.
        """
        split = (visible_fraction, generator, seed)
        return cls._in_batch(num_classes, sigma, "hub", "released", graph_weight, *split)

    @classmethod
    def _in_batch(
        cls: type[Form],
        num_classes: int,
        sigma: float,
        normalization: str,
        form: str,
        graph_weight: float,
        visible_fraction: float,
        generator: torch.Generator | None,
        seed: int,
    ) -> Form:
        make: Callable[..., Form] = cls
        return make(
            num_classes,
            bandwidth=sigma,
            batch_edges="all",
            normalization=normalization,
            eta=0.0,
            form=form,
            solver="dense",
            consistency_weight=0.0,
            graph_weight=graph_weight,
            visible_fraction=visible_fraction,
            generator=generator,
            seed=seed,
        )
