"""A search that outlives its workers, and several workers on one search: real processes."""

from __future__ import annotations

import os
import signal
import time
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from processes import warm_context
from training.tiny import quick, tiny_encoder, tiny_splits

from gloss_graph._internal.settings import Range
from gloss_graph.studies import tune_text

optuna = pytest.importorskip("optuna", reason="the extra 'tune' is not installed")

SPACE = {"learning_rate": Range(1e-5, 5e-3, log=True)}
CONFIG = {"loss": "ce", "max_steps": 2, "eval_steps": 2}


def search(out: str, storage: str | None, hang: int) -> None:
    """Body of a worker; it hangs where trial `hang` - 2 is scored, for someone to kill it."""
    made = [0]

    def factory() -> Any:
        made[0] += 1  # the first encoder is no trial's
        encoder = tiny_encoder()
        if made[0] == hang:
            encoder.encode = sleep
        return encoder

    def sleep(*_: Any, **__: Any) -> None:
        Path(out).with_suffix(".hangs").touch()
        time.sleep(600)

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    options: dict[str, Any] = {"space": SPACE, "trials": 5, "storage": storage, "heartbeat": 1}
    tune_text(tiny_splits(), factory, quick(**CONFIG), Path(out), **options)


def worker(out: Path, storage: str | None = None, hang: int = 0) -> Any:
    process = warm_context().Process(target=search, args=(str(out), storage, hang))
    process.start()
    return process


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


@pytest.mark.slow  # by default `test_tuning.py` leaves a trial as a dead worker does
def test_a_killed_search_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "search {0}"  # braces are no template
    process = worker(out, hang=4)
    try:
        deadline = time.monotonic() + 120
        while not out.with_suffix(".hangs").exists():
            assert process.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1.5)  # a heartbeat or two
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
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
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]
    one, other = (pd.read_csv(tmp_path / name / "trials.csv") for name in "ab")
    assert set(one["state"]) == {"complete"}
    # One more where both took the last turn at the same moment.
    assert 5 <= len(other) <= 6
    assert one["worker"].nunique() == 2
    assert one["learning_rate"].nunique() == len(one)
    shared = ["number", "value", "learning_rate", "worker"]
    assert one[shared].head(5).equals(other[shared].head(5))
    assert len(resume(tmp_path / "c", url)) == len(other)
