"""What a step is compared with: the closed form, unrolled layers, an encoder's training step."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.nn import MessagePassing


def dense_loss(
    x: Tensor, y: Tensor, visible: Tensor, sigma: float, classes: int, *, hub: bool = True
) -> Tensor:
    """G-Loss on all pairs, in closed form, written well: the released code's walk or Algorithm 1.

    Normalization by broadcasting, never by products with diagonal matrices, which cost more than
    the solve; in the dtype of `x` (N, D).
    """
    x = F.normalize(x, dim=1)
    squared = (2.0 - 2.0 * x @ x.T).clamp(min=0.0)
    diagonal = torch.eye(x.size(0), dtype=torch.bool, device=x.device)
    affinity = torch.exp(squared * (-0.5 / sigma**2)).masked_fill(diagonal, 0.0)
    root = affinity.sum(dim=1).rsqrt()
    walk = root.unsqueeze(1) * affinity * root
    walk = walk / walk.sum(dim=0)
    if hub:
        walk = walk / walk.sum(dim=1, keepdim=True)
    hidden, seeds = (~visible).nonzero().squeeze(1), visible.nonzero().squeeze(1)
    known = F.one_hot(y[seeds], classes).to(x.dtype)
    rows = walk[hidden]
    system = torch.eye(hidden.numel(), dtype=x.dtype, device=x.device) - rows[:, hidden]
    propagated = torch.linalg.solve(system, rows[:, seeds] @ known)
    true = propagated.gather(1, y[hidden].unsqueeze(1))
    return -true.clamp(min=1e-12).log().mean()


class _Layer(MessagePassing):
    def __init__(self) -> None:
        super().__init__(aggr="add")

    def forward(self, x: Tensor, edge_index: Tensor, walk: Tensor) -> Tensor:
        out: Tensor = self.propagate(edge_index, x=x, walk=walk)
        return out

    def message(self, x_j: Tensor, walk: Tensor) -> Tensor:
        return walk.unsqueeze(1) * x_j


class UnrolledLayers:
    """Label propagation as `layers` message-passing layers of PyG with clamped seeds.

    Forward and backward to the weights of the edges, as everyone writes it first.
    """

    def __init__(self, edge_index: Tensor, y: Tensor, seeds: Tensor, layers: int = 30) -> None:
        self.edge_index, self.y, self.seeds, self.layers = edge_index, y, seeds, layers
        self._layer = _Layer()

    def __call__(self, weight: Tensor) -> Tensor:
        """Values (N, C) for label rows `y` (N, C)."""
        row, column = self.edge_index
        degree = weight.new_zeros(self.y.size(0)).index_add(0, column, weight).clamp(min=1e-12)
        walk = weight / degree[column]
        del row
        known = torch.where(self.seeds.unsqueeze(1), self.y, 0.0)
        values = known
        for _ in range(self.layers):
            moved = self._layer(values, self.edge_index, walk)
            values = torch.where(self.seeds.unsqueeze(1), known, moved)
        return values


def encoder_step(
    name: str, batch: int, length: int, classes: int, device: torch.device
) -> Callable[[], object]:
    """Forward, backward and AdamW of an encoder on random tokens, without padding."""
    from gloss_graph.text import load_encoder
    from gloss_graph.training import TextClassifier

    encoder = load_encoder(name, max_length=length)
    model = TextClassifier(encoder, [str(c) for c in range(classes)]).train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1000, 30_000, (batch, length), generator=generator).to(device)
    target = torch.randint(classes, (batch,), generator=generator).to(device)

    def step() -> None:
        logits = model(tokens, torch.ones_like(tokens)).logits
        F.cross_entropy(logits, target).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
