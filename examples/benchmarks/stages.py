"""Stages of one training step at several bank sizes, beside an encoder's step and alternatives.

Run ``python examples/benchmarks/stages.py [--quick --dim 384 --threads 2 --out runs/stages]``. All
contenders take turns in one process, so a busy machine slows all of them: compare ratios.

``--against FOLDER`` compares the step with that of another checkout of this project instead: both
versions load the same full bank, each in a process of its own, and run their steps by turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from made import clustered, clusters_for_links, filled_bank
from rivals import UnrolledLayers, dense_loss, encoder_step
from tables import machine_note, plot_stages, show_tables
from torch import Tensor
from turns import limited_threads, peak_mib, seconds_of, take_turns, wait
from versions import compare_versions

from gloss_graph._internal.checks import check_positive_int
from gloss_graph.graph import build_document_graph
from gloss_graph.memory import MemoryBank
from gloss_graph.neighbors.search import check_search
from gloss_graph.objective import GraphGuidedObjective
from gloss_graph.propagation import LabelPropagation

STAGES = ("search", "graph", "propagation", "enqueue", "other", "backward")
SIGMA = 0.5
_RECALL_SAMPLE = 256


@dataclass(frozen=True)
class StageSettings:
    """What is measured.

    Attributes:
        banks: Rows of the banks.
        dims: Dimensions D.
        batch: B.
        k: Neighbors per row.
        classes: C.
        labeled: Share of the bank's rows with a label.
        dense_rows: N of the dense closed form; 0 leaves it out.
        unrolled_rows: Largest bank the 30 unrolled layers run on (2 GiB at 65,536).
        repeats: Rounds.
        encoder: `"minilm"`, a hub id or folder, or `"none"`.
        length: Tokens a document of the encoder's step.
        device: `"cpu"` or `"cuda"`.
        search: Back end of the banks, see `MemoryBank`.
        hops: Of the steps that solve over the surroundings of the batch only; 0 leaves them out.
        half_rows: Banks of more rows are stored in float16.
    """

    banks: tuple[int, ...] = (0, 4_096, 16_384, 65_536, 262_144, 1_048_576)
    dims: tuple[int, ...] = (384, 768)
    batch: int = 128
    k: int = 16
    classes: int = 8
    labeled: float = 0.7
    dense_rows: int = 2_048
    unrolled_rows: int = 65_536
    repeats: int = 5
    encoder: str = "minilm"
    length: int = 32
    device: str = "cpu"
    search: str = "auto"
    hops: int = 2
    half_rows: int = 524_288

    def __post_init__(self) -> None:
        if not self.banks or min(self.banks) < 0:
            raise ValueError(f"'banks' must be sizes >= 0 (got {self.banks}).")
        if min(self.repeats, self.batch, self.k, *self.dims) < 1 or self.classes < 2:
            raise ValueError("'repeats', 'batch', 'k' and 'dims' must be >= 1 and 'classes' >= 2.")
        if not 0.0 < self.labeled <= 1.0:
            raise ValueError(f"'labeled' must be in (0, 1] (got {self.labeled}).")
        check_search(self.search, max(self.banks))
        check_positive_int("hops", self.hops, minimum=0)
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError("'device' is cuda, but there is no GPU here. Use device='cpu'.")


class _Documents:
    """A full bank, and batches of its documents, which come again."""

    def __init__(self, rows: int, dim: int, settings: StageSettings) -> None:
        self.settings, self.device = settings, torch.device(settings.device)
        count = max(rows, 4 * settings.batch)
        many = clusters_for_links(count)
        x, y, clusters = clustered(count, dim, settings.classes, seed=rows, clusters=many)
        self.generator = torch.Generator().manual_seed(1)
        known = torch.rand(count, generator=self.generator) < settings.labeled
        dtype = torch.float16 if rows > settings.half_rows else torch.float32
        bank: MemoryBank | None = None
        if rows:
            marked = torch.where(known, y, -1)
            bank = filled_bank(
                x,
                marked,
                clusters,
                settings.k,
                dtype=dtype,
                device=self.device,
                search=settings.search,
            )
        # Kept to draw batches from, a bank's worth of rows only once.
        self.x, self.y, self.bank = (x if bank is None else None), y, bank
        self.count = count

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (B, D) that want a gradient, labels and ids of documents drawn anew."""
        ids = torch.randint(self.count, (2 * self.settings.batch,), generator=self.generator)
        ids = ids.unique()[torch.randperm(ids.unique().numel(), generator=self.generator)]
        ids = ids[: self.settings.batch]
        source = self.bank.rows if self.x is None and self.bank is not None else self.x
        rows = torch.zeros(0) if source is None else source[ids.to(source.device)].float().cpu()
        noise = torch.randn(rows.shape, generator=self.generator)
        x = (rows + 0.002 * noise).to(self.device)
        return x.requires_grad_(), self.y[ids].to(self.device), ids.to(self.device)


