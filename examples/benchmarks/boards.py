"""Public few-label boards: the recipe, a plain loop and others on the same labels.

Run ``python examples/benchmarks/boards.py --data FOLDER --tasks BANKING77-5 HWU64-5 AGNews-8`` on a
folder with one folder for each corpus (``train.csv.gz``, ``test.csv.gz``, columns ``text,label``;
for the tasks of fixed labels also ``shots_5.csv.gz`` and ``pool_5.csv.gz``). Every method sees the
same labels, the same encoder and the same number of tokens, with its defaults; nothing is chosen on
the test file. Rows are appended to ``--results`` as they come, so a stopped study goes on where it
was. ``boards.md``, ``boards.csv`` and ``boards.png`` are written beside them.

The real SetFit runs in an environment of its own, ``--setfit-python PATH`` (``pip install
setfit==1.2.0``): ``setfit`` with its defaults, ``setfit-published`` with the settings of its
published runs of MiniLM (20 iterations, rate 1e-3); both end after ``--setfit-steps``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from plain_loop import fit_head
from plain_loop import train as train_plainly
from scipy.stats import t as student
from sklearn.linear_model import LogisticRegression

from gloss_graph import PropagationClassifier
from gloss_graph._internal.files import atomic_write
from gloss_graph.analysis import classification_scores
from gloss_graph.text import Corpus, load_encoder, read_table
from gloss_graph.text.tables import csv_bytes
from gloss_graph.training import GraphGuidedClassifier, draw_labels, hide_labels
from gloss_graph.visualization.style import PALETTE, new_figure, save_figure, tidy_axes


class Task(NamedTuple):
    """A corpus, the labels that are known of it, what is scored, and the best published number."""

    corpus: str
    shots: int | None = None
    per_class: int | None = None
    fraction: float | None = None
    score: str = "accuracy"
    published: float | None = None


TASKS = {
    "BANKING77-5": Task("BANKING77", shots=5, published=84.01),
    "BANKING77-10": Task("BANKING77", shots=10, published=89.79),
    "HWU64-5": Task("HWU64", shots=5, published=82.45),
    "HWU64-10": Task("HWU64", shots=10, published=87.41),
    "CLINC150-5": Task("CLINC150", shots=5, published=92.62),
    "CLINC150-10": Task("CLINC150", shots=10, published=94.84),
    "AGNews-8": Task("AGNews", per_class=8, published=83.1),
    "Emotion-8": Task("Emotion", per_class=8, published=39.1),
    "SST-5-8": Task("SST-5", per_class=8, published=29.8),
    "TREC-8": Task("TREC", per_class=8),
    "R8-1%": Task("R8", fraction=0.01, score="macro_f1"),
    "R52-1%": Task("R52", fraction=0.01, score="macro_f1"),
    "R52-5%": Task("R52", fraction=0.05, score="macro_f1"),
    "MR-20": Task("MR", per_class=20, score="macro_f1"),
}
"""Published: best of CPFT and ICDA (RoBERTa-base, other pre-training) for the fixed files, SetFit's
own run of MiniLM (other draws) for 8 labels per class."""

_SETFIT = """
import json, sys
from datasets import Dataset
from setfit import SetFitModel, Trainer, TrainingArguments
with open(sys.argv[1]) as file:
    job = json.load(file)
model = SetFitModel.from_pretrained(job["encoder"])
model.model_body.max_seq_length = job["length"]
settings = {"seed": job["seed"], "max_steps": job["steps"], **job["settings"]}
arguments = TrainingArguments(report_to="none", save_strategy="no", **settings)
known = Dataset.from_dict({"text": job["texts"], "label": job["labels"]})
Trainer(model=model, args=arguments, train_dataset=known).train()
with open(sys.argv[2], "w") as file:
    json.dump([int(label) for label in model.predict(job["test"])], file)
