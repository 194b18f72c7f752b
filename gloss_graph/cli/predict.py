"""`gloss-graph predict`: label a file by a finished run."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from gloss_graph.cli.options import (
    DocumentFile,
    SecondTexts,
    TextColumn,
    flag,
    option,
    path_option,
    say,
)

if TYPE_CHECKING:
    from torch import Tensor

    from gloss_graph.text import Corpus
    from gloss_graph.training import Prediction, Run

_TOP = 3
_TEXTS = ("text", "text_b")


def predict(
    run: Annotated[Path, path_option("Run folder of gloss-graph train.")],
    input: DocumentFile,
    output: Annotated[Path, path_option("File to write: .csv, .tsv, .jsonl (also .gz), .parquet.")],
    features: Annotated[Path | None, path_option("Rows of features, if the run has them.")] = None,
    text: TextColumn = "text",
    text_b: SecondTexts = None,
    mode: Annotated[
        str, option("inductive: each document by itself; transductive: all in one graph.")
    ] = "inductive",
    anchor: Annotated[float | None, option("Share of the frozen similarity.")] = None,
    rule: Annotated[str | None, option("harmonic, spreading or poisson; else the run's.")] = None,
) -> None:
    """Label documents by propagation over the training documents, with reasons.

    The columns of the input are kept. Runs on label sets give `labels`, joined as in the training
    files, and the probability of every class.
    """
    from gloss_graph._internal.files import utf8_folder
    from gloss_graph.text import read_features, read_table
    from gloss_graph.text.tables import has_column, write_table

    check_output(output)
    if (kind := _model_of(run)) is not None:
        given = {"text_b": text_b, "features": features, "anchor": anchor, "rule": rule}
        refused = [name for name, value in given.items() if value is not None]
        refused += ["mode"] if mode != "inductive" else []
        _predict_by_model(kind, run, input, output, text=text, refused=refused)
        return
    import torch

    from gloss_graph.inference import Explanation
    from gloss_graph.training import Prediction, Run

    loaded = Run(utf8_folder(run))
    if not loaded.on_features and (text_b is not None) != loaded.on_pairs:
        what = "name the column of second texts" if loaded.on_pairs else "be left out"
        kind = "pairs" if loaded.on_pairs else "single texts"
        raise ValueError(f"'--text-b' must {what}, as the run was trained on {kind} ({run}).")
    column = None if loaded.on_features and not has_column(input, text) else text
    corpus = read_table(input, text=column, label=None, text_b=text_b)
    spread, top = torch.empty(0, len(loaded.label_names)), torch.empty(0, _TOP)
    nothing = Explanation(spread, torch.empty(0), top.long(), top)
    names = _answers(loaded, Prediction(nothing, spread))
    table = input_columns(input, corpus, text=column, text_b=text_b, answers=names)
    rows = None if features is None else read_features(features)
    if rows is not None and len(rows) != len(corpus):
        raise ValueError(
            f"'features' must have a row per document (got {len(rows)} for {len(corpus)})."
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
    write_table(output, table | _answers(loaded, answer))
    confidence = 100 * float(answer.explanation.confidence.mean())
    say(f"{len(corpus)} documents, {confidence:.0f} % mean confidence.")
    say(f"Predictions: {output}")


def _model_of(run: Path) -> str | None:
    """The graph model of a run folder; None if it is of another kind or cannot be read."""
    from gloss_graph.runs import RunFolder

    try:
        model = RunFolder(run).settings().get("model")
    except (OSError, ValueError):
        return None
    return model if isinstance(model, str) else None


def _predict_by_model(
    model: str, run: Path, source: Path, out: Path, *, text: str, refused: list[str]
) -> None:
    """Label new documents with the encoder head of a BertGCN run; `refused` options were typed."""
    import torch

    from gloss_graph._internal.files import utf8_folder
    from gloss_graph.baselines.text_gcn import NEW_DOCUMENTS
    from gloss_graph.runs import RunFolder
    from gloss_graph.text import read_table
    from gloss_graph.text.tables import write_table
    from gloss_graph.training import TextClassifier

    if model != "bert-gcn":
        raise ValueError(f"The run {run} is of --model {model}. {NEW_DOCUMENTS}")
    if refused:
        raise ValueError(
            f"'{flag(refused[0])}' must be left out for a run of --model {model}, whose "
            "encoder head labels new documents: no graph holds them."
        )
    folder = RunFolder(utf8_folder(run))
    try:
        folder.check_digests(folder.settings())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"'run' must be a folder written by gloss-graph train ({error})."
        ) from error
    classifier = TextClassifier.load(folder.model)
    corpus = read_table(source, text=text, label=None)
    answers = ("label", "probability")
    table = input_columns(source, corpus, text=text, text_b=None, answers=answers)
    rows = classifier.encoder.embed(corpus, progress=True)
    with torch.no_grad():
        best = classifier.head(rows).softmax(dim=1).max(dim=1)
    table["label"] = [classifier.label_names[place] for place in best.indices.tolist()]
    table["probability"] = best.values.tolist()
    write_table(out, table)
    say(f"{len(corpus):,} documents labeled by the encoder head: {out}")


def check_output(out: Path) -> None:
    """Refuse an output that cannot be written, before any work."""
    from gloss_graph.text.tables import table_suffix

    table_suffix(out, "output")
    if out.exists():
        raise FileExistsError(f"'output' must not exist ({out} does). Choose another name.")
    if not out.parent.is_dir():
        raise FileNotFoundError(
            f"'output' must lie in a folder that exists ({out.parent} does not). Create it first."
        )


def input_columns(
    source: Path,
    corpus: Corpus,
    *,
    text: str | None,
    text_b: str | None,
    answers: Collection[str],
) -> dict[str, Any]:
    """The columns of the input, in their order and of their types, to which the answers are added.

    The texts are named `text` and `text_b`. Another column of an answer's name gets the prefix
    `input_`. Without a column of texts, documents are named by their place in the file.
    """
    from gloss_graph.text.tables import read_columns

    wanted = [name for name in (text, text_b) if name is not None]
    columns = read_columns(source).columns
    table: dict[str, Any] = {} if text is not None else {"text": corpus.texts}
    taken = {*answers, *(_TEXTS if text_b is not None else _TEXTS[:1])}
    for name, values in columns.items():
        if name in wanted:
            table[_TEXTS[wanted.index(name)]] = values
            continue
        kept = f"input_{name}" if name in taken else name
        if kept != name and kept in columns:
            raise ValueError(
                f"{source} must not have both columns {name!r} and {kept!r}: {name!r} is the name "
                f"of a prediction, and the column is kept as {kept!r}. Rename one."
            )
        table[kept] = values
    return table


def _short(values: Tensor) -> list[float]:
    """Six digits; more are noise."""
    return [float(f"{value:.6g}") for value in values.tolist()]


def _answers(run: Run, answer: Prediction) -> dict[str, Any]:
    """The columns of the answers."""
    import pyarrow

    reasons = answer.explanation
    heads = {"probability": reasons.probabilities, "linear_probability": answer.linear}
    columns = _sets if run.multilabel else _classes
    table = columns(run, heads, _short(reasons.confidence))
    for rank in range(_TOP):
        found, name = reasons.ids[:, rank].tolist(), f"reason_{rank + 1}"
        known = [id_ if id_ >= 0 else None for id_ in found]
        table[f"{name}_id"] = pyarrow.array(known, pyarrow.int64())
        table[f"{name}_share"] = _short(reasons.shares[:, rank])
        table[f"{name}_text"] = [run.texts.get(id_, "") for id_ in found]
        if run.on_pairs:
            table[f"{name}_text_b"] = [run.texts_b.get(id_, "") for id_ in found]
    return table


def _classes(run: Run, heads: dict[str, Tensor], confidence: list[float]) -> dict[str, Any]:
    """The class of every document."""
    table: dict[str, Any] = {}
    for name, values in heads.items():
        best = values.max(dim=1)
        labels = [run.label_names[place] for place in best.indices.tolist()]
        table |= {name.replace("probability", "label"): labels, name: _short(best.values)}
        table.setdefault("confidence", confidence)
    return table


def _sets(run: Run, heads: dict[str, Tensor], confidence: list[float]) -> dict[str, Any]:
    """The label set of every document, and the probability of every class."""
    from gloss_graph.text.corpora import SEPARATOR
    from gloss_graph.text.tables import joined_names
    from gloss_graph.training.outcome import THRESHOLD

    separator = run.settings.get("data", {}).get("separator", SEPARATOR)
    labels, linear = (
        joined_names((values >= THRESHOLD).numpy(), run.label_names, separator)
        for values in heads.values()
    )
    table = {"labels": labels, "confidence": confidence, "linear_labels": linear}
    for head, values in heads.items():
        for name, column in zip(run.label_names, values.T, strict=True):
            table[f"{head}[{name}]"] = _short(column)
    return table
