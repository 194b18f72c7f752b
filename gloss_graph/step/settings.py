"""The settings of an objective, checked before anything is made from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from gloss_graph._internal.checks import check_choice, check_positive_int, check_range, check_seed
from gloss_graph.graph.bandwidth import check_bandwidth, check_fits_bank
from gloss_graph.graph.build import BATCH_EDGES
from gloss_graph.graph.checks import check_memory
from gloss_graph.graph.symmetrize import SYMMETRIZE
from gloss_graph.losses.graph import FORMS
from gloss_graph.losses.multilabel import check_multilabel

_SHARES = ("visible_fraction", "memory_visible_fraction", "graph_weight", "anchor", "align")
_COUNTS = ("consistency_start", "consistency_ramp", "refresh_every")


def check_settings(given: Mapping[str, Any]) -> str:
    """Check the settings of `GraphGuidedObjective` that no part of it checks by itself.

    Args:
        given: All of them, by name.

    Returns:
        The form of the loss, decided where it was left open.

    Raises:
        TypeError: A bank that is none.
        ValueError: A setting out of range or unknown, or one that excludes another.
    """
    num_classes, multilabel, rule = given["num_classes"], given["multilabel"], given["rule"]
    check_positive_int("num_classes", num_classes, minimum=1 if multilabel else 2)
    check_positive_int("k", given["k"])
    check_bandwidth(given["bandwidth"])
    check_choice("symmetrize", given["symmetrize"], SYMMETRIZE)
    check_choice("batch_edges", given["batch_edges"], BATCH_EDGES)
    for name in _SHARES:
        check_range(name, given[name], 0.0, 1.0)
    weight = given["consistency_weight"]
    check_range("consistency_weight", weight, 0.0, float("inf"), open_high=True)
    for name in _COUNTS:
        check_positive_int(name, given[name], minimum=0)
    check_seed("seed", given["seed"])
    generator = given["generator"]
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(
            f"'generator' must be a torch.Generator (got {type(generator).__name__}). Or pass "
            "'seed'."
        )
    if given["hops"] is not None:
        check_positive_int("hops", given["hops"])
    memory, form = given["memory"], given["form"]
    check_memory(memory, given["normalize_embeddings"])
    if memory is not None and memory.capacity:
        check_fits_bank(given["bandwidth"])
    check_multilabel(multilabel, num_classes, memory, rule, form, given["bandwidth"])
    form = form or ("scores" if rule == "poisson" else "nll")
    check_choice("form", form, FORMS)
    if rule == "poisson" and form in ("nll", "published"):
        raise ValueError(f"form={form!r} needs probabilities; rule='poisson' gives scores.")
    return str(form)
