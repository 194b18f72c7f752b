"""BertGCN: a graph network over the embeddings of an encoder, both trained at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from scipy import sparse
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch_geometric.nn import GATConv

from gloss_graph._internal.checks import check_choice, check_positive_int, check_range
from gloss_graph._internal.folders import whole_folder
from gloss_graph.baselines.graph_model import GraphModel, GraphModelConfig, Watch, read_graph_model
from gloss_graph.baselines.text_gcn import Block, SymmetricGCNConv
from gloss_graph.baselines.word_graph import csr_tensor, normalized_matrix
from gloss_graph.text import Corpus, Splits, TextEncoder
from gloss_graph.text.checkpoints import ENCODER_FILE
from gloss_graph.training.classifier import TextClassifier, fit_balanced_head
from gloss_graph.training.setup import find_device

_TINY = 1e-10


@dataclass(frozen=True, kw_only=True)
class BertGCNConfig(GraphModelConfig):
    r"""Settings of BertGCN beyond those of `GraphModelConfig`.

    The defaults are the paper's except for a shorter fine-tuning.

    Attributes:
        gnn: "gcn" or "gat", which ignores the weights of the edges and keeps a message per edge
            and head: E x 8 x 32 floats.
        hidden: Width of the hidden layer; None = 200 for "gcn", 32 per head for "gat".
        heads: Heads of "gat".
        graph_weight: \(\lambda\): the prediction is
            \(\lambda\) GNN + \((1 - \lambda)\) encoder head.
        learning_rate: Learning rate of the encoder and its linear head.
        head_learning_rate: Learning rate of the GNN.
        epochs: Epochs of joint training.
        fine_tune_epochs: Epochs in which encoder and head are trained alone first; with 0 the
            head is a logistic regression on the embeddings.
        fine_tune_rate: Learning rate of these epochs.
        batch_size: Labeled documents per step.
        eval_batch_size: Documents per forward pass of the encoder without gradient.
        freeze_layers: The embedding layer and the first layers of the encoder are not trained.
        bf16: Autocast encoder and linear head to bfloat16; the GNN stays in float32.
    """

    model: ClassVar[str] = "bert-gcn"

    gnn: str = "gcn"
    hidden: int | None = None
    heads: int = 8
    graph_weight: float = 0.7
    learning_rate: float = 1e-5
    head_learning_rate: float = 1e-3
    epochs: int = 50
    fine_tune_epochs: int = 10
    fine_tune_rate: float = 1e-4
    batch_size: int = 64
    eval_batch_size: int = 64
    freeze_layers: int = 0
    bf16: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("gnn", self.gnn, ("gcn", "gat"))
        if self.hidden is not None:
            check_positive_int("hidden", self.hidden)
        counts = {"heads": 1, "batch_size": 1, "eval_batch_size": 1}
        for name, least in {**counts, "fine_tune_epochs": 0, "freeze_layers": 0}.items():
            check_positive_int(name, getattr(self, name), least)
        check_range("graph_weight", self.graph_weight, 0, 1)
        for name in ("learning_rate", "head_learning_rate", "fine_tune_rate"):
            check_range(name, getattr(self, name), 0, math.inf, open_low=True, open_high=True)


class GraphHead(nn.Module):
    """Two graph layers over rows (n, D) of documents and words.

    The layers of "gcn" work over a normalized sparse matrix or blocks of it, those of "gat", each
    head `hidden` wide, over `edge_index`. Dropout is on the input of the last layer, and on the
    attention of "gat".

    Example:
        >>> GraphHead(4, 2)(torch.ones(3, 4), torch.eye(3).to_sparse_csr()).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        *,
        gnn: str = "gcn",
        hidden: int = 200,
        heads: int = 8,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        if gnn == "gcn":
            self.first: nn.Module = SymmetricGCNConv(dim, hidden)
            self.second: nn.Module = SymmetricGCNConv(hidden, num_classes)
        else:
            self.first = GATConv(dim, hidden, heads=heads, dropout=dropout)
            self.second = GATConv(hidden * heads, num_classes, dropout=dropout)

    def forward(
        self, x: Tensor, edges: Tensor | Block, answers: Tensor | Block | None = None
    ) -> Tensor:
        """Logits (n, C) of rows (n, D), or of m rows with a `Block` (n, m), the others' being zero.

        `answers` are edges of the second layer alone: a `Block` (b, n) gives logits (b, C).
        """
        rows = nn.functional.elu(self.first(x, edges))
        return self.second(self.dropout(rows), edges if answers is None else answers)


