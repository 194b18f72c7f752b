"""Images from features: 50 labels for 1,400 handwritten digits, with the command line's own parts.

The digits ship with scikit-learn. Their pixels are the features (embeddings of any pretrained
network would be), documents need no text. Two runs on the same labels: cross-entropy, and the
contrastive start on the labels and then on the graph of all images. Each is scored by its linear
head and by propagation; the images that decided the least certain predictions are drawn.

Run ``python examples/08_images.py [--labels 50 --steps 60]``; half a minute on two cores. The same
from the shell: ``gloss-graph train --encoder none --features images.npy --train train.csv ...``.
"""

import argparse
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

from gloss_graph.text import Corpus, FeatureEncoder, Splits, with_features
from gloss_graph.training import RunResult, TrainConfig, train_text

HELD_OUT = 397


def splits_of(labeled: int, seed: int) -> Splits:
    """Training images, of which `labeled` have a label, and test images, with their pixels."""
    digits = load_digits()
    order = np.random.default_rng(seed).permutation(len(digits.target))
    truth, names = digits.target[order], [str(digit) for digit in range(10)]
    shown = np.where(np.arange(len(order)) < labeled, truth, -1)
    ids = np.arange(len(order))

    def part(rows: slice, labels: np.ndarray) -> Corpus:
        texts = [f"image {number}" for number in order[rows]]
        return Corpus(texts, labels[rows].tolist(), ids[rows].tolist(), names)

    train, test = part(slice(0, -HELD_OUT), shown), part(slice(-HELD_OUT, None), truth)
    return with_features(Splits(train, test=test), digits.data[order].astype(np.float32))


def draw(splits: Splits, result: RunResult, out: Path, count: int = 5) -> None:
    """The least certain test images, each beside the three that decided it."""
    test, train = splits.test, splits.train
    frozen = torch.from_numpy(test.features)
    answer = result.objective.explain(result.embeddings["test"], frozen=frozen, top=3)
    chosen = answer.confidence.argsort()[:count].tolist()
    figure, axes = plt.subplots(count, 4, figsize=(6, 1.7 * count), squeeze=False)
    place = {id_: row for row, id_ in enumerate(train.ids)}
    for row, number in enumerate(chosen):
        label = int(answer.probabilities[number].argmax())
        cells = [(test.features[number], f"{label}, truly {test.labels[number]}")]
        pairs = zip(answer.ids[number].tolist(), answer.shares[number].tolist(), strict=True)
        for id_, share in pairs:
            if id_ >= 0:
                pixels = train.features[place[id_]]
                cells.append((pixels, f"{100 * share:.0f} % from a {train.labels[place[id_]]}"))
        for axis in axes[row]:
            axis.axis("off")
        for axis, (pixels, title) in zip(axes[row], cells, strict=False):
            axis.imshow(pixels.reshape(8, 8), cmap="Greys")
            axis.set_title(title, fontsize=9)
    figure.tight_layout()
    figure.savefig(out, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--labels", type=int, default=50)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("digits.png"))
    settings = parser.parse_args()
    splits = splits_of(settings.labels, settings.seed)
    steps = settings.steps
    ways = {
        "cross-entropy": {"loss": "ce", "max_steps": 2 * steps},
        "contrastive start, labels then graph": {
            "max_steps": 0,
            "warm_start_steps": steps,
            "graph_start_steps": steps,
        },
    }
    results = {}
    for name, options in ways.items():
        config = TrainConfig(
            **{"loss": "gloss", **options},
            learning_rate=1e-3,
            warm_start_rate=1e-3,
            k=10,
            select="last",
            seed=settings.seed,
        )
        encoder = FeatureEncoder.scaled_to(splits.train.features, seed=settings.seed)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Graph skill")
            results[name] = train_text(splits, encoder, config, Path(folder) / "run")
    table = Table(title=f"Test images of {settings.labels} labels, accuracy in %")
    for heading in ("trained by", "linear head", "propagation"):
        table.add_column(heading, justify="left" if heading == "trained by" else "right")
    for name, result in results.items():
        scores = (result.metrics[f"{part}.accuracy"] for part in ("test", "test_propagation"))
        table.add_row(name, *(f"{100 * score:.1f}" for score in scores))
    console = Console()
    console.print(table)
    draw(splits, results["contrastive start, labels then graph"], settings.out)
    console.print(f"Least certain images and what decided them: {settings.out}", highlight=False)


if __name__ == "__main__":
    main()
