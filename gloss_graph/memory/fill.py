"""Filling a bank in bulk: one pass of an encoder, then one neighbour search."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import track
from torch import Tensor, nn

from gloss_graph._internal.checks import check_tensor
from gloss_graph._internal.eval_mode import evaluating
from gloss_graph.neighbors.automatic import thorough

if TYPE_CHECKING:
    from gloss_graph.memory.bank import MemoryBank

_CHUNK = 1024


@torch.no_grad()
def fill(
    bank: MemoryBank,
    loader: Iterable[Mapping[str, Any] | Sequence[Any]],
    encoder: Callable[..., Tensor],
    progress: bool,
) -> None:
    """Encode and store every batch of `loader`, then link; see `MemoryBank.prefill`."""
    if not callable(encoder):
        raise TypeError(f"'encoder' must be callable (got {type(encoder).__name__}).")
    bank.check_writable()
    calm = evaluating(encoder) if isinstance(encoder, nn.Module) else nullcontext()
    before = _taken(bank)
    try:
        with calm:
            for batch in track(loader, "Filling the memory bank", disable=not progress):
                inputs, labels, ids = _unpack(batch)
                rows = encoder(**inputs) if isinstance(inputs, Mapping) else encoder(inputs)
                check_tensor("encoder", rows)
                bank.enqueue(rows.to(bank.rows.device), labels, ids, link=False)
        relink(bank, progress)
    except BaseException:
        _put_back(bank, before)
        raise


def _taken(bank: MemoryBank) -> dict[str, Tensor]:
    """Copies of a bank's buffers, of those with an entry a slot only the ones in use."""
    size = len(bank)
    return {
        name: (x[:size] if x.dim() and x.size(0) == bank.capacity else x).clone()
        for name, x in bank.named_buffers()
    }


def _put_back(bank: MemoryBank, before: dict[str, Tensor]) -> None:
    """Give the bank the state of `_taken`; unused slots become as `reset` leaves them."""
    drift = bank.last_drift
    bank.reset()
    bank.last_drift = drift
    for name, x in bank.named_buffers():
        (x if x.dim() == 0 else x[: before[name].size(0)]).copy_(before[name])
    bank._forget_derived()


@torch.no_grad()
def relink(bank: MemoryBank, progress: bool) -> None:
    """Give every row the list of its nearest rows; see `MemoryBank.relink`."""
    size = len(bank)
    k = min(bank.k, size - 1)
    if k < 1:
        return
    starts, searcher = range(0, size, _CHUNK), thorough(bank._searcher)
    for start in track(starts, "Linking the memory bank", disable=not progress):
        own = torch.arange(start, min(start + _CHUNK, size), device=bank.rows.device)
        found = searcher.others(bank.rows[own].float(), bank.rows, size, own, k)
        bank.links.replace(own, found.indices, found.squared_distances)


def _unpack(batch: Mapping[str, Any] | Sequence[Any]) -> tuple[Any, Tensor | None, Tensor | None]:
    if isinstance(batch, Mapping):
        inputs = dict(batch)
        return inputs, inputs.pop("labels", None), inputs.pop("ids", None)
    if isinstance(batch, Sequence) and 1 <= len(batch) <= 3:
        inputs, labels, ids = (*batch, None, None)[:3]
        return inputs, labels, ids
    raise ValueError(
        "'loader' must yield mappings or tuples (inputs[, labels[, ids]]) "
        f"(got {type(batch).__name__})."
    )