class _Steps:
    """Training steps of the objective; several may share the documents and their bank."""

    def __init__(
        self,
        documents: _Documents,
        *,
        normalization: str = "hub",
        search: str | None = None,
        hops: int | None = None,
        bandwidth: float | str = "sqrt",
    ) -> None:
        self.documents, self.device = documents, documents.device
        self.search = search or documents.settings.search
        self.seconds: list[dict[str, float]] = []
        self.objective = GraphGuidedObjective(
            documents.settings.classes,
            memory=documents.bank,
            k=documents.settings.k,
            # With a bank the seeds are remembered ones, and every row of the batch is scored.
            visible_fraction=0.7 if documents.bank is None else 0.0,
            normalization=normalization,
            hops=hops,
            bandwidth=bandwidth,
        )

    def __call__(self) -> None:
        x, y, ids = self.documents.batch()
        bank = self.documents.bank
        if bank is not None and bank.search_backend != self.search:
            bank.set_search(self.search)
        clock = self.objective.seconds
        clock.clear()
        wait(self.device)
        start = time.perf_counter()
        loss = self.objective(x, y, ids=ids)
        wait(self.device)
        middle = time.perf_counter()
        loss.backward()
        wait(self.device)
        end = time.perf_counter()
        stages = dict(clock)
        stages["other"] = middle - start - sum(stages.values())
        self.seconds.append({**stages, "backward": end - middle, "step": end - start})

    def medians(self) -> dict[str, float]:
        """Seconds by stage, the first round left out."""
        counted = self.seconds[1:] or self.seconds
        return {
            stage: statistics.median(spent.get(stage, 0.0) for spent in counted)
            for stage in (*STAGES, "step")
        }


def stage_table(settings: StageSettings, *, progress: bool = False) -> pd.DataFrame:
    """One row a bank and dimension: seconds by stage, shares of the alternatives, peak memory.

    Returns:
        Columns `dim`, `bank`, `dtype`, milliseconds `search`, `graph`, `propagation`, `enqueue`,
        `other`, `backward`, `step`; `hub / row`, against `normalization="row"`; `recall` of the
        search; the step with `exact` search (beside walks only) and with `hops`; `encoder` and
        `% of encoder`, with `hops` too; `dense`, the closed form at N = `dense_rows` in both
        precisions, and `dense / step` (only on the bank of that many rows less the batch, with the
        same bandwidth); `implicit` and `unrolled`, the solve with its gradient, and
        `unrolled / implicit`; `peak MiB`.
    """
    device = torch.device(settings.device)
    encoder = None
    if settings.encoder != "none":
        shape = (settings.batch, settings.length, settings.classes)
        encoder = encoder_step(settings.encoder, *shape, device)
    rows = []
    for dim in settings.dims:
        for bank in settings.banks:
            rows.append(_measure(bank, dim, settings, encoder, progress))
        if settings.dense_rows:
            rows.append(_measure_dense(dim, settings, progress))
    return pd.DataFrame(rows)


