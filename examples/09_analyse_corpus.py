"""Find what a corpus is about, who stands between its subjects, and how two documents connect.

The whole-corpus graph of ``document_graph`` goes to NetworkX: communities (Louvain), the words that
set each apart, the documents that bridge communities (betweenness) and the chain of most similar
documents between two texts. The communities then travel with the graph into a file for Gephi and a
pair of Parquet tables. The documents are those of a table with the columns ``text`` and, if there
are labels, ``label``, those of a finished run in its trained space, or the documentation of
installed packages.

Run ``python examples/09_analyse_corpus.py [--input my.csv | --run runs/mine] [--start "first words"
--end "first words"]``. With nx-parallel or nx-cugraph installed, ``--backend parallel`` or
``--backend cugraph`` lets them compute the centrality.
"""

import argparse
import math
import textwrap
from pathlib import Path

import networkx as nx
import torch
from rich.console import Console
from rich.table import Table

from gloss_graph.analysis import document_graph, group_words
from gloss_graph.export import read_graph, to_networkx, write_graph
from gloss_graph.text import docstring_corpus


def starting_with(texts: list[str], words: str | None, otherwise: int) -> int:
    """Position of the first document that starts with the words."""
    if words is None:
        return otherwise
    found = [i for i, text in enumerate(texts) if text.lower().startswith(words.lower())]
    if not found:
        raise SystemExit(f"No document starts with {words!r}.")
    return found[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--input", help="CSV, TSV, JSONL or Parquet; default: the demo corpus")
    parser.add_argument("--run", help="run folder of gloss-graph train, in place of --input")
    parser.add_argument("--documents", type=int, default=1_000, help="size of the demo corpus")
    parser.add_argument("--k", type=int, default=10, help="neighbors per document")
    parser.add_argument("--start", help="first words of the document a path starts from")
    parser.add_argument("--end", help="first words of the document it leads to")
    parser.add_argument("--backend", help="NetworkX backend for the centrality")
    parser.add_argument("--out", type=Path, default=Path("corpus.gexf"))
    settings = parser.parse_args()

    # "mutual" leaves out hubs that everybody lists; "local" gives every document a kernel width of
    # its own.
    shape = {"k": settings.k, "symmetrize": "mutual", "bandwidth": "local", "progress": True}
    if settings.run:
        data = document_graph(settings.run, **shape)
    else:
        source = settings.input or docstring_corpus(max_documents=settings.documents).train
        data = document_graph(source, encoder="minilm", max_length=64, **shape)
    graph = to_networkx(data, max_text=None)
    print(f"{data.search} search, {graph}, {nx.number_connected_components(graph)} components")

    # Subjects. Louvain depends on the order of visits, hence the seed.
    communities = nx.community.louvain_communities(graph, weight="weight", seed=0)
    groups = sorted((sorted(group) for group in communities if len(group) > 2), key=len)[::-1]
    table = Table(title=f"{len(groups)} communities of three documents or more")
    table.add_column("documents", justify="right")
    table.add_column("what sets them apart")
    table.add_column("for example")
    data.community = torch.full((data.num_nodes,), -1)
    for number, group in enumerate(groups):
        data.community[group] = number
    words = group_words(data.text, data.community, top=4)
    for number, group in enumerate(groups[:10]):
        central = max(group, key=lambda node: graph.degree(node, weight="weight"))
        example = textwrap.shorten(data.text[central], 50, placeholder="...")
        table.add_row(str(len(group)), ", ".join(words[number]), example)
    Console(width=110).print(table)

    # Bridges: on the shortest paths between many others. -log(weight) is a length, so a path is
    # short if the product of its similarities is large. A sample of sources will do.
    for _, _, edge in graph.edges(data=True):
        edge["length"] = -math.log(min(max(edge["weight"], 1e-300), 1.0))
    backend = {"backend": settings.backend} if settings.backend else {}
    between = nx.betweenness_centrality(
        graph, k=min(len(graph), 200), weight="length", seed=0, **backend
    )
    print("\nDocuments between the subjects:")
    for node in sorted(between, key=between.get, reverse=True)[:3]:
        print(f"  {between[node]:.3f}  {textwrap.shorten(data.text[node], 90, placeholder='...')}")

    # The way from one document to another; by default between the two largest communities.
    connected = max(nx.connected_components(graph), key=len)
    anchors = [
        max(set(group) & connected, key=lambda node: graph.degree(node, weight="weight"))
        for group in groups
        if set(group) & connected
    ]
    start = starting_with(data.text, settings.start, anchors[0])
    end = starting_with(data.text, settings.end, anchors[min(1, len(anchors) - 1)])
    if not nx.has_path(graph, start, end):
        raise SystemExit("No path connects the two documents: raise --k.")
    path = nx.shortest_path(graph, start, end, weight="length")
    print(f"\nFrom one to the other in {len(path) - 1} steps:")
    for node in path:
        print(f"  {textwrap.shorten(data.text[node], 100, placeholder='...')}")

    # What was found goes into the files as columns of the documents.
    data.betweenness = torch.tensor([between[node] for node in range(data.num_nodes)])
    files = write_graph(data, settings.out, overwrite=True, max_text=500)
    files += write_graph(data, settings.out.with_suffix(".parquet"), overwrite=True)
    again = read_graph(settings.out.with_suffix(".parquet"))
    print(f"\nRead again, the communities are the same: {again.community.equal(data.community)}")
    for file in files:
        print(f"Written: {file} ({file.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
