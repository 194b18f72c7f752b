"""Rows age while the encoder learns: how far they are off, and what can be done about it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gloss_graph._internal.checks import check_positive_int
from gloss_graph._internal.eval_mode import evaluating
from gloss_graph.memory.write import renew
from gloss_graph.neighbors.settings import ExactSearch

if TYPE_CHECKING:
    from gloss_graph.memory.bank import MemoryBank

Encode = Callable[[Tensor], Tensor]

# A row this many half-lives old decays no further, so that no node loses all its weight.
OLDEST = 30.0
_AGE_GROUPS = 4
_PART_ROWS = 1024


class AgeGroup(NamedTuple):
    """Sampled rows of one range of ages: `youngest` to `oldest`, their number, mean cosine."""

    youngest: int
    oldest: int
    rows: int
    mean: float


class Drift(NamedTuple):
    """Cosine between stored rows and what the encoder makes of the same documents now.

    `rows` compared, the `mean`, the least (`min`), the three `quartiles`, and up to four groups of
    about equal size `by_age`, the youngest first.
    """

    rows: int
    mean: float
    min: float
    quartiles: tuple[float, float, float]
    by_age: tuple[AgeGroup, ...]


def age_decay(age: Tensor, half_life: float) -> Tensor:
    r"""\(2^{-\mathrm{age} / h}\) of rows of this age (n,) in enqueue calls, float32, >= 2^-30."""
    return torch.exp2(-(age.float() / half_life).clamp(max=OLDEST))


@torch.no_grad()
def refresh_rows(bank: MemoryBank, encode: Encode, count: int) -> int:
    """Re-encode the stalest rows in place; see `MemoryBank.refresh`."""
    check_positive_int("count", count, minimum=0)
    if not callable(encode):
        raise TypeError(f"'encode' must be callable (got {type(encode).__name__}).")
    bank.check_writable()
    known = (bank.ids >= 0).nonzero().squeeze(1)
    count = min(count, known.numel())
    if count == 0:
        return 0
    # Of equal age the lowest slot first, on every device.
    order = bank.written_at[known] * bank.capacity + known
    slots = known[order.topk(count, largest=False).indices]
    x = _encoded(bank, encode, bank.ids[slots])
    bank.check_storable(x)
    renew(bank, slots, x, bank._neighbors(x, slots, bank.k))
    return count


@torch.no_grad()
def measure_drift(
    bank: MemoryBank, encode: Encode, sample: int, generator: torch.Generator
) -> Drift:
    """Compare a sample of rows with their re-encoded selves; see `MemoryBank.drift`."""
    check_positive_int("sample", sample)
    known = (bank.ids >= 0).nonzero().squeeze(1)
    if known.numel() == 0:
        raise ValueError(
            "The memory holds no row with an id, so nothing can be encoded again. Enqueue "
            "documents with 'ids' first."
        )
    drawn = torch.randperm(known.numel(), generator=generator)[:sample]
    slots = known[drawn.to(known.device)]
    x = _encoded(bank, encode, bank.ids[slots])
    cosine = F.cosine_similarity(x.double(), bank.rows[slots].double(), dim=1).cpu()
    marks = torch.tensor([0.25, 0.5, 0.75], dtype=cosine.dtype)
    low, middle, high = cosine.quantile(marks).tolist()
    return Drift(
        slots.numel(),
        float(cosine.mean()),
        float(cosine.min()),
        (low, middle, high),
        _by_age(bank.age[slots].cpu(), cosine),
    )


def _by_age(age: Tensor, cosine: Tensor) -> tuple[AgeGroup, ...]:
    """Groups of about equal size; rows of one age are never parted."""
    edges = torch.quantile(age.double(), torch.linspace(0, 1, _AGE_GROUPS + 1).double()[1:-1])
    group = torch.bucketize(age.double(), edges)
    found = []
    for number in group.unique().tolist():
        mine = group == number
        ages = age[mine]
        size = int(mine.sum())
        found.append(AgeGroup(int(ages.min()), int(ages.max()), size, float(cosine[mine].mean())))
    return tuple(found)


def _encoded(bank: MemoryBank, encode: Encode, ids: Tensor) -> Tensor:
    """What `encode` makes of documents now, checked and prepared for storage."""
    calm = evaluating(encode) if isinstance(encode, nn.Module) else nullcontext()
    with calm:
        x = encode(ids.clone())
    if isinstance(x, Tensor):
        x = x.to(bank.rows.device)
    x = bank._prepare("encode", x)
    if x.size(0) != ids.numel():
        raise ValueError(
            f"'encode' must return a row for each of the {ids.numel()} ids (got {x.size(0)})."
        )
    return x


@torch.no_grad()
def restandardized(bank: MemoryBank, x: Tensor, columns: int) -> MemoryBank:
    r"""A view of a bank whose rows have the mean and spread of a batch.

    Cross-batch normalisation (Ajanthan et al., 2023): per dimension
    \(r' = \mu_B + (r - \mu_M)\,\sigma_B / \sigma_M\), after which every row gets back the norm it
    had if the bank normalises. Search (always an exact one) and lengths to batch rows are those of
    the new rows; the lengths of inherited links stay those of the stored rows, both ends of which
    drifted alike. The bank itself is not changed.

    Args:
        bank: The bank.
        x: (B, D) rows of the batch, normalised here as the bank's are.
        columns: Only the first so many dimensions drift; frozen features behind them stay.

    Returns:
        A bank to read from. `bank` itself if it is empty or the batch has a single row, whose
        spread is unknown.

    Cost O((M + B) D) time, O(M D) memory.
    """
    if len(bank) == 0 or x.size(0) < 2:
        return bank
    batch = bank._prepare("embeddings", x)[:, :columns].float()
    wanted, mean = torch.std_mean(batch, dim=0, correction=0)
    rows = bank.embeddings.to(torch.float32, copy=bank.bits is None)
    # Parts that stay in the cache: whole passes would be bound by the memory.
    parts = rows[:, :columns].split(_PART_ROWS)
    center = torch.stack([part.sum(dim=0) for part in parts]).sum(dim=0) / len(bank)
    squares = [(part - center).square_().sum(dim=0) for part in parts]
    spread = (torch.stack(squares).sum(dim=0) / len(bank)).sqrt()
    # A dimension without spread among the stored rows is moved alone.
    scale = torch.where(spread > torch.finfo(spread.dtype).eps, wanted / spread, 1.0)
    shift = mean - center * scale
    for part in parts:
        norm = torch.linalg.vector_norm(part, dim=1, keepdim=True) if bank.normalize else None
        part.mul_(scale).add_(shift)
        if norm is not None:
            now = torch.linalg.vector_norm(part, dim=1, keepdim=True)
            part.mul_(norm / torch.where(now > 0, now, 1.0))
    view = copy.copy(bank)
    # Of a bank of few bits the rows are a module.
    view._modules = {name: part for name, part in bank._modules.items() if name != "rows"}
    view._buffers = {**bank._buffers, "rows": rows}
    view._slot_of = bank._slots()
    # An index of the stored rows knows nothing of these, and a new one would cost more.
    named = bank.search_backend
    view._searcher = ExactSearch(named if named in ("faiss", "matmul") else "auto")
    return view
