"""`gloss-graph train`: read files, train, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.table import Table

from gloss_graph.cli import options
from gloss_graph.cli.options import busy, flag, of_documents, option, path_option, say, was_typed
from gloss_graph.cli.signals import keeping

if TYPE_CHECKING:
    from gloss_graph.baselines import GraphModelConfig
    from gloss_graph.text import FeatureEncoder, Splits, TextEncoder
    from gloss_graph.training import TrainConfig

_MODEL_PANEL = "Graph models (--model)"
# Options for what is read and written that apply to both graph models, and to bert-gcn.
_MODEL_FILES = ("train", "val", "test", "out", "unlabeled", "text", "label", "model")
_MODEL_ENCODER = ("encoder", "pooling", "max_length")
_SCORES = {
    "accuracy": ".accuracy",
    "exact sets": ".subset_accuracy",
    "micro-F1": ".micro_f1",
    "macro-F1": ".macro_f1",
    "propagated F1": "_propagation.macro_f1",
}
_Files = tuple[Path, Path | None, Path | None, Path | None]
of_models = partial(option, panel=_MODEL_PANEL)


def train(
    context: typer.Context,
    train: options.DocumentFile,
    out: Annotated[Path, path_option("New or empty run folder.")],
    val: Annotated[
        Path | None, path_option("Validation file; else 10 % of train, none with few labels.")
    ] = None,
    test: Annotated[Path | None, path_option("Test file.")] = None,
    unlabeled: options.Unlabeled = None,
    encoder: Annotated[str, option("minilm, a hub id, a folder, or none (features).")] = "minilm",
    recipe: Annotated[
        str | None,
        option("few-labels, full-labels or auto: named settings, which other options override."),
    ] = None,
    config: options.Config = None,
    settings: options.Set = None,
    resume: Annotated[bool, option("Continue the interrupted run in --out.", "--resume")] = False,
    save_steps: Annotated[
        int | None,
        option("Steps between checkpoints; else at every evaluation; 0: none.", panel="Training"),
    ] = None,
    text: options.TextColumn = "text",
    label: options.LabelColumn = "label",
    text_b: options.SecondTexts = None,
    features: Annotated[
        Path | None,
        of_documents(
            "npy, pt, safetensors or Parquet: rows of train, val, test, unlabeled.",
            parser=options.path,
        ),
    ] = None,
    multilabel: Annotated[bool, of_documents("Several labels per document.")] = False,
    separator: Annotated[str, of_documents("Between the labels of a document.")] = ";",
    pooling: options.Pooling = None,
    max_length: options.MaxLength = 128,
    model: Annotated[
        str, of_models("encoder; or text-gcn, bert-gcn: a graph of documents and their words.")
    ] = "encoder",
    window: Annotated[int, of_models("Words per window.")] = 20,
    min_count: Annotated[int, of_models("Rarer words are left out.")] = 5,
    stop_words: Annotated[bool, of_models("Leave out English stop words.")] = True,
    cleaning: Annotated[
        str, of_models("Words: unicode; or published, of ASCII letters alone.")
    ] = "unicode",
    hidden: Annotated[int | None, of_models("Width of the graph layer.")] = None,
    gnn: Annotated[str, of_models("gcn or gat, of bert-gcn.")] = "gcn",
    fine_tune_epochs: Annotated[
        int, of_models("Epochs of the encoder alone, before bert-gcn.")
    ] = 10,
    fine_tune_rate: Annotated[float, of_models("Their learning rate.")] = 1e-4,
) -> None:
    """Fine-tune an encoder on your own files and score it."""
    if model != "encoder":
        _train_model(model, context)
        return
    for each in context.command.params:
        of_model = getattr(each, "rich_help_panel", None) == _MODEL_PANEL and each.name != "model"
        if of_model and was_typed(context, name := each.name or ""):
            raise ValueError(
                f"'{flag(name)}' must be left out without --model text-gcn or bert-gcn. Remove it, "
                "or choose one of them."
            )
    given = options.given_settings(context, config, settings)

    from gloss_graph.runs import RunFolder
    from gloss_graph.text import FeatureEncoder, load_encoder, read_features, with_features
    from gloss_graph.text.tables import has_column
    from gloss_graph.training import config as settings_of
    from gloss_graph.training import setup
    from gloss_graph.training.checkpoints import Checkpoints

    if recipe is not None:
        few = unlabeled is not None or {"label_fraction", "labels_per_class"} & given.keys()
        few_labels = bool(few) and not multilabel
        given = settings_of.recipe_settings(recipe, few_labels=few_labels) | given
    if features is not None:
        # An adapter of features is new and takes larger steps than a pretrained encoder.
        given = {**settings_of.FEATURE_RATES, **given}
    chosen = settings_of.TrainConfig.from_flat(given)
    setup.check_run(chosen, on_features=features is not None)
    setup.join_processes(chosen.device)
    command = options.typed_words(context)
    setup.check_same_everywhere({"command": command[1:]})
    if resume and RunFolder(out).is_finished:
        _check_finished(out, chosen)
        say(f"The run is finished, there is nothing to resume. Run folder: {out}")
        return
    # Refused before anything is read.
    setup.on_main(RunFolder(out).check_new)
    if resume and not Checkpoints(out).begun:
        say("Nothing to resume: the run starts.", style="dim")
    if (encoder == "none") != (features is not None):
        raise ValueError("'features' must be given exactly with encoder 'none'.")
    columns: dict[str, Any] = {"text": text, "label": label, "text_b": text_b}
    if features is not None and not has_column(train, text):
        columns["text"] = None
    if multilabel:
        columns["separator"] = separator
        settings_of.check_multilabel(chosen)
    splits, chosen = read_files((train, val, test, unlabeled), chosen, columns)
    described = described_files(train, unlabeled, columns, splits)
    untrained: TextEncoder | FeatureEncoder
    if features is None:
        untrained = load_encoder(encoder, pooling=cast(Any, pooling), max_length=max_length)
    else:
        table = read_features(features)
        splits = with_features(splits, table)
        untrained = FeatureEncoder.scaled_to(table, seed=chosen.seed)
    with keeping(Checkpoints(out).kept):
        train_and_report(splits, untrained, chosen, out, described, command, resume, save_steps)


def _check_finished(out: Path, config: TrainConfig) -> None:
    from gloss_graph.runs import read_run
    from gloss_graph.training.checkpoints import different
    from gloss_graph.training.config import DEFAULTS

    # The meaning of "auto" depends on the files.
    asked = {k: v for k, v in config.as_dict().items() if (k, v) != ("select", "auto")}
    stored = DEFAULTS | read_run(out).settings
    changes = different({name: stored[name] for name in asked}, asked)
    if changes:
        raise ValueError(
            f"'resume' must find a run of these settings ({changes}), and that in {out} is "
            "finished. Train into another folder."
        )


def train_and_report(
    splits: Splits,
    encoder: TextEncoder | FeatureEncoder,
    config: TrainConfig,
    out: Path,
    files: list[dict[str, Any]],
    command: list[str] | None = None,
    resume: bool = False,
    save_steps: int | None = None,
) -> None:
    """Train into a run folder, draw its pictures and print its scores.

    The run finds its documents again by `files`, the result of `described_files`.
    """
    from gloss_graph.training import train_text

    notes = []
    spec, unlabeled = config.loss_spec, min(splits.train.labels) < 0
    if spec.fills_bank and spec.uses_unlabeled and not config.few_labels and not unlabeled:
        notes.append("No unlabeled documents: the consistency term stays zero.")
    if splits.train.multilabel and config.pictures:
        notes.append("Label sets: no pictures, which color documents by one class.")
    result = train_text(
        splits,
        encoder,
        config,
        out,
        progress=True,
        description=config.loss,
        finish=partial(_finish_run, out=out, command=command, files=files),
        resume=resume,
        save_steps=save_steps,
    )
    # Printed last: if the reader closes the pipe the run is whole.
    if result.skill is not None:
        say(str(result.skill))
    _say_run(out, config.loss, result.metrics, notes)


def _train_model(model: str, context: typer.Context) -> None:
    """Train a graph model on files, print its scores and write its run folder."""
    from gloss_graph._internal.processes import launched
    from gloss_graph.baselines import BertGCNConfig, train_graph_model
    from gloss_graph.runs import RunFolder
    from gloss_graph.text import load_encoder
    from gloss_graph.training.setup import find_device

    config, given = _model_config(model, context), context.params
    out, name = given["out"], given["encoder"]
    if launched() > 1:
        raise ValueError(f"--model {model} runs in one process: start it without torchrun.")
    find_device(config.device)
    # Refused before anything is read.
    RunFolder(out).check_new()
    columns = {"text": given["text"], "label": given["label"], "text_b": None}
    files = (given["train"], given["val"], given["test"], given["unlabeled"])
    few = (given["unlabeled"], config.label_fraction, config.labels_per_class) != (None,) * 3
    splits = _read_parts(files, columns, val_share=0.0 if few else 0.1, seed=config.seed)
    encoder = None
    if isinstance(config, BertGCNConfig):
        if name == "none":
            raise ValueError("'encoder' must read texts for --model bert-gcn (got 'none').")
        encoder = load_encoder(name, pooling=given["pooling"], max_length=given["max_length"])
    finish = partial(_finish_run, out=out, command=options.typed_words(context))
    result = train_graph_model(splits, config, out, encoder=encoder, progress=True, finish=finish)
    _say_run(out, model, result.metrics)


def _model_config(model: str, context: typer.Context) -> GraphModelConfig:
    """Settings of a graph model from the options that were typed; else its defaults."""
    from gloss_graph._internal.checks import check_choice
    from gloss_graph.baselines import CONFIGS, BertGCNConfig

    check_choice("model", model, ("encoder", *CONFIGS))
    kind = CONFIGS[model]
    known = {field.name for field in fields(kind)}
    allowed = {*known, *_MODEL_FILES, *(_MODEL_ENCODER if kind is BertGCNConfig else ())}
    given = {name: value for name, value in context.params.items() if was_typed(context, name)}
    given |= options.typed_settings(context)
    if wrong := [name for name in given if name not in allowed]:
        names = [each.name for each in context.command.get_params(context)]
        taken = ", ".join(flag(name) for name in names if name in allowed)
        raise ValueError(
            f"'{flag(wrong[0])}' must be left out with --model {model}, which does not have it. "
            f"It takes {taken}."
        )
    settings = {name: value for name, value in given.items() if name in known}
    if (epochs := settings.get("epochs")) is not None:
        if epochs != int(epochs):
            raise ValueError(f"'epochs' must be whole with --model {model} (got {epochs}).")
        settings["epochs"] = int(epochs)
    return kind(**settings)


def _finish_run(draft: Path, result: object, *, out: Path, command: Any, files: Any = None) -> None:
    """Note command and files in `draft`, a run on its way to `out`, and write its page there."""
    from gloss_graph.reports import write_run_report
    from gloss_graph.runs import RunFolder

    RunFolder(draft).note(command=command, files=files)
    with busy("Drawing pictures"):
        write_run_report(draft, place=out)


def _say_run(out: Path, name: str, metrics: Mapping[str, float], notes: Sequence[str] = ()) -> None:
    """Print the scores of a finished run and where it is."""
    from gloss_graph.runs import RunFolder

    say(score_table({name: metrics}))
    for note in notes:
        say(note, style="dim")
    say(f"Report: {RunFolder(out).page}")
    say(f"Run folder: {out}")


def read_files(
    files: _Files, config: TrainConfig, columns: dict[str, Any], *, needs_val: bool = False
) -> tuple[Splits, TrainConfig]:
    """The training, validation, test and unlabeled documents, and the settings with `select` set.

    Without a validation file a tenth of the labeled documents becomes one if a step is picked by
    it, or with `needs_val`.
    """
    if config.select == "auto" and (files[-1] is not None or config.few_labels):
        config = replace(config, select="last")
    # If no step is picked every label is used for training.
    share = 0.0 if config.keeps_last and not needs_val else 0.1
    return _read_parts(files, columns, val_share=share, seed=config.seed), config


def _read_parts(files: _Files, columns: dict[str, Any], *, val_share: float, seed: int) -> Splits:
    """The documents of the files; without one for validation `val_share` of the labeled ones."""
    from gloss_graph.text import read_splits, read_table
    from gloss_graph.text.tables import has_column
    from gloss_graph.training import with_unlabeled

    train, val, test, unlabeled = files
    splits = read_splits(train, val, test, val_fraction=val_share, seed=seed, **columns)
    if unlabeled is None:
        return splits
    rest = read_table(unlabeled, text=columns["text"], text_b=columns["text_b"], label=None)
    if has_column(unlabeled, columns["label"]):
        column = repr(columns["label"])
        say(f"Column {column} of {unlabeled} is not read: its documents count as unlabeled.")
    return with_unlabeled(splits, rest)


def described_files(
    train: Path, unlabeled: Path | None, columns: dict[str, Any], splits: Splits
) -> list[dict[str, Any]]:
    """The files of the training documents, and their ids: those without labels come last."""
    from gloss_graph.text.readers import describe_file

    named = {name: columns[name] for name in ("text", "text_b")}
    files = [describe_file(train, **named)]
    if unlabeled is not None:
        last = describe_file(unlabeled, **named)
        files.append({**last, "first_id": splits.next_id - last["rows"]})
    return files


def score_table(runs: Mapping[str, Mapping[str, float]]) -> Table:
    """Scores of runs by name, from their metrics."""
    names = {name for metrics in runs.values() for name in metrics}
    scores = {
        heading: key
        for heading, key in _SCORES.items()
        if heading == "macro-F1" or any(name.endswith(key) for name in names)
    }
    table = Table("run", "split", title="Scores")
    for heading in (*scores, "steps", "seconds"):
        # A narrow terminal must not break the scores of the linear head.
        unbroken = scores.get(heading, "").startswith(".")
        table.add_column(heading, justify="right", no_wrap=unbroken)
    for run, metrics in runs.items():
        for split in ("val", "test"):
            if f"{split}.macro_f1" in metrics:
                found = [metrics.get(f"{split}{key}") for key in scores.values()]
                cells = ["" if score is None else f"{100 * score:.1f}" for score in found]
                figures = (metrics["steps"], metrics["seconds.train"])
                table.add_row(run, split, *cells, *(f"{figure:.0f}" for figure in figures))
    return table
