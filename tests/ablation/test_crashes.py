"""Killed and concurrent processes: nothing lost, nothing run twice, the same table."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ablation.toys import Logged, score, study, work
from gloss_graph.studies import read_results
from gloss_graph.studies.store import TrialStore

COLUMNS = ["rate", "size", "seed", "score", "loss", "status", "arm", "trial"]
TRIALS = 36


@pytest.fixture(scope="module")
def processes() -> Any:
    """Starts processes that have imported everything already."""
    context = multiprocessing.get_context("forkserver")
    # By names that are found without the path of the tests.
    context.set_forkserver_preload(["gloss_graph.studies.study"])
    return context


@pytest.fixture
def plain(tmp_path: Path) -> pd.DataFrame:
    """The table of a run without interruption, by the same function."""
    whole = study(Logged(tmp_path / "plain.log", 0.0)).run(tmp_path / "plain", progress=False)
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
    """Ids of every whole line of every file."""
    return [
        json.loads(line)["id"]
        for file in folder.glob("trials/*.jsonl")
        for line in file.read_bytes().split(b"\n")[:-1]
    ]


def test_ten_kills_at_random_moments_change_nothing(
    tmp_path: Path, processes: Any, plain: pd.DataFrame
) -> None:
    out, chance = tmp_path / "out", random.Random(0)
    kills = 0
    while kills < 10:
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
    assert TRIALS > len(rows_on_disk(out)) >= 10
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
        process.join(30)
        assert process.exitcode == 0
    out = tmp_path / "out"
    pd.testing.assert_frame_equal(read_results(out).table[COLUMNS], plain)
    calls = [line.split() for line in lines(tmp_path)]
    assert len(calls) == len({tuple(call[:3]) for call in calls}) == TRIALS
    shares = Counter(call[3] for call in calls)
    assert len(shares) == 2
    assert min(shares.values()) >= TRIALS // 4
    assert len(list((out / "trials").glob("*.jsonl"))) == 2


def test_a_torn_last_line_is_as_if_it_were_not_there(tmp_path: Path, plain: pd.DataFrame) -> None:
    out = tmp_path / "plain"
    (file,) = (out / "trials").glob("*.jsonl")
    whole = file.read_bytes()
    torn = whole[: -len(whole.split(b"\n")[-2]) // 2]
    file.write_bytes(torn)
    assert read_results(out).left == 1
    again = study(Logged(tmp_path / "again.log")).run(out, progress=False)
    pd.testing.assert_frame_equal(again.table[COLUMNS], plain)
    assert len((tmp_path / "again.log").read_text().splitlines()) == 1


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    with TrialStore(tmp_path) as store:
        store.append({"id": "a", "status": "ok"})
        (file,) = (tmp_path / "trials").glob("*.jsonl")
        with file.open("a") as handle:
            handle.write("{broken\n")
        with pytest.raises(ValueError, match=r"line 2"):
            store.rows()


def test_the_claim_of_a_dead_process_is_taken_over_once(tmp_path: Path, processes: Any) -> None:
    process = processes.Process(target=_claim_and_die, args=(str(tmp_path),))
    process.start()
    process.join()
    with TrialStore(tmp_path) as one, TrialStore(tmp_path) as other:
        assert [one.claim("trial"), other.claim("trial")] == [1, None]
        one.release("trial")
        assert other.claim("trial") == 1


def _claim_and_die(folder: str) -> None:
    assert TrialStore(folder).claim("trial") == 0
    os.kill(os.getpid(), signal.SIGKILL)


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
    with TrialStore(tmp_path) as store:
        store.append({"id": "x", "status": "ok", "metrics": metrics})
    with TrialStore(tmp_path) as store:
        assert store.rows()["x"]["metrics"] == metrics


def test_another_study_waits_until_those_in_its_folder_are_done(tmp_path: Path) -> None:
    folder, refused, joined = tmp_path / "s", [], []

    def meets_others(config: dict[str, Any], seed: int) -> dict[str, float]:
        if not refused:
            before = (folder / "study.json").read_bytes()
            with pytest.raises(BlockingIOError, match="'out' must be of one study at a time") as no:
                study(seeds=2).run(folder, progress=False)
            refused.append(no)
            assert (folder / "study.json").read_bytes() == before
            # The same study joins it.
            joined.append(study(meets_others).run(folder, progress=False, wait=False, limit=3))
        return score(config, seed)

    results = study(meets_others).run(folder, progress=False)
    assert refused
    assert joined
    assert len(results.table) == TRIALS
    assert set(results.table["status"]) == {"ok"}
    # Nobody is at work any more.
    assert len(study(seeds=2).run(folder, progress=False).table) == TRIALS // 3 * 2
