"""`gloss-graph tune`: search settings, draw the search, print the best."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from gloss_graph.cli import options
from gloss_graph.cli.options import flag, make_table, option, path_option, say, was_typed
from gloss_graph.cli.signals import keeping
from gloss_graph.cli.train import described_files, read_files, train_and_report

if TYPE_CHECKING:
    from gloss_graph.studies import TuneResult
    from gloss_graph.training import TrainConfig

_SHOWN = 5
# Options that `train` has, too.
_SHARED = (
    *("train", "val", "test", "unlabeled", "encoder", "pooling", "max_length"),
    *("text", "label", "text_b"),
)
_Words = Annotated[list[str] | None, typer.Argument(hidden=True, metavar="PARAM")]
of_study = partial(option, panel="Study")


def tune(
    context: typer.Context,
    train: options.DocumentFile,
    out: Annotated[Path, path_option("New folder, or that of a search to go on with.")],
    val: Annotated[Path | None, path_option("Validation file; else 10 % of train.")] = None,
    test: Annotated[Path | None, path_option("Test file, for --final alone.")] = None,
    unlabeled: options.Unlabeled = None,
    encoder: Annotated[str, option("minilm, a hub id or a folder.")] = "minilm",
    trials: Annotated[int, option("Finished trials wanted, all workers together.")] = 30,
    params: Annotated[
        list[str] | None, option("Settings to search in their ranges; else those of the loss.")
    ] = None,
    more_params: _Words = None,
    ranges: Annotated[
        list[str] | None,
        option("Search a setting in name=low:high, with :log or :STEP.", "--range"),
    ] = None,
    choices: Annotated[list[str] | None, option("Search among name=one,two.", "--choice")] = None,
    config: options.Config = None,
    settings: options.Set = None,
    final: Annotated[bool, option("Train the best into --out/best and score --test.")] = False,
    metric: Annotated[
        str,
        of_study(
            "val.macro_f1, val.accuracy, val.macro_silhouette, val_propagation.macro_f1 or "
            "val_propagation.accuracy."
        ),
    ] = "val.macro_f1",
    timeout: Annotated[
        float | None, of_study("Seconds after which no further trial starts.")
    ] = None,
    storage: Annotated[
        str | None, of_study("Database URL that workers share; else study.db in --out.")
    ] = None,
    study_name: Annotated[str, of_study("Name in the database.")] = "gloss-graph",
    keep_runs: Annotated[
        bool, of_study("Keep the run folders of complete trials.", "--keep-runs")
    ] = False,
    text: options.TextColumn = "text",
    label: options.LabelColumn = "label",
    text_b: options.SecondTexts = None,
    pooling: options.Pooling = None,
    max_length: options.MaxLength = 128,
) -> None:
    """Search for the settings that score best on validation documents (the paper's G-Loss-O).

    Run it again to go on after an interruption, or on many machines with one --storage.
    """
    base = options.given_settings(context, config, settings)

    from gloss_graph import studies
    from gloss_graph.runs import RunFolder
    from gloss_graph.text import load_encoder
    from gloss_graph.training import TrainConfig

    start = TrainConfig.from_flat(base)
    named: dict[str, Any] = {}
    for parse, words in ((studies.parse_range, ranges), (studies.parse_choice, choices)):
        for name, dimension in map(parse, words or ()):
            if name in named:
                given = f"(got {name!r} twice)"
                raise ValueError(f"'range' or 'choice' must name a setting once {given}.")
            named[name] = dimension
    listed = [name for word in (params or []) + (more_params or []) for name in word.split(",")]
    names = list(filter(None, listed)) or studies.default_parameters(start.loss)
    space = studies.search_space(names, named)
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
    kept: Any = {"pooling": pooling, "max_length": max_length}
    make_encoder = partial(load_encoder, encoder, **kept)

    def finish(result: TuneResult) -> dict[str, str]:
        studies.plot_tuning(result.trials, out / "history.png", metric=metric)
        studies.plot_slices(result.trials, space, out / "slices.png", metric=metric)
        if result.importance:
            complete = int((result.trials["state"] == "complete").sum())
            studies.plot_importance(result.importance, out / "importance.png", trials=complete)
        return {"command": _train_command(context, result.config, best)}

    with keeping(lambda: f"Finished trials are kept in {out}: run the same command again."):
        result = studies.tune_text(
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


def _train_command(context: typer.Context, config: TrainConfig, out: Path) -> str:
    """The `gloss-graph train` command line of some settings, ready for a shell."""
    from gloss_graph.training.config import DEFAULTS

    words = ["gloss-graph", "train"]
    for name in _SHARED:
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
    complete = result.trials[result.trials["state"] == "complete"]
    ranked = complete.sort_values(["value", "number"], ascending=[False, True], kind="stable")
    rows = []
    for _, row in ranked.head(_SHOWN).iterrows():
        values = [row[name] for name in space]
        cells = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
        rows.append([str(row["number"]), f"{100 * row['value']:.1f}", *cells])
    return make_table("Best trials", ("trial", metric, *space), rows, left=0)
