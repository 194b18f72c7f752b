"""Time of the graph-guided objective: against the dense closed form, and beside an encoder step.

Run ``python examples/benchmarks/objective.py [--repeats 15 --threads 2 --quick --markdown]``.

1. Within a batch (B = 128, D = 768, C = 8, 30 % of the labels hidden): forward and backward of the
   objective against the closed form of G-Loss written with dense PyTorch operations: normalization
   by broadcasting (never by products with diagonal matrices, which cost more than the solve) and
   one ``torch.linalg.solve``. Both are checked to give the same loss and gradient first.
2. With a memory bank (D = 384, B = 32): forward, backward and refresh of the batch's rows, as a
   share of a training step of MiniLM (forward, backward, AdamW; 32 texts of 128 random tokens).
   ``--bank 0 4096 16384 65536`` shows how it grows.

All contenders take turns in one process, so a busy machine slows all of them; medians are
compared. Nothing is asserted about time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import faiss
import torch
import torch.nn.functional as F
from made import clustered
from rich.console import Console
from rich.table import Table
from rivals import dense_loss
from torch import Tensor
from turns import take_turns

from gloss_graph import GraphGuidedObjective, MemoryBank, ObjectiveOutput
from gloss_graph.text import load_encoder
from gloss_graph.training import TextClassifier

CLASSES, SIGMA = 8, 0.5
STAGES = ("search", "graph", "propagation", "enqueue", "other", "backward")


def within_batch(repeats: int) -> list[list[str]]:
    """Rows of the first table."""
    x, y, _ = clustered(128, 768, CLASSES, seed=0)
    x.requires_grad_()
    visible = torch.rand(128, generator=torch.Generator().manual_seed(1)) >= 0.3

    def run(loss: Callable[[], Tensor]) -> tuple[float, Tensor]:
        x.grad = None
        value = loss()
        value.backward()
        return value.item(), x.grad

    def dense(dtype: torch.dtype, form: str) -> Tensor:
        return dense_loss(x.to(dtype), y, visible, SIGMA, CLASSES, hub=form == "hub")

    objectives = {
        "published": GraphGuidedObjective.published(CLASSES, SIGMA),
        "hub": GraphGuidedObjective(
            CLASSES, bandwidth=SIGMA, eta=0.0, loss="published", batch_edges="all"
        ),
    }
    rows = []
    for form, objective in objectives.items():
        losses = {
            "gloss_graph": partial(objective, x, y, visible=visible),
            "dense, float64": partial(dense, torch.float64, form),
            "dense, float32": partial(dense, torch.float32, form),
        }
        expected, gradient = run(losses["dense, float64"])
        off = {}
        for name, loss in losses.items():
            value, other = run(loss)
            off[name] = float((other - gradient).norm() / gradient.norm())
            if abs(value - expected) > 1e-4 * abs(expected) or off[name] > 1e-3:
                raise SystemExit(f"{name} ({form}) disagrees: loss {value}, expected {expected}.")
        taken = take_turns({name: partial(run, loss) for name, loss in losses.items()}, repeats)
        ours = statistics.median(taken["gloss_graph"])
        for name, times in taken.items():
            median = statistics.median(times)
            cells = (
                f"{off[name]:.0e}",
                f"{1e3 * median:.2f}",
                f"{1e3 * min(times):.2f}",
                f"{ours / median:.2f}",
            )
            rows.append([f"{form}: {name}", *cells])
    return rows


class BankStep:
    """The objective on a full bank: stored documents come by again, moved a little."""

    def __init__(self, size: int, dim: int, labeled: float, batch: int) -> None:
        self.generator = torch.Generator().manual_seed(size)
        self.x, y, _ = clustered(size or 1_024, dim, CLASSES, seed=size)
        self.y = torch.where(torch.rand(y.numel(), generator=self.generator) < labeled, y, -1)
        self.batch = batch
        bank = MemoryBank(size, dim)
        # Rows first, then one exact search that fills every neighbor list.
        bank.prefill([(self.x, self.y, torch.arange(y.numel()))], lambda rows: rows)
        # With a bank every labeled row of the batch is scored: the seeds are remembered ones.
        visible = 0.0 if size else 0.7
        self.objective = GraphGuidedObjective(CLASSES, memory=bank, visible_fraction=visible)
        self.seconds: list[dict[str, float]] = []
        self.out: ObjectiveOutput | None = None

    def __call__(self) -> None:
        """One forward, refresh and backward."""
        # Half of the batch labeled, so that there is something to score.
        known = (self.y >= 0).nonzero().squeeze(1)
        some = known[torch.randperm(known.numel(), generator=self.generator)[: self.batch // 2]]
        free = (self.y < 0).nonzero().squeeze(1)
        missing = self.batch - some.numel()
        others = free[torch.randperm(free.numel(), generator=self.generator)[:missing]]
        ids = torch.cat([some, others])
        rows = self.x[ids]
        rows = (rows + 0.002 * torch.randn(rows.shape, generator=self.generator)).requires_grad_()

        self.objective.seconds.clear()
        start = time.perf_counter()
        self.out = self.objective(rows, self.y[ids], ids=ids, return_output=True)
        middle = time.perf_counter()
        self.out.loss.backward()
        stages = dict(self.objective.seconds)
        stages["other"] = middle - start - sum(stages.values())
        self.seconds.append({**stages, "backward": time.perf_counter() - middle})


def beside_encoder(settings: argparse.Namespace, repeats: int) -> list[list[str]]:
    """Rows of the second table."""
    encoder = load_encoder("minilm", max_length=settings.length)
    classifier = TextClassifier(encoder, [str(c) for c in range(CLASSES)]).train()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-5, fused=True)
    tokens = torch.randint(1000, 30_000, (settings.batch, settings.length))
    target = torch.randint(CLASSES, (settings.batch,))

    def encoder_step() -> None:
        logits = classifier(tokens, torch.ones_like(tokens)).logits
        F.cross_entropy(logits, target).backward()
        optimizer.step()
        optimizer.zero_grad()

    steps = {
        f"bank of {size:,}": BankStep(size, encoder.dim, settings.labeled, settings.batch)
        for size in settings.bank
    }
    taken = take_turns({"MiniLM step": encoder_step, **steps}, repeats)
    whole = 1e3 * statistics.median(taken["MiniLM step"])
    rows = [["MiniLM step", "", "", f"{whole:.0f}", *[""] * len(STAGES), ""]]
    for name, step in steps.items():
        # Without the time it takes to draw the batch.
        median = 1e3 * statistics.median(sum(spent.values()) for spent in step.seconds[1:])
        stages = [
            1e3 * statistics.median(spent.get(stage, 0.0) for spent in step.seconds[1:])
            for stage in STAGES
        ]
        counts = [f"{step.out.graph.num_edges:,}", str(step.out.solver.iterations)]
        times = [f"{spent:.1f}" for spent in (median, *stages)]
        rows.append([name, *counts, *times, f"{100 * median / whole:.2f} %"])
    return rows


def show(title: str, columns: list[str], rows: list[list[str]], markdown: bool) -> None:
    if markdown:
        print(f"\n{title}\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for row in rows:
            print(f"| {' | '.join(row)} |")
        return
    table = Table(title=title)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    console = Console()
    # Wide enough for every column where the output goes to a file.
    (console if console.is_terminal else Console(width=120)).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15, help="rounds of table 2; 4x in table 1")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--bank", type=int, nargs="+", default=[16_384], help="rows")
    parser.add_argument("--labeled", type=float, default=0.05, help="share of the bank's rows")
    parser.add_argument("--batch", type=int, default=32, help="documents beside the encoder")
    parser.add_argument("--length", type=int, default=128, help="tokens a document")
    parser.add_argument("--quick", action="store_true", help="3 rounds")
    parser.add_argument("--markdown", action="store_true")
    settings = parser.parse_args()
    repeats = 3 if settings.quick else settings.repeats
    if repeats < 1 or min(settings.bank) < 0 or not 0 < settings.labeled <= 1:
        parser.error("--repeats >= 1, --bank >= 0 and 0 < --labeled <= 1 are needed")
    if settings.threads:
        torch.set_num_threads(settings.threads)
        faiss.omp_set_num_threads(settings.threads)
    torch.manual_seed(0)
    load = os.getloadavg()[0]

    show(
        f"Forward + backward within a batch of 128, D = 768; median of {4 * repeats} in turns",
        ["", "gradient off by", "ms", "best ms", "gloss_graph / this"],
        within_batch(4 * repeats),
        settings.markdown,
    )
    show(
        f"A batch of {settings.batch} beside the encoder, D = 384, {settings.length} tokens; "
        f"median of {repeats} in turns",
        ["", "edges", "solver steps", "ms", *STAGES, "of MiniLM's"],
        beside_encoder(settings, repeats),
        settings.markdown,
    )
    print(
        f"\n{torch.get_num_threads()} threads, torch {torch.__version__}, load average "
        f"{load:.1f} at the start and {os.getloadavg()[0]:.1f} at the end"
    )


if __name__ == "__main__":
    main()
