"""Commands, their options, and how failures reach the shell."""

from __future__ import annotations

import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from gloss_graph import __version__
from gloss_graph._processes import is_main, leave_processes
from gloss_graph.cli.tune import tune

app = typer.Typer(
    name="gloss-graph",
    help="Graph-guided training of text encoders over a memory bank.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# What a user can cause and mend; everything else is a fault of ours or of the machine.
_USER_ERRORS = (ValueError, OSError)
# Click's ClickException. Newer versions of typer bring a click of their own, so the class is
# reached through what typer exports: BadParameter is a UsageError is a ClickException.
_CLICK_ERROR: type[Any] = typer.BadParameter.__mro__[2]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 done, 1 failed, 2 bad usage or input.

    Errors go to stderr in one line, with a traceback only under `--debug`.

    Args:
        arguments: Words after the program's name, by default those of the process.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    command = typer.main.get_command(app)
    if not is_main():
        warnings.simplefilter("ignore")  # process 0 has the same ones
    try:
        with command.make_context(app.info.name, words, obj=list(words)) as context:
            command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        _complain("Interrupted.")
        return 1
    except _CLICK_ERROR as error:
        # Without a message its help has been printed already.
        if error.format_message():
            path = error.ctx.command_path if getattr(error, "ctx", None) else app.info.name
            _complain(f"Error: {error.format_message().rstrip('.')}. Try '{path} --help'.")
        return 2
    except Exception as error:
        if debug:
            traceback.print_exc()
        name = "Error" if isinstance(error, _USER_ERRORS) else type(error).__name__
        _complain(f"{name}: {error}")
        return 2 if isinstance(error, _USER_ERRORS) else 1
    finally:
        leave_processes()
    return 0


def _complain(message: str) -> None:
    """One line on stderr, however long the message and wide the terminal; of one process only."""
    if not is_main():
        return
    line = " ".join(message.split())
    Console(stderr=True).print(line, style="red", markup=False, highlight=False, soft_wrap=True)


def _version(show: bool) -> None:
    if show:
        typer.echo(f"gloss-graph {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of a failure; stands anywhere.")
    ] = False,
) -> None:
    """Take what stands before a command; `main` has taken `--debug` out already."""


@app.command()
def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="New or empty folder for the results.")] = Path(
        "runs/demo"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps a run.")] = 60,
    seed: Annotated[int, typer.Option(help="Of both runs.")] = 0,
    encoder: Annotated[str, typer.Option(help="minilm, a hub id or a folder.")] = "minilm",
    max_documents: Annotated[int, typer.Option(min=400, help="Size of the corpus.")] = 2000,
) -> None:
    """Compare cross-entropy with the memory-bank objective on an embedded corpus.

    The corpus is made from the documentation of installed packages, so nothing is downloaded.
    """
    from gloss_graph.cli.demo import run_demo

    run_demo(
        out,
        steps=steps,
        seed=seed,
        encoder_name=encoder,
        max_documents=max_documents,
        command=_command(context),
    )


