"""`gloss-graph predict`: label a file by a finished run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.console import Console

from gloss_graph.cli import options
from gloss_graph.cli.options import option, path_option, say
from gloss_graph.cli.signals import keeping

if TYPE_CHECKING:
    from torch import Tensor

    from gloss_graph.text import Corpus
    from gloss_graph.training import Prediction, Run

_ROWS = 1024  # documents in memory at a time
_TOP = 3


def predict(
    run: Annotated[Path, path_option("Run folder of gloss-graph train.")],
    input: options.DocumentFile,
    output: Annotated[Path, path_option("File to write: .csv, .tsv, .jsonl (also .gz), .parquet.")],
    features: Annotated[Path | None, path_option("Rows of features, if the run has them.")] = None,
    text: options.TextColumn = "text",
    text_b: options.SecondTexts = None,
    mode: Annotated[
        str,
        option(
            "inductive: each document by itself, read and written in chunks; transductive: all in "
            "one graph, so the whole file is held in memory."
        ),
    ] = "inductive",
    anchor: Annotated[float | None, option("Share of the frozen similarity.")] = None,
    rule: Annotated[str | None, option("harmonic, spreading or poisson; else the run's.")] = None,
) -> None:
    """Label documents by propagation over the training documents, with reasons.

    The columns of the input are kept. Runs on label sets give `labels`, joined as in the training
    files, and the probability of every class.
    """
    from gloss_graph._internal.files import utf8_folder
    from gloss_graph.runs import RunFolder
    from gloss_graph.text.tables import has_column

    check_output(output)
    model = None
    with suppress(OSError, ValueError):  # of no run: refused below
        model = RunFolder(run).settings().get("model")
    if isinstance(model, str):
        given = {"text_b": text_b, "features": features, "anchor": anchor, "rule": rule}
        given["mode"] = None if mode == "inductive" else mode
        _predict_by_model(model, run, input, output, text, given)
        return
    import torch

    from gloss_graph.inference import Explanation
    from gloss_graph.training import Prediction, Run

    loaded = Run(utf8_folder(run))
    if not loaded.on_features and (text_b is not None) != loaded.on_pairs:
        what = "name the column of second texts" if loaded.on_pairs else "be left out"
        kind = "pairs" if loaded.on_pairs else "single texts"
        raise ValueError(f"'--text-b' must {what}, as the run was trained on {kind} ({run}).")
    sure, whole = 0.0, mode == "transductive"

    def answer(corpus: Corpus) -> dict[str, Any]:
        nonlocal sure
        found = loaded.predict(
            corpus.texts,
            corpus.texts_b,
            features=corpus.features,
            mode=mode,
            anchor=anchor,
            rule=rule,
            top=_TOP,
            progress=whole,
        )
        sure += float(found.explanation.confidence.double().sum())
        return _answers(loaded, found)

    spread, top = torch.empty(0, len(loaded.label_names)), torch.empty(0, _TOP)
    nothing = Prediction(Explanation(spread, torch.empty(0), top.long(), top), spread)
    count = _label(
        input,
        output,
        answer,
        _answers(loaded, nothing),
        text=None if loaded.on_features and not has_column(input, text) else text,
        text_b=text_b,
        features=features,
        whole=whole,
    )
    say(f"{count} documents, {100 * sure / count:.0f} % mean confidence.")
    say(f"Predictions: {output}")


def _label(
    source: Path,
    out: Path,
    answer: Callable[[Corpus], dict[str, Any]],
    answers: Collection[str],
    *,
    text: str | None,
    text_b: str | None = None,
    features: Path | None = None,
    whole: bool = False,
) -> int:
    """Label the documents of a file chunk by chunk, `whole` at once; returns their number.

    The file is read twice, so that its faults are found before any work is done.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from gloss_graph.text.features import FeatureFile
    from gloss_graph.text.readers import read_documents
    from gloss_graph.text.tables import column_types, table_suffix, write_table

    stored = None if features is None else FeatureFile(features)
    read = partial(read_documents, source, text=text, text_b=text_b)
    count = 0
    found: dict[str, None] = {}

    def kept(rows: int | None) -> Iterator[tuple[Corpus, dict[str, Any]]]:
        for corpus, table in read(rows):
            absent = [None] * len(corpus)
            columns = {new: table.columns.get(name, absent) for name, new in names.items()}
            yield corpus, columns if text is not None else {"text": corpus.texts, **columns}

    def answered() -> Iterator[dict[str, Any]]:
        if whole:  # has a bar of its encoder
            bar.stop()
        for corpus, columns in kept(None if whole else _ROWS):
            if stored is not None:
                corpus = replace(corpus, features=stored[corpus.ids[0] : corpus.ids[-1] + 1])
            yield columns | answer(corpus)
            bar.advance(task, len(corpus))

    columns = "{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    with keeping(lambda: f"{out} was not written."), bar:
        task = bar.add_task("Reading", total=None)
        for corpus, table in read(_ROWS):
            found |= dict.fromkeys(table.columns)
            bar.advance(task, len(corpus))
            count += len(corpus)
        if stored is not None and len(stored) != count:
            raise ValueError(
                f"'features' must have a row per document (got {len(stored)} for {count})."
            )
        names = kept_names(source, found, text=text, text_b=text_b, answers=answers)
        types = {}
        if table_suffix(out) == ".parquet":
            types = column_types(lambda: (columns for _, columns in kept(_ROWS)))
        bar.reset(task, total=count, description="Labeling")
        write_table(out, answered(), types)
    return count


