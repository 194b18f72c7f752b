"""Killed and concurrent processes: nothing lost, nothing run twice, the same table."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from processes import warm_context

from gloss_graph.studies import read_results
from gloss_graph.studies.engine import (
    TrialTable,
    connect,
    open_storage,
    read_rows,
    sqlite_url,
)
from gloss_graph.studies.trials import Trial, run_trial
from studies.toys import Logged, score, study, work

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

COLUMNS = ["rate", "size", "seed", "score", "loss", "status", "arm", "trial"]
TRIALS = 36


@pytest.fixture(scope="module")
def processes() -> Any:
    return warm_context()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """The table of a run without interruption, by the same function."""
    folder = tmp_path_factory.mktemp("plain")
    whole = study(Logged(folder / "plain.log", 0.0)).run(folder / "plain", progress=False)
    return whole.table[COLUMNS]


def start(processes: Any, tmp_path: Path, seconds: float) -> Any:
    arguments = (str(tmp_path / "out"), str(tmp_path / "calls.log"), seconds)
    process = processes.Process(target=work, args=arguments)
    process.start()
    return process


def lines(folder: Path) -> list[str]:
    """A line for every call that ended."""
    return (folder / "calls.log").read_text().splitlines()


def rows_on_disk(folder: Path) -> list[str]:
    """Ids of every row, also where a trial has two."""
    if not (folder / "optuna.db").is_file():
        return []
    with sqlite3.connect(folder / "optuna.db", timeout=30) as database:
        try:
            found = database.execute(
                "select value_json from trial_user_attributes where key = 'row'"
            ).fetchall()
        except sqlite3.OperationalError:  # no tables yet
            return []
    return [json.loads(json.loads(text))["id"] for (text,) in found]


def test_five_kills_at_random_moments_change_nothing(
    tmp_path: Path, processes: Any, plain: pd.DataFrame
) -> None:
    out, chance = tmp_path / "out", random.Random(0)
    kills = 0
    while kills < 5:
        process = start(processes, tmp_path, 0.03)
        deadline = time.monotonic() + 20
        before = len(rows_on_disk(out))
        # Begin to count once it works, so that kills fall into trials and writes.
        while len(rows_on_disk(out)) == before and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(chance.uniform(0.0, 0.05))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        kills += 1
    assert TRIALS > len(rows_on_disk(out)) >= 5
    last = start(processes, tmp_path, 0.0)
    last.join(60)
    assert last.exitcode == 0

    pd.testing.assert_frame_equal(read_results(out).table[COLUMNS], plain)
    ids = rows_on_disk(out)
    assert sorted(ids) == sorted(set(plain["trial"]))
    # What a killed process had not written counts as not run: at most one call for each kill.
    calls = Counter(tuple(line.split()[:3]) for line in lines(tmp_path))
    assert len(calls) == TRIALS
    assert sum(calls.values()) - TRIALS <= kills


def test_two_processes_share_a_study(tmp_path: Path, processes: Any, plain: pd.DataFrame) -> None:
    both = [start(processes, tmp_path, 0.05) for _ in range(2)]
    for process in both:
        process.join(120)
        assert process.exitcode == 0
    out = tmp_path / "out"
    pd.testing.assert_frame_equal(read_results(out).table[COLUMNS], plain)
    calls = [line.split() for line in lines(tmp_path)]
    assert len(calls) == len({tuple(call[:3]) for call in calls}) == TRIALS
    shares = Counter(call[3] for call in calls)
    assert len(shares) == 2
    assert min(shares.values()) >= TRIALS // 4
    assert sorted(rows_on_disk(out)) == sorted(set(plain["trial"]))


def test_the_trial_of_a_dead_process_is_taken_over_once(tmp_path: Path, processes: Any) -> None:
    process = processes.Process(target=_claim_and_die, args=(str(tmp_path / "optuna.db"),))
    process.start()
    process.join()
    trial = study().trials()[0]
    one, other = table(tmp_path / "optuna.db"), table(tmp_path / "optuna.db")
    assert one.claim(trial, 0) is None
    one.read(fail_dead=True)
    claimed = one.claim(trial, 0)
    other.read(fail_dead=True)
    assert claimed is not None
    assert other.claim(trial, 0) is None
    one.give_back(claimed)
    other.read()
    assert other.claim(trial, 0) is not None


def table(file: Path) -> TrialTable:
    one = study()
    return TrialTable(connect(sqlite_url(file)), one.name, one.factors, one.baseline)


def row_of(trial: Trial, metrics: dict[str, float], worker: str = "") -> dict[str, Any]:
    about = {"identity": {}, "worker": worker}
    return run_trial(trial, lambda config, seed: metrics, trial.arm, about)


def _claim_and_die(file: str) -> None:
    assert table(Path(file)).claim(study().trials()[0], 0) is not None
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_trial_given_up_by_others_does_not_count(tmp_path: Path) -> None:
    """As when a machine sleeps for an hour: its trial is run by another worker meanwhile."""
    trial = study().trials()[0]
    sleeper, other = table(tmp_path / "optuna.db"), table(tmp_path / "optuna.db")
    first = sleeper.claim(trial, 0)
    assert first is not None
    other.give_back(first)
    again = other.claim(trial, 0)
    assert again is not None
    assert not sleeper.finish(first, row_of(trial, {"score": 1.0}, "sleeper"))
    assert other.finish(again, row_of(trial, {"score": 1.0}, "other"))
    sleeper.read()
    assert sleeper.rows[trial.id]["worker"] == "other"
    assert len(rows_on_disk(tmp_path)) == 1


def test_an_interrupted_trial_is_given_back(tmp_path: Path) -> None:
    calls: list[int] = []

    def impatient(config: dict[str, Any], seed: int) -> dict[str, float]:
        calls.append(seed)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return score(config, seed)

    with pytest.raises(KeyboardInterrupt):
        study(impatient).run(tmp_path / "out", progress=False)
    assert read_results(tmp_path / "out").left == TRIALS - 4
    results = study(impatient).run(tmp_path / "out", progress=False)
    assert (results.left, len(calls)) == (0, TRIALS + 1)


def test_infinite_numbers_survive_the_disk(tmp_path: Path) -> None:
    metrics = {"a": float("inf"), "b": float("-inf"), "c": 1.5}
    one, trial = table(tmp_path / "optuna.db"), study().trials()[0]
    claimed = one.claim(trial, 0)
    assert claimed is not None
    assert one.finish(claimed, row_of(trial, metrics))
    with open_storage(sqlite_url(tmp_path / "optuna.db")) as storage:
        (row,) = read_rows(storage)
    assert row["metrics"] == metrics


def test_another_study_waits_until_those_in_its_folder_are_done(tmp_path: Path) -> None:
    folder, refused, joined = tmp_path / "s", [], []
    few = {"rate": [1, 2], "size": [10, 20]}

    def meets_others(config: dict[str, Any], seed: int) -> dict[str, float]:
        if not refused:
            before = (folder / "study.json").read_bytes()
            with pytest.raises(BlockingIOError, match="'out' must be of one study at a time") as no:
                study(factors=few, seeds=2).run(folder, progress=False)
            refused.append(no)
            assert (folder / "study.json").read_bytes() == before
            # The same study joins it.
            same = study(meets_others, factors=few)
            joined.append(same.run(folder, progress=False, wait=False, limit=3))
        return score(config, seed)

    results = study(meets_others, factors=few).run(folder, progress=False)
    assert refused
    assert joined
    assert len(results.table) == 12
    assert set(results.table["status"]) == {"ok"}
    # No process is at work any more.
    assert len(study(factors=few, seeds=2).run(folder, progress=False).table) == 8
