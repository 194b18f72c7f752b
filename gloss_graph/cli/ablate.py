"""`gloss-graph ablate`: plan a study, run it with several processes, report."""

from __future__ import annotations

import math
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE, Popen
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from gloss_graph.cli import options
from gloss_graph.cli.options import busy, make_table, option, path, path_option, say
from gloss_graph.cli.signals import HELPER, keeping

if TYPE_CHECKING:
    from gloss_graph.studies import Plan, Results, Study

_SHOWN_ARMS = 12
_MAIN = "import sys; from gloss_graph.cli import main; sys.exit(main())"


def ablate(
    context: typer.Context,
    study: Annotated[Path | None, typer.Argument(parser=path, help="YAML file of a study.")] = None,
    out: Annotated[Path | None, path_option("Folder; else runs/ablations/STUDY-COST-DATA.")] = None,
    cost: Annotated[str | None, option("replay: recorded embeddings; full: the encoder.")] = None,
    config: options.Config = None,
    settings: options.Set = None,
    data: Annotated[Path | None, path_option("Folder with train.csv and others, or demo.")] = None,
    documents: Annotated[int | None, option("Number of training documents to keep.")] = None,
    encoder: Annotated[str | None, option("minilm, a hub id or a folder; else the file's.")] = None,
    seeds: Annotated[int | None, option("Number of seeds; else the file's.")] = None,
    dry_run: Annotated[
        bool, option("Print the plan, time one trial (kept), and stop.", "--dry-run")
    ] = False,
    workers: Annotated[int, option("Processes that share the work.", min=1)] = 1,
    retry: Annotated[bool, option("Do failed trials again.", "--retry")] = False,
    storage: Annotated[
        str | None, option("Database URL that machines share; else optuna.db in --out.")
    ] = None,
    report: Annotated[Path | None, path_option("Write the report of this folder again.")] = None,
) -> None:
    """Vary settings, compare every arm with a baseline over the same seeds, and report.

    Options replace the keys of the file. Settings of --config and --set are fixed in every arm:
    --set overrides the baseline of the study, which overrides --config. Run it again to go on after
    an interruption or an added value; finished trials are kept.
    """
    if (study is None) == (report is None):
        raise ValueError("'ablate' takes either a study file or --report FOLDER.")
    fixed = options.file_settings(config), options.set_settings(settings)

    import torch

    from gloss_graph.studies import read_results, read_study
    from gloss_graph.studies.engine import require_optuna

    if study is None:
        _report(read_results(report or Path()))
        return
    require_optuna()  # before a minute of work
    helper = bool(os.environ.get(HELPER))
    given = read_study(
        study,
        progress=not helper,
        config=fixed[0],
        settings=fixed[1],
        cost=cost,
        data=data,
        documents=documents,
        encoder=encoder,
        seeds=seeds,
    )
    run: Any = given.function
    if out is None:
        end = f"-{data.name}" if data else ""
        out = Path("runs", "ablations", f"{study.stem}-{run.cost}{end}")
    if helper:
        given.run(out, progress=False, retry=retry, storage=storage, wait=False)
        return
    plan = given.plan(out)
    _print_plan(given, plan, out, workers)
    run.prepare()
    if dry_run:
        if math.isnan(plan.seconds) and given.design != "optuna":
            say("Timing one trial, which is kept ...")
            given.run(out, progress=False, limit=1)
            plan = given.plan(out)
        say(_time_left(plan, workers))
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    if workers > 1:
        torch.set_num_threads(threads)
    command = [sys.executable, "-c", _MAIN, *context.find_root().obj]
    environment = {**os.environ, HELPER: "1", "OMP_NUM_THREADS": str(threads)}
    with ExitStack() as stack:
        for _ in range(workers - 1):
            # A helper ends when its pipe is closed, here or because this process has ended. Ctrl-C
            # reaches this process alone.
            process = Popen(command, env=environment, stdin=PIPE, start_new_session=True)
            stack.enter_context(process)
        with keeping(lambda: f"Finished trials are kept in {out}: run the same command again."):
            results = given.run(out, retry=retry, storage=storage)
    _report(results)


def _print_plan(study: Study, plan: Plan, folder: Path, workers: int) -> None:
    run: Any = study.function
    if study.question:
        say(study.question, style="bold")
    say(run.about)
    rows = [(name, str(tried), str(study.baseline[name])) for name, tried in study.factors.items()]
    say(make_table(f"Plan: {plan.design}", ("factor", "values", "baseline"), rows, left=3))
    fixed = [f"{k}={v}" for k, v in study.settings.items() if k not in study.factors]
    if fixed:
        say(f"Fixed: {', '.join(fixed)}.")
    arms = plan.total // plan.seeds
    work = f"{arms} arms x {plan.seeds} seeds = {plan.total} trials, {plan.done} done."
    say(f"{work} Folder: {folder}")
    for note in plan.notes:
        say(f"Note: {note}", style="yellow")
    if not math.isnan(plan.seconds):
        say(_time_left(plan, workers))


def _time_left(plan: Plan, workers: int) -> str:
    left = plan.left(workers)
    if math.isnan(left):
        return "Time left: unknown before the first trial."
    told = f"{left / 60:.0f} min" if left < 5400 else f"{left / 3600:.1f} h"
    if left < 90:
        told = f"{left:.0f} s"
    processes = f"{workers} process{'es' if workers > 1 else ''}"
    return f"Time left: about {told} with {processes} ({plan.seconds:.1f} s per trial)."


def _report(results: Results) -> None:
    from gloss_graph.studies import write_report

    with busy("Writing the report"):
        files = write_report(results)
    say(_summary(results))
    for problem in results.problems():
        say(f"Note: {problem}", style="yellow")
    names = ", ".join(path.name for path in files if path.suffix != ".png")
    say(f"{results.folder}: {names}")


def _summary(results: Results) -> Table:
    """The arms by the metric of the question, the best first."""
    from gloss_graph.reports.evaluation import shown_p

    metric = results.metrics[0] if results.metrics else ""
    summary, tests = results.summary(), results.tests()
    ranked = summary[summary["metric"] == metric].sort_values(
        "mean", ascending=results.lower_is_better(metric)
    )
    tests = tests[tests["metric"] == metric].set_index("arm")
    rows = []
    for row in ranked.head(_SHOWN_ARMS).itertuples():
        gap = p = ""
        if row.arm in tests.index:
            gap = results.show(metric, tests.loc[row.arm, "difference"], sign=True)
            p = shown_p(tests.loc[row.arm, "p_t_holm"])
        name = row.arm + (" (baseline)" if row.arm == results.baseline else "")
        rows.append((name, results.show(metric, row.mean), gap, p))
    title = results.title(metric) if metric else "no metric"
    title += ": mean over seeds, difference to the baseline"
    table = make_table(title, ("arm", "mean", "difference", "p (Holm)"), rows)
    if len(ranked) > _SHOWN_ARMS:
        table.caption = f"{_SHOWN_ARMS} of {len(ranked)} arms; the report has all."
    return table
