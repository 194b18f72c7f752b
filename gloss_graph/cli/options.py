"""What commands share: options, those made from the settings of a training run, and output."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand

from gloss_graph._internal.processes import is_main

# Settings that the help lists first; the others stand under headings.
_COMMON = (
    *("loss", "epochs", "max_steps", "batch_size", "learning_rate", "graph_weight", "k"),
    *("label_fraction", "labels_per_class", "seed"),
)


def path(value: str | os.PathLike[str]) -> Path:
    """A typed path; `~` is the home folder, also in `--out=~/x`, which shells leave alone."""
    return Path(os.path.expanduser(value))


def option(help: str, *names: str, panel: str | None = None, **settings: Any) -> Any:
    """An option, in a named group of the help; `settings` as for `typer.Option`."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)


path_option = partial(option, parser=path)
of_documents = partial(option, panel="Documents")

DocumentFile = Annotated[Path, path_option("CSV, TSV, JSONL or Parquet (also .gz).")]
Unlabeled = Annotated[Path | None, path_option("File of documents without labels.")]
TextColumn = Annotated[str, of_documents("Column of the texts.")]
LabelColumn = Annotated[str, of_documents("Column of the labels.")]
SecondTexts = Annotated[str | None, of_documents("Column of second texts, for pairs.")]
Pooling = Annotated[str | None, of_documents("cls, mean or last.")]
MaxLength = Annotated[int, of_documents("Tokens kept per document.", min=1)]
Config = Annotated[
    Path | None,
    path_option("YAML file of settings, as graph: {k: 8}; the command line overrides it."),
]
Set = Annotated[
    list[str] | None, option("A setting, name=value or part.name=value; repeatable.", "--set")
]


class SettingsCommand(TyperCommand):
    """A command with an option per setting of a training run, made when the command is used."""

    #: The settings; None for all.
    shown: tuple[str, ...] | None = None

    def get_params(self, ctx: Any) -> list[Any]:
        """All parameters, `--help` last."""
        *others, last = super().get_params(ctx)
        return [*others, *_setting_options(self.shown), last]


class FewSettingsCommand(SettingsCommand):
    """The settings that a search usually fixes; `--set` takes the others."""

    shown = (
        *("loss", "label_fraction", "labels_per_class", "epochs", "max_steps"),
        *("eval_steps", "batch_size", "seed"),
    )


@cache
def _setting_options(names: tuple[str, ...] | None) -> list[Any]:
    from gloss_graph.training.config import SETTINGS

    def stands_in() -> None: ...

    parameters = []
    for name in names or SETTINGS:
        one = SETTINGS[name]
        panel = None if name in _COMMON else one.group
        made = option(one.help, panel=panel, expose_value=False, callback=_collect)
        kinds = [kind for kind in one.kinds if kind is not type(None)]
        kind: Any = kinds[0] if len(kinds) == 1 else str
        if type(None) in one.kinds:
            kind = kind | None
        parameter = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=one.default)
        parameters.append(parameter.replace(annotation=Annotated[kind, made]))
    stands_in.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    stands_in.__annotations__ = {each.name: each.annotation for each in parameters}
    # This command never runs: typer makes the options from its signature.
    maker = typer.Typer(add_completion=False)
    maker.command()(stands_in)
    return list(typer.main.get_command(maker).params)


def _collect(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> None:
    if was_typed(context, name := parameter.name or ""):
        typed_settings(context)[name] = value


def typed_settings(context: typer.Context) -> dict[str, Any]:
    """The settings whose options stand on the command line, by name."""
    settings: dict[str, Any] = context.meta.setdefault("gloss_graph.settings", {})
    return settings


def was_typed(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


def flag(name: str) -> str:
    """An option as it is typed."""
    return "--" + name.replace("_", "-")


def typed_words(context: typer.Context) -> list[str]:
    """The words of the command line."""
    return ["gloss-graph", *(context.find_root().obj or [])]


def given_settings(
    context: typer.Context, config: Path | None, words: Iterable[str] | None
) -> dict[str, Any]:
    """Settings by name: those of the `config` file, overridden by `--set` words and options."""
    from gloss_graph.training.config import parse_value

    found = set_settings(words)
    for name, value in typed_settings(context).items():
        if isinstance(value, str):
            value = parse_value(name, value)
        if name in found and found[name] != value:
            raise ValueError(f"{name!r} is {value!r}, but {found[name]!r} in --set. Give it once.")
        found[name] = value
    return file_settings(config) | found


def set_settings(words: Iterable[str] | None) -> dict[str, Any]:
    """Settings by name from `name=value` and `part.name=value`."""
    from gloss_graph.training.config import parse_value, setting_named

    found: dict[str, Any] = {}
    for word in words or ():
        name, equals, written = (part.strip() for part in word.partition("="))
        if not equals:
            raise ValueError(f"'set' must read name=value (got {word!r}).")
        one = setting_named(name)
        if one.name in found:
            raise ValueError(f"'set' must name a setting once (got {one.name!r} twice).")
        found[one.name] = parse_value(name, written)
    return found


def file_settings(file: Path | None) -> dict[str, Any]:
    """Settings by name from a YAML file: `k: 8`, `graph.k: 8` or `graph: {k: 8}`."""
    if file is None:
        return {}
    from gloss_graph._internal.limits import read_yaml
    from gloss_graph.training.config import read_settings

    return read_settings(read_yaml(file), str(file))


def say(line: Any, *, style: str | None = None) -> None:
    """Print a table, or a line as it is and unbroken; only in the main process."""
    if is_main():
        whole = isinstance(line, str)
        Console().print(line, style=style, highlight=False, markup=False, soft_wrap=whole)


def make_table(
    title: str, headings: Iterable[str], rows: Iterable[Sequence[str]], *, left: int = 1
) -> Table:
    """A table whose first `left` columns are aligned left; narrow terminals break long cells."""
    table = Table(title=title, title_justify="left")
    for place, heading in enumerate(headings):
        table.add_column(heading, justify="left" if place < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def busy(message: str) -> AbstractContextManager[Any]:
    """A spinner on stderr."""
    return Console(stderr=True).status(message)