def _measure(
    bank: int,
    dim: int,
    settings: StageSettings,
    encoder: Callable[[], object] | None,
    progress: bool,
) -> dict[str, object]:
    device = torch.device(settings.device)
    documents = _Documents(bank, dim, settings)
    ours = _Steps(documents)
    calls: dict[str, Callable[[], object]] = {"step": ours}
    others: dict[str, _Steps] = {}
    if bank:
        # On the same bank, by turns: what the hub normalization and the exact search cost.
        others = {"row": _Steps(documents, normalization="row")}
        if settings.search in ("auto", "descent"):
            # An index would be built anew after every change of search, within the step.
            others["exact step"] = _Steps(documents, search="exact")
        if settings.hops:
            others[f"hops={settings.hops}"] = _Steps(documents, hops=settings.hops)
        calls.update(others)
    if encoder is not None:
        calls["encoder"] = encoder
    title = f"D={dim}, bank {bank:,}"
    taken = take_turns(calls, settings.repeats, device=device, title=title, progress=progress)
    spent = ours.medians()
    out: dict[str, object] = {"dim": dim, "bank": bank}
    dtype = torch.float32 if documents.bank is None else documents.bank.rows.dtype
    out["dtype"] = str(dtype).split(".")[-1]
    out.update({f"{stage} ms": 1e3 * spent[stage] for stage in (*STAGES, "step")})
    near = None
    if documents.bank is not None:
        taken_by = {name: steps.medians()["step"] for name, steps in others.items()}
        out["hub / row"] = spent["step"] / taken_by.pop("row")
        near = taken_by.get(f"hops={settings.hops}")
        out.update({f"{name} ms": 1e3 * value for name, value in taken_by.items()})
        documents.bank.set_search(settings.search)
        out["recall"] = documents.bank.recall(settings.k, _RECALL_SAMPLE)
    if encoder is not None:
        whole = statistics.median(taken["encoder"])
        out["encoder ms"] = 1e3 * whole
        out["% of encoder"] = 100.0 * spent["step"] / whole
        if near is not None:
            out[f"% of encoder, hops={settings.hops}"] = 100.0 * near / whole
    out["peak MiB"] = peak_mib(ours, device)
    if bank and bank <= settings.unrolled_rows:
        out.update(_against_unrolled(ours, settings))
    return out


def _against_unrolled(steps: _Steps, settings: StageSettings) -> dict[str, object]:
    """Implicit solve and 30 layers, forward and backward, on the graph of one step."""
    device = torch.device(settings.device)
    x, y, ids = steps.documents.batch()
    graph = build_document_graph(
        x.detach(), y, ids, memory=steps.documents.bank, k=settings.k, bandwidth="sqrt"
    )
    seeds = (graph.y >= 0) & ~graph.in_batch
    labels = torch.nn.functional.one_hot(graph.y.clamp(min=0), settings.classes).float()
    batch_edges = graph.in_batch[graph.edge_index].any(dim=0).nonzero().squeeze(1)
    weight = graph.edge_weight.detach()
    solver = LabelPropagation("harmonic", "hub", eta=0.2, num_classes=settings.classes)
    layers = UnrolledLayers(graph.edge_index, labels, seeds)

    def implicit() -> None:
        some = weight.clone().requires_grad_()
        solver.propagate_labels(
            labels, graph.edge_index, some, seeds, trainable_edges=batch_edges, trusted=True
        ).values[: settings.batch].square().sum().backward()

    def unrolled() -> None:
        some = weight.clone().requires_grad_()
        layers(some)[: settings.batch].square().sum().backward()

    taken = take_turns(
        {"implicit": implicit, "unrolled": unrolled}, min(3, settings.repeats), device=device
    )
    fast, slow = (statistics.median(taken[name]) for name in ("implicit", "unrolled"))
    # The step's own solve, on the rows the bank keeps; "implicit" gets a list of edges.
    spent = steps.medians()
    own = spent["propagation"] + spent["backward"]
    return {
        "implicit ms": 1e3 * fast,
        "unrolled ms": 1e3 * slow,
        "unrolled / implicit": slow / fast,
        "unrolled / step's solve": slow / own,
        "implicit peak MiB": peak_mib(implicit, device),
        "unrolled peak MiB": peak_mib(unrolled, device),
    }


