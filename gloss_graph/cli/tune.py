"""`gloss-graph tune`: search settings, draw the search, print the best."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.table import Table

from gloss_graph.cli.options import (
    Config,
    DocumentFile,
    LabelColumn,
    MaxLength,
    Pooling,
    SecondTexts,
    Set,
    TextColumn,
    Unlabeled,
    flag,
    given_settings,
    make_table,
    option,
    path_option,
    say,
    was_typed,
)
from gloss_graph.cli.signals import keeping
from gloss_graph.cli.train import described_files, read_files, train_and_report

if TYPE_CHECKING:
    from gloss_graph.studies import TuneResult
    from gloss_graph.text import TextEncoder
    from gloss_graph.training import TrainConfig

_SHOWN = 5
# Options that `train` has, too.
_FILES = ("train", "val", "test", "unlabeled", "encoder", "pooling", "max_length")
_COLUMNS = ("text", "label", "text_b")
_Words = Annotated[list[str] | None, typer.Argument(hidden=True, metavar="PARAM")]


def tune(
    context: typer.Context,
    train: DocumentFile,
    out: Annotated[Path, path_option("New folder, or that of a search to go on with.")],
    val: Annotated[Path | None, path_option("Validation file; else 10 % of train.")] = None,
    test: Annotated[Path | None, path_option("Test file, for --final alone.")] = None,
    unlabeled: Unlabeled = None,
    encoder: Annotated[str, option("minilm, a hub id or a folder.")] = "minilm",
    trials: Annotated[int, option("Finished trials wanted, all workers together.")] = 30,
    params: Annotated[
        list[str] | None,
        option("Settings to search in their ranges; else those of the loss."),
    ] = None,
    more_params: _Words = None,
    ranges: Annotated[
        list[str] | None,
        option("Search a setting in name=low:high, with :log or :STEP.", "--range"),
    ] = None,
    choices: Annotated[list[str] | None, option("Search among name=one,two.", "--choice")] = None,
    config: Config = None,
    settings: Set = None,
    final: Annotated[bool, option("Train the best into --out/best and score --test.")] = False,
    metric: Annotated[
        str,
        option(
            "val.macro_f1, val.accuracy, val.macro_silhouette, val_propagation.macro_f1 or "
            "val_propagation.accuracy.",
            panel="Study",
        ),
    ] = "val.macro_f1",
    timeout: Annotated[
        float | None, option("Seconds after which no further trial starts.", panel="Study")
    ] = None,
    storage: Annotated[
        str | None,
        option("Database URL that workers share; else study.db in --out.", panel="Study"),
    ] = None,
    study_name: Annotated[str, option("Name in the database.", panel="Study")] = "gloss-graph",
    keep_runs: Annotated[
        bool, option("Keep the run folders of complete trials.", "--keep-runs", panel="Study")
    ] = False,
    text: TextColumn = "text",
    label: LabelColumn = "label",
    text_b: SecondTexts = None,
    pooling: Pooling = None,
    max_length: MaxLength = 128,
) -> None:
    """Search for the settings that score best on validation documents (the paper's G-Loss-O).

    Run it again to go on after an interruption, or on many machines with one --storage.
    """
    base = given_settings(context, config, settings)

    from gloss_graph.runs import RunFolder
    from gloss_graph.studies import (
        default_parameters,
        parse_choice,
        parse_range,
        plot_importance,
        plot_slices,
        plot_tuning,
        search_space,
        tune_text,
    )
    from gloss_graph.text import load_encoder
    from gloss_graph.training import TrainConfig

    found = [*map(parse_range, ranges or ()), *map(parse_choice, choices or ())]
    start = TrainConfig.from_flat(base)
    names = [name for word in (*(params or ()), *(more_params or ())) for name in word.split(",")]
    space = search_space(list(filter(None, names)) or default_parameters(start.loss), _once(found))
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
            message = f"'final' must find no {best}. Remove it or leave --final out."
            raise FileExistsError(message) from None
    columns = {"text": text, "label": label, "text_b": text_b}
    splits, start = read_files((train, val, test, unlabeled), start, columns, needs_val=True)

    def make_encoder() -> TextEncoder:
        return load_encoder(encoder, pooling=cast(Any, pooling), max_length=max_length)

    def finish(result: TuneResult) -> dict[str, str]:
        plot_tuning(result.trials, out / "history.png", metric=metric)
        plot_slices(result.trials, space, out / "slices.png", metric=metric)
        if result.importance:
            complete = int((result.trials["state"] == "complete").sum())
            plot_importance(result.importance, out / "importance.png", trials=complete)
        return {"command": _train_command(context, result.config, best)}

    with keeping(lambda: f"Finished trials are kept in {out}: run the same command again."):
        result = tune_text(
            splits,
            make_encoder,
            start,
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
    states = result.trials["state"].value_counts()
    if not result.importance:
        say(
            "No importance.png: it takes two complete trials with different scores (got "
            f"{states.get('complete', 0)} complete)."
        )
    say(_best_table(result, space, metric))
    say("Trials: " + ", ".join(f"{count} {state}" for state, count in states.items()) + ".")
    say(f"Search folder: {out}")
    if final:
        described = described_files(train, unlabeled, columns, splits)
        train_and_report(splits, make_encoder(), result.config, best, described)
    else:
        say("Train the best settings with:")
        say(_train_command(context, result.config, best))


def _once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"'range' or 'choice' must name a setting once (got {name!r} twice).")
        found[name] = value
    return found


def _train_command(context: typer.Context, config: TrainConfig, out: Path) -> str:
    """The `gloss-graph train` command line of some settings, ready for a shell."""
    from gloss_graph.training.config import DEFAULTS

    words = ["gloss-graph", "train"]
    for name in (*_FILES, *_COLUMNS):
        if was_typed(context, name):
            words += [flag(name), str(context.params[name])]
    for name, value in config.as_dict().items():
        if value is None or value == DEFAULTS[name]:
            continue
        if isinstance(value, bool):
            words.append(flag(name if value else f"no_{name}"))
        else:
            words += [flag(name), str(value)]
    return shlex.join([*words, "--out", str(out)])


def _best_table(result: TuneResult, space: Mapping[str, Any], metric: str) -> Table:
    """The best five complete trials."""
    complete = result.trials[result.trials["state"] == "complete"]
    ranked = complete.sort_values(["value", "number"], ascending=[False, True], kind="stable")
    rows = []
    for _, row in ranked.head(_SHOWN).iterrows():
        values = [row[name] for name in space]
        cells = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
        rows.append([str(row["number"]), f"{100 * row['value']:.1f}", *cells])
    return make_table("Best trials", ("trial", metric, *space), rows, left=0)