"""
_SETFIT_SETTINGS: dict[str, dict[str, float]] = {
    "setfit": {},
    "setfit-published": {"num_iterations": 20, "body_learning_rate": 1e-3, "batch_size": 16},
}


def known_and_test(task: Task, data: Path, seed: int) -> tuple[Corpus, Corpus]:
    """Training documents, of which some are labeled, and the test documents."""
    folder = data / task.corpus
    whole = read_table(folder / "train.csv.gz")
    names = whole.label_names
    test = read_table(folder / "test.csv.gz", label_names=names)
    if task.shots is None:
        kept = draw_labels(whole, fraction=task.fraction, per_class=task.per_class, seed=seed)
        return hide_labels(whole, kept), test
    shots = read_table(folder / f"shots_{task.shots}.csv.gz", label_names=names)
    pool = read_table(folder / f"pool_{task.shots}.csv.gz", label=None)
    texts, labels = [*shots.texts, *pool.texts], [*shots.labels, *[-1] * len(pool)]
    return Corpus(texts, labels, list(range(len(texts))), names), test


def recipe(train: Corpus, test: Corpus, seed: int, settings: argparse.Namespace) -> np.ndarray:
    """`GraphGuidedClassifier` with its defaults."""
    names = [train.label_names[label] if label >= 0 else None for label in train.labels]
    model = GraphGuidedClassifier(
        settings.encoder, max_length=settings.length, seed=seed, verbose=False
    )
    found = model.fit(train.texts, names).predict(test.texts)
    number = {name: i for i, name in enumerate(train.label_names)}
    return np.array([number[name] for name in found])


def cross_entropy(
    train: Corpus, test: Corpus, seed: int, settings: argparse.Namespace
) -> np.ndarray:
    """Fine-tuning of encoder and head on the labeled documents."""
    known = [i for i, label in enumerate(train.labels) if label >= 0]
    model = GraphGuidedClassifier(
        settings.encoder,
        recipe="full-labels",
        max_length=settings.length,
        seed=seed,
        verbose=False,
        # As many documents in all as the recipe's batches hold at least; the rate of few_labels.py.
        settings={"loss": "ce", "max_steps": 160, "batch_size": 32, "learning_rate": 2e-4},
    )
    model.fit([train.texts[i] for i in known], [train.labels[i] for i in known])
    return np.asarray(model.predict(test.texts))


def plain_loop(train: Corpus, test: Corpus, seed: int, settings: argparse.Namespace) -> np.ndarray:
    """`GraphGuidedObjective` in a loop, then a logistic regression on the classes it finds."""
    encoder = load_encoder(settings.encoder, max_length=settings.length)
    encoder.freeze(None)
    with encoder.keeping_states(train):
        objective = train_plainly(encoder, train, settings.loop_steps, seed)
        head = fit_head(objective, encoder, train)
    return np.asarray(head.predict(torch.nn.functional.normalize(encoder.embed(test), dim=1)))


def frozen_logistic(
    train: Corpus, test: Corpus, seed: int, settings: argparse.Namespace
) -> np.ndarray:
    """Logistic regression on rows of the untrained encoder."""
    rows, labels, queries = frozen_rows(train, test, settings)
    head = LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000)
    return np.asarray(head.fit(rows[labels >= 0], labels[labels >= 0]).predict(queries))


def static_propagation(
    train: Corpus, test: Corpus, seed: int, settings: argparse.Namespace
) -> np.ndarray:
    """Propagation over the rows of the untrained encoder."""
    rows, labels, queries = frozen_rows(train, test, settings)
    return np.asarray(PropagationClassifier().fit(rows, labels).predict(queries))


def frozen_rows(
    train: Corpus, test: Corpus, settings: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit rows of the training documents, their labels, and unit rows of the test documents."""
    encoder = load_encoder(settings.encoder, max_length=settings.length)
    rows, queries = (
        torch.nn.functional.normalize(encoder.embed(part), dim=1).numpy() for part in (train, test)
    )
    return rows, np.array(train.labels), queries


def setfit(name: str) -> Callable[[Corpus, Corpus, int, argparse.Namespace], np.ndarray]:
    """The real SetFit, in its own environment."""

    def run(train: Corpus, test: Corpus, seed: int, settings: argparse.Namespace) -> np.ndarray:
        if settings.setfit_python is None:
            raise SystemExit(f"--methods {name} needs --setfit-python, an environment with setfit.")
        known = [i for i, label in enumerate(train.labels) if label >= 0]
        with tempfile.TemporaryDirectory() as folder:
            load_encoder(settings.encoder).save(Path(folder) / "encoder")
            job = {
                "encoder": f"{folder}/encoder",
                "length": settings.length,
                "seed": seed,
                "steps": settings.setfit_steps,
                "settings": _SETFIT_SETTINGS[name],
                "texts": [train.texts[i] for i in known],
                "labels": [train.labels[i] for i in known],
                "test": list(test.texts),
            }
            asked, given = Path(folder) / "job.json", Path(folder) / "answers.json"
            asked.write_text(json.dumps(job))
            words = [str(settings.setfit_python), "-c", _SETFIT, str(asked), str(given)]
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd=folder)
            return np.array(json.loads(given.read_text()))

    return run


