"""Fine-tune a sentence encoder with the Hugging Face Trainer and the graph-guided objective.

MiniLM on a corpus that needs no download (documentation of installed packages, 12 topics) or on a
table with the columns ``text`` and ``label``: a bank that knows the whole corpus from the first
step, evaluation by the linear head and by propagation over the bank, saving, and resuming with the
same result as never stopping. A dozen steps show that it works; good scores take an epoch or more.

Run ``python examples/03_hf_trainer.py [--train my.csv --steps 12 --out runs/hf]``.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from transformers import TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from gloss_graph import GraphGuidedObjective, MemoryBank
from gloss_graph.analysis import classification_scores
from gloss_graph.text import Corpus, Splits, docstring_corpus, load_encoder, read_splits
from gloss_graph.training import GraphGuidedTrainer, TextClassifier, TextCollator, TextDataset


def make_trainer(splits: Splits, settings: argparse.Namespace, out: Path) -> GraphGuidedTrainer:
    """Everything from the same seed, so that two calls give two equal trainers."""
    set_seed(settings.seed)
    train = splits.train
    encoder = load_encoder("minilm", max_length=settings.max_length)
    model = TextClassifier(encoder, train.label_names, seed=settings.seed)

    # One slot per document, filled by the pretrained encoder: the first step already sees the
    # whole corpus as a graph. Training then refreshes the rows of its own batches in place.
    bank = MemoryBank(capacity=len(train), dim=encoder.dim)
    labels, ids = torch.tensor(train.labels), torch.tensor(train.ids)
    bank.prefill([(train.texts, labels, ids)], encoder.encode)
    classes = train.num_classes
    objective = GraphGuidedObjective(classes, memory=bank, graph_weight=0.3, seed=settings.seed)
    # A new head needs larger steps than a pretrained encoder.
    body = {"params": encoder.parameters(), "lr": 5e-5}
    head = {"params": model.head.parameters(), "lr": 1e-2}
    args = TrainingArguments(
        output_dir=str(out),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=64,
        save_steps=settings.steps // 2,
        seed=settings.seed,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = GraphGuidedTrainer(
        model,
        args,
        objective=objective,
        train_dataset=TextDataset(train, encoder),
        eval_dataset=TextDataset(splits.val, encoder),
        data_collator=TextCollator(encoder),  # passes labels and ids on, beside the tokens
        compute_metrics=lambda p: classification_scores(p.predictions.argmax(1), p.label_ids),
        optimizers=(torch.optim.AdamW([body, head]), None),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def report(moment: str, trainer: GraphGuidedTrainer, corpus: Corpus) -> None:
    """Accuracy by the linear head, and by propagating the labels in the bank."""
    by_head = trainer.evaluate()["eval_accuracy"]
    objective = trainer.objective.eval()  # looks at the bank, stores nothing
    rows = trainer.model.encoder.encode(corpus.texts).to(trainer.args.device)
    unknown = torch.full((len(corpus),), -1)
    out = objective(rows, unknown, ids=torch.tensor(corpus.ids), return_output=True)
    hits = out.propagated.argmax(dim=1).cpu() == torch.tensor(corpus.labels)
    by_propagation = float(hits.float().mean())
    print(f"{moment:<18}{100 * by_head:>12.1f}{100 * by_propagation:>13.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train", help="CSV, TSV, JSONL or Parquet; default: the demo corpus")
    parser.add_argument("--documents", type=int, default=600, help="size of the demo corpus")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=48)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder to keep; default: a temporary one")
    settings = parser.parse_args()
    if settings.steps < 2:
        parser.error("--steps must be at least 2, to resume half-way")
    out = settings.out or Path(tempfile.mkdtemp())

    if settings.train:
        splits = read_splits(settings.train, seed=settings.seed)
    else:
        splits = docstring_corpus(max_documents=settings.documents)
    print(f"{splits.train}, {len(splits.val)} documents held out\n")

    trainer = make_trainer(splits, settings, out / "checkpoints")
    print(f"{'accuracy (%)':<18}{'linear head':>12}{'propagation':>13}")
    report("before", trainer, splits.val)
    trainer.train()
    report(f"after {settings.steps} steps", trainer, splits.val)
    seconds = trainer.stage_seconds()
    shares = (f"{name} {100 * s / sum(seconds.values()):.1f} %" for name, s in seconds.items())
    print(f"Time: {', '.join(shares)}\n")

    # The classifier travels without trainer and objective.
    trainer.model.save(out / "model")
    again = TextClassifier.load(out / "model")
    best = int(again.head(again.encoder.encode(splits.val.texts[:1])).argmax())
    print(f"Loaded again: {again.label_names[best]!r} for {splits.val.texts[0][:60]!r}")

    # Bank and generator are part of a checkpoint: the second half, run again by a new trainer
    # from the checkpoint half-way, ends in the same weights and the same bank.
    half = settings.steps // 2
    resumed = make_trainer(splits, settings, out / "resumed")
    resumed.train(resume_from_checkpoint=str(out / "checkpoints" / f"checkpoint-{half}"))
    ends = [{**t.model.state_dict(), **t.objective.memory.state_dict()} for t in (trainer, resumed)]
    same = all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    print(f"Resumed from step {half}: same weights and bank as without a stop: {same}")
    print(f"Written to {out}")


if __name__ == "__main__":
    main()
