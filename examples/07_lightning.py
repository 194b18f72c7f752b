"""Fine-tune a sentence encoder with Lightning and the graph-guided objective.

MiniLM on a corpus that needs no download (documentation of installed packages, 12 topics) or on a
table with the columns ``text`` and ``label``: encoder, linear head and objective as one
LightningModule, scored by head and by propagation, stopped after half of the epochs and resumed
from Lightning's own checkpoint, bank included. Needs
``pip install "gloss-graph[demo,lightning]"``.

Run ``python examples/07_lightning.py [--train my.csv --epochs 2]``; about half a minute on two
cores.
"""

import argparse
import logging
import tempfile
import warnings
from pathlib import Path

import lightning
import torch
from torch.utils.data import DataLoader

from gloss_graph import GraphGuidedObjective, MemoryBank
from gloss_graph.adapters import GraphGuidedModule
from gloss_graph.text import Corpus, Splits, docstring_corpus, load_encoder, read_splits
from gloss_graph.training import TextCollator, TextDataset


def make_module(splits: Splits, max_length: int, prefill: bool = True) -> GraphGuidedModule:
    lightning.seed_everything(0, verbose=False)
    encoder = load_encoder("minilm", max_length=max_length)
    train = splits.train
    bank = MemoryBank(capacity=len(train), dim=encoder.dim)
    if prefill:
        labels, ids = torch.tensor(train.labels), torch.tensor(train.ids)
        bank.prefill([(train.texts, labels, ids)], encoder.encode)
    objective = GraphGuidedObjective(train.num_classes, memory=bank, graph_weight=0.3)
    head = torch.nn.Linear(encoder.dim, train.num_classes)
    return GraphGuidedModule(encoder, objective, head, head_learning_rate=1e-2)


def batches(module: GraphGuidedModule, corpus: Corpus, size: int) -> DataLoader:
    # The collator makes the tokens, `labels` and `ids` of a batch.
    data, collate = TextDataset(corpus, module.encoder), TextCollator(module.encoder)
    return DataLoader(data, batch_size=size, collate_fn=collate)


def make_trainer(epochs: int, out: Path) -> lightning.Trainer:
    return lightning.Trainer(
        max_epochs=epochs,
        default_root_dir=out,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train", help="CSV, TSV, JSONL or Parquet; default: the demo corpus")
    parser.add_argument("--documents", type=int, default=600, help="size of the demo corpus")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=32)
    parser.add_argument("--out", type=Path, help="folder to keep; default: a temporary one")
    settings = parser.parse_args()
    if settings.epochs < 2:
        parser.error("--epochs must be at least 2, to resume half-way")
    out = settings.out or Path(tempfile.mkdtemp())
    # Lightning's advice on loader processes and hardware.
    warnings.filterwarnings("ignore", "The .* does not have many workers")
    warnings.filterwarnings("ignore", ".*LeafSpec.*", FutureWarning)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    if settings.train:
        splits = read_splits(settings.train)
    else:
        splits = docstring_corpus(max_documents=settings.documents)
    print(f"{splits.train}, {len(splits.val)} documents held out\n")

    module = make_module(splits, settings.max_length)
    loader = batches(module, splits.train, settings.batch_size)
    held_out = batches(module, splits.val, 64)
    half = settings.epochs // 2
    print(f"{'accuracy (%)':<18}{'linear head':>12}{'propagation':>13}")
    for epochs in (half, settings.epochs):
        trainer = make_trainer(epochs, out)
        checkpoint = out / f"after-{half}.ckpt"
        if epochs > half:
            # A new module, as in a new process: everything comes from the checkpoint.
            module = make_module(splits, settings.max_length, prefill=False)
            trainer.fit(module, loader, held_out, ckpt_path=checkpoint, weights_only=True)
        else:
            trainer.fit(module, loader, held_out)
            trainer.save_checkpoint(checkpoint)
        by_head = 100 * float(trainer.callback_metrics["val_accuracy"])
        rows = module.encoder.encode(splits.val.texts)
        found = module.objective.predict(rows).argmax(dim=1)
        by_graph = 100 * float((found == torch.tensor(splits.val.labels)).float().mean())
        print(f"{f'after epoch {epochs}':<18}{by_head:>12.1f}{by_graph:>13.1f}")

    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    print(f"\nRows of the bank in the checkpoint: {int(state['objective.memory.count'])}")
    print(f"Written to {out}")


if __name__ == "__main__":
    main()
