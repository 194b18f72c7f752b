"""Find wrong labels in a corpus, and see which documents speak against each.

Embeds documents with MiniLM (documentation of installed packages, 12 topics, or a table with the
columns ``text`` and ``label``), connects each to its nearest ones and audits the labels: every
label is hidden in turn and compared with what its neighborhood says. Nothing is trained. Some
labels are replaced by wrong ones first, so that the printed share of them among the first
suspects says how far the ranking can be trusted; ``--flip 0`` audits the labels as they are.

Run ``python examples/10_audit_labels.py [--train my.csv --documents 1500 --flip 0.05]``; a minute
on two cores as it stands.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from gloss_graph import build_document_graph
from gloss_graph.analysis import audit, explain, measures
from gloss_graph.reports import measures_summary
from gloss_graph.text import docstring_corpus, load_encoder, read_splits
from gloss_graph.visualization import plot_explanation


def flipped(labels: torch.Tensor, share: float, seed: int) -> torch.Tensor:
    """Labels (N,) of which a share is another class, drawn at random."""
    classes = int(labels.max()) + 1
    rng = np.random.default_rng(seed)
    places = torch.from_numpy(rng.permutation(len(labels))[: round(share * len(labels))])
    labels = labels.clone()
    if classes > 1:
        shift = torch.from_numpy(rng.integers(1, classes, len(places)))
        labels[places] = (labels[places] + shift) % classes
    return labels


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train", help="CSV, TSV, JSONL or Parquet; default: the demo corpus")
    parser.add_argument("--documents", type=int, default=1_500, help="size of the demo corpus")
    parser.add_argument("--flip", type=float, default=0.05, help="share of labels made wrong")
    parser.add_argument("--k", type=int, default=20, help="neighbors per document")
    parser.add_argument("--top", type=int, default=8, help="suspects to print")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("suspects.csv"))
    settings = parser.parse_args()
    console = Console(width=120)

    if settings.train:
        corpus = read_splits(settings.train).train
    else:
        corpus = docstring_corpus(max_documents=settings.documents).train
    rows = load_encoder("minilm", max_length=64).encode(corpus.texts)
    truth = torch.tensor(corpus.labels)
    labels = torch.where(truth >= 0, flipped(truth.clamp(min=0), settings.flip, settings.seed), -1)

    graph = build_document_graph(rows, labels, torch.tensor(corpus.ids), k=settings.k)
    # What the graph carries along turns up in every table and picture.
    graph.x, graph.text, graph.label_names = rows, corpus.texts, corpus.label_names

    console.print(measures_summary(measures(graph, seed=settings.seed)))
    found = audit(graph)
    console.print(found.summary(settings.top))

    wrong = (labels != truth).numpy()
    if wrong.any():
        first = found.table["node"][: wrong.sum()].to_numpy()
        print(f"Flipped labels: {wrong.sum()} of {len(wrong)}")
        print(f"Among as many suspects: {100 * wrong[first].mean():.1f} % of them\n")

    # Why is the first one a suspect? The labeled documents that decide what the graph says.
    reasons = explain(graph, int(found.table["node"][0]), top=8)
    print(reasons)
    picture = settings.out.with_suffix(".png")
    plot_explanation(reasons, picture)
    found.table.to_csv(settings.out, index=False)
    print(f"\nWritten: {settings.out} and {picture}")


if __name__ == "__main__":
    main()
