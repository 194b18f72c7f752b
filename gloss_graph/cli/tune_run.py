"""What `gloss-graph tune` does: read files, search, draw, print the best settings."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from gloss_graph._internal.search_space import Dimension
from gloss_graph.cli.signals import keeping
from gloss_graph.cli.train import described_files, read_files, train_and_report
from gloss_graph.runs import RunFolder
from gloss_graph.studies import (
    TuneResult,
    default_parameters,
    parse_choice,
    parse_range,
    plot_importance,
    plot_slices,
    plot_tuning,
    search_space,
    tune_text,
)
from gloss_graph.text import TextEncoder, load_encoder
from gloss_graph.training import TrainConfig

_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Files:
    """Documents and encoder, as the options of `train` and `tune` name them."""

    train: Path
    val: Path | None
    test: Path | None
    unlabeled: Path | None
    encoder: str
    pooling: Any
    max_length: int
    text: str
    label: str
    text_b: str | None

    def load_encoder(self) -> TextEncoder:
        """The encoder, untrained."""
        return load_encoder(self.encoder, pooling=self.pooling, max_length=self.max_length)


def run_tune(
    files: Files,
    out: Path,
    *,
    base: Mapping[str, Any],
    params: Sequence[str],
    ranges: Iterable[str],
    choices: Iterable[str],
    trials: int,
    metric: str,
    timeout: float | None,
    storage: str | None,
    study_name: str,
    final: bool,
    keep_runs: bool,
) -> TuneResult:
    """Search settings and report; see `gloss-graph tune --help`."""
    console = Console()
    extra = _once("range' or 'choice", [*map(parse_range, ranges), *map(parse_choice, choices)])
    config = TrainConfig.from_flat(base)
    names = [name for word in params for name in word.split(",") if name]
    space = search_space(names or default_parameters(config.loss), extra)
    both = sorted(base.keys() & space.keys())
    if both:
        raise ValueError(f"{both[0]!r} must be either searched or fixed (got both).")
    try:
        str(out).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"'out' must be a name in UTF-8 for a search, which keeps a database there (got "
            f"{str(out)!a}). Choose another."
        ) from None
    best = out / "best"
    if final:
        try:
            RunFolder(best).check_new()
        except FileExistsError:
            raise FileExistsError(
                f"'final' must find no {best}. Remove it or leave --final out."
            ) from None
    columns = {"text": files.text, "label": files.label, "text_b": files.text_b}
    splits, config = read_files(
        files.train,
        files.val,
        files.test,
        files.unlabeled,
        config,
        columns,
        console,
        needs_val=True,
    )

    def finish(result: TuneResult) -> dict[str, str]:
        _draw(result, space, out, metric)
        return {"command": train_command(files, result.config, best)}

    with keeping(lambda: f"Finished trials are kept in {out}: run the same command again."):
        result = tune_text(
            splits,
            files.load_encoder,
            config,
            out,
            space=space,
            trials=trials,
            storage=storage,
            study_name=study_name,
            timeout=timeout,
            metric=metric,
            keep_runs=keep_runs,
            progress=True,
            finish=finish,
        )
    complete = int((result.trials["state"] == "complete").sum())
    if not result.importance:
        console.print(
            f"No importance.png: it takes two complete trials with different scores (got "
            f"{complete} complete).",
            highlight=False,
        )
    console.print(best_table(result, space, metric))
    console.print(_counts(result), highlight=False)
    console.print(f"Search folder: {out}", highlight=False, markup=False, soft_wrap=True)
    if final:
        described = described_files(files.train, files.unlabeled, columns, splits)
        encoder = files.load_encoder()
        train_and_report(splits, encoder, result.config, best, console, files=described)
    else:
        console.print("Train the best settings with:", highlight=False)
        command = train_command(files, result.config, best)
        console.print(command, highlight=False, markup=False, soft_wrap=True)
    return result


def train_command(files: Files, config: TrainConfig, out: Path) -> str:
    """The `gloss-graph train` command line of some settings, ready for a shell."""
    words = ["gloss-graph", "train"]
    for field in fields(Files):
        value = getattr(files, field.name)
        if value is not None and value != {"text": "text", "label": "label"}.get(field.name):
            words += [_option(field.name), str(value)]
    default = TrainConfig()
    for name, value in config.as_dict().items():
        if value is None or value == getattr(default, name):
            continue
        if isinstance(value, bool):
            words.append(_option(name if value else f"no_{name}"))
        else:
            words += [_option(name), str(value)]
    return shlex.join([*words, "--out", str(out)])


def best_table(result: TuneResult, space: Mapping[str, Dimension], metric: str) -> Table:
    """The best five complete trials."""
    complete = result.trials[result.trials["state"] == "complete"]
    ranked = complete.sort_values(["value", "number"], ascending=[False, True], kind="stable")
    table = Table(title="Best trials")
    for heading in ("trial", metric, *space):
        # A long name is broken in a narrow terminal rather than cut.
        table.add_column(heading, justify="right", overflow="fold")
    for _, row in ranked.head(_SHOWN).iterrows():
        cells = [_cell(row[name]) for name in space]
        table.add_row(str(row["number"]), f"{100 * row['value']:.1f}", *cells)
    return table


def _draw(
    result: TuneResult,
    space: Mapping[str, Dimension],
    out: Path,
    metric: str,
) -> None:
    plot_tuning(result.trials, out / "history.png", metric=metric)
    plot_slices(result.trials, space, out / "slices.png", metric=metric)
    complete = int((result.trials["state"] == "complete").sum())
    if result.importance:
        plot_importance(result.importance, out / "importance.png", trials=complete)


def _counts(result: TuneResult) -> str:
    counts = result.trials["state"].value_counts()
    return "Trials: " + ", ".join(f"{count} {state}" for state, count in counts.items()) + "."


def _once(option: str, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"'{option}' must name a setting once (got {name!r} twice).")
        found[name] = value
    return found


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _cell(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
