"""TextGCN: two graph convolutions over documents and words, whose features are one-hot."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from transformers import set_seed

from gloss_graph._internal.folders import whole_folder
from gloss_graph._internal.timing import StageClock
from gloss_graph.analysis.scores import classification_scores
from gloss_graph.baselines.config import TextGCNConfig
from gloss_graph.baselines.corpus import (
    SETTINGS_FILE,
    Documents,
    Places,
    Watch,
    check_classes,
    graph_of,
    read_graph_model,
    save_graph_model,
)
from gloss_graph.baselines.layers import SymmetricGCNConv
from gloss_graph.baselines.progress import epoch_bar
from gloss_graph.baselines.word_graph import normalized_adjacency
from gloss_graph.text import Corpus, Splits
from gloss_graph.training.processes import find_device


class TextGCN(nn.Module):
    r"""\(\hat A \, \mathrm{ReLU}(\hat A W_0) W_1\), the features being one-hot.

    Args:
        num_nodes: n, documents and words.
        num_classes: C.
        hidden: Width of the hidden layer.
        dropout: On what enters the second layer.

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
        """Logits (n, C) over a normalised (n, n) sparse CSR matrix."""
        return self.classify(self.hidden_rows(adjacency), adjacency)

    def classify(self, rows: Tensor, adjacency: Tensor) -> Tensor:
        """Logits (n, C) of hidden rows (n, hidden)."""
        return self.second(self.dropout(rows), adjacency)


