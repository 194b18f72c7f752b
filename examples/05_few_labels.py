"""Some 200 labels, thousands of documents: train by the corpus, predict over it, see the reasons.

Seventeen labels for each of 12 topics of the demo corpus (documentation of installed packages, no
download); all other training documents join without label. Three ways, the same labels:
cross-entropy on the labels, SetFit's recipe (contrastive steps on the labels, balanced logistic
head), and contrast over a bank of the whole corpus, where the classes of the other documents are
those that views of its graph agree on. Each is scored twice, by its linear head and by
propagating the labels over the training documents. At the end a few test documents are explained by
the labeled ones that decided them.

Run ``python examples/05_few_labels.py [--documents 4000 --labels 17 --steps 60]``; some ten
minutes on two cores as it stands.
"""

import argparse
import tempfile
import warnings
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from gloss_graph.text import Splits, docstring_corpus, load_encoder, read_splits
from gloss_graph.training import RunResult, TrainConfig, train_text

WAYS = {
    "cross-entropy": {"loss": "ce"},
    "SetFit": {"loss": "setfit"},
    "corpus graph": {"loss": "gloss"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train", help="CSV, TSV, JSONL or Parquet; default: the demo corpus")
    parser.add_argument("--documents", type=int, default=4_000, help="size of the demo corpus")
    parser.add_argument("--labels", type=int, default=17, help="labels a topic")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--length", type=int, default=48, help="tokens kept of a document")
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--seed", type=int, default=0)
    settings = parser.parse_args()
    console = Console()
    if settings.train:
        splits = read_splits(settings.train)
        splits = Splits(splits.train, test=splits.val)
    else:
        splits = docstring_corpus(max_documents=settings.documents)
    console.print(
        f"{len(splits.train)} training documents, "
        f"{settings.labels * splits.train.num_classes} labels, {len(splits.test)} test documents"
    )
    # The untrained embeddings serve all three ways.
    encoder = load_encoder(settings.encoder, max_length=settings.length)
    frozen = {name: encoder.embed(part, progress=True) for name, part in splits.parts.items()}

    results: dict[str, RunResult] = {}
    for name, way in WAYS.items():
        steps = {"max_steps": 2 * settings.steps}
        if way["loss"] == "gloss":
            # No joint training: the head is fitted to what the graph says at the end.
            steps = {"max_steps": 0, "graph_start_steps": settings.steps}
        config = TrainConfig(
            **way,
            **steps,
            labels_per_class=settings.labels,
            batch_size=16,
            unlabeled_batch_size=24,
            class_balance=True,
            k=20,
            seed=settings.seed,
        )
        encoder = load_encoder(settings.encoder, max_length=settings.length)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            # What the graph promises is printed below.
            warnings.filterwarnings("ignore", "Graph skill")
            out = Path(folder) / "run"
            results[name] = train_text(
                splits, encoder, config, out, frozen=frozen, progress=True, description=name
            )
    result = results["corpus graph"]
    console.print(str(result.skill), highlight=False)

    table = Table(title="Macro-F1 on the test documents")
    for heading in ("trained by", "linear head", "propagated"):
        table.add_column(heading, justify="left" if heading == "trained by" else "right")
    for name, other in results.items():
        scores = (other.metrics["test.macro_f1"], other.metrics["test_propagation.macro_f1"])
        table.add_row(name, *(f"{100 * score:.1f}" for score in scores))
    console.print(table)

    some = torch.arange(3)
    answer = result.objective.explain(
        result.embeddings["test"][some], frozen=frozen["test"][some], top=2
    )
    text_of = dict(zip(splits.train.ids, splits.train.texts, strict=True))
    names = splits.train.label_names
    for row in some.tolist():
        label = names[int(answer.probabilities[row].argmax())]
        confidence = float(answer.confidence[row])
        console.print(f"\n[bold]{label}[/bold] ({100 * confidence:.0f} % confident)")
        console.print(f"  {splits.test.texts[row][:90]}", markup=False)
        for id_, share in zip(answer.ids[row].tolist(), answer.shares[row].tolist(), strict=True):
            if id_ >= 0:
                text = text_of[id_][:80]
                console.print(f"  {100 * share:3.0f} % from: {text}", markup=False)


if __name__ == "__main__":
    main()