def _measure_dense(dim: int, settings: StageSettings, progress: bool) -> dict[str, object]:
    """The closed form on N nodes against a step whose bank and batch are N nodes together.

    Both with the same bandwidth; both precisions, as the released code solves in float64.
    """
    device = torch.device(settings.device)
    total = settings.dense_rows
    ours = _Steps(_Documents(max(1, total - settings.batch), dim, settings), bandwidth=SIGMA)
    x, y, _ = (part.to(device) for part in clustered(total, dim, settings.classes, seed=3))
    visible = torch.rand(total, generator=torch.Generator().manual_seed(4)).to(device)
    shown = visible < settings.labeled

    def dense(points: Tensor) -> None:
        points.grad = None
        dense_loss(points, y, shown, SIGMA, settings.classes).backward()

    single, double = x.requires_grad_(), x.detach().double().requires_grad_()
    calls: dict[str, Callable[[], object]] = {
        "step": ours,
        "float32": partial(dense, single),
        "float64": partial(dense, double),
    }
    title = f"D={dim}, dense N={total:,}"
    taken = take_turns(calls, settings.repeats, device=device, title=title, progress=progress)
    spent = ours.medians()
    slow, slower = (statistics.median(taken[name]) for name in ("float32", "float64"))
    return {
        "dim": dim,
        "bank": total - settings.batch,
        "dtype": "float32",
        **{f"{stage} ms": 1e3 * spent[stage] for stage in (*STAGES, "step")},
        "dense float32 ms": 1e3 * slow,
        "dense / step": slow / spent["step"],
        "dense float64 ms": 1e3 * slower,
        "dense float64 / step": slower / spent["step"],
        "peak MiB": peak_mib(ours, device),
        "dense peak MiB": peak_mib(calls["float32"], device),
    }


def single_step(rows: int, dim: int, settings: StageSettings) -> Callable[[], float]:
    """A call that runs one step on a full bank and returns its seconds."""
    steps = _Steps(_Documents(rows, dim, settings))

    def run() -> float:
        # What every step took is not wanted here, and would grow with their number.
        steps.seconds.clear()
        return seconds_of(steps, torch.device(settings.device))

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = StageSettings()
    parser.add_argument("--quick", action="store_true", help="small sizes, about a minute")
    parser.add_argument("--bank", type=int, nargs="+", help="rows of the banks")
    parser.add_argument("--dim", type=int, nargs="+", help="dimensions of the embeddings")
    parser.add_argument("--batch-size", type=int, default=default.batch)
    parser.add_argument("--k", type=int, default=default.k, help="neighbors per document")
    parser.add_argument("--labeled", type=float, default=default.labeled, help="share of the bank")
    parser.add_argument("--encoder", help="minilm, a hub id, a folder, or none")
    parser.add_argument("--length", type=int, default=default.length, help="tokens per document")
    parser.add_argument("--repeats", type=int, help="rounds")
    parser.add_argument("--threads", type=int, help="of every library; default: theirs")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--search", default="auto", help="of the banks: auto, exact, descent, ivf")
    parser.add_argument("--hops", type=int, default=default.hops, help="0: without such steps")
    parser.add_argument("--against", type=Path, help="another checkout of this project")
    parser.add_argument("--out", type=Path, default=Path("runs/stages"))
    given = parser.parse_args()
    quick = given.quick
    settings = StageSettings(
        banks=tuple(given.bank or ((0, 1_024, 4_096) if quick else default.banks)),
        dims=tuple(given.dim or ((64,) if quick else default.dims)),
        batch=given.batch_size,
        k=given.k,
        labeled=given.labeled,
        dense_rows=1_024 if quick else default.dense_rows,
        unrolled_rows=4_096 if quick else default.unrolled_rows,
        repeats=given.repeats if given.repeats is not None else 2 if quick else default.repeats,
        encoder=given.encoder or ("none" if quick else default.encoder),
        length=given.length,
        device=given.device,
        search=given.search,
        hops=given.hops,
    )
    load = os.getloadavg()[0]
    with limited_threads(given.threads):
        if given.against is not None:
            title, table = "versions: one step", compare_versions(given.against, settings)
        else:
            title, table = "stages: one step", stage_table(settings, progress=True)
        note = machine_note(settings.repeats, load)
    show_tables({title: table}, given.out, note)
    if given.against is None:
        plot_stages(table, given.out / "stages.png")


if __name__ == "__main__":
    main()
