"""Ask NetworkX about a corpus: communities, central documents, the path between two texts.

Embeds documents with MiniLM (documentation of installed packages, 12 topics, or a table with the
columns ``text`` and ``label``), connects each to its nearest ones and hands the graph to NetworkX.
Nothing is trained and no label is used to build the graph, so the agreement of communities and
labels says what the embedding knows already.

Run ``python examples/04_networkx_analysis.py [--train my.csv --documents 1000 --k 8]``.
"""

import argparse
import math
import textwrap
from collections import Counter
from pathlib import Path

import networkx as nx
import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics import normalized_mutual_info_score

from gloss_graph import build_document_graph, to_networkx
from gloss_graph.export import write_graphml
from gloss_graph.text import docstring_corpus, load_encoder, read_splits


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train", help="CSV, TSV, JSONL or Parquet; default: the demo corpus")
    parser.add_argument("--documents", type=int, default=1_000, help="size of the demo corpus")
    parser.add_argument("--k", type=int, default=8, help="neighbors per document")
    parser.add_argument("--out", type=Path, default=Path("documents.graphml"))
    settings = parser.parse_args()

    if settings.train:
        corpus = read_splits(settings.train).train
    else:
        corpus = docstring_corpus(max_documents=settings.documents).train
    encoder = load_encoder("minilm", max_length=64)
    rows = encoder.encode(corpus.texts)

    # "local": every document has a kernel width of its own, so dense and sparse regions of the
    # corpus are both connected and weights tell neighbors apart.
    data = build_document_graph(
        rows,
        torch.tensor(corpus.labels),
        torch.tensor(corpus.ids),
        k=settings.k,
        bandwidth="local",
    )
    # Nodes are positions in the corpus; attributes are plain Python values.
    graph = to_networkx(data, corpus.texts, label_names=corpus.label_names, max_text=None)
    print(f"{corpus}: {graph}")

    # Communities. Louvain depends on the order of visits, hence the seed.
    communities = nx.community.louvain_communities(graph, weight="weight", seed=0)
    communities.sort(key=len, reverse=True)
    found = {node: number for number, group in enumerate(communities) for node in group}
    nx.set_node_attributes(graph, found, "community")
    labels = nx.get_node_attributes(graph, "label")
    named = [node for node in graph if labels[node]]  # "" = unlabeled
    agreement = normalized_mutual_info_score(
        [labels[node] for node in named], [found[node] for node in named]
    )
    modularity = nx.community.modularity(graph, communities)

    # Central documents: where a random walk over the similarities spends its time.
    centrality = nx.pagerank(graph, weight="weight")
    nx.set_node_attributes(graph, centrality, "pagerank")

    table = Table(title=f"{len(communities)} Louvain communities, modularity {modularity:.2f}")
    for column in ("documents", "most frequent topic", "share", "most central document"):
        table.add_column(column, justify="right" if column in ("documents", "share") else "left")
    for group in communities[:8]:
        topic, count = Counter(labels[node] for node in group).most_common(1)[0]
        central = max(group, key=centrality.get)
        text = textwrap.shorten(corpus.texts[central], 60, placeholder="...")
        table.add_row(str(len(group)), topic, f"{100 * count / len(group):.0f} %", text)
    Console(width=110).print(table)
    print(
        f"Normalized mutual information of communities and topics: {agreement:.2f} "
        "(0: unrelated, 1: the same partition)"
    )

    # The path between the central documents of two topics. -log(weight) is a length: the
    # shortest path is the chain of documents whose product of similarities is largest.
    for _, _, edge in graph.edges(data=True):
        edge["length"] = -math.log(max(edge["weight"], 1e-300))
    connected = max(nx.connected_components(graph), key=len)
    topics = sorted({labels[node] for node in connected if labels[node]})
    start, end = (
        max((node for node in connected if labels[node] == topic), key=centrality.get)
        for topic in (topics[0], topics[-1])
    )
    path = nx.shortest_path(graph, start, end, weight="length")
    print(f"\nFrom {topics[0]!r} to {topics[-1]!r} in {len(path) - 1} steps:")
    for node in path:
        text = textwrap.shorten(corpus.texts[node], 90, placeholder="...")
        print(f"  [{labels[node]}] {text}")
    if len(connected) < len(graph):
        apart = len(graph) - len(connected)
        print(f"{apart} documents are not connected to these: raise --k to reach them.")

    # For Gephi, Cytoscape or yEd, with text, label, community and centrality on every node.
    write_graphml(graph, settings.out, overwrite=True)
    print(f"\nWritten: {settings.out} ({settings.out.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
