"""BertGCN: a graph network over the embeddings of an encoder, both trained at once."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Data
from torch_geometric.nn import GATConv
from transformers import set_seed

from gloss_graph._internal.folders import whole_folder
from gloss_graph._internal.timing import StageClock
from gloss_graph.analysis.scores import classification_scores
from gloss_graph.baselines.config import BertGCNConfig
from gloss_graph.baselines.corpus import (
    Documents,
    Places,
    Watch,
    check_classes,
    graph_of,
    read_graph_model,
    save_graph_model,
)
from gloss_graph.baselines.layers import Block, SymmetricGCNConv, cut_rows
from gloss_graph.baselines.progress import epoch_bar
from gloss_graph.baselines.word_graph import normalized_matrix
from gloss_graph.text import Corpus, Splits, TextEncoder
from gloss_graph.text.checkpoints import ENCODER_FILE
from gloss_graph.training.classifier import TextClassifier, fit_balanced_head, freeze_layers
from gloss_graph.training.processes import find_device

_TINY = 1e-10


class GraphHead(nn.Module):
    """Two graph layers over rows of documents and words.

    Args:
        dim: D, width of a document's row.
        num_classes: C.
        gnn: "gcn", over a normalised sparse matrix or blocks of it, or "gat", over `edge_index`.
        hidden: Width of the hidden layer, of "gat" of a head.
        heads: Of "gat".
        dropout: On what enters the last layer, and on the attention of "gat".

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
        self.first: nn.Module
        self.second: nn.Module
        if gnn == "gcn":
            self.first = SymmetricGCNConv(dim, hidden)
            self.second = SymmetricGCNConv(hidden, num_classes)
        else:
            self.first = GATConv(dim, hidden, heads=heads, dropout=dropout)
            self.second = GATConv(hidden * heads, num_classes, dropout=dropout)

    def forward(
        self, x: Tensor, edges: Tensor | Block, answers: Tensor | Block | None = None
    ) -> Tensor:
        """Logits (n, C) of rows (n, D).

        Args:
            x: Rows; with a `Block` (n, m) as `edges` those of m nodes, the others' being zero.
            edges: Of both layers.
            answers: Of the second one in place of these: a `Block` (b, n) gives logits (b, C).
        """
        rows = nn.functional.elu(self.first(x, edges))
        return self.second(self.dropout(rows), edges if answers is None else answers)


