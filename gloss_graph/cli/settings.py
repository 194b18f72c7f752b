"""Options for the settings of a training, made from the settings' own descriptions."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

_GIVEN = "gloss_graph.settings"
# What most trainings set; the help lists these first, the others under headings.
_COMMON = (
    *("loss", "epochs", "max_steps", "batch_size", "learning_rate", "graph_weight", "k"),
    *("label_fraction", "labels_per_class", "seed", "device"),
)


class SettingsCommand(TyperCommand):
    """A command with an option for settings of a training, which are imported on first use."""

    #: The settings, None for all.
    shown: tuple[str, ...] | None = None
    _complete: bool
    _params: list[Any]

    @property
    def params(self) -> list[Any]:
        """All parameters."""
        if not self._complete:
            self._complete = True
            self._params += _options(self.shown)
        return self._params

    @params.setter
    def params(self, params: list[Any]) -> None:
        self._params, self._complete = params, False


class FewSettingsCommand(SettingsCommand):
    """The settings that a search usually fixes; `--set` takes the others."""

    shown = (
        *("loss", "label_fraction", "labels_per_class", "epochs", "max_steps"),
        *("eval_steps", "batch_size", "seed"),
    )


def _options(names: Iterable[str] | None) -> list[Any]:
    from gloss_graph.training.config import SETTINGS

    def stands_in() -> None: ...

    parameters = []
    for name in SETTINGS if names is None else names:
        one = SETTINGS[name]
        kinds = [kind for kind in one.kinds if kind is not type(None)]
        kind: Any = kinds[0] if len(kinds) == 1 else str
        if type(None) in one.kinds:
            kind = kind | None
        option = typer.Option(
            help=one.help,
            expose_value=False,
            callback=_collect,
            rich_help_panel=None if name in _COMMON else one.group,
        )
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=one.default,
                annotation=Annotated[kind, option],
            )
        )
    stands_in.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    stands_in.__annotations__ = {each.name: each.annotation for each in parameters}
    # A command that is never run, for the parameters that typer makes of a signature.
    maker = typer.Typer(add_completion=False)
    maker.command()(stands_in)
    return list(typer.main.get_command(maker).params)


def _collect(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> Any:
    name = parameter.name or ""
    if was_typed(context, name):
        context.meta.setdefault(_GIVEN, {})[name] = value
    return value


def was_typed(context: typer.Context, name: str) -> bool:
    """Whether an option stands on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name not in ("DEFAULT", "DEFAULT_MAP")


def typed_settings(context: typer.Context) -> dict[str, Any]:
    """Settings whose option stands on the command line, by name."""
    return dict(context.meta.get(_GIVEN, {}))


def given_settings(
    context: typer.Context, config: Path | None, words: Iterable[str]
) -> dict[str, Any]:
    """Settings by name, from a file, over it from `--set` and from options.

    Args:
        context: Of the command.
        config: YAML file of settings, `k: 8`, `graph.k: 8` or `graph: {k: 8}`; what the command
            line says goes before it.
        words: `name=value` or `part.name=value`.

    Raises:
        ValueError: An unknown part or setting, with the nearest name; a value of a wrong type; two
            values for one setting on the command line.
    """
    from gloss_graph.training.config import parse_value, read_settings, setting_named

    found: dict[str, Any] = {}
    for word in words:
        name, equals, written = (part.strip() for part in word.partition("="))
        if not equals:
            raise ValueError(f"'set' must read name=value (got {word!r}).")
        one = setting_named(name)
        if one.name in found:
            raise ValueError(f"'set' must name a setting once (got {one.name!r} twice).")
        found[one.name] = parse_value(name, written)
    for name, value in typed_settings(context).items():
        if isinstance(value, str):
            value = parse_value(name, value)
        if name in found and found[name] != value:
            raise ValueError(f"{name!r} is {value!r}, but {found[name]!r} in --set. Give it once.")
        found[name] = value
    return {**(_file_settings(config, read_settings) if config else {}), **found}


def _file_settings(file: Path, read: Any) -> dict[str, Any]:
    from gloss_graph._internal.limits import read_yaml

    try:
        content = read_yaml(file)
    except FileNotFoundError:
        raise ValueError(f"'config' must be a file that exists (got {file}).") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"'config' must hold settings and their values ({file} does not).")
    return dict(read(content, str(file)))
