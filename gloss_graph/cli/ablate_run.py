"""What `gloss-graph ablate` does: plan, run with several processes, report."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from gloss_graph.cli.signals import HELPER, keeping
from gloss_graph.studies import Plan, Results, Study, read_results, write_report
from gloss_graph.studies.yaml_study import read_study

_SHOWN_ARMS = 12
# They end with the process that started them, from before their first import on.
_COMMAND = (
    "import sys; from gloss_graph.cli.signals import follow_parent; follow_parent(); "
    "from gloss_graph.cli import main; sys.exit(main())"
)
_PATIENCE = 10.0


def run_ablate(
    file: Path,
    out: Path | None,
    *,
    overrides: Mapping[str, Any],
    dry_run: bool = False,
    workers: int = 1,
    retry: bool = False,
    storage: str | None = None,
) -> Results | None:
    """Run a study file and report; see `gloss-graph ablate --help`."""
    helper = bool(os.environ.get(HELPER))
    console = Console(quiet=helper)
    study = read_study(file, progress=not helper, **overrides)
    run: Any = study.function
    folder = out or _default_folder(file, run.cost, overrides)
    if helper:
        study.run(folder, progress=False, retry=retry, storage=storage, wait=False)
        return None
    plan = study.plan(folder)
    _print_plan(study, plan, folder, workers, console)
    run.prepare()
    if dry_run:
        if math.isnan(plan.seconds) and study.design != "optuna":
            console.print("Timing one trial, which is kept ...")
            study.run(folder, progress=False, limit=1)
            plan = study.plan(folder)
        console.print(_time_left(plan, workers), highlight=False)
        return None
    threads = max(1, (os.cpu_count() or 1) // workers)
    if workers > 1:
        torch.set_num_threads(threads)
    helpers = _helpers(file, folder, overrides, workers - 1, threads, retry, storage)
    try:
        with keeping(lambda: f"Finished trials are kept in {folder}: run the same command again."):
            results = study.run(folder, retry=retry, storage=storage)
    finally:
        _end(helpers)
    _finish(results, console)
    return results


def run_ablation_report(folder: Path) -> Results:
    """Write the report of a study folder again."""
    results = read_results(folder)
    _finish(results, Console())
    return results


def _default_folder(file: Path, cost: str, overrides: Mapping[str, Any]) -> Path:
    data = overrides.get("data")
    name = [file.stem, cost, *([Path(str(data)).name] if data else [])]
    return Path("runs", "ablations", "-".join(name))


def _helpers(
    file: Path,
    folder: Path,
    overrides: Mapping[str, Any],
    count: int,
    threads: int,
    retry: bool,
    storage: str | None,
) -> list[subprocess.Popen[bytes]]:
    words = [sys.executable, "-c", _COMMAND, "ablate", str(file), "--out", str(folder)]
    for name, value in {**overrides, "storage": storage}.items():
        words += [] if value is None else [f"--{name}", str(value)]
    words += ["--retry"] if retry else []
    settings = {**os.environ, HELPER: "1", "OMP_NUM_THREADS": str(threads)}
    # The pipe is closed when this process ends, however it does. Ctrl-C is for this process,
    # which ends the others.
    return [
        subprocess.Popen(words, env=settings, stdin=subprocess.PIPE, start_new_session=True)
        for _ in range(count)
    ]


def _end(helpers: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in helpers:
        process.terminate()
    for process in helpers:
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


def _print_plan(study: Study, plan: Plan, folder: Path, workers: int, console: Console) -> None:
    run: Any = study.function
    if study.question:
        console.print(study.question, style="bold", markup=False, highlight=False)
    console.print(run.about, markup=False, highlight=False)
    table = Table(title=f"Plan: {plan.design}")
    for name in ("factor", "values", "baseline"):
        table.add_column(name, overflow="fold")
    for name, tried in study.factors.items():
        table.add_row(name, str(tried), str(study.baseline[name]))
    console.print(table)
    fixed = {k: v for k, v in study.settings.items() if k not in study.factors}
    if fixed:
        shown = ", ".join(f"{name}={value}" for name, value in fixed.items())
        console.print(f"Fixed: {shown}.", markup=False, highlight=False)
    arms = plan.total // plan.seeds
    console.print(
        f"{arms} arms x {plan.seeds} seeds = {plan.total} trials, {plan.done} done. Folder: "
        f"{folder}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    for note in plan.notes:
        console.print(f"Note: {note}", markup=False, highlight=False, style="yellow")
    if not math.isnan(plan.seconds):
        console.print(_time_left(plan, workers), highlight=False)


def _time_left(plan: Plan, workers: int) -> str:
    left = plan.left(workers)
    if math.isnan(left):
        return "Time left: unknown before the first trial."
    return (
        f"Time left: about {duration(left)} with {workers} "
        f"process{'es' if workers > 1 else ''} ({plan.seconds:.1f} s a trial)."
    )


def duration(seconds: float) -> str:
    """Seconds as people say them.

    Example:
        >>> duration(45), duration(400), duration(9000)
        ('45 s', '7 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _finish(results: Results, console: Console) -> None:
    with console.status("Writing the report"):
        files = write_report(results)
    console.print(_summary(results))
    for problem in results.problems():
        console.print(f"Note: {problem}", markup=False, highlight=False, style="yellow")
    listed: Sequence[Path] = files
    names = ", ".join(path.name for path in listed if path.suffix != ".png")
    console.print(f"{results.folder}: {names}", highlight=False, markup=False, soft_wrap=True)


def _summary(results: Results) -> Table:
    """The arms by the metric the study is about, the best first."""
    metric = results.metrics[0] if results.metrics else ""
    title = results.title(metric) if metric else "no metric"
    table = Table(title=f"{title}: mean over seeds, difference to the baseline")
    for name in ("arm", "mean", "difference", "p (Holm)"):
        table.add_column(name, justify="left" if name == "arm" else "right", overflow="fold")
    summary = results.summary()
    summary = summary[summary["metric"] == metric]
    tests = results.tests()
    tests = tests[tests["metric"] == metric].set_index("arm")
    ranked = summary.sort_values("mean", ascending=results.lower_is_better(metric))
    for row in ranked.head(_SHOWN_ARMS).itertuples():
        gap = p = ""
        if row.arm in tests.index:
            gap = results.show(metric, tests.loc[row.arm, "difference"], sign=True)
            holm = tests.loc[row.arm, "p_t_holm"]
            p = "" if math.isnan(holm) else "<0.001" if holm < 0.001 else f"{holm:.3f}"
        name = row.arm + (" (baseline)" if row.arm == results.baseline else "")
        table.add_row(name, results.show(metric, row.mean), gap, p)
    if len(ranked) > _SHOWN_ARMS:
        table.caption = f"{_SHOWN_ARMS} of {len(ranked)} arms; the report has all."
    return table
