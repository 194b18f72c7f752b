"""Exact against approximate search of the memory bank: recall, time, upkeep and memory.

Run ``python examples/benchmarks/search.py --texts train.csv --rows 0 262144 --markdown``.

The rows are embeddings of the given texts (MiniLM, 32 tokens) or of ``--features FILE``, without
either points around random centers. ``--rows 0`` takes them as they are; for more, rows are
repeated with Gaussian noise of norm ``--noise``. Then there are many near copies, which is easier
than as many documents: believe ``bank.recall`` on your own bank.

All contenders share one float32 bank and take turns: 128 of its documents come back, moved by
``--drift`` (the norm of the noise: 0.2 is a cosine of .98), look for their neighbors, and are
written. The time of a search includes carrying the rows written before over; the recall is that of
these moved documents, against exact search. Medians; the ratio is that to exact search of the same
rows, in turns with it. Nothing is asserted about time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import NamedTuple

import faiss
import pandas as pd
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from turns import resident_mib

from gloss_graph import MemoryBank
from gloss_graph.neighbors import DescentSettings, IVFSettings, Search
from gloss_graph.neighbors.exact import nearest_allowed
from gloss_graph.neighbors.search import near_enough
from gloss_graph.text import load_encoder, read_features

BATCH = 128
SCREEN = Console(stderr=True)


class Row(NamedTuple):
    """One line of the table: build time of the index, memory of the process with it."""

    size: int
    name: str
    recall: float
    seconds: float
    ratio: float
    build: float | None
    memory: float | None


def embeddings(arguments: argparse.Namespace) -> Tensor:
    """Return distinct unit rows: of texts, of a file, or drawn."""
    if arguments.features:
        rows = torch.from_numpy(read_features(arguments.features)).float()
    elif arguments.texts:
        columns = [pd.read_csv(file)["text"].astype(str) for file in arguments.texts]
        texts = list(dict.fromkeys(text for column in columns for text in column))
        rows = torch.as_tensor(load_encoder("minilm", max_length=32).encode(texts))
    else:
        generator = torch.Generator().manual_seed(0)
        centers = torch.randn(256, 384, generator=generator)
        own = torch.randint(256, (16_384,), generator=generator)
        rows = centers[own] + 1.5 * torch.randn(16_384, 384, generator=generator)
    return F.normalize(rows, dim=1)


def more(rows: Tensor, count: int, noise: float, generator: torch.Generator) -> Tensor:
    """Return `count` unit rows near random ones of `rows`."""
    base = rows[torch.randint(len(rows), (count,), generator=generator)]
    shake = torch.randn(base.shape, generator=generator) * noise / rows.size(1) ** 0.5
    return F.normalize(base + shake, dim=1)


KINDS: dict[str, dict[str, Search]] = {
    "descent": {
        f"descent, width {w}, rounds {r}": DescentSettings(width=w, rounds=r)
        for w, r in ((16, 1), (16, 2), (32, 2))
    },
    "ivf": {f"ivf, {p} probes": IVFSettings(probes=p) for p in (4, 8, 16, 32, 64)},
}


def filled(real: Tensor, size: int, noise: float, generator: torch.Generator) -> MemoryBank:
    """Return a linked bank of `size` rows."""
    bank = MemoryBank(size, real.size(1), k=16)
    for start in range(0, size, 8192):
        ids = torch.arange(start, min(start + 8192, size))
        rows = real[ids] if size == len(real) else more(real, len(ids), noise, generator)
        bank.enqueue(rows, ids=ids, link=False)
    # Exact links of many rows take hours.
    bank.set_search("exact" if size <= 100_000 else IVFSettings(probes=64))
    bank.relink(progress=True)
    return bank


def compare(bank: MemoryBank, real: Tensor, kind: str, arguments: argparse.Namespace) -> list[Row]:
    """Return the contenders of one kind, and exact search in turns with them."""
    generator = torch.Generator().manual_seed(2)
    names = KINDS[kind]
    start = time.perf_counter()
    bank.set_search(kind)
    bank.search(bank.rows[:1], 1)
    build, memory = time.perf_counter() - start, resident_mib()
    recall: dict[str, list[float]] = {name: [] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in ("exact", *names)}
    for _ in track(range(arguments.repeats), f"{kind}, {len(bank):,} rows", console=SCREEN):
        for name, times in seconds.items():
            if name in names:  # of one kind: its index is kept
                bank.set_search(names[name])
            ids = torch.randperm(len(bank), generator=generator)[:BATCH]
            rows = bank.rows[ids]
            shake = torch.randn(rows.shape, generator=generator) / rows.size(1) ** 0.5
            rows = F.normalize(rows + arguments.drift * shake, dim=1)
            start = time.perf_counter()
            exact = nearest_allowed(rows, bank.embeddings, arguments.k, bank.slots_of(ids).unique())
            if name in names:
                start = time.perf_counter()
                found = bank.neighbors(rows, ids, arguments.k).squared_distances
            times.append(time.perf_counter() - start)
            if name in names:
                hits = near_enough(found, exact.squared_distances)
                recall[name].append(float(hits.float().mean()))
            bank.enqueue(rows, ids=ids)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    rows = [Row(len(bank), "exact", 1.0, median["exact"], 1.0, None, None)]
    for name in names:
        ratio = median["exact"] / median[name]
        rows.append(
            Row(len(bank), name, statistics.mean(recall[name]), median[name], ratio, build, memory)
        )
    return rows


def show(rows: list[Row], k: int, markdown: bool) -> None:
    """Print the table."""
    head = ("rows", "search", f"recall@{k}", "ms", "faster", "build s", "resident MiB")
    body = [
        (
            f"{row.size:,}",
            row.name,
            f"{row.recall:.3f}",
            f"{1000 * row.seconds:.1f}",
            f"{row.ratio:.1f}x",
            "" if row.build is None else f"{row.build:.1f}",
            "" if row.memory is None else f"{row.memory:.0f}",
        )
        for row in rows
    ]
    if markdown:
        lines = [head, ("---",) * len(head), *body]
        print("\n".join(f"| {' | '.join(line)} |" for line in lines))
        return
    table = Table(*head)
    for line in body:
        table.add_row(*line)
    Console().print(table)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", nargs="*", default=[], help="CSV files with a column 'text'")
    parser.add_argument("--features", help="embeddings instead of texts")
    parser.add_argument("--rows", type=int, nargs="+", default=[0, 65_536], help="0: as given")
    parser.add_argument("--noise", type=float, default=0.6)
    parser.add_argument("--k", type=int, default=16)
    parser.add_argument("--drift", type=float, default=0.2, help="norm of the moves")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--markdown", action="store_true")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
        faiss.omp_set_num_threads(arguments.threads)
    real = embeddings(arguments)
    rows = []
    for size in arguments.rows:
        generator = torch.Generator().manual_seed(1)
        bank = filled(real, size or len(real), arguments.noise, generator)
        for kind in KINDS:
            rows += compare(bank, real, kind, arguments)
    show(rows, arguments.k, arguments.markdown)


if __name__ == "__main__":
    main()