def _predict_by_model(
    model: str, run: Path, source: Path, out: Path, text: str, others: dict[str, Any]
) -> None:
    """Label new documents with the encoder head of a BertGCN run, which takes no `others`."""
    import torch

    from gloss_graph._internal.files import utf8_folder
    from gloss_graph.baselines.text_gcn import NEW_DOCUMENTS
    from gloss_graph.runs import RunFolder
    from gloss_graph.training import TextClassifier

    if model != "bert-gcn":
        raise ValueError(f"The run {run} is of --model {model}. {NEW_DOCUMENTS}")
    for name, value in others.items():
        if value is not None:
            raise ValueError(
                f"'{options.flag(name)}' must be left out for a run of --model {model}, whose "
                "encoder head labels new documents: no graph holds them."
            )
    folder = RunFolder(utf8_folder(run))
    try:
        folder.check_digests(folder.settings())
    except (OSError, ValueError) as error:
        message = f"'run' must be a folder written by gloss-graph train ({error})."
        raise ValueError(message) from error
    classifier = TextClassifier.load(folder.model)

    def answer(corpus: Corpus) -> dict[str, Any]:
        rows = classifier.encoder.embed(corpus)
        with torch.no_grad():
            best = classifier.head(rows).softmax(dim=1).max(dim=1)
        labels = [classifier.label_names[place] for place in best.indices.tolist()]
        return {"label": labels, "probability": best.values.tolist()}

    count = _label(source, out, answer, ("label", "probability"), text=text)
    say(f"{count:,} documents labeled by the encoder head: {out}")


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


def kept_names(
    source: Path,
    columns: Collection[str],
    *,
    text: str | None,
    text_b: str | None,
    answers: Collection[str],
) -> dict[str, str]:
    """Names of the input columns in the output, in their order.

    The texts are named `text` and `text_b`. Another column of an answer's name gets the prefix
    `input_`.
    """
    texts = {text: "text"} | ({text_b: "text_b"} if text_b is not None else {})
    taken = {*answers, *texts.values()}
    names: dict[str, str] = {}
    for name in columns:
        if name in texts:
            names[name] = texts[name]
            continue
        names[name] = kept = f"input_{name}" if name in taken else name
        if kept != name and kept in columns:
            raise ValueError(
                f"{source} must not have both columns {name!r} and {kept!r}: {name!r} is the name "
                f"of a prediction, and the column is kept as {kept!r}. Rename one."
            )
    return names


def _short(values: Tensor) -> list[float]:
    """Six digits; more are noise."""
    return [float(f"{value:.6g}") for value in values.tolist()]


def _answers(run: Run, answer: Prediction) -> dict[str, Any]:
    import pyarrow

    reasons = answer.explanation
    heads = {"probability": reasons.probabilities, "linear_probability": answer.linear}
    table = (_sets if run.multilabel else _classes)(run, heads, _short(reasons.confidence))
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
