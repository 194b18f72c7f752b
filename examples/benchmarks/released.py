"""One training step against the released procedure of G-Loss, side by side in one run.

Run ``python examples/benchmarks/released.py [--batch 32 --length 64 --repeats 9]``.

The released procedure runs the encoder twice a step, once for the graph loss and once for the
classifier, and builds its dense matrices with products by diagonal ones. Ours runs it once and
hands the embeddings to both. Same encoder (MiniLM), same tokens, same bandwidth, AdamW; the steps
take turns, medians are compared and nothing is asserted about time. With ``--bank N`` ours also
propagates over N remembered documents.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from gloss_graph import GraphGuidedObjective, MemoryBank
from gloss_graph.text import load_encoder
from gloss_graph.training import TextClassifier

CLASSES, SIGMA, WEIGHT = 8, 0.5, 0.5


def released_loss(x: Tensor, y: Tensor, visible: Tensor) -> Tensor:
    """The graph loss as the released code computes it."""
    x = F.normalize(x, dim=1)
    affinity = torch.exp(-torch.cdist(x, x).square() / (2.0 * SIGMA**2))
    affinity = affinity - torch.diag(torch.diag(affinity))
    degree = torch.diag(affinity.sum(dim=1).pow(-0.5))
    walk = degree @ affinity @ degree
    walk = walk @ torch.diag(1.0 / walk.sum(dim=0))
    walk = torch.diag(1.0 / walk.sum(dim=1)) @ walk
    hidden, seeds = (~visible).nonzero().squeeze(1), visible.nonzero().squeeze(1)
    system = torch.eye(hidden.numel()) - walk[hidden][:, hidden]
    known = F.one_hot(y[seeds], CLASSES).to(x)
    propagated = torch.linalg.inv(system) @ walk[hidden][:, seeds] @ known
    return F.cross_entropy(propagated, y[hidden]) / hidden.numel()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--bank", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int)
    settings = parser.parse_args()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    generator = torch.Generator().manual_seed(0)
    encoder = load_encoder("minilm", max_length=settings.length)
    first = TextClassifier(encoder, [str(c) for c in range(CLASSES)]).train()
    size = (settings.batch, settings.length)
    tokens = torch.randint(1000, 30_000, size, generator=generator)
    mask, y = torch.ones_like(tokens), torch.arange(settings.batch) % CLASSES
    visible = torch.arange(settings.batch) % 10 < 7
    bank = MemoryBank(settings.bank, encoder.dim)
    stored = torch.randn(settings.bank, encoder.dim, generator=generator)
    ids = torch.arange(settings.bank) + settings.batch
    bank.prefill([(stored, ids % CLASSES, ids)], lambda rows: rows)
    options = {"bandwidth": SIGMA, "graph_weight": WEIGHT}
    objectives = {
        "ours, in the batch": GraphGuidedObjective.released(
            CLASSES, SIGMA, graph_weight=WEIGHT, visible_fraction=0.7
        ),
        f"ours, bank of {settings.bank:,}": GraphGuidedObjective(CLASSES, memory=bank, **options),
    }

    def step_of(loss: Callable[[TextClassifier], Tensor]) -> Callable[[], None]:
        model = copy.deepcopy(first)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5, fused=True)

        def step() -> None:
            loss(model).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def released(model: TextClassifier) -> Tensor:
        graph_loss = released_loss(model.encoder(tokens, mask), y, visible)
        return WEIGHT * graph_loss + (1 - WEIGHT) * F.cross_entropy(model(tokens, mask).logits, y)

    def ours(objective: GraphGuidedObjective) -> Callable[[TextClassifier], Tensor]:
        def loss(model: TextClassifier) -> Tensor:
            out = model(tokens, mask)
            return objective(out.embeddings, y, ids=torch.arange(y.numel()), logits=out.logits)

        return loss

    steps = {"released procedure": step_of(released)}
    steps |= {name: step_of(ours(objective)) for name, objective in objectives.items()}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(settings.repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if round_:
                taken[name].append(1e3 * (time.perf_counter() - start))
    base = statistics.median(taken["released procedure"])
    print("| step | ms (median) | of the released procedure's |\n|---|---|---|")
    for name, times in taken.items():
        median = statistics.median(times)
        print(f"| {name} | {median:.0f} | {median / base:.2f} |")


if __name__ == "__main__":
    main()
