"""Commands, their options, and how failures reach the shell."""

from __future__ import annotations

import atexit
import sys
import traceback
import warnings
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from gloss_graph import __version__
from gloss_graph._internal.launched import is_main, leave_processes
from gloss_graph.cli.ablate import ablate
from gloss_graph.cli.graph import graph
from gloss_graph.cli.options import path, path_option, train, typed
from gloss_graph.cli.settings import FewSettingsCommand, SettingsCommand
from gloss_graph.cli.signals import end_quietly, farewell, open_streams, stoppable
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
    """Run the command line; 0 done, 1 failed, 2 bad usage or input, 130 Ctrl-C, 143 SIGTERM.

    Errors go to stderr in one line, with a traceback only under `--debug`. A reader that closes
    the pipe of the output stops nothing.

    Args:
        arguments: Words after the program's name, by default those of the process.
    """
    _print_anywhere()
    with open_streams(), stoppable():
        status = _run(arguments)
        if arguments is None:
            # Registered last, so the first thing to happen at the end of the program.
            atexit.register(end_quietly)
        return status


def _run(arguments: list[str] | None) -> int:
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
    except (typer.Abort, KeyboardInterrupt) as stop:
        line, status = farewell(stop)
        if line:
            _complain(line)
        return status
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


def _print_anywhere() -> None:
    """Escape what a terminal or a pipe cannot show: Greek letters, file names that are not UTF-8.

    What was written to files is UTF-8 whatever the terminal is, and no reason to fail. A stream
    that is not UTF-8 gets ASCII, which is the same in the encoding of whoever reads it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            encoding = stream.encoding if stream.encoding.lower().startswith("utf") else "ascii"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")


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
    out: Annotated[Path, path_option(help="New or empty folder for the results.")] = Path(
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
        command=typed(context),
    )


app.command(cls=SettingsCommand)(train)


@app.command()
def predict(
    run: Annotated[Path, path_option(help="Run folder of gloss-graph train.")],
    input: Annotated[Path, path_option(help="CSV, TSV, JSONL or Parquet (also .gz).")],
    output: Annotated[
        Path, path_option(help="File to write: .csv, .tsv, .jsonl (also .gz) or .parquet.")
    ],
    features: Annotated[
        Path | None, path_option(help="Features of the documents, for a run on features.")
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


@app.command()
def evaluate(
    runs: Annotated[
        list[Path],
        typer.Argument(parser=path, help="Run folders, or folders with run folders in them."),
    ],
    out: Annotated[
        Path | None, path_option(help="New or empty folder for tables, report and picture.")
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


app.command(cls=FewSettingsCommand)(tune)
app.command()(ablate)
app.command()(graph)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(parser=path, help="Run folder of gloss-graph train.")],
    out: Annotated[
        Path | None, path_option(help="File to write or replace; else report.html in the folder.")
    ] = None,
) -> None:
    """Write the page of a finished run again: scores, curves and pictures in one HTML file."""
    from gloss_graph.cli.report import run_report

    run_report(run, out)
