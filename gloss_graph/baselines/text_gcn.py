"""TextGCN: two graph convolutions over documents and words, whose features are one-hot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv

from gloss_graph._internal.checks import check_positive_int, check_range
from gloss_graph._internal.folders import whole_folder
from gloss_graph.baselines.graph_model import (
    SETTINGS_FILE,
    GraphModel,
    GraphModelConfig,
    Watch,
    read_graph_model,
)
from gloss_graph.baselines.word_graph import normalized_adjacency
from gloss_graph.text import Corpus, Splits
from gloss_graph.training.setup import find_device

NEW_DOCUMENTS = (
    "TextGCN has a weight for every document of its graph and none for new ones: train again with "
    "them as unlabeled documents (--unlabeled), whose classes the run then holds in "
    "predictions.csv, or use bert-gcn, whose encoder labels new documents."
)


@dataclass(frozen=True, kw_only=True)
class TextGCNConfig(GraphModelConfig):
    """Settings of TextGCN beyond those of `GraphModelConfig`; the defaults are the paper's.

    Attributes:
        hidden: Width of the hidden layer.
        learning_rate: Learning rate of Adam.
    """

    model: ClassVar[str] = "text-gcn"

    hidden: int = 200
    learning_rate: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive_int("hidden", self.hidden)
        check_range("learning_rate", self.learning_rate, 0, 1, open_low=True)


#: A sparse CSR matrix (n, m) and its transpose (m, n), for the backward pass.
Block: TypeAlias = tuple[Tensor, Tensor]


class SymmetricGCNConv(GCNConv):
    """`GCNConv` over a symmetric sparse matrix that is normalized already.

    The backward pass multiplies by the same matrix, where PyG's transposes it every time: a third
    of the time of a step at three million edges. Without `in_channels` there is no weight: the
    input is propagated as it is, as in a layer on one-hot features.

    Shapes: x (n, D) float32, the matrix (n, n) sparse CSR; the result (n, D'). With a `Block` of
    (b, n) as the matrix the result is (b, D').

    Example:
        >>> matrix = torch.eye(2).to_sparse_csr()
        >>> SymmetricGCNConv(3, 4)(torch.ones(2, 3), matrix).shape
        torch.Size([2, 4])
    """

    def __init__(self, in_channels: int | None, out_channels: int, *, bias: bool = True) -> None:
        super().__init__(in_channels or out_channels, out_channels, bias=bias, normalize=False)
        if in_channels is None:
            self.lin: Any = torch.nn.Identity()

    def forward(self, x: Tensor, adj_t: Tensor | Block) -> Tensor:
        """Multiply, add the rows of the neighbors, add the bias."""
        matrix, transposed = (adj_t, adj_t) if isinstance(adj_t, Tensor) else adj_t
        out: Tensor = _Product.apply(matrix, transposed, self.lin(x))
        return out if self.bias is None else out + self.bias


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, x: Tensor) -> Tensor:
        ctx.transposed = transposed
        return matrix @ x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.transposed @ gradient.contiguous()


class TextGCN(nn.Module):
    r"""\(\hat A \, \mathrm{ReLU}(\hat A W_0) W_1\) of n nodes with one-hot features.

    Dropout is on the input of the second layer.

    Example:
        >>> from gloss_graph.baselines import normalized_adjacency, word_document_graph
        >>> graph = word_document_graph(["green tea", "black tea"], min_count=1)
        >>> TextGCN(graph.num_nodes, 2)(normalized_adjacency(graph)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self, num_nodes: int, num_classes: int, *, hidden: int = 200, dropout: float = 0.5
    ) -> None:
        super().__init__()
        #: One-hot rows times a weight are the rows of the weight.
        self.table = nn.Parameter(torch.empty(num_nodes, hidden))
        self.first = SymmetricGCNConv(None, hidden, bias=False)
        self.second: Any = SymmetricGCNConv(hidden, num_classes, bias=False)
        self.dropout = nn.Dropout(dropout)
        nn.init.xavier_uniform_(self.table)
        nn.init.xavier_uniform_(self.second.lin.weight)

    def hidden_rows(self, adjacency: Tensor) -> Tensor:
        """(n, hidden) embeddings of the nodes, before dropout."""
        return self.first(self.table, adjacency).relu()

    def forward(self, adjacency: Tensor) -> Tensor:
        """Logits (n, C) over a normalized (n, n) sparse CSR matrix."""
        return self.classify(self.hidden_rows(adjacency), adjacency)

    def classify(self, rows: Tensor, adjacency: Tensor) -> Tensor:
        """Logits (n, C) of hidden rows (n, hidden)."""
        return self.second(self.dropout(rows), adjacency)


class TextGCNClassifier(GraphModel):
    """TextGCN as an estimator. It is transductive: it labels only the documents of `fit`.

    Documents to label are the test part of `fit`, whose labels are not used, or unlabeled ones in
    the training part. A document without a kept word has no neighbor and gets the class shares of
    the training labels. The settings are the paper's by default.

    Example:
        >>> from gloss_graph.text import Corpus, Splits
        >>> train = Corpus(["green tea", "night train"], [0, 1], [0, 1], ["tea", "trains"])
        >>> test = Corpus(["black tea"], [-1], [2], ["tea", "trains"])
        >>> config = TextGCNConfig(min_count=1, epochs=20)
        >>> model = TextGCNClassifier(config).fit(Splits(train, test=test))
        >>> model.predict_proba(test).argmax().item()
        0
    """

    config: TextGCNConfig

    def __init__(self, config: TextGCNConfig | None = None) -> None:
        super().__init__(config or TextGCNConfig())

    def fit(
        self, splits: Splits, *, watch: Watch | None = None, progress: bool = False
    ) -> TextGCNClassifier:
        """Train on the labels of the training part; the others are nodes without label.

        Stops when the validation loss is above the mean of the `patience` before, as the released
        code does, and keeps the weights of the last epoch. Without a validation part all epochs
        are done.
        """
        config, corpus = self.config, self.begin(splits)
        counts = torch.bincount(self.labels[self.labels >= 0], minlength=corpus.num_classes)
        self._make(counts / counts.sum(), find_device(config.device))
        model, adjacency = self.model, self._adjacency
        labels = self.labels.to(adjacency.device)
        shown = (labels >= 0).nonzero().ravel()
        validated = bool((self.val_labels >= 0).any())
        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
        losses: list[float] = []
        with self.watched(config.epochs, watch, progress) as tick:
            for epoch in range(1, config.epochs + 2):
                with self.clock.timed("propagation"):
                    rows = model.hidden_rows(adjacency)
                # The evaluation of the epoch before uses the same rows: dropout comes after them.
                if epoch > 1 and validated:
                    model.eval()
                    with torch.no_grad():
                        logits = model.classify(rows, adjacency)[: labels.numel()].cpu()
                    scores = self.note_validation(logits.log_softmax(dim=1))
                    losses.append(scores["cross_entropy"])
                before = losses[-config.patience - 1 : -1]
                stalled = len(losses) > config.patience + 1 and losses[-1] > fmean(before)
                if epoch > config.epochs or stalled:
                    break
                model.train()
                with self.clock.timed("propagation"):
                    logits = model.classify(rows, adjacency)[: labels.numel()]
                    loss = nn.functional.cross_entropy(logits[shown], labels[shown])
                with self.clock.timed("backward"):
                    optimizer.zero_grad()
                    loss.backward()
                with self.clock.timed("optimizer"):
                    optimizer.step()
                self.steps = self.best_step = epoch
                self.history.append({"step": float(epoch), "loss": loss.item()})
                tick()
        model.eval()
        return self

    def _make(self, prior: Tensor, device: torch.device) -> None:
        self.prior, size, classes = prior, self.graph.num_nodes, len(self.label_names)
        hidden, dropout = self.config.hidden, self.config.dropout
        self.model = TextGCN(size, classes, hidden=hidden, dropout=dropout).to(device)
        self._adjacency = normalized_adjacency(self.graph).to(device)

    @torch.no_grad()
    def embed(self, corpus: Corpus, *, batch_size: int = 64, progress: bool = False) -> Tensor:
        """(B, hidden) rows of documents of `fit`; `batch_size` is not used."""
        return self.model.hidden_rows(self._adjacency).cpu()[self._known(corpus)]

    @torch.no_grad()
    def predict_proba(self, corpus: Corpus) -> Tensor:
        """(B, C) class probabilities of documents of `fit`; others are refused."""
        chosen = self._known(corpus)
        self.model.eval()
        spread = self.model(self._adjacency).softmax(dim=1).cpu()
        spread[torch.tensor(self.graph.empty, dtype=torch.long)] = self.prior
        return spread[chosen]

    def _known(self, corpus: Corpus) -> Tensor:
        chosen = self.find(corpus)
        if bool((chosen < 0).any()):
            raise ValueError(
                f"'corpus' must hold documents the model was fitted with (got "
                f"{int((chosen < 0).sum())} others). {NEW_DOCUMENTS}"
            )
        return chosen

    def save(self, folder: str | Path) -> Path:
        """Write weights, graph and the identities of the documents to `folder`, as safetensors."""
        with whole_folder(folder, SETTINGS_FILE) as fresh:
            names = {"label_names": self.label_names}
            self.write_graph_files(fresh, self.model, names, prior=self.prior)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> TextGCNClassifier:
        """Read a model that `save` wrote, on the CPU."""
        with read_graph_model(folder, "text-gcn") as (settings, tensors, weights):
            loaded = cls(TextGCNConfig(**settings["config"]))
            loaded.label_names = settings["label_names"]
            loaded.place_graph(settings["words"], tensors)
            loaded._make(tensors["prior"], torch.device("cpu"))
            loaded.model.load_state_dict(weights)
            loaded.model.eval()
        return loaded
