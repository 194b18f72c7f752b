"""Studies that were written before trials were kept in an Optuna storage."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from gloss_graph._internal.settings import Range
from gloss_graph.studies import read_results
from studies.toys import score, study

STUDIES = Path(__file__).resolve().parents[1] / "data" / "studies"


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    return Path(shutil.copytree(STUDIES, tmp_path / "studies"))


def forbidden(config: dict[str, Any], seed: int) -> dict[str, float]:
    raise AssertionError("a finished trial was run again")


forbidden.__qualname__ = "score"


def scores(table: pd.DataFrame) -> pd.DataFrame:
    return table[["rate", "size", "seed", "score", "loss", "status", "trial"]]


def test_a_finished_study_is_read_and_not_run_again(earlier: Path) -> None:
    table = read_results(earlier / "finished").table
    assert len(table) == 24
    assert (table["score"] == 10 * table["rate"] + table["size"] / 10 + table["seed"]).all()
    again = study(forbidden, seeds=2).run(earlier / "finished", progress=False)
    pd.testing.assert_frame_equal(scores(again.table), scores(table))


def test_an_interrupted_study_goes_on(earlier: Path) -> None:
    calls = []

    def run(config: dict[str, Any], seed: int) -> dict[str, float]:
        calls.append(seed)
        return score(config, seed)

    run.__qualname__ = "score"
    assert read_results(earlier / "interrupted").left == 16
    results = study(run, seeds=2).run(earlier / "interrupted", progress=False)
    assert (results.left, len(calls)) == (0, 16)
    whole = read_results(earlier / "finished")
    pd.testing.assert_frame_equal(scores(results.table), scores(whole.table))
    pd.testing.assert_frame_equal(
        scores(read_results(earlier / "interrupted").table), scores(whole.table)
    )


def test_a_study_of_proposed_arms_goes_on(earlier: Path) -> None:
    before = read_results(earlier / "proposed")
    assert (len(before.arms), len(before.table)) == (4, 8)
    settings: dict[str, Any] = {
        "factors": {"rate": Range(0.0, 4.0), "size": [10, 20]},
        "design": "optuna",
        "metric": "score",
        "seeds": 2,
    }
    study(forbidden, arms=3, **settings).run(earlier / "proposed", progress=False)
    after = study(arms=4, **settings).run(earlier / "proposed", progress=False)
    assert after.arms[:4] == before.arms
    assert len(after.arms) == 5


def test_a_finished_search_is_read_and_goes_on(
    earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from studies.test_tuning import tuned

    table = pd.read_csv(earlier / "tuned" / "trials.csv")
    monkeypatch.setattr("gloss_graph.studies.tuning.train_text", None)
    again = tuned(earlier / "tuned", 3).trials
    assert again["value"].tolist() == table["value"].tolist()
    assert again["learning_rate"].tolist() == pytest.approx(table["learning_rate"].tolist())


def test_a_search_with_other_settings_is_refused_by_name(earlier: Path) -> None:
    from studies.test_tuning import brief, tuned

    with pytest.raises(ValueError, match=r"begun with other settings .*k: 4 there, 8 here"):
        tuned(earlier / "tuned", 4, config=brief(k=8))
