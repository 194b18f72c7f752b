"""`gloss-graph train`: its options; those of its settings are made by `settings`."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from gloss_graph.cli.settings import given_settings


def path(value: str | os.PathLike[str]) -> Path:
    """The path that was typed; `~` is the home folder, also in `--out=~/x`, which shells keep."""
    return Path(os.path.expanduser(value))


def path_option(*names: str, **settings: Any) -> Any:
    """The type of every option that takes a path; arguments as of `typer.Option`."""
    return typer.Option(*names, parser=path, **settings)


# Options that `train` and `tune` share.
Unlabeled = Annotated[Path | None, path_option(help="File of documents without labels.")]
TextColumn = Annotated[str, typer.Option(help="Column of the texts.", rich_help_panel="Documents")]
LabelColumn = Annotated[
    str, typer.Option(help="Column of the labels.", rich_help_panel="Documents")
]
SecondTexts = Annotated[
    str | None,
    typer.Option(help="Column of second texts, for pairs.", rich_help_panel="Documents"),
]
Pooling = Annotated[
    str | None, typer.Option(help="cls, mean or last.", rich_help_panel="Documents")
]
MaxLength = Annotated[
    int, typer.Option(min=1, help="Tokens kept of a document.", rich_help_panel="Documents")
]
Config = Annotated[
    Path | None,
    path_option(help="YAML file of settings, as graph.k: 8; options and --set go before it."),
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting, name=value or part.name=value; repeatable."),
]
_Model: Any = partial(typer.Option, rich_help_panel="Graph models (--model)")


def train(
    context: typer.Context,
    train: Annotated[Path, path_option(help="CSV, TSV, JSONL or Parquet (also .gz).")],
    out: Annotated[Path, path_option(help="New or empty run folder.")],
    val: Annotated[
        Path | None, path_option(help="Validation file; else 10 % of train, none with few labels.")
    ] = None,
    test: Annotated[Path | None, path_option(help="Test file.")] = None,
    unlabeled: Unlabeled = None,
    encoder: Annotated[
        str, typer.Option(help="minilm, a hub id, a folder, or none for --features.")
    ] = "minilm",
    features: Annotated[
        Path | None,
        path_option(help="npy, pt, safetensors or Parquet: rows of train, val, test, unlabeled."),
    ] = None,
    config: Config = None,
    settings: Set = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted run in --out.")
    ] = False,
    save_steps: Annotated[
        int | None,
        typer.Option(
            help="Steps between checkpoints; else at every evaluation; 0: none.",
            rich_help_panel="Training",
        ),
    ] = None,
    text: TextColumn = "text",
    label: LabelColumn = "label",
    text_b: SecondTexts = None,
    multilabel: Annotated[
        bool,
        typer.Option(
            help="Several labels per document, joined by --separator or in lists.",
            rich_help_panel="Documents",
        ),
    ] = False,
    separator: Annotated[
        str,
        typer.Option(help="Between the labels of a document.", rich_help_panel="Documents"),
    ] = ";",
    pooling: Pooling = None,
    max_length: MaxLength = 128,
    model: Annotated[
        str,
        _Model(help="encoder; or text-gcn, bert-gcn: a graph of documents and their words."),
    ] = "encoder",
    window: Annotated[int, _Model(help="Words per window.")] = 20,
    min_count: Annotated[int, _Model(help="Rarer words are left out.")] = 5,
    stop_words: Annotated[
        bool, _Model(help="Leave out English stop words; not for short texts.")
    ] = True,
    cleaning: Annotated[
        str, _Model(help="Words: unicode; or published, of ASCII letters alone.")
    ] = "unicode",
    hidden: Annotated[int | None, _Model(help="Width of the hidden graph layer; else 200.")] = None,
    gnn: Annotated[str, _Model(help="gcn or gat, of bert-gcn.")] = "gcn",
    fine_tune_epochs: Annotated[
        int, _Model(help="Epochs of the encoder alone, before bert-gcn.")
    ] = 10,
    fine_tune_rate: Annotated[float, _Model(help="Their learning rate.")] = 1e-4,
) -> None:
    """Fine-tune an encoder on your own files and score it."""
    from gloss_graph.cli.models import refuse_model_options, run_model
    from gloss_graph.cli.train import run_train
    from gloss_graph.training import TrainConfig

    if model != "encoder":
        run_model(model, context)
        return
    refuse_model_options(context)
    given = given_settings(context, config, settings or [])
    if features is not None:
        # An adapter of features is new and takes larger steps than a pretrained encoder.
        given = {"learning_rate": 1e-3, "warm_start_rate": 1e-3, **given}
    columns = {"text": text, "label": label, "text_b": text_b}
    if multilabel:
        columns["separator"] = separator
    run_train(
        train,
        val,
        test,
        out,
        TrainConfig.from_flat(given),
        encoder_name=encoder,
        pooling=pooling,
        max_length=max_length,
        columns=columns,
        unlabeled=unlabeled,
        features=features,
        command=typed(context),
        resume=resume,
        save_steps=save_steps,
    )


def typed(context: typer.Context) -> list[str]:
    """The words of the command line, as `main` got them."""
    return ["gloss-graph", *(context.find_root().obj or [])]


def number_or_name(value: str) -> float | str:
    """A number where the word is one, else the word: the name of a rule."""
    try:
        return float(value)
    except ValueError:
        return value
