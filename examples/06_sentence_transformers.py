"""Fine-tune a SentenceTransformer with its own Trainer and the graph-guided objective.

MiniLM on a corpus that needs no download (documentation of installed packages, 12 topics) or on a
table with the columns ``text`` and ``label``. The bank is filled with the whole corpus before the
first step, so every batch meets the graph of all documents. Scored twice, before and after: by
propagating the labels in the bank to documents that were held out, and by the nearest class mean,
which needs no bank. Needs ``pip install "gloss-graph[demo,sentence-transformers]"``.

Run ``python examples/06_sentence_transformers.py [--train my.csv --steps 30]``; about half a
minute on two cores.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from transformers.trainer_callback import PrinterCallback
from transformers.utils.logging import disable_progress_bar

from gloss_graph import GraphGuidedObjective, MemoryBank
from gloss_graph.adapters import GraphGuidedLoss, ObjectiveCheckpoint
from gloss_graph.text import Corpus, docstring_corpus, load_encoder, read_splits


def load_model(folder: Path, max_length: int) -> SentenceTransformer:
    """MiniLM from the package index; online, ``SentenceTransformer("any-model")`` does it."""
    encoder = load_encoder("minilm", max_length=max_length)
    encoder.save(folder)
    options = {"add_pooling_layer": False}
    words = Transformer(str(folder), max_seq_length=max_length, model_kwargs=options)
    return SentenceTransformer(modules=[words, Pooling(encoder.dim, "mean")], device="cpu")


def report(moment: str, loss: GraphGuidedLoss, train: Corpus, test: Corpus) -> None:
    model, truth = loss.model, torch.tensor(test.labels)
    rows = model.encode(test.texts, convert_to_tensor=True, normalize_embeddings=True)
    known = model.encode(train.texts, convert_to_tensor=True, normalize_embeddings=True)
    labels = torch.tensor(train.labels)
    means = torch.stack([known[labels == c].mean(dim=0) for c in range(train.num_classes)])
    by_mean = (rows @ means.T).argmax(dim=1)
    by_graph = loss.objective.predict(rows).argmax(dim=1)
    scores = [100 * float((found == truth).float().mean()) for found in (by_graph, by_mean)]
    print(f"{moment:<18}{scores[0]:>12.1f}{scores[1]:>20.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train", help="CSV, TSV, JSONL or Parquet; default: the demo corpus")
    parser.add_argument("--documents", type=int, default=600, help="size of the demo corpus")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=32)
    parser.add_argument("--out", type=Path, help="folder to keep; default: a temporary one")
    settings = parser.parse_args()
    disable_progress_bar()
    out = settings.out or Path(tempfile.mkdtemp())

    if settings.train:
        splits = read_splits(settings.train)
    else:
        splits = docstring_corpus(max_documents=settings.documents)
    train, test = splits.train, splits.val
    print(f"{train}, {len(test)} documents held out\n")

    model = load_model(out / "minilm", settings.max_length)
    bank = MemoryBank(capacity=len(train), dim=model.get_embedding_dimension())
    # No label of the batch is shown: every document is told by those in the bank.
    objective = GraphGuidedObjective(train.num_classes, memory=bank, visible_fraction=0.0)
    loss = GraphGuidedLoss(model, objective)
    loss.prefill(train.texts, torch.tensor(train.labels), progress=True)

    args = SentenceTransformerTrainingArguments(
        output_dir=str(out / "checkpoints"),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=5e-5,
        warmup_steps=settings.steps // 10,
        save_steps=settings.steps,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = SentenceTransformerTrainer(
        model,
        args,
        # One column of texts and the class as label; the loss knows a text by its tokens.
        train_dataset=Dataset.from_dict({"text": train.texts, "label": train.labels}),
        loss=loss,
        callbacks=[ObjectiveCheckpoint(loss)],  # bank and generator in every checkpoint
    )
    trainer.remove_callback(PrinterCallback)
    print(f"{'accuracy (%)':<18}{'propagation':>12}{'nearest class mean':>20}")
    report("before", loss, train, test)
    trainer.train()
    report(f"after {settings.steps} steps", loss, train, test)

    checkpoint = out / "checkpoints" / f"checkpoint-{settings.steps}"
    fresh = GraphGuidedObjective(
        train.num_classes, memory=MemoryBank(len(train), bank.dim), visible_fraction=0.0
    )
    GraphGuidedLoss(model, fresh).load(checkpoint / "objective.safetensors")
    print(f"\nBank loaded again from the checkpoint: {len(fresh.memory)} rows")
    print(f"Same rows: {torch.equal(fresh.memory.rows, bank.rows)}")


if __name__ == "__main__":
    main()