@app.command()
def train(
    context: typer.Context,
    train: Annotated[Path, typer.Option(help="CSV, TSV, JSONL or Parquet (also .gz).")],
    out: Annotated[Path, typer.Option(help="New or empty run folder.")],
    val: Annotated[
        Path | None, typer.Option(help="Validation file; else 10 % of train, none with few labels.")
    ] = None,
    test: Annotated[Path | None, typer.Option(help="Test file.")] = None,
    encoder: Annotated[
        str, typer.Option(help="minilm, a hub id, a folder, or none for --features.")
    ] = "minilm",
    features: Annotated[
        Path | None,
        typer.Option(help="npy, pt, safetensors or Parquet: rows of train, val, test, unlabeled."),
    ] = None,
    loss: Annotated[
        str,
        typer.Option(
            help="ce, gloss, gloss-published, gloss-released, scl, triplet, cosine, xbm-scl, "
            "static-lp, pseudo-label or setfit."
        ),
    ] = "gloss",
    mode: Annotated[
        str, typer.Option(help="integrated: with cross-entropy; standalone: then a linear probe.")
    ] = "integrated",
    unlabeled: Annotated[
        Path | None, typer.Option(help="File of documents without labels.")
    ] = None,
    label_fraction: Annotated[
        float | None, typer.Option(help="Use this share of the labels, a seeded draw.")
    ] = None,
    labels_per_class: Annotated[
        int | None, typer.Option(help="Use this many labels a class, a seeded draw.")
    ] = None,
    text: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    label: Annotated[str, typer.Option(help="Column of the labels.")] = "label",
    text_b: Annotated[str | None, typer.Option(help="Column of second texts, for pairs.")] = None,
    pooling: Annotated[str | None, typer.Option(help="cls, mean or last.")] = None,
    max_length: Annotated[int, typer.Option(min=1, help="Tokens kept of a document.")] = 128,
    epochs: Annotated[float, typer.Option(help="Passes over the training file.")] = 3.0,
    max_steps: Annotated[
        int | None, typer.Option(help="Steps, overriding epochs; 0: fit the head only.")
    ] = None,
    eval_steps: Annotated[int | None, typer.Option(help="Steps between evaluations.")] = None,
    patience: Annotated[int, typer.Option(help="Evaluations without gain to stop at.")] = 10,
    batch_size: Annotated[int, typer.Option(help="Documents a step.")] = 32,
    eval_batch_size: Annotated[int, typer.Option(help="Documents a step of evaluation.")] = 64,
    gradient_accumulation: Annotated[int, typer.Option(help="Micro-batches a step.")] = 1,
    learning_rate: Annotated[
        float,
        typer.Option(help="Of the encoder; 1e-3 for features if not given; about 1e-3 for LoRA."),
    ] = 5e-5,
    head_learning_rate: Annotated[float, typer.Option(help="Of the linear head.")] = 5e-3,
    warmup: Annotated[float, typer.Option(help="Share of steps with rising rate.")] = 0.1,
    weight_decay: Annotated[float, typer.Option(help="Of AdamW.")] = 0.01,
    dropout: Annotated[float, typer.Option(help="On the embedding before the head.")] = 0.1,
    graph_weight: Annotated[float, typer.Option(help="λ, weight of the graph loss.")] = 0.3,
    temperature: Annotated[float, typer.Option(help="Of the contrastive losses.")] = 0.1,
    margin: Annotated[float, typer.Option(help="Of the triplet loss.")] = 0.2,
    visible_fraction: Annotated[float, typer.Option(help="γ, share of visible labels.")] = 0.5,
    bandwidth: Annotated[str, typer.Option(help="σ: a number or rule name.")] = "sqrt",
    k: Annotated[int, typer.Option(help="Neighbours a document.")] = 16,
    eta: Annotated[float | None, typer.Option(help="Leak of the propagation.")] = None,
    rule: Annotated[str, typer.Option(help="harmonic, spreading or poisson.")] = "harmonic",
    normalization: Annotated[str, typer.Option(help="hub, row, symmetric or column.")] = "hub",
    memory_size: Annotated[
        int | None, typer.Option(help="Rows of the bank; else one a document.")
    ] = None,
    unlabeled_batch_size: Annotated[int, typer.Option(help="Unlabeled documents a step.")] = 32,
    consistency_weight: Annotated[
        float, typer.Option(help="Weight of the unlabeled documents' term.")
    ] = 1.0,
    refresh_every: Annotated[
        int | None, typer.Option(help="Steps between solves over the bank; 0: every step's graph.")
    ] = None,
    anchor: Annotated[float, typer.Option(help="Share of the frozen similarity.")] = 0.5,
    align: Annotated[float, typer.Option(help="Power of the class-mass alignment.")] = 0.5,
    warm_start_steps: Annotated[
        int, typer.Option(help="Contrastive steps on the labels before training.")
    ] = 0,
    graph_start_steps: Annotated[
        int, typer.Option(help="Contrastive steps on the corpus, classes as the graph has them.")
    ] = 0,
    warm_start_rate: Annotated[
        float, typer.Option(help="Learning rate of both; 1e-3 for features if not given.")
    ] = 2e-5,
    class_balance: Annotated[
        bool, typer.Option(help="Draw labeled documents with equal shares of the classes.")
    ] = False,
    freeze_layers: Annotated[int, typer.Option(help="First layers that are not trained.")] = 0,
    lora_rank: Annotated[int, typer.Option(help="Of low-rank adapters (LoRA); 0: none.")] = 0,
    lora_alpha: Annotated[float, typer.Option(help="Their scale, divided by the rank.")] = 16.0,
    lora_dropout: Annotated[float, typer.Option(help="On their input.")] = 0.1,
    lora_targets: Annotated[
        str | None, typer.Option(help="Adapted layers, as query,value or all-linear.")
    ] = None,
    teacher_decay: Annotated[
        float, typer.Option(help="Decay of a moving-average teacher; 0: none.")
    ] = 0.0,
    select: Annotated[
        str, typer.Option(help="best or last step; auto: last with few labels.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    bf16: Annotated[bool, typer.Option(help="Encoder in bfloat16 autocast.")] = False,
    gradient_checkpointing: Annotated[bool, typer.Option(help="Trade time for memory.")] = False,
    pictures: Annotated[
        bool, typer.Option(help="Embed some documents before and during training, and draw them.")
    ] = True,
) -> None:
    """Fine-tune an encoder on your own files and score it."""
    from gloss_graph.cli.train import run_train
    from gloss_graph.training import TrainConfig

    config = TrainConfig(
        loss=loss,
        mode=mode,
        epochs=epochs,
        max_steps=max_steps,
        eval_steps=eval_steps,
        patience=patience,
        batch_size=batch_size,
        eval_batch_size=eval_batch_size,
        gradient_accumulation=gradient_accumulation,
        learning_rate=_rate(context, "learning_rate", features),
        head_learning_rate=head_learning_rate,
        warmup=warmup,
        weight_decay=weight_decay,
        dropout=dropout,
        graph_weight=graph_weight,
        temperature=temperature,
        margin=margin,
        visible_fraction=visible_fraction,
        bandwidth=_number_or_name(bandwidth),
        k=k,
        eta=eta,
        rule=rule,
        normalization=normalization,
        memory_size=memory_size,
        label_fraction=label_fraction,
        labels_per_class=labels_per_class,
        unlabeled_batch_size=unlabeled_batch_size,
        consistency_weight=consistency_weight,
        refresh_every=refresh_every,
        anchor=anchor,
        align=align,
        warm_start_steps=warm_start_steps,
        graph_start_steps=graph_start_steps,
        warm_start_rate=_rate(context, "warm_start_rate", features),
        class_balance=class_balance,
        freeze_layers=freeze_layers,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_dropout=lora_dropout,
        lora_targets=lora_targets,
        teacher_decay=teacher_decay,
        select=select,
        device=device,
        seed=seed,
        bf16=bf16,
        gradient_checkpointing=gradient_checkpointing,
        pictures=pictures,
    )
    columns = {"text": text, "label": label, "text_b": text_b}
    run_train(
        train,
        val,
        test,
        out,
        config,
        encoder_name=encoder,
        pooling=pooling,
        max_length=max_length,
        columns=columns,
        unlabeled=unlabeled,
        features=features,
        command=_command(context),
    )


@app.command()
def predict(
    run: Annotated[Path, typer.Option(help="Run folder of gloss-graph train.")],
    input: Annotated[Path, typer.Option(help="CSV, TSV, JSONL or Parquet (also .gz).")],
    output: Annotated[Path, typer.Option(help="CSV to write.")],
    features: Annotated[
        Path | None, typer.Option(help="Features of the documents, for a run on features.")
    ] = None,
    text: Annotated[str, typer.Option(help="Column of the texts.")] = "text",
    text_b: Annotated[str | None, typer.Option(help="Column of second texts, for pairs.")] = None,
    mode: Annotated[
        str,
        typer.Option(help="inductive: each document by itself; transductive: all in one graph."),
    ] = "inductive",
    anchor: Annotated[
        float | None, typer.Option(help="Share of the frozen similarity; else the run's.")
    ] = None,
    rule: Annotated[
        str | None, typer.Option(help="harmonic, spreading or poisson; else the run's.")
    ] = None,
) -> None:
    """Label documents by propagation over the training documents, with reasons."""
    from gloss_graph.cli.predict import run_predict

    run_predict(
        run,
        input,
        output,
        features=features,
        text=text,
        text_b=text_b,
        mode=mode,
        anchor=anchor,
        rule=rule,
    )


def _rate(context: typer.Context, name: str, features: Path | None) -> float:
    """A learning rate as given; a new adapter wants larger steps than a pretrained encoder."""
    source = context.get_parameter_source(name)
    given = source is not None and source.name != "DEFAULT"
    return float(context.params[name]) if given or features is None else 1e-3


@app.command()
def evaluate(
    runs: Annotated[
        list[Path], typer.Argument(help="Run folders, or folders with run folders in them.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="New or empty folder for tables, report and picture.")
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="Name in metrics.json, as test.macro_f1; repeatable.")
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option(help="Setting that makes the arms; repeatable. Else all that differ."),
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Arm to compare with; else cross-entropy, or the first.")
    ] = None,
) -> None:
    """Compare finished runs: mean and spread over seeds, tests paired by seed."""
    from gloss_graph.cli.evaluate import run_evaluate

    run_evaluate(runs, out, metrics=metric or None, by=by or None, baseline=baseline)


app.command()(tune)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="Run folder of gloss-graph train.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write or replace; else report.html in the folder.")
    ] = None,
) -> None:
    """Write the page of a finished run again: scores, curves and pictures in one HTML file."""
    from gloss_graph.cli.report import run_report

    run_report(run, out)


def _command(context: typer.Context) -> list[str]:
    """The words of the command line, as `main` got them."""
    return ["gloss-graph", *(context.find_root().obj or [])]


def _number_or_name(value: str) -> float | str:
    try:
        return float(value)
    except ValueError:
        return value
