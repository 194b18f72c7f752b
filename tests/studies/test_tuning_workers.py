"""A search that outlives its workers, and several workers on one search: real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from training.tiny import quick, tiny_encoder, tiny_splits

from gloss_graph._internal.search_space import Range
from gloss_graph.studies import tune_text

optuna = pytest.importorskip("optuna", reason="the extra 'tune' is not installed")

TESTS = Path(__file__).resolve().parents[1]
SPACE = {"learning_rate": Range(1e-5, 5e-3, log=True)}
CONFIG = {"loss": "ce", "max_steps": 2, "eval_steps": 2}

# Hangs where a trial is scored, for someone to kill it; the first encoder is no trial's.
WORKER = """
import sys, time
from pathlib import Path
from gloss_graph.training import Range, tune_text
from training.tiny import quick, tiny_encoder, tiny_splits

out, storage, hang = Path(sys.argv[1]), sys.argv[2] or None, int(sys.argv[3])
made = 0

def factory():
    global made
    made += 1
    encoder = tiny_encoder()
    if made == hang:
        encoder.encode = sleep
    return encoder

def sleep(*args, **options):
    out.with_suffix(".hangs").touch()
    time.sleep(600)

tune_text(
    tiny_splits(), factory, quick(loss="ce", max_steps=2, eval_steps=2), out,
    space={"learning_rate": Range(1e-5, 5e-3, log=True)}, trials=5, storage=storage, heartbeat=1,
)
"""


def worker(out: Path, storage: str = "", hang: int = 0) -> subprocess.Popen[bytes]:
    paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(out), storage, str(hang)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def resume(out: Path, storage: str | None = None) -> pd.DataFrame:
    return tune_text(
        tiny_splits(),
        tiny_encoder,
        quick(**CONFIG),
        out,
        space=SPACE,
        trials=5,
        storage=storage,
        heartbeat=1,
    ).trials


def test_a_killed_search_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "search {0}"  # braces are no template
    process = worker(out, hang=4)
    try:
        deadline = time.monotonic() + 120
        while not out.with_suffix(".hangs").exists():
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1.5)  # a heartbeat or two
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    process.stderr.close()
    url = optuna.storages.RDBStorage(f"sqlite:///{out}/study.db".replace("{0}", "{{0}}"))
    before = optuna.load_study(study_name="gloss-graph", storage=url).trials
    assert [trial.state.name for trial in before] == ["COMPLETE", "COMPLETE", "RUNNING"]
    assert (out / "trials" / "0002" / "checkpoints").is_dir()

    trials = resume(out)
    assert not (out / "trials").exists()
    # The first two are as they were, the third is done again with what it tried.
    assert trials["value"].tolist()[:2] == [trial.value for trial in before[:2]]
    rates = [trial.params["learning_rate"] for trial in before]
    assert trials["learning_rate"][:3].tolist() == pytest.approx(rates, rel=1e-5)
    assert trials["state"].tolist() == [*["complete"] * 2, "fail", *["complete"] * 3]
    assert trials["error"].tolist() == ["", "", "killed", "", "", ""]
    again = trials[trials["retry_of"] == 2]
    assert len(again) == 1
    assert again["learning_rate"].item() == trials["learning_rate"][2]
    assert trials["worker"][:3].nunique() == 1
    assert trials["worker"][0] not in set(trials["worker"][3:])


@pytest.mark.slow
def test_workers_share_a_budget(tmp_path: Path) -> None:
    """Two that start at once make one database and do five trials between them, each once."""
    url = f"sqlite:///{tmp_path}/shared.db"
    processes = [worker(tmp_path / name, url) for name in "ab"]
    errors = [process.communicate(timeout=120)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    one, other = (pd.read_csv(tmp_path / name / "trials.csv") for name in "ab")
    assert set(one["state"]) == {"complete"}
    # One more where both took the last turn at the same moment.
    assert 5 <= len(other) <= 6
    assert one["worker"].nunique() == 2
    assert one["learning_rate"].nunique() == len(one)
    shared = ["number", "value", "learning_rate", "worker"]
    assert one[shared].head(5).equals(other[shared].head(5))
    assert len(resume(tmp_path / "c", url)) == len(other)
