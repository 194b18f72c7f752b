"""`gloss-graph train --model` and `gloss-graph predict` of its runs: TextGCN and BertGCN."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from gloss_graph._internal.checks import check_choice
from gloss_graph._internal.files import utf8_folder
from gloss_graph._internal.processes import launched
from gloss_graph.baselines import (
    CONFIGS,
    BertGCNConfig,
    GraphModelConfig,
    GraphModelResult,
    train_graph_model,
)
from gloss_graph.baselines.text_gcn import NEW_DOCUMENTS
from gloss_graph.cli.predictions import answered
from gloss_graph.cli.settings import typed_settings, was_typed
from gloss_graph.cli.train import finish_run, read_parts, say_run
from gloss_graph.runs import RunFolder
from gloss_graph.text import Splits, load_encoder, read_table
from gloss_graph.text.tables import write_table
from gloss_graph.training import TextClassifier
from gloss_graph.training.config import SETTINGS
from gloss_graph.training.processes import find_device

# Options that say what is read and written, for both models.
_FILES = ("train", "val", "test", "out", "unlabeled", "text", "label", "model")
_ENCODER = ("encoder", "pooling", "max_length")
# Options that only graph models have.
_OWN = (
    "window",
    "min_count",
    "stop_words",
    "cleaning",
    "hidden",
    "gnn",
    "fine_tune_epochs",
    "fine_tune_rate",
)


def refuse_model_options(context: typer.Context) -> None:
    """Refuse options of graph models where there is none.

    Raises:
        ValueError: Names the first.
    """
    for name in _given(context):
        if name in _OWN:
            raise ValueError(
                f"'--{_dashed(name)}' must be left out without --model text-gcn or bert-gcn. "
                "Remove it, or choose one of them."
            )


def model_config(model: str, context: typer.Context) -> GraphModelConfig:
    """Settings of a graph model from the options that were typed; its own defaults otherwise.

    Raises:
        ValueError: An unknown model, an option it does not have (named), or one out of range.
    """
    check_choice("model", model, ("encoder", *CONFIGS))
    kind = CONFIGS[model]
    known = {field.name for field in fields(kind)}
    allowed = {*known, *_FILES, *(_ENCODER if kind is BertGCNConfig else ())}
    given = _given(context)
    for name in given:
        if name not in allowed:
            raise ValueError(
                f"'--{_dashed(name)}' must be left out with --model {model}, which does not have "
                f"it. It takes {', '.join('--' + _dashed(n) for n in _taken(allowed, context))}."
            )
    values = {**context.params, **typed_settings(context)}
    settings = {name: values[name] for name in given if name in known}
    if "epochs" in settings:
        epochs = settings["epochs"]
        if epochs != int(epochs):
            raise ValueError(f"'epochs' must be whole with --model {model} (got {epochs}).")
        settings["epochs"] = int(epochs)
    return kind(**settings)


def run_model(model: str, context: typer.Context) -> None:
    """Train a graph model on files, print its scores and write its run folder."""
    config, options = model_config(model, context), context.params
    if launched() > 1:
        raise ValueError(f"--model {model} runs in one process: start it without torchrun.")
    find_device(config.device)
    out, console = Path(options["out"]), Console()
    # Refused before anything is read.
    RunFolder(out).check_new()
    splits = _read(config, options, console)
    encoder = None
    if isinstance(config, BertGCNConfig):
        if options["encoder"] == "none":
            raise ValueError("'encoder' must read texts for --model bert-gcn (got 'none').")
        encoder = load_encoder(
            options["encoder"], pooling=options["pooling"], max_length=options["max_length"]
        )
    command = ["gloss-graph", *(context.find_root().obj or [])]

    def finish(draft: Path, result: GraphModelResult) -> None:
        finish_run(draft, out, model, result, command)

    result = train_graph_model(splits, config, out, encoder=encoder, progress=True, finish=finish)
    say_run(out, _scores(model, result.metrics))


def model_of(run: Path) -> str | None:
    """The graph model of a run folder; None where it is of another kind or cannot be read."""
    try:
        model = RunFolder(run).settings().get("model")
    except (OSError, ValueError):
        return None
    return model if isinstance(model, str) else None


def predict_by_model(
    model: str, run: Path, source: Path, out: Path, *, text: str, refused: list[str]
) -> dict[str, Any]:
    """Label new documents by a run of a graph model: of BertGCN by its encoder head.

    Raises:
        ValueError: TextGCN, which cannot; an option that is for propagation.
    """
    if model != "bert-gcn":
        raise ValueError(f"The run {run} is of --model {model}. {NEW_DOCUMENTS}")
    if refused:
        raise ValueError(
            f"'--{_dashed(refused[0])}' must be left out for a run of --model {model}, whose "
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
    table = answered(source, corpus, text=text, text_b=None, answers=answers)
    rows = classifier.encoder.embed(corpus, progress=True)
    with torch.no_grad():
        best = classifier.head(rows).softmax(dim=1).max(dim=1)
    table["label"] = [classifier.label_names[place] for place in best.indices.tolist()]
    table["probability"] = best.values.tolist()
    write_table(out, table)
    Console().print(
        f"{len(corpus):,} documents labeled by the encoder head: {out}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return table


def _read(config: GraphModelConfig, options: dict[str, Any], console: Console) -> Splits:
    columns = {"text": options["text"], "label": options["label"], "text_b": None}
    files = (options["train"], options["val"], options["test"], options["unlabeled"])
    few = (options["unlabeled"], config.label_fraction, config.labels_per_class) != (None,) * 3
    share = 0.0 if few else 0.1
    return read_parts(files, columns, console, val_share=share, seed=config.seed)


def _given(context: typer.Context) -> list[str]:
    """Options that were typed."""
    typed = [name for name in context.params if was_typed(context, name)]
    return [*typed, *typed_settings(context)]


def _taken(allowed: set[str], context: typer.Context) -> list[str]:
    return [name for name in (*context.params, *SETTINGS) if name in allowed]


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _scores(model: str, metrics: dict[str, float]) -> Table:
    table = Table(title="Scores")
    for heading in ("run", "split", "accuracy", "macro-F1", "steps", "seconds"):
        left = heading in ("run", "split")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for split in ("val", "test"):
        if f"{split}.macro_f1" in metrics:
            table.add_row(
                model,
                split,
                f"{100 * metrics[f'{split}.accuracy']:.1f}",
                f"{100 * metrics[f'{split}.macro_f1']:.1f}",
                f"{metrics['steps']:.0f}",
                f"{metrics['seconds.train']:.0f}",
            )
    return table