class TextGCNClassifier:
    """TextGCN as an estimator. It is transductive: it knows the documents it was fitted with.

    Documents to label are given to `fit` as the test part, or without label in the training part.
    Their labels are not looked at. Those without a kept word get the class shares of the training
    labels, as their node has no neighbour.

    Args:
        config: Settings; the paper's if left out.

    Attributes:
        history: A row an epoch: losses and validation scores, once fitted.
        clock: Seconds by stage.
        graph: The graph, once fitted.

    Example:
        >>> from gloss_graph.text import Corpus, Splits
        >>> train = Corpus(["green tea", "night train"], [0, 1], [0, 1], ["tea", "trains"])
        >>> test = Corpus(["black tea"], [-1], [2], ["tea", "trains"])
        >>> config = TextGCNConfig(min_count=1, epochs=20)
        >>> model = TextGCNClassifier(config).fit(Splits(train, test=test))
        >>> model.predict_proba(test).argmax().item()
        0

    See Also:
        :class:`BertGCNClassifier`, which can label documents it has not seen.
    """

    def __init__(self, config: TextGCNConfig | None = None) -> None:
        self.config = config or TextGCNConfig()
        self.history: list[dict[str, float]] = []
        self.clock = StageClock()
        self.steps = self.best_step = 0

    def fit(
        self, splits: Splits, *, watch: Watch | None = None, progress: bool = False
    ) -> TextGCNClassifier:
        """Train on the labels of the training part; the others are nodes without label.

        Stops when the validation loss is above the mean of the `patience` before, as the released
        code does, and keeps the weights of the last epoch. Without validation part all epochs are
        done.

        Raises:
            ValueError: No labeled training document, fewer than two class names, or no word left.
        """
        config = self.config
        documents = Documents(splits)
        check_classes(documents)
        set_seed(config.seed)
        with self.clock.timed("graph"):
            graph = graph_of(documents, config)
        self._place(graph, Places.of(documents.corpus), splits.train.label_names, documents.prior)
        device = find_device(config.device)
        self.model.to(device)
        adjacency = self._adjacency = normalized_adjacency(graph).to(device)
        if watch is not None:
            watch.begin()
        self._train(adjacency, documents, device, watch, progress)
        return self

    def _train(
        self,
        adjacency: Tensor,
        documents: Documents,
        device: torch.device,
        watch: Watch | None,
        progress: bool,
    ) -> None:
        config, model = self.config, self.model
        labels, val_labels = documents.labels.to(device), documents.val_labels
        shown, held_out = (labels >= 0).nonzero().ravel(), val_labels >= 0
        optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
        losses: list[float] = []
        bar = epoch_bar(config.epochs, config.model) if progress else None
        with bar or nullcontext():
            for epoch in range(1, config.epochs + 2):
                model.train()
                with self.clock.timed("propagation"):
                    rows = model.hidden_rows(adjacency)
                # What evaluation of the epoch before needs too: dropout comes after it.
                if epoch > 1:
                    self._note(rows.detach(), val_labels, held_out)
                    if "val_cross_entropy" in self.history[-1]:
                        losses.append(self.history[-1]["val_cross_entropy"])
                    if bar is not None:
                        bar.advance(bar.task_ids[0])
                    if epoch > config.epochs or _stalled(losses, config.patience):
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
                if watch is not None:
                    watch.step(epoch, config.epochs)
        model.eval()

    @torch.no_grad()
    def _note(self, rows: Tensor, labels: Tensor, held_out: Tensor) -> None:
        """Scores of the validation part by the weights as they are."""
        if not bool(held_out.any()):
            return
        self.model.eval()
        logits = self.model.classify(rows, self._adjacency)[: labels.numel()].cpu()
        loss = nn.functional.cross_entropy(logits[held_out], labels[held_out])
        scores = classification_scores(
            logits[held_out].argmax(dim=1).numpy(), labels[held_out].numpy()
        )
        self.history[-1] |= {"val_cross_entropy": loss.item()}
        self.history[-1] |= {f"val_{name}": value for name, value in scores.items()}

    def _place(self, graph: Data, places: Places, label_names: list[str], prior: Tensor) -> None:
        self.graph, self.places = graph, places
        self.label_names, self.prior = list(label_names), prior
        self.model = TextGCN(
            graph.num_nodes,
            len(label_names),
            hidden=self.config.hidden,
            dropout=self.config.dropout,
        )

    @torch.no_grad()
    def embed(self, corpus: Corpus, *, batch_size: int = 64, progress: bool = False) -> Tensor:
        """(B, hidden) rows of documents it was fitted with; `batch_size` is not used.

        Raises:
            ValueError: A document it was not fitted with.
        """
        return self.model.hidden_rows(self._adjacency).cpu()[self._find(corpus)]

    @torch.no_grad()
    def predict_proba(self, corpus: Corpus) -> Tensor:
        """(B, C) class probabilities of documents it was fitted with.

        Raises:
            ValueError: A document it was not fitted with.
        """
        chosen = self._find(corpus)
        self.model.eval()
        spread = self.model(self._adjacency).softmax(dim=1).cpu()
        spread[torch.tensor(self.graph.empty, dtype=torch.long)] = self.prior
        return spread[chosen]

    def _find(self, corpus: Corpus) -> Tensor:
        chosen = self.places.find(corpus)
        if bool((chosen < 0).any()):
            raise ValueError(
                f"'corpus' must hold documents the model was fitted with (got "
                f"{int((chosen < 0).sum())} others). {NEW_DOCUMENTS}"
            )
        return chosen

    def save(self, folder: str | Path) -> Path:
        """Write weights, graph and the identities of the documents to `folder`, as safetensors."""
        with whole_folder(folder, SETTINGS_FILE) as fresh:
            save_graph_model(
                fresh,
                self.config,
                self.model,
                self.graph,
                self.places,
                settings={"label_names": self.label_names},
                tensors={"prior": self.prior},
            )
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> TextGCNClassifier:
        """Read what `save` wrote, on the CPU.

        Raises:
            ValueError: A folder that is missing, damaged or holds something else.
        """
        with read_graph_model(folder, "text-gcn") as stored:
            settings = stored.settings
            loaded = cls(TextGCNConfig(**settings["config"]))
            prior = stored.tensors["prior"]
            loaded._place(stored.graph, stored.places, settings["label_names"], prior)
            loaded.model.load_state_dict(stored.weights)
            loaded._adjacency = normalized_adjacency(stored.graph)
            loaded.model.eval()
        return loaded


NEW_DOCUMENTS = (
    "TextGCN has a weight for every document of its graph and none for new ones: train again with "
    "them as unlabeled documents (--unlabeled), whose classes the run then holds in "
    "predictions.csv, or use bert-gcn, whose encoder labels new documents."
)


def _stalled(losses: list[float], patience: int) -> bool:
    """Whether the last loss is above the mean of the `patience` before it."""
    if len(losses) <= patience + 1:
        return False
    return losses[-1] > math.fsum(losses[-patience - 1 : -1]) / patience