class BertGCNClassifier:
    r"""BertGCN as an estimator, over any text encoder.

    Encoder and linear head are fine-tuned, then trained on with a GNN over the graph of documents
    and words. Rows of documents live in a memory: those of a batch are made anew and carry
    gradient, the others are as they were, all are made anew after an epoch of joint training, which
    the graph of the next one needs. The epoch of the best validation accuracy is kept; without
    validation part the last.

    Documents it was fitted with are labeled by \(\lambda\) GNN + \((1 - \lambda)\) encoder head,
    new ones by the encoder head alone: they are in no graph.

    Args:
        encoder: Fine-tuned in place.
        config: Settings; the paper's if left out.

    Attributes:
        history: A row an epoch: losses and validation scores, once fitted.
        clock: Seconds by stage.
        graph: The graph, once fitted.
        memory: (N, D) rows of the documents, once fitted.

    Example:
        >>> from gloss_graph.text import Corpus, Splits, load_encoder
        >>> train = Corpus(["green tea", "night train"], [0, 1], [0, 1], ["tea", "trains"])
        >>> config = BertGCNConfig(min_count=1, epochs=1, fine_tune_epochs=1)
        >>> model = BertGCNClassifier(load_encoder("minilm", max_length=8), config)
        >>> model.fit(Splits(train)).predict_proba(train).shape
        torch.Size([2, 2])
    """

    def __init__(self, encoder: TextEncoder, config: BertGCNConfig | None = None) -> None:
        self.encoder = encoder
        self.config = config or BertGCNConfig()
        self.history: list[dict[str, float]] = []
        self.clock = StageClock()
        self.steps = self.best_step = 0

    def fit(
        self, splits: Splits, *, watch: Watch | None = None, progress: bool = False
    ) -> BertGCNClassifier:
        """Train on the labels of the training part; the others are nodes without label.

        Raises:
            ValueError: No labeled training document, fewer than two class names, no word left,
                pairs of texts, or more layers to freeze than the encoder has.
        """
        config = self.config
        documents = Documents(splits)
        check_classes(documents)
        freeze_layers(self.encoder, config.freeze_layers)
        set_seed(config.seed)
        self.classifier = TextClassifier(
            self.encoder, splits.train.label_names, dropout=0.1, seed=config.seed
        )
        with self.clock.timed("graph"):
            graph = graph_of(documents, config)
        device = find_device(config.device)
        self._place(graph, Places.of(documents.corpus), device)
        rows = len(documents.corpus)
        self.memory = torch.zeros(rows, self.encoder.dim, dtype=torch.float32, device=device)
        if watch is not None:
            watch.begin()
        self._items = self.encoder.tokenize(documents.corpus.texts)
        batches = -(-int((documents.labels >= 0).sum()) // config.batch_size)
        self._most = batches * (config.fine_tune_epochs + config.epochs)
        bar = epoch_bar(self._most, config.model) if progress else None
        with bar or nullcontext():
            tick = (lambda: bar.advance(bar.task_ids[0])) if bar else (lambda: None)
            self._fine_tune(documents, watch, tick)
            self._train(documents, watch, tick)
        return self

    def _fine_tune(self, documents: Documents, watch: Watch | None, tick: Any) -> None:
        """Train encoder and linear head alone, and fill the memory."""
        config = self.config
        if config.fine_tune_epochs:
            optimizer = torch.optim.Adam(self.classifier.parameters(), lr=config.fine_tune_rate)
            self._epochs(documents, optimizer, config.fine_tune_epochs, 0.0, watch, tick)
            return
        self._refresh(documents.corpus)
        known = documents.labels >= 0
        rows, labels = self.memory[known].cpu(), documents.labels[known]
        if labels.unique().numel() > 1:
            fit_balanced_head(self.classifier, rows, labels, seed=config.seed)

    def _train(self, documents: Documents, watch: Watch | None, tick: Any) -> None:
        config = self.config
        optimizer = torch.optim.Adam(
            [
                {"params": self.classifier.parameters(), "lr": config.learning_rate},
                {"params": self.gnn.parameters(), "lr": config.head_learning_rate},
            ]
        )
        weight = config.graph_weight
        self._epochs(documents, optimizer, config.epochs, weight, watch, tick)

    def _epochs(
        self,
        documents: Documents,
        optimizer: torch.optim.Optimizer,
        epochs: int,
        weight: float,
        watch: Watch | None,
        tick: Any,
    ) -> None:
        """Train, keep the best epoch and leave the memory as its weights make it."""
        config, labels = self.config, documents.labels
        known = (labels >= 0).nonzero().ravel()
        held_out = (documents.val_labels >= 0).nonzero().ravel()
        best, waited, kept, step = -1.0, 0, None, self.steps
        for _ in range(epochs):
            order = known[torch.randperm(known.numel())]
            total = 0.0
            for chosen in order.split(config.batch_size):
                total += self._step(chosen, labels[chosen], optimizer, weight) * chosen.numel()
                self.steps += 1
                tick()
                if watch is not None:
                    watch.step(self.steps, self._most)
            # Without the graph nothing but the scores reads rows before the end.
            self._refresh(documents.corpus, None if weight else held_out)
            self.history.append({"step": float(self.steps), "loss": total / known.numel()})
            if not held_out.numel():
                self.best_step = self.steps
                continue
            score = self._note(documents.val_labels, weight)
            waited += 1
            if score > best:
                best, waited, step = score, 0, self.steps
                kept = [_copied(part) for part in (self.classifier, self.gnn)]
            if waited >= config.patience:
                break
        if kept is not None:
            for part, state in zip((self.classifier, self.gnn), kept, strict=True):
                part.load_state_dict(state)
            self.best_step = step
        if waited or not weight:
            self._refresh(documents.corpus)
        for part in (self.classifier, self.gnn):
            part.eval()

    def _step(
        self, chosen: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer, weight: float
    ) -> float:
        device = self.memory.device
        for part in (self.classifier, self.gnn):
            part.train()
        with self.clock.timed("encoder"):
            batch = self.encoder.collate([self._items[place] for place in chosen.tolist()])
            with torch.autocast(device.type, torch.bfloat16, enabled=self.config.bf16):
                moved = {name: value.to(device) for name, value in batch.items()}
                output = self.classifier(**moved)
        chosen, labels = chosen.to(device), labels.to(device)
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
        if weight:
            spread = spread + weight * self._logits(rows, chosen).softmax(dim=1)
        return spread

    def _logits(self, rows: Tensor, chosen: Tensor) -> Tensor:
        """(B, C) of the GNN for the `chosen` (B,) documents, by rows (N, D) of all documents."""
        if self._matrix is None:
            words = rows.new_zeros(self.graph.num_nodes - rows.size(0), rows.size(1))
            return self.gnn(torch.cat([rows, words]), self._edges)[chosen]
        # The rows of words are zero: nothing comes from them in the first layer, though most
        # edges join words. In the second only the chosen documents are asked for.
        whole = chosen.numel() == rows.size(0)
        answers = self._inward.turned if whole else cut_rows(self._matrix, chosen, rows.device)
        logits = self.gnn(rows, self._inward, answers)
        return logits[chosen] if whole else logits

    @torch.no_grad()
    def _answers(self, weight: float) -> Tensor:
        """(N, C) probabilities of all documents by the memory as it is, on the CPU."""
        for part in (self.classifier, self.gnn):
            part.eval()
        every = torch.arange(self.memory.size(0), device=self.memory.device)
        logits = self.classifier.head(self.memory)
        return self._mix(self.memory, every, logits, weight).cpu()

    def _note(self, labels: Tensor, weight: float) -> float:
        """Scores of the validation part; gives its accuracy."""
        held_out = labels >= 0
        spread = self._answers(weight)[held_out]
        loss = nn.functional.nll_loss((spread + _TINY).log(), labels[held_out])
        found = classification_scores(spread.argmax(dim=1).numpy(), labels[held_out].numpy())
        self.history[-1] |= {"val_cross_entropy": loss.item()}
        self.history[-1] |= {f"val_{name}": value for name, value in found.items()}
        return found["accuracy"]

    def _refresh(self, corpus: Corpus, chosen: Tensor | None = None) -> None:
        """Make the rows anew of all documents, or of the chosen ones."""
        device = next(self.gnn.parameters()).device
        with self.clock.timed("refresh"):
            if chosen is None:
                self.memory = self.embed(corpus).to(device)
            elif chosen.numel():
                rows = self.embed(corpus.select(chosen.numpy()))
                self.memory[chosen.to(device)] = rows.to(device)

    def _place(self, graph: Data, places: Places, device: torch.device) -> None:
        config = self.config
        self.graph, self.places = graph, places
        self.gnn = GraphHead(
            self.encoder.dim,
            len(self.classifier.label_names),
            gnn=config.gnn,
            hidden=config.hidden or (200 if config.gnn == "gcn" else 32),
            heads=config.heads,
            dropout=config.dropout,
        )
        self.gnn.to(device)
        self.classifier.to(device)
        self._matrix = normalized_matrix(graph) if config.gnn == "gcn" else None
        if self._matrix is None:
            self._edges = graph.edge_index.to(device)
        else:
            documents = torch.arange(places.ids.numel())
            # Of a symmetric matrix the rows of the documents are their columns, turned.
            self._inward = cut_rows(self._matrix, documents, device).turned

    @property
    def label_names(self) -> list[str]:
        """Names of the C classes."""
        return self.classifier.label_names

    def embed(
        self, corpus: Corpus, *, batch_size: int | None = None, progress: bool = False
    ) -> Tensor:
        """(B, D) rows of any documents by the encoder as it is now."""
        device = next(self.encoder.parameters()).device.type
        size = batch_size or self.config.eval_batch_size
        with torch.autocast(device, torch.bfloat16, enabled=self.config.bf16):
            return self.encoder.embed(corpus, batch_size=size, progress=progress)

    @torch.no_grad()
    def predict_proba(self, corpus: Corpus) -> Tensor:
        """(B, C) class probabilities; documents it was not fitted with get the encoder head's."""
        places = self.places.find(corpus)
        spread = self._answers(self.config.graph_weight)[places]
        new = (places < 0).nonzero().ravel()
        if new.numel():
            rows = self.embed(corpus.select(new.numpy()))
            head = self.classifier.head
            spread[new] = head(rows.to(head.weight.device)).softmax(dim=1).cpu()
        return spread

    def save(self, folder: str | Path) -> Path:
        """Write encoder, heads, graph and memory to `folder`, as safetensors.

        `TextClassifier.load` reads its encoder and linear head alone.
        """
        with whole_folder(folder, ENCODER_FILE) as fresh:
            self.classifier.write_files(fresh)
            save_graph_model(
                fresh,
                self.config,
                self.gnn,
                self.graph,
                self.places,
                tensors={"memory": self.memory},
            )
        return Path(folder).expanduser().absolute()

    @classmethod
    def load(cls, folder: str | Path) -> BertGCNClassifier:
        """Read what `save` wrote, on the CPU.

        Raises:
            ValueError: A folder that is missing, damaged or holds something else.
        """
        with read_graph_model(folder, "bert-gcn") as stored:
            classifier = TextClassifier.load(folder)
            encoder: Any = classifier.encoder
            loaded = cls(encoder, BertGCNConfig(**stored.settings["config"]))
            loaded.classifier = classifier
            loaded._place(stored.graph, stored.places, torch.device("cpu"))
            loaded.memory = stored.tensors["memory"]
            loaded.gnn.load_state_dict(stored.weights)
            loaded.gnn.eval()
        return loaded


def _copied(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
