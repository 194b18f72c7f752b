"""`gloss-graph predict`: label a file by a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from gloss_graph._internal.files import utf8_folder
from gloss_graph.cli.models import model_of, predict_by_model
from gloss_graph.cli.predictions import answered, check_output
from gloss_graph.text import read_features, read_table
from gloss_graph.text.corpora import SEPARATOR
from gloss_graph.text.tables import has_column, joined_names, write_table
from gloss_graph.training import Prediction, Run
from gloss_graph.training.multilabel import THRESHOLD

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
) -> dict[str, Any]:
    """Write the columns of the file, label, probability, confidence and reasons of every document.

    Of a run on label sets: `labels`, joined as in the files it was trained on, and the probability
    of every class. The suffix of `out` names the format.

    Returns:
        What was written, column by column.
    """
    check_output(out)
    if (kind := model_of(run)) is not None:
        given = {"text_b": text_b, "features": features, "anchor": anchor, "rule": rule}
        refused = [name for name, value in given.items() if value is not None]
        refused += ["mode"] if mode != "inductive" else []
        return predict_by_model(kind, run, source, out, text=text, refused=refused)
    loaded = Run(utf8_folder(run))
    if not loaded.on_features and (text_b is not None) != loaded.on_pairs:
        what = "name the column of second texts" if loaded.on_pairs else "be left out"
        kind = "pairs" if loaded.on_pairs else "single texts"
        raise ValueError(f"'--text-b' must {what}, as the run was trained on {kind} ({run}).")
    column = None if loaded.on_features and not has_column(source, text) else text
    corpus = read_table(source, text=column, label=None, text_b=text_b)
    answers = _answer_names(loaded)
    table = answered(source, corpus, text=column, text_b=text_b, answers=answers)
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
    table |= (_sets if loaded.multilabel else _classes)(loaded, answer)
    for rank in range(_TOP):
        ids = reasons.ids[:, rank].tolist()
        known = [id_ if id_ >= 0 else None for id_ in ids]
        table[f"reason_{rank + 1}_id"] = pa.array(known, pa.int64())
        table[f"reason_{rank + 1}_share"] = _short(reasons.shares[:, rank].tolist())
        table[f"reason_{rank + 1}_text"] = [loaded.texts.get(id_, "") for id_ in ids]
        if loaded.on_pairs:
            table[f"reason_{rank + 1}_text_b"] = [loaded.texts_b.get(id_, "") for id_ in ids]
    write_table(out, table)
    console = Console()
    console.print(
        f"{len(corpus)} documents, {100 * float(reasons.confidence.mean()):.0f} % mean confidence.",
        highlight=False,
    )
    console.print(f"Predictions: {out}", highlight=False, markup=False, soft_wrap=True)
    return table


def _answer_names(run: Run) -> list[str]:
    """Columns that every output has but for the texts."""
    names = ["label", "probability", "confidence", "linear_label", "linear_probability"]
    if run.multilabel:
        names = ["labels", "confidence", "linear_labels"]
        for head in ("probability", "linear_probability"):
            names += [f"{head}[{name}]" for name in run.label_names]
    parts = ("id", "share", "text", *(("text_b",) if run.on_pairs else ()))
    return names + [f"reason_{rank + 1}_{part}" for rank in range(_TOP) for part in parts]


def _short(values: list[float]) -> list[float]:
    """Six digits, which is more than the numbers are good for."""
    return [float(f"{value:.6g}") for value in values]


def _classes(run: Run, answer: Prediction) -> dict[str, list[Any]]:
    """Columns of the one class of every document."""
    names = run.label_names
    probability, label = answer.explanation.probabilities.max(dim=1)
    linear_probability, linear = answer.linear.max(dim=1)
    return {
        "label": [names[c] for c in label.tolist()],
        "probability": _short(probability.tolist()),
        "confidence": _short(answer.explanation.confidence.tolist()),
        "linear_label": [names[c] for c in linear.tolist()],
        "linear_probability": _short(linear_probability.tolist()),
    }


def _sets(run: Run, answer: Prediction) -> dict[str, list[Any]]:
    """Columns of the label set of every document, and of every class."""
    spread, linear, names = answer.explanation.probabilities, answer.linear, run.label_names
    separator = run.settings.get("data", {}).get("separator", SEPARATOR)
    table: dict[str, list[Any]] = {
        "labels": joined_names((spread >= THRESHOLD).numpy(), names, separator),
        "confidence": _short(answer.explanation.confidence.tolist()),
        "linear_labels": joined_names((linear >= THRESHOLD).numpy(), names, separator),
    }
    for head, values in (("probability", spread), ("linear_probability", linear)):
        for name, column in zip(names, values.T.tolist(), strict=True):
            table[f"{head}[{name}]"] = _short(column)
    return table