METHODS: dict[str, Callable[[Corpus, Corpus, int, argparse.Namespace], np.ndarray]] = {
    "recipe": recipe,
    "plain-loop": plain_loop,
    "ce": cross_entropy,
    "frozen-logistic": frozen_logistic,
    "static-propagation": static_propagation,
    "setfit": setfit("setfit"),
    "setfit-published": setfit("setfit-published"),
}


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean and half width of the 95 % interval of every task and method, over the seeds."""
    lines = []
    for (task, method), group in rows.groupby(["task", "method"], sort=False):
        scores = 100 * group["score"].to_numpy()
        count = len(scores)
        half = float("nan")
        if count > 1:
            half = student.ppf(0.975, count - 1) * scores.std(ddof=1) / np.sqrt(count)
        lines.append(
            {
                "task": task,
                "score": TASKS[task].score,
                "method": method,
                "seeds": count,
                "mean": scores.mean(),
                "half_interval": half,
                "seconds": group["seconds"].median(),
                "published": TASKS[task].published,
            }
        )
    return pd.DataFrame(lines)


def markdown(summary: pd.DataFrame) -> str:
    """One line a task, one column a method."""
    methods = [name for name in METHODS if (summary["method"] == name).any()]
    lines = [f"| | {' | '.join(methods)} | published |", f"|{'---|' * (len(methods) + 2)}"]
    for task in (task for task in TASKS if (summary["task"] == task).any()):
        own = summary[summary["task"] == task].set_index("method")
        cells = []
        for method in methods:
            cell = ""
            if method in own.index:
                line = own.loc[method]
                cell = f"{line['mean']:.1f}"
                if line["seeds"] > 1:
                    cell += f" ± {line['half_interval']:.1f} ({line['seeds']})"
            cells.append(cell)
        best = TASKS[task].published
        unit = "accuracy" if TASKS[task].score == "accuracy" else "macro-F1"
        lines.append(f"| {task}, {unit} | {' | '.join(cells)} | {best or ''} |")
    return "\n".join(lines) + "\n"


def picture(summary: pd.DataFrame, path: Path) -> None:
    """Means and intervals, one row a task."""
    tasks = [task for task in TASKS if (summary["task"] == task).any()]
    figure = new_figure(8.0, 1.6 + 0.5 * len(tasks))
    axes = figure.subplots()
    methods = [name for name in METHODS if (summary["method"] == name).any()]
    for i, method in enumerate(methods):
        own = summary[summary["method"] == method]
        places = [tasks.index(task) + 0.08 * (i - (len(methods) - 1) / 2) for task in own["task"]]
        half = own["half_interval"].fillna(0.0)
        axes.errorbar(
            own["mean"], places, xerr=half, fmt="o", ms=4, color=PALETTE[i], label=method, lw=1
        )
    axes.set_yticks(range(len(tasks)), tasks)
    axes.invert_yaxis()
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, 0.0), min(high, 100.0))
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    tidy_axes(axes, title="Few labels", x="test score in %, 95 % interval over draws", y="")
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    ours = [name for name in METHODS if not name.startswith("setfit")]
    parser.add_argument("--methods", nargs="+", default=ours, choices=list(METHODS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)))
    parser.add_argument("--encoder", default="minilm")
    parser.add_argument("--length", type=int, default=64, help="tokens kept of a document")
    parser.add_argument("--loop-steps", type=int, default=120, help="steps of the plain loop")
    parser.add_argument("--setfit-python", type=Path)
    parser.add_argument("--setfit-steps", type=int, default=600)
    parser.add_argument("--test-limit", type=int, help="test documents, evenly through the file")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--results", type=Path, default=Path("boards.jsonl"))
    settings = parser.parse_args()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    kept = ("encoder", "length", "loop_steps", "setfit_steps", "test_limit")
    study = {name: getattr(settings, name) for name in kept}
    rows = []
    if settings.results.exists():
        found = [json.loads(line) for line in settings.results.read_text().splitlines()]
        rows = [row for row in found if row["study"] == study]
    done = {(row["task"], row["method"], row["seed"]) for row in rows}
    for name in settings.tasks:
        task = TASKS[name]
        for seed in settings.seeds:
            train, test = known_and_test(task, settings.data, seed)
            if settings.test_limit and len(test) > settings.test_limit:
                test = test.select(
                    np.linspace(0, len(test) - 1, settings.test_limit).astype(int).tolist()
                )
            for method in settings.methods:
                if (name, method, seed) in done:
                    continue
                start = time.perf_counter()
                answers = METHODS[method](train, test, seed, settings)
                score = classification_scores(answers, np.asarray(test.labels))[task.score]
                row = {"task": name, "method": method, "seed": seed, "score": score}
                row |= {"seconds": time.perf_counter() - start, "study": study}
                rows.append(row)
                with settings.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{name} {method} seed {seed}: {100 * score:.1f}, {row['seconds']:.0f} s")
    summary = table(pd.DataFrame(rows))
    text = markdown(summary)
    for suffix, content in ((".md", text.encode()), (".csv", csv_bytes(summary))):
        with atomic_write(settings.results.with_suffix(suffix), overwrite=True) as file:
            file.write(content)
    picture(summary, settings.results.with_suffix(".png"))
    print(text)


if __name__ == "__main__":
    main()
