"""The program: its commands, and how failures reach the shell."""

from __future__ import annotations

import atexit
import signal
import sys
import traceback
import warnings
from typing import Annotated, Any

import typer
from rich.console import Console

from gloss_graph import __version__
from gloss_graph._internal.processes import is_main, leave_processes
from gloss_graph.cli.ablate import ablate
from gloss_graph.cli.demo import demo
from gloss_graph.cli.evaluate import evaluate, report
from gloss_graph.cli.graph import graph
from gloss_graph.cli.options import FewSettingsCommand, SettingsCommand, option
from gloss_graph.cli.predict import predict
from gloss_graph.cli.signals import farewell, open_streams, stoppable
from gloss_graph.cli.train import train
from gloss_graph.cli.tune import tune

app = typer.Typer(
    name="gloss-graph",
    help="Graph-guided training of text encoders over a memory bank.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(demo)
app.command(cls=SettingsCommand)(train)
app.command()(predict)
app.command()(evaluate)
app.command(cls=FewSettingsCommand)(tune)
app.command()(ablate)
app.command()(graph)
app.command()(report)

# Click's ClickException. Newer versions of typer bring their own click, so the class is reached
# through a class that typer exports: BadParameter is a UsageError is a ClickException.
_CLICK_ERROR: type[Any] = typer.BadParameter.__mro__[2]


def _version(show: bool) -> None:
    if show:
        typer.echo(f"gloss-graph {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, option("Print the version.", "--version", callback=_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, option("Show tracebacks; may stand anywhere.", "--debug")] = False,
) -> None:
    """Take the options before a command; `main` has removed `--debug` already."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; 0 done, 1 failed, 2 bad usage or input, 130 Ctrl-C, 143 SIGTERM.

    Errors go to stderr in one line, with a traceback only under `--debug`. A reader that closes
    the pipe of the output stops nothing.

    Args:
        arguments: Words after the program's name, by default those of the process.
    """
    with open_streams(), stoppable():
        status = _run(sys.argv[1:] if arguments is None else arguments)
        if arguments is None:
            # The end of the program, first of all: Ctrl-C has nothing to stop any more.
            atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
        return status


def _run(arguments: list[str]) -> int:
    words = [word for word in arguments if word != "--debug"]
    command = typer.main.get_command(app)
    if not is_main():
        warnings.simplefilter("ignore")  # process 0 has the same ones
    try:
        with command.make_context(app.info.name, list(words), obj=words) as context:
            command.invoke(context)
    except typer.Exit as stop:
        return stop.exit_code
    except (typer.Abort, KeyboardInterrupt) as stop:
        line, status = farewell(stop)
        _complain(line)
        return status
    except _CLICK_ERROR as error:
        # Without a message its help has been printed already.
        if error.format_message():
            path = error.ctx.command_path if getattr(error, "ctx", None) else app.info.name
            _complain(f"Error: {error.format_message().rstrip('.')}. Try '{path} --help'.")
        return 2
    except Exception as error:
        if len(words) < len(arguments):
            traceback.print_exc()
        # Those that a user can cause and fix.
        users = isinstance(error, (ValueError, OSError))
        _complain(f"{'Error' if users else type(error).__name__}: {error}")
        return 2 if users else 1
    finally:
        leave_processes()
    return 0


def _complain(message: str) -> None:
    """One line on stderr of the main process, however long the message and wide the terminal."""
    line = " ".join(message.split())
    if line and is_main():
        Console(stderr=True).print(line, style="red", markup=False, highlight=False, soft_wrap=True)