class BertGCNClassifier(GraphModel):
    r"""BertGCN as an estimator, over any text encoder.

    Encoder and linear head are fine-tuned, then trained further with a GNN over the graph of
    documents and words. A memory holds the rows of all documents. Those of a batch are computed
    with gradient; after an epoch of joint training all are computed again. The epoch with the best
    validation accuracy is kept, without a validation part the last.

    Documents of `fit` are labeled by \(\lambda\) GNN + \((1 - \lambda)\) encoder head, new ones by
    the encoder head alone. The encoder is fine-tuned in place, `memory` holds the rows (N, D).

    Example:
        >>> from gloss_graph.text import Corpus, Splits, load_encoder
        >>> train = Corpus(["green tea", "night train"], [0, 1], [0, 1], ["tea", "trains"])
        >>> config = BertGCNConfig(min_count=1, epochs=1, fine_tune_epochs=1)
        >>> model = BertGCNClassifier(load_encoder("minilm", max_length=8), config)
        >>> model.fit(Splits(train)).predict_proba(train).shape
        torch.Size([2, 2])
    """

    config: BertGCNConfig
    classifier: TextClassifier
    gnn: GraphHead
    memory: Tensor

    def __init__(self, encoder: TextEncoder, config: BertGCNConfig | None = None) -> None:
        super().__init__(config or BertGCNConfig())
        self.encoder = encoder

    def fit(
        self, splits: Splits, *, watch: Watch | None = None, progress: bool = False
    ) -> BertGCNClassifier:
        """Train on the labels of the training part; the others are nodes without label."""
        config, corpus = self.config, self.begin(splits)
        known = self.labels >= 0
        self.encoder.freeze(config.freeze_layers)
        self.classifier = TextClassifier(self.encoder, corpus.label_names, seed=config.seed)
        blank = torch.zeros(len(corpus), self.encoder.dim, dtype=torch.float32)
        self._make(blank, find_device(config.device))
        self._items = self.encoder.tokenize(corpus.texts)
        batches = -(-int(known.sum()) // config.batch_size)
        most = batches * (config.fine_tune_epochs + config.epochs)
        with self.watched(most, watch, progress) as tick:
            if config.fine_tune_epochs:
                alone = Adam(self.classifier.parameters(), lr=config.fine_tune_rate)
                self._epochs(corpus, alone, config.fine_tune_epochs, 0.0, tick)
            else:
                self._refresh(corpus)
                rows, labels = self.memory[known].cpu(), self.labels[known]
                if labels.unique().numel() > 1:
                    fit_balanced_head(self.classifier, rows, labels, seed=config.seed)
            encoder = {"params": self.classifier.parameters(), "lr": config.learning_rate}
            head = {"params": self.gnn.parameters(), "lr": config.head_learning_rate}
            joint = Adam([encoder, head])
            self._epochs(corpus, joint, config.epochs, config.graph_weight, tick)
        return self

    def _epochs(
        self,
        corpus: Corpus,
        optimizer: Optimizer,
        epochs: int,
        weight: float,
        tick: Callable[[], None],
    ) -> None:
        """Train, keep the best epoch and leave the memory as its weights make it."""
        parts = nn.ModuleList([self.classifier, self.gnn])
        known = (self.labels >= 0).nonzero().ravel()
        held_out = (self.val_labels >= 0).nonzero().ravel()
        best, waited, kept = -1.0, 0, None
        for _ in range(epochs):
            order = known[torch.randperm(known.numel())]
            total = 0.0
            for chosen in order.split(self.config.batch_size):
                total += self._step(chosen, optimizer, weight) * chosen.numel()
                self.steps += 1
                tick()
            # Without the graph only the scores read rows before the end.
            self._refresh(corpus, None if weight else held_out)
            self.history.append({"step": float(self.steps), "loss": total / known.numel()})
            if not held_out.numel():
                self.best_step = self.steps
                continue
            score = self.note_validation((self._answers(weight) + _TINY).log())["accuracy"]
            waited += 1
            if score > best:
                best, waited, self.best_step = score, 0, self.steps
                kept = deepcopy(parts.state_dict())
            if waited >= self.config.patience:
                break
        if kept is not None:
            parts.load_state_dict(kept)
        if waited or not weight:
            self._refresh(corpus)
        parts.eval()

    def _step(self, chosen: Tensor, optimizer: Optimizer, weight: float) -> float:
        device = self.memory.device
        self.classifier.train()
        self.gnn.train()
        with self.clock.timed("encoder"), self._autocast():
            batch = self.encoder.collate([self._items[place] for place in chosen.tolist()])
            output = self.classifier(**{name: value.to(device) for name, value in batch.items()})
        labels, chosen = self.labels[chosen].to(device), chosen.to(device)
        with self.clock.timed("propagation"):
            rows = self.memory.index_put((chosen,), output.embeddings) if weight else self.memory
            spread = self._mix(rows, chosen, output.logits.float(), weight)
        with self.clock.timed("loss"):
            loss = nn.functional.nll_loss((spread + _TINY).log(), labels)
        with self.clock.timed("backward"):
            optimizer.zero_grad()
            loss.backward()
        with self.clock.timed("optimizer"):
            optimizer.step()
        self.memory[chosen] = output.embeddings.detach()
        return loss.item()

    def _mix(self, rows: Tensor, chosen: Tensor, logits: Tensor, weight: float) -> Tensor:
        """(B, C) probabilities of nodes by rows (N, D) of all documents and the head's logits."""
        spread = (1 - weight) * logits.softmax(dim=1)
        if not weight:
            return spread
        return spread + weight * self.graph_logits(rows, chosen).softmax(dim=1)

    def graph_logits(self, rows: Tensor, chosen: Tensor) -> Tensor:
        """(B, C) of the GNN for the `chosen` (B,) documents, by rows (N, D) of all documents."""
        if self._matrix is None:
            words = rows.new_zeros(self.graph.num_nodes - rows.size(0), rows.size(1))
            return self.gnn(torch.cat([rows, words]), self._edges)[chosen]
        # The rows of words are zero: nothing comes from them in the first layer, though most
        # edges join words. In the second only the chosen documents are asked for.
        if chosen.numel() == rows.size(0):
            return self.gnn(rows, self._inward, self._inward[::-1])[chosen]
        return self.gnn(rows, self._inward, _cut_rows(self._matrix, chosen, rows.device))

    @torch.no_grad()
    def _answers(self, weight: float) -> Tensor:
        """(N, C) probabilities of all documents by the memory as it is, on the CPU."""
        self.classifier.eval()
        self.gnn.eval()
        every = torch.arange(len(self.memory), device=self.memory.device)
        return self._mix(self.memory, every, self.classifier.head(self.memory), weight).cpu()

    def _refresh(self, corpus: Corpus, chosen: Tensor | None = None) -> None:
        """Compute the rows of all documents, or of the chosen ones, again."""
        with self.clock.timed("refresh"):
            device = self.memory.device
            if chosen is None:
                self.memory = self.embed(corpus).to(device)
            elif chosen.numel():
                rows = self.embed(corpus.select(chosen.numpy()))
                self.memory[chosen.to(device)] = rows.to(device)

    def _make(self, memory: Tensor, device: torch.device) -> None:
        config = self.config
        self.memory = memory.to(device)
        self.classifier.to(device)
        self.gnn = GraphHead(
            self.encoder.dim,
            len(self.label_names),
            gnn=config.gnn,
            hidden=config.hidden or (200 if config.gnn == "gcn" else 32),
            heads=config.heads,
            dropout=config.dropout,
        ).to(device)
        self._matrix = normalized_matrix(self.graph) if config.gnn == "gcn" else None
        if self._matrix is None:
            self._edges = self.graph.edge_index.to(device)
        else:
            # Of a symmetric matrix the rows of the documents are their columns, transposed.
            self._inward = _cut_rows(self._matrix, torch.arange(len(memory)), device)[::-1]

    def embed(
        self, corpus: Corpus, *, batch_size: int | None = None, progress: bool = False
    ) -> Tensor:
        """(B, D) rows of any documents by the encoder as it is now."""
        size = batch_size or self.config.eval_batch_size
        with self._autocast():
            return self.encoder.embed(corpus, batch_size=size, progress=progress)

    def _autocast(self) -> torch.autocast:
        device = next(self.encoder.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.config.bf16)

    @torch.no_grad()
    def predict_proba(self, corpus: Corpus) -> Tensor:
        """(B, C) class probabilities; new documents get those of the encoder head."""
        places = self.find(corpus)
        spread = self._answers(self.config.graph_weight)[places]
        new = (places < 0).nonzero().ravel()
        if new.numel():
            rows = self.embed(corpus.select(new.numpy()))
            spread[new] = self.classifier.head_logits(rows).softmax(dim=1)
        return spread

    def save(self, folder: str | Path) -> Path:
        """Write encoder, heads, graph and memory to `folder`, as safetensors.

        `TextClassifier.load` reads its encoder and linear head alone.
        """
        with whole_folder(folder, ENCODER_FILE) as fresh:
            self.classifier.write_files(fresh)
            self.write_graph_files(fresh, self.gnn, {}, memory=self.memory)
        return Path(folder).expanduser().absolute()

    @classmethod
    def load(cls, folder: str | Path) -> BertGCNClassifier:
        """Read a model that `save` wrote, on the CPU."""
        with read_graph_model(folder, "bert-gcn") as (settings, tensors, weights):
            classifier: Any = TextClassifier.load(folder)
            loaded = cls(classifier.encoder, BertGCNConfig(**settings["config"]))
            loaded.classifier, loaded.label_names = classifier, classifier.label_names
            loaded.place_graph(settings["words"], tensors)
            loaded._make(tensors["memory"], torch.device("cpu"))
            loaded.gnn.load_state_dict(weights)
            loaded.gnn.eval()
        return loaded


def _cut_rows(matrix: sparse.csr_matrix, rows: Tensor, device: torch.device) -> Block:
    """The given rows (b,) of a matrix (n, n): the propagation to these nodes alone."""
    cut = matrix[rows.cpu().numpy()]
    return csr_tensor(cut).to(device), csr_tensor(cut.T.tocsr()).to(device)
