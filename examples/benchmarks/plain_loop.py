"""A plain training loop over `GraphGuidedObjective`, on few labels among many documents.

Run ``python examples/benchmarks/plain_loop.py --data FOLDER --label-fraction 0.01 --seeds 40 41``
on a folder with ``train.csv.gz`` and ``test.csv.gz`` (columns ``text,label``). The draws of labels
are those of ``few_labels.py`` with the same seeds, whose rows `contrast` (the recipe) and `ce` are
what to compare with. Printed are macro-F1 on the test documents by a logistic regression on the
classes that the objective finds, and by propagation over its bank.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from gloss_graph import GraphContrast, GraphGuidedObjective, MemoryBank
from gloss_graph.text import Corpus, TextEncoder, lexical_rows, load_encoder, read_splits
from gloss_graph.training import MixedSampler, TextCollator, TextDataset, draw_labels, hide_labels


def train(encoder: TextEncoder, corpus: Corpus, steps: int, seed: int) -> GraphGuidedObjective:
    """Train the encoder in place, and return the objective with its bank."""
    labels, ids = torch.tensor(corpus.labels), torch.tensor(corpus.ids)
    bank = MemoryBank(len(corpus), encoder.dim)
    objective = GraphGuidedObjective(
        corpus.num_classes,
        memory=bank,
        graph_weight=0.0,
        contrast=GraphContrast(),
        views=[(ids, lexical_rows(corpus))],
        seed=seed,
    )
    bank.enqueue(encoder.embed(corpus), labels, ids)
    torch.manual_seed(seed)
    loader = torch.utils.data.DataLoader(
        TextDataset(corpus, encoder),
        batch_size=40,
        sampler=MixedSampler(corpus.labels, labeled=16, unlabeled=24, balanced=True, seed=seed),
        collate_fn=TextCollator(encoder),
    )
    trained = [value for value in encoder.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1e-4, total_steps=steps, pct_start=0.1, anneal_strategy="linear"
    )
    encoder.train()
    batches = iter(loader)
    for _ in range(steps):
        batch = next(batches, None)
        if batch is None:
            batches = iter(loader)
            batch = next(batches)
        labels, ids = batch.pop("labels"), batch.pop("ids")
        loss = objective(encoder(**batch), labels, ids=ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    encoder.eval()
    return objective.eval()


def fit_head(
    objective: GraphGuidedObjective, encoder: TextEncoder, corpus: Corpus
) -> LogisticRegression:
    """Store every document as the trained encoder sees it, and fit a head to the classes found."""
    bank = objective.memory
    assert bank is not None
    bank.enqueue(encoder.embed(corpus), torch.tensor(corpus.labels), torch.tensor(corpus.ids))
    found = objective.found_classes()
    head = LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000)
    return head.fit(bank.embeddings, found.labels, sample_weight=found.trust)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--label-fraction", type=float, default=0.01)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=84)
    parser.add_argument("--length", type=int, default=32, help="tokens kept of a document")
    parser.add_argument("--test-limit", type=int, default=1_000_000)
    parser.add_argument("--threads", type=int, default=1)
    settings = parser.parse_args()
    torch.set_num_threads(settings.threads)
    files = settings.data / "train.csv.gz", None, settings.data / "test.csv.gz"
    splits = read_splits(*files, val_fraction=0.0)
    for seed in settings.seeds:
        start = time.perf_counter()
        kept = draw_labels(splits.train, fraction=settings.label_fraction, seed=seed)
        corpus = hide_labels(splits.train, kept)
        test = splits.test.select(range(min(len(splits.test), settings.test_limit)))
        encoder = load_encoder(settings.encoder, max_length=settings.length)
        encoder.freeze(None)
        with encoder.keeping_states(corpus):
            objective = train(encoder, corpus, settings.steps, seed)
            linear = fit_head(objective, encoder, corpus)
        queries = encoder.embed(test)
        answers = {
            "linear": linear.predict(torch.nn.functional.normalize(queries, dim=1)),
            "propagated": objective.predict(queries, mode="transductive").argmax(dim=1),
        }
        scores = [
            f"{name} {100 * f1_score(test.labels, answer, average='macro', zero_division=0):.1f}"
            for name, answer in answers.items()
        ]
        print(f"seed {seed}: {', '.join(scores)}, {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
