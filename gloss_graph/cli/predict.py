"""`gloss-graph predict`: label a file by a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from gloss_graph._files import atomic_write
from gloss_graph.cli.models import model_of, predict_by_model
from gloss_graph.text import read_features, read_table
from gloss_graph.text.tables import has_column
from gloss_graph.training import Prediction, Run
from gloss_graph.training.multilabel import THRESHOLD, joined_names

_TOP = 3


def run_predict(
    run: Path,
    source: Path,
    out: Path,
    *,
    features: Path | None = None,
    text: str,
    text_b: str | None,
    mode: str,
    anchor: float | None,
    rule: str | None,
) -> pd.DataFrame:
    """Write text, label, probability, confidence and reasons of every document as CSV.

    Of a run on label sets: `labels` joined by `;` and the probability of every class.
    """
    if out.exists():
        raise FileExistsError(f"'output' must not exist ({out} does). Choose another name.")
    if (kind := model_of(run)) is not None:
        given = {"text_b": text_b, "features": features, "anchor": anchor, "rule": rule}
        refused = [name for name, value in given.items() if value is not None]
        refused += ["mode"] if mode != "inductive" else []
        return predict_by_model(kind, run, source, out, text=text, refused=refused)
    loaded = Run(run)
    if not loaded.on_features and (text_b is not None) != loaded.on_pairs:
        what = "name the column of second texts" if loaded.on_pairs else "be left out"
        kind = "pairs" if loaded.on_pairs else "single texts"
        raise ValueError(f"'--text-b' must {what}, as the run was trained on {kind} ({run}).")
    column = None if loaded.on_features and not has_column(source, text) else text
    corpus = read_table(source, text=column, label=None, text_b=text_b)
    rows = None if features is None else read_features(features)
    if rows is not None and len(rows) != len(corpus):
        raise ValueError(
            f"'features' must have a row a document (got {len(rows)} for {len(corpus)})."
        )
    answer = loaded.predict(
        corpus.texts,
        corpus.texts_b,
        features=rows,
        mode=mode,
        anchor=anchor,
        rule=rule,
        progress=True,
    )
    reasons = answer.explanation
    pairs = {} if corpus.texts_b is None else {"text_b": corpus.texts_b}
    answers = (_sets if loaded.multilabel else _classes)(loaded, answer)
    table = {"text": corpus.texts, **pairs, **answers}
    for rank in range(_TOP):
        ids = reasons.ids[:, rank].tolist()
        table[f"reason_{rank + 1}_id"] = [id_ if id_ >= 0 else None for id_ in ids]
        table[f"reason_{rank + 1}_share"] = reasons.shares[:, rank].tolist()
        table[f"reason_{rank + 1}_text"] = [loaded.texts.get(id_, "") for id_ in ids]
        if loaded.on_pairs:
            table[f"reason_{rank + 1}_text_b"] = [loaded.texts_b.get(id_, "") for id_ in ids]
    frame = pd.DataFrame(table)
    for rank in range(_TOP):
        frame[f"reason_{rank + 1}_id"] = frame[f"reason_{rank + 1}_id"].astype("Int64")
    with atomic_write(out) as draft:
        frame.to_csv(draft.name, index=False, float_format="%.6g")
    console = Console()
    console.print(
        f"{len(frame)} documents, {100 * float(reasons.confidence.mean()):.0f} % mean confidence.",
        highlight=False,
    )
    console.print(f"Predictions: {out}", highlight=False, markup=False, soft_wrap=True)
    return frame


def _classes(run: Run, answer: Prediction) -> dict[str, list[Any]]:
    """Columns of the one class of every document."""
    names = run.label_names
    probability, label = answer.explanation.probabilities.max(dim=1)
    linear_probability, linear = answer.linear.max(dim=1)
    return {
        "label": [names[c] for c in label.tolist()],
        "probability": probability.tolist(),
        "confidence": answer.explanation.confidence.tolist(),
        "linear_label": [names[c] for c in linear.tolist()],
        "linear_probability": linear_probability.tolist(),
    }


def _sets(run: Run, answer: Prediction) -> dict[str, list[Any]]:
    """Columns of the label set of every document, and of every class."""
    spread, linear, names = answer.explanation.probabilities, answer.linear, run.label_names
    table: dict[str, list[Any]] = {
        "labels": joined_names((spread >= THRESHOLD).numpy(), names),
        "confidence": answer.explanation.confidence.tolist(),
        "linear_labels": joined_names((linear >= THRESHOLD).numpy(), names),
    }
    for head, values in (("probability", spread), ("linear_probability", linear)):
        for name, column in zip(names, values.T.tolist(), strict=True):
            table[f"{head}[{name}]"] = column
    return table
