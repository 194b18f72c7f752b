"""A PyG network as the encoder, and label propagation with learned edge weights.

A stochastic block model (no download) in which half of a node's links lead to other classes and
three in four features are noise.

- A GCN, by cross-entropy and with the graph-guided objective, whose graph is that of the embeddings
  in the memory bank, not the one the GCN runs on.
- ``LabelPropagation`` alone on the given graph. The loss reaches the edge weights, so a similarity
  of features is learned that turns links between classes off.

Run ``python examples/02_gnn_encoder.py [--nodes-per-class 250 --steps 60 --seeds 3]``.
"""

import argparse
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GCN
from torch_geometric.utils import stochastic_blockmodel_graph

from gloss_graph import GraphGuidedObjective, LabelPropagation, MemoryBank

CLASSES, COLUMNS, WIDTH = 4, 16, 32  # of the features, of the embeddings
LABELS_PER_CLASS, LABELED_ROWS, UNLABELED_ROWS = 20, 32, 64  # the rows of a batch


def make_graph(nodes_per_class: int) -> Data:
    # About 6 links to the own class and 6 to the three others together, whatever the size.
    inside, across = 6 / nodes_per_class, 2 / nodes_per_class
    links = torch.full((CLASSES, CLASSES), across).fill_diagonal_(inside)
    edge_index = stochastic_blockmodel_graph([nodes_per_class] * CLASSES, links)
    y = torch.arange(CLASSES).repeat_interleave(nodes_per_class)
    x = 2.0 * F.one_hot(y, COLUMNS) + torch.randn(y.numel(), COLUMNS)
    known = torch.full_like(y, -1)  # -1 = unlabeled
    for c in range(CLASSES):
        known[c * nodes_per_class + torch.randperm(nodes_per_class)[:LABELS_PER_CLASS]] = c
    return Data(x=x, edge_index=edge_index, y=y, known=known)


def train_gcn(data: Data, *, guided: bool, steps: int) -> Tensor:
    encoder = GCN(COLUMNS, 64, num_layers=2, out_channels=WIDTH, dropout=0.5)
    head = nn.Sequential(nn.ReLU(), nn.Linear(WIDTH, CLASSES))
    parameters = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.01, weight_decay=5e-4)
    bank = MemoryBank(capacity=data.num_nodes, dim=WIDTH)
    objective = GraphGuidedObjective(CLASSES, memory=bank, visible_fraction=0.0)
    labeled, unlabeled = (torch.where(mask)[0] for mask in (data.known >= 0, data.known < 0))
    for _ in range(steps):
        # The node's number is its identity in the bank. With a NeighborLoader batch the same two
        # things are `embeddings[:batch.batch_size]` and `batch.n_id[:batch.batch_size]`.
        some = labeled[torch.randperm(labeled.numel())[:LABELED_ROWS]]
        ids = torch.cat([some, unlabeled[torch.randperm(unlabeled.numel())[:UNLABELED_ROWS]]])
        embeddings = encoder(data.x, data.edge_index)[ids]
        logits, y = head(embeddings), data.known[ids]
        loss = F.cross_entropy(logits, y, ignore_index=-1)
        if guided:  # half graph loss, half this very cross-entropy
            loss = objective(embeddings, y, ids=ids, logits=logits)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return head(encoder.eval()(data.x, data.edge_index))


def propagate(data: Data, *, steps: int) -> Tensor:
    # PyG's own LabelPropagation runs under no_grad; through this one the loss reaches weights.
    layer = LabelPropagation(num_classes=CLASSES)
    scale = torch.full((COLUMNS,), -3.0, requires_grad=True)  # of every feature column
    optimizer = torch.optim.Adam([scale], lr=0.1)
    source, target = data.edge_index

    def weights() -> Tensor:
        # A function of the squared difference: both directions of a link weigh the same.
        return torch.exp(-(data.x[source] - data.x[target]).square() @ F.softplus(scale))

    labeled = torch.where(data.known >= 0)[0]
    for _ in range(steps):
        # Hide half of the labels and ask the graph for them, as G-Loss does in a batch.
        hidden = labeled[torch.randperm(labeled.numel())[: labeled.numel() // 2]]
        seeds = (data.known >= 0).index_fill(0, hidden, False)
        propagated = layer(data.known, data.edge_index, weights(), seeds)
        loss = F.nll_loss((propagated[hidden] + 1e-3).log(), data.known[hidden])
        optimizer.zero_grad()
        loss.backward()  # one adjoint solve; reaches `scale` through every link
        optimizer.step()
    return layer(data.known, data.edge_index, weights() if steps else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nodes-per-class", type=int, default=250)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    settings = parser.parse_args()

    steps = settings.steps
    methods = {
        "GCN, cross-entropy": partial(train_gcn, guided=False, steps=steps),
        "GCN, graph-guided": partial(train_gcn, guided=True, steps=steps),
        "propagation, all links equal": partial(propagate, steps=0),
        "propagation, learned weights": partial(propagate, steps=steps // 2),
    }
    accuracy = torch.zeros(len(methods), settings.seeds)
    for seed in range(settings.seeds):
        torch.manual_seed(seed)
        data = make_graph(settings.nodes_per_class)
        for row, method in enumerate(methods.values()):
            torch.manual_seed(seed)  # the same initial weights and batches
            hits = method(data).argmax(dim=1) == data.y
            accuracy[row, seed] = 100 * hits[data.known < 0].float().mean()

    print(f"{data}, {LABELS_PER_CLASS} labels a class, {settings.seeds} seeds")
    print(f"{'accuracy on unlabeled nodes':<30}{'mean':>6}{'std':>6}")
    for name, values in zip(methods, accuracy, strict=True):
        spread = values.std(correction=min(1, settings.seeds - 1))
        print(f"{name:<30}{values.mean():>6.1f}{spread:>6.1f}")
    ce, guided, equal, learned = accuracy.mean(dim=1)
    print(f"Learning which links to trust: {learned - equal:+.1f} points for propagation.")
    print(f"The graph term: {guided - ce:+.1f} points for the GCN; compare with the std.")


if __name__ == "__main__":
    main()
