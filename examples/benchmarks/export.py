"""Export to NetworkX and GraphML, against PyG's ``to_networkx`` and NetworkX's ``write_graphml``.

Run ``python examples/benchmarks/export.py [--nodes 20000 --edges 300000 --file-edges 30000
--table-edges 1000000 --repeats 3]``. GraphML is written of a smaller graph, because NetworkX takes
long; the one of ``--table-edges`` is written as tables and as a matrix, where there is nothing to
compare with. Both sides convert the same graph with the same five node attributes and the edge
weight. They take turns in one process, so a busy machine slows both; the medians are compared.
Memory is the peak of Python's allocations while the call runs, measured in a run of its own.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import torch
from rich.console import Console
from rich.table import Table
from torch_geometric.data import Data
from torch_geometric.utils import coalesce
from torch_geometric.utils import to_networkx as pyg_to_networkx

from gloss_graph.export import to_networkx, write_graph, write_graphml

NODE_COLUMNS = {
    "doc_id": "doc_id",
    "y": "label",
    "age": "age",
    "in_batch": "in_batch",
    "seed_mask": "seed",
}


def make_graph(num_nodes: int, num_edges: int) -> Data:
    """Return a random document graph with about ``num_edges`` undirected edges."""
    generator = torch.Generator().manual_seed(0)
    ends = torch.randint(num_nodes, (2, num_edges), generator=generator)
    low, high = ends[:, ends[0] != ends[1]].sort(dim=0).values
    pairs = coalesce(torch.stack([low, high]))
    weight = torch.rand(pairs.size(1), generator=generator)
    edge_index, edge_weight = coalesce(
        torch.cat([pairs, pairs.flip(0)], dim=1), torch.cat([weight, weight])
    )
    return Data(
        edge_index=edge_index,
        edge_weight=edge_weight,
        num_nodes=num_nodes,
        doc_id=torch.arange(num_nodes),
        y=torch.randint(-1, 8, (num_nodes,), generator=generator),
        age=torch.randint(0, 500, (num_nodes,), generator=generator),
        in_batch=torch.arange(num_nodes) < 128,
        seed_mask=torch.rand(num_nodes, generator=generator) < 0.3,
    )


def check_equal(ours: nx.Graph, theirs: nx.Graph) -> None:
    """Stop if the two conversions do not hold the same graph."""
    renamed = {
        node: {NODE_COLUMNS[key]: value for key, value in data.items()}
        for node, data in theirs.nodes(data=True)
    }
    if dict(ours.nodes(data=True)) != renamed:
        raise SystemExit("The node attributes differ.")
    if ours.number_of_edges() != theirs.number_of_edges() or any(
        data["weight"] != theirs.edges[i, j]["edge_weight"] for i, j, data in ours.edges(data=True)
    ):
        raise SystemExit("The edges differ.")


def seconds(call: Callable[[], Any]) -> float:
    gc.collect()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def peak_mib(call: Callable[[], Any]) -> float:
    gc.collect()
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--edges", type=int, default=300_000, help="undirected edges")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--file-edges", type=int, default=30_000, help="of the GraphML file")
    parser.add_argument("--table-edges", type=int, default=1_000_000, help="of the large graph")
    settings = parser.parse_args()
    sizes = (settings.nodes - 1, settings.edges, settings.repeats, settings.table_edges)
    sizes += (settings.file_edges,)
    if min(sizes) < 1:
        parser.error("--nodes must be at least 2, the other numbers at least 1")

    data = make_graph(settings.nodes, settings.edges)
    graph = to_networkx(data)

    def theirs() -> nx.Graph:
        columns = list(NODE_COLUMNS)
        return pyg_to_networkx(data, columns, ["edge_weight"], to_undirected=True)

    check_equal(graph, theirs())
    share = min(1.0, settings.file_edges / settings.edges)
    small = make_graph(max(2, round(share * settings.nodes)), round(share * settings.edges))
    written = to_networkx(small)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rounds: dict[str, list[tuple[str, Callable[[], Any]]]] = {
            "graph": [
                ("torch_geometric to_networkx", theirs),
                ("gloss_graph to_networkx", lambda: to_networkx(data)),
            ],
            "file": [
                (
                    "networkx write_graphml",
                    lambda: nx.write_graphml(written, folder / "a.graphml"),
                ),
                (
                    "gloss_graph write_graphml",
                    lambda: write_graphml(written, folder / "b.graphml", overwrite=True),
                ),
            ],
        }
        table = Table(
            title=f"{graph.number_of_nodes():,} nodes, {graph.number_of_edges():,} edges, "
            f"5 node attributes + weight (files: {written.number_of_edges():,} edges); median of "
            f"{settings.repeats} in turns"
        )
        for column in ("", "seconds", "times faster", "peak MiB", "times less"):
            table.add_column(column, justify="left" if not column else "right")
        for pair in rounds.values():
            taken: list[list[float]] = [[] for _ in pair]
            for _ in range(settings.repeats):
                for i, (_, call) in enumerate(pair):
                    taken[i].append(seconds(call))
            medians = [statistics.median(times) for times in taken]
            peaks = [peak_mib(call) for _, call in pair]
            for (title, _), median, peak in zip(pair, medians, peaks, strict=True):
                table.add_row(
                    title,
                    f"{median:.2f}",
                    f"{medians[0] / median:.1f}",
                    f"{peak:.0f}",
                    f"{peaks[0] / peak:.1f}",
                )
            table.add_section()
    Console().print(table)
    Console().print(large_graph(settings.table_edges, settings.repeats))


def large_graph(num_edges: int, repeats: int) -> Table:
    """Seconds, memory and size of the formats for large graphs."""
    data = make_graph(max(2, num_edges // 10), num_edges)
    edges = data.edge_index.size(1) // 2
    table = Table(
        title=f"{data.num_nodes:,} nodes, {edges:,} edges; median of {repeats}",
    )
    for column in ("", "seconds", "peak MiB", "MB"):
        table.add_column(column, justify="left" if not column else "right")
    for suffix in ("parquet", "csv", "npz"):
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / f"graph.{suffix}"

            def write(path: Path = path) -> None:
                write_graph(data, path, overwrite=True)

            median = statistics.median(seconds(write) for _ in range(repeats))
            peak = peak_mib(write)
            size = sum(file.stat().st_size for file in path.parent.iterdir())
        table.add_row(f"write_graph .{suffix}", f"{median:.2f}", f"{peak:.0f}", f"{size / 1e6:.1f}")
    return table


if __name__ == "__main__":
    main()
