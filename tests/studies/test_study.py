"""Designs, plans, failures and everything that must be named and not skipped."""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from gloss_graph._internal.settings import Range
from gloss_graph.studies import Study, read_results, write_report
from gloss_graph.studies.trials import TrackedConfig, canonical, trial_id
from studies.toys import score, study

FEW: dict[str, Any] = {"rate": [1, 2], "size": [10, 20]}


def test_a_grid_crosses_all_values_with_all_seeds(tmp_path: Path) -> None:
    results = study().run(tmp_path / "s", progress=False)
    table = results.table
    assert len(table) == 4 * 3 * 3
    assert results.baseline == "rate=1, size=10"
    assert results.arms[0] == results.baseline
    expected = 10 * table["rate"] + table["size"] / 10 + table["seed"]
    assert (table["score"] == expected).all()
    assert {"seconds", "peak_memory_mb", "git_commit", "version.torch", "python"} <= set(table)
    assert (table["peak_memory_mb"] > 10).all()
    assert results.metrics == ["score", "loss"]


def test_one_at_a_time_changes_one_factor(tmp_path: Path) -> None:
    one = study(design="one-at-a-time", baseline={"rate": 2, "size": 20})
    assert one.arms == [
        {"rate": 2, "size": 20},
        {"rate": 1, "size": 20},
        {"rate": 3, "size": 20},
        {"rate": 4, "size": 20},
        {"rate": 2, "size": 10},
        {"rate": 2, "size": 30},
    ]
    effect = one.run(tmp_path / "s", progress=False).effect("size", "score")
    assert effect["level"].tolist() == ["10", "20", "30"]
    assert effect["difference"].tolist() == pytest.approx([-1.0, 0.0, 1.0])
    assert effect["baseline"].tolist() == [False, True, False]


def test_a_latin_hypercube_visits_every_stratum_once() -> None:
    factors = {"rate": Range(0.01, 1.0, log=True), "size": Range(0, 9), "mode": ["a", "b"]}
    cube = study(factors=factors, design="latin-hypercube", arms=10)
    tried = pd.DataFrame(cube.arms[1:])
    assert sorted(tried["size"]) == list(range(10))
    strata = np.floor(10 * (np.log10(tried["rate"]) + 2) / 2)
    assert sorted(strata) == list(range(10))
    assert tried["mode"].value_counts().tolist() == [5, 5]
    assert cube.arms == study(factors=factors, design="latin-hypercube", arms=10).arms


def test_adding_a_value_and_a_seed_runs_only_what_is_new(tmp_path: Path) -> None:
    calls: list[int] = []

    def run(config: dict[str, Any], seed: int) -> dict[str, float]:
        calls.append(seed)
        return score(config, seed)

    one = study(run, factors=FEW)
    one.run(tmp_path / "s", progress=False)
    first = len(calls)
    one.run(tmp_path / "s", progress=False)
    assert len(calls) == first == 12
    more = study(run, factors={**FEW, "size": [10, 20, 30]}, seeds=4)
    plan = more.plan(tmp_path / "s")
    assert (plan.total, plan.done) == (24, 12)
    assert plan.left(2) == pytest.approx(12 * plan.seconds / 2)
    assert len(more.run(tmp_path / "s", progress=False).table) == 24
    assert len(calls) == 24


def test_a_failure_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    broken = [True]

    def run(config: dict[str, Any], seed: int) -> dict[str, float]:
        if config["rate"] == 2 and seed == 1 and broken[0]:
            raise RuntimeError("out of memory")
        return score(config, seed)

    one = study(run, factors=FEW)
    results = one.run(tmp_path / "s", progress=False)
    failed = results.table[results.table["status"] == "failed"]
    assert len(failed) == 2
    assert len(results.table) == 12
    assert set(failed["error"]) == {"RuntimeError: out of memory"}
    assert 'raise RuntimeError("out of memory")' in next(iter(results.tracebacks.values()))
    assert "2 trials failed by RuntimeError: out of memory" in results.problems()[0]
    tests = results.tests().set_index(["metric", "arm"])
    assert tests.loc[("score", "rate=2, size=10"), "pairs"] == 2

    broken[0] = False
    still = one.run(tmp_path / "s", progress=False)
    assert (still.table["status"] == "failed").sum() == 2
    mended = one.run(tmp_path / "s", progress=False, retry=True)
    assert (mended.table["status"] == "ok").all()
    assert sorted(mended.table["attempt"].unique()) == [0, 1]


def test_when_all_fail_the_last_error_is_raised(tmp_path: Path) -> None:
    def run(config: dict[str, Any], seed: int) -> dict[str, float]:
        raise OSError("no such file")

    with pytest.raises(RuntimeError, match="All 6 trials failed, the last by OSError: no such"):
        study(run, factors={"rate": [1, 2, 3]}, seeds=2).run(tmp_path / "s", progress=False)


def test_a_nan_metric_is_named(tmp_path: Path) -> None:
    def run(config: dict[str, Any], seed: int) -> dict[str, float]:
        value = math.nan if config["rate"] == 2 and seed == 0 else float(config["rate"])
        return {"f1": value, "size": config["size"]}

    results = study(run, factors=FEW).run(tmp_path / "s", progress=False)
    named = results.table[results.table["nan"] == "f1"]
    assert len(named) == 2
    assert (named["rate"] == 2).all()
    (problem,) = results.problems()
    assert "f1 is NaN or infinite in 2 trials: rate=2, size=10 seed 0" in problem
    summary = results.summary().set_index(["metric", "arm"])
    assert summary.loc[("f1", "rate=2, size=10"), "n"] == 2


def test_paired_tests_are_those_of_scipy_and_holm(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(5, 4))

    def run(config: dict[str, Any], seed: int) -> dict[str, float]:
        return {"f1": config["rate"] * 0.3 + 5 * seed + noise[seed, config["rate"]]}

    results = Study(factors={"rate": [0, 1, 2, 3]}, run=run, seeds=5).run(
        tmp_path / "s", progress=False
    )
    tests = results.tests()
    values = results.table.pivot(index="seed", columns="rate", values="f1")
    expected = [stats.ttest_rel(values[n], values[0]).pvalue for n in (1, 2, 3)]
    assert tests["p_t"].tolist() == pytest.approx(expected)
    gaps = values[1] - values[0]
    assert tests["effect"].iloc[0] == pytest.approx(gaps.mean() / gaps.std())
    order = sorted(expected)
    assert tests["p_t_holm"].min() == pytest.approx(min(1, 3 * order[0]))


def test_a_factor_that_is_never_read_is_an_error(tmp_path: Path) -> None:
    def run(config: dict[str, Any], seed: int) -> dict[str, float]:
        return {"f1": config["rate"]}

    one = Study(factors={"rate": [1, 2], "sise": [1, 2]}, run=run, design="one-at-a-time", seeds=1)
    with pytest.raises(ValueError, match="'sise' was never read by the function"):
        one.run(tmp_path / "s", progress=False)


def test_a_factor_read_in_some_arms_only_is_a_note(tmp_path: Path) -> None:
    def run(config: dict[str, Any], seed: int) -> dict[str, float]:
        return {"f1": config["k"] if config["loss"] == "graph" else 0.0}

    factors = {"loss": ["graph", "ce"], "k": [4, 8]}
    results = Study(factors=factors, run=run, seeds=2).run(tmp_path / "s", progress=False)
    assert "The function did not read k in 4 trials." in results.problems()


@pytest.mark.parametrize("how", ["splat", "merge", "loop", "json", "copy"])
def test_reading_a_configuration_as_a_whole_reads_everything(how: str) -> None:
    config = TrackedConfig({"a": 1, "b": 2})
    if how == "splat":
        assert dict(**config) == {"a": 1, "b": 2}
    elif how == "merge":
        assert {**config} == config | {} == {} | config
    elif how == "loop":
        assert list(config) == ["a", "b"]
    elif how == "json":
        assert json.loads(json.dumps(config)) == {"a": 1, "b": 2}
    else:
        assert type(config.copy()) is dict
    assert config.unread == set()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factors": {}}, "'factors' must name a setting"),
        ({"factors": {"rate": [1]}}, "factor 'rate' must have two values"),
        ({"factors": {"rate": [1, 1]}}, "factor 'rate': 'values' must be distinct"),
        ({"factors": {"rate": 3}}, "must be a list of values"),
        ({"factors": {"rate": "1:x"}}, "must be a range low:high"),
        ({"factors": {"rate": [1, math.nan]}}, "must hold finite values"),
        ({"factors": {"rate": [1, [2]]}}, "factor 'rate': "),
        ({"factors": {"rate": Range(0.0, 1.0)}}, "must be a list of values for design='grid'"),
        ({"factors": {"seed": [1, 2]}}, "'seed' must be given as 'seeds'"),
        ({"seeds": []}, "'seeds' must hold distinct seeds, one at least"),
        ({"seeds": [1, 1]}, "'seeds' must hold distinct seeds"),
        ({"seeds": 0}, "'seeds' must be an integer of at least 1"),
        ({"design": "magic"}, "'design' must be one of"),
        ({"design": "latin-hypercube"}, "'arms' must be an integer"),
        ({"arms": 3}, "'arms' must be left out"),
        ({"design": "optuna", "arms": 3}, "'metric' must say what"),
        ({"run": 3}, "'run' must be a function"),
        ({"baseline": {"x": object()}}, "A setting must be a number"),
        ({"baseline": {"x": math.nan}}, "'baseline' must hold plain settings"),
        ({"seeds": 2**31}, "'seeds' must be at most 100,000"),
        ({"factors": {f"f{i}": list(range(10)) for i in range(9)}}, "The plan has .* trials"),
        ({"factors": {"": [1, 2]}}, "names of at most 60 printable"),
        ({"factors": {"x" * 61: [1, 2]}}, "names of at most 60 printable"),
        ({"factors": {"a\x00b": [1, 2]}}, "names of at most 60 printable"),
    ],
)
def test_bad_studies_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study(**changes)


@pytest.mark.parametrize("answer", [None, {}, {"f1": "high"}, {"f1": [1, 2]}, 0.5])
def test_a_function_that_returns_no_numbers_is_told_so(tmp_path: Path, answer: Any) -> None:
    one = study(lambda config, seed: answer, factors={"rate": [1, 2]}, seeds=1)
    with pytest.raises(RuntimeError, match="'run' must return"):
        one.run(tmp_path / "s", progress=False)


def test_numbers_of_torch_and_numpy_are_numbers(tmp_path: Path) -> None:
    def run(config: dict[str, Any], seed: int) -> dict[str, Any]:
        return {"a": torch.tensor(float(config["rate"])), "b": np.float32(config["size"])}

    few = study(run, factors={"rate": [1, 2], "size": [10, 20]}, seeds=1)
    assert (few.run(tmp_path / "s", progress=False).table["status"] == "ok").all()


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="must be a new or empty folder"):
        study().run(tmp_path, progress=False)
    with pytest.raises(ValueError, match="must be the folder of a study"):
        read_results(tmp_path)


def test_equal_settings_have_equal_ids() -> None:
    assert trial_id({"a": 1, "b": None}, 0, {}) == trial_id({"b": None, "a": 1.0}, 0, {})
    assert trial_id({"a": True}, 0, {}) != trial_id({"a": 1}, 0, {})
    assert trial_id({"a": 1}, 0, {"data": "x"}) != trial_id({"a": 1}, 0, {"data": "y"})
    assert canonical({"a": 0.1}) == '{"a":0.1}'


def test_optuna_finds_the_better_end_and_resumes(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    settings: dict[str, Any] = {
        "factors": {"rate": Range(0.0, 4.0), "size": [10, 20]},
        "design": "optuna",
        "metric": "score",
        "seeds": 2,
    }
    study(arms=2, **settings).run(tmp_path / "s", progress=False)
    results = study(arms=3, **settings).run(tmp_path / "s", progress=False)
    assert len(results.arms) == 4
    assert len(results.table) == 8
    other = tmp_path / "elsewhere"
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    for folder in (tmp_path / "here", other):
        study(arms=2, **settings).run(folder, progress=False, storage=url)
    assert set(read_results(other).arms) == set(read_results(tmp_path / "here").arms)


def test_a_refused_optuna_study_leaves_its_folder_as_it_was(tmp_path: Path) -> None:
    pytest.importorskip("optuna")

    def run(config: dict[str, Any], seed: int) -> dict[str, float]:
        return {"score": config["rate"] * config["by"] + seed}

    settings: dict[str, Any] = {
        "factors": {"rate": Range(1.0, 4.0)},
        "design": "optuna",
        "metric": "score",
        "seeds": 2,
        "arms": 2,
    }
    first = study(run, baseline={"by": 1}, **settings)
    first.run(tmp_path / "s", progress=False)
    before = (tmp_path / "s" / "study.json").read_bytes()
    other = study(run, baseline={"by": 9}, **settings)
    assert other.plan(tmp_path / "s").done == 0
    with pytest.raises(ValueError, match="begun with other settings"):
        other.run(tmp_path / "s", progress=False)
    assert (tmp_path / "s" / "study.json").read_bytes() == before
    results = read_results(tmp_path / "s")
    assert len(results.table) == 6
    assert results.tests()["pairs"].tolist() == [2, 2]
    assert first.plan(tmp_path / "s").done == 6


def test_rows_of_other_settings_are_not_mixed_with_those_of_an_optuna_study(tmp_path: Path) -> None:
    """As folders hold them that a refused study wrote to."""
    pytest.importorskip("optuna")
    settings: dict[str, Any] = {"design": "optuna", "metric": "score", "arms": 2}
    one = study(factors=FEW, baseline={"other": 1}, **settings)
    one.run(tmp_path / "s", progress=False)
    file = tmp_path / "s" / "study.json"
    before = file.read_bytes()
    study(factors=FEW, baseline={"other": 2}).run(tmp_path / "s", progress=False)
    file.write_bytes(before)
    results = read_results(tmp_path / "s")
    assert not results.table.duplicated(["arm", "seed"]).any()
    assert set(results.tests()["pairs"]) == {3}


COLUMN_NAMES = ["seconds", "error", "cost", "nan", "attempt", "status", "arm", "rate", "trial"]
COLUMN_NAMES += ["worker", "seed", "version.torch", "python", "metric.rate", "finished"]


def test_metrics_called_as_columns_of_the_table_are_read(tmp_path: Path) -> None:
    class Run:
        metric = "seconds"
        titles: ClassVar[dict[str, str]] = {name: f"the {name}, %" for name in COLUMN_NAMES}
        shown = lower_is_better = tuple(COLUMN_NAMES)

        def __call__(self, config: dict[str, Any], seed: int) -> dict[str, float]:
            return {"f1": 1.0, **dict.fromkeys(COLUMN_NAMES, config["rate"] / 10 + seed)}

    results = study(Run(), factors={"rate": [1, 2]}, seeds=2).run(tmp_path / "s", progress=False)
    assert results.metrics[0] == "metric.seconds"
    assert sorted(results.metrics) == sorted(["f1", *(f"metric.{name}" for name in COLUMN_NAMES)])
    assert set(results.table["status"]) == {"ok"}
    assert results.shown == [f"metric.{name}" for name in COLUMN_NAMES[:3]]
    tests = results.tests()
    for name in COLUMN_NAMES:
        column = f"metric.{name}"
        assert results.table[column].tolist() == pytest.approx([0.1, 0.2, 1.1, 1.2])
        assert (results.title(column), results.lower_is_better(column)) == (f"the {name}, %", True)
        assert tests[tests["metric"] == column]["difference"].tolist() == pytest.approx([0.1])
    assert results.problems() == []
    write_report(results)


def test_a_nan_of_a_metric_called_as_a_column_is_named(tmp_path: Path) -> None:
    def run(config: dict[str, Any], seed: int) -> dict[str, float]:
        return {"nan": math.nan if config["rate"] == 2 else 1.0}

    results = study(run, factors={"rate": [1, 2]}, seeds=1).run(tmp_path / "s", progress=False)
    assert results.problems()[0].startswith("metric.nan is NaN or infinite in 1 trial: rate=2")


@pytest.mark.parametrize("name", ["arm", "status", "trial", "nan", "metric.f1", "version.torch"])
def test_a_factor_called_as_a_column_of_the_table_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"must not be called as a column .*{name}"):
        study(factors={name: [1, 2]})


def test_arms_that_differ_in_the_seventh_digit_are_two(tmp_path: Path) -> None:
    rates = [0.12345671, 0.12345672]
    results = study(factors={"rate": rates, "size": [1, 2]}, seeds=2).run(
        tmp_path / "s", progress=False
    )
    assert len(results.arms) == 4
    assert set(results.summary()["n"]) == {2}


def test_a_p_value_below_the_digits_has_one_relation(tmp_path: Path) -> None:
    def run(config: dict[str, Any], seed: int) -> dict[str, float]:
        return {"f1": config["rate"] + 1e-6 * seed * config["rate"]}

    results = study(run, factors={"rate": [1, 2]}, seeds=4).run(tmp_path / "s", progress=False)
    write_report(results)
    text = (tmp_path / "s" / "report.md").read_text(encoding="utf-8")
    assert "(Holm-corrected p <0.001)" in text
    assert "![Effect of rate](pictures/effect-rate.png)" in text


NAMES = ["a/b", "a?b", "../c", r"$\frac{$", "größe", "."]


def test_factors_of_any_readable_name_are_reported(tmp_path: Path) -> None:
    def run(config: dict[str, Any], seed: int) -> dict[str, float]:
        return {"a/score$": sum(config[name] for name in factors) + seed}

    factors = {name: [1, 2] for name in (*NAMES, "a-b")}
    one = Study(factors=factors, run=run, seeds=2, design="one-at-a-time")
    files = write_report(one.run(tmp_path, progress=False))
    pictures = [file for file in files if file.suffix == ".png"]
    assert len(set(pictures)) == len(pictures) == len(list((tmp_path / "pictures").iterdir()))
    assert {file.parent for file in pictures} == {tmp_path / "pictures"}
    assert len(pictures) >= len(factors)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    study(factors={"rate": [1, 2]}, baseline={"size": 10}, seeds=2).run(folder, progress=False)
    return folder


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("study.json", "factors", [1]),
        ("study.json", "factors", {"rate": 3}),
        ("study.json", "baseline", {}),
        ("study.json", "trials", [[1]]),
        ("study.json", "metric", 3),
        ("study.json", "titles", {"score": [1]}),
        ("trials", "arm", "rate"),
        ("trials", "arm", {}),
        ("trials", "seed", "0"),
        ("trials", "metrics", {"score": "high"}),
        ("trials", "seconds", None),
        ("trials", "id", 3),
        ("trials", "unread", 3),
    ],
)
def test_a_damaged_study_is_named(
    whole: Path, tmp_path: Path, file: str, key: str, value: Any
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    path = tmp_path / file
    if file == "trials":
        with sqlite3.connect(tmp_path / "optuna.db") as database:
            rest = "from trial_user_attributes where key = 'row' order by trial_id limit 1"
            number, text = database.execute(f"select trial_id, value_json {rest}").fetchone()
            row = json.loads(json.loads(text))
            # One of each kind: of this version and of the line files before it.
            damaged = json.dumps({**row, key: value})
            database.execute(
                "update trial_user_attributes set value_json = ? "
                "where trial_id = ? and key = 'row'",
                (json.dumps(damaged), number),
            )
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match=file if file == "study.json" else r"optuna\.db"):
        read_results(tmp_path)
    if file == "trials":
        (tmp_path / "optuna.db").unlink()
        path.mkdir()
        (path / "worker.jsonl").write_text(damaged + "\n")
        with pytest.raises(ValueError, match="trials"):
            read_results(tmp_path)


@pytest.mark.parametrize("key", ["metric", "minimize", "trials", "name"])
def test_a_study_that_lacks_a_key_is_named(whole: Path, tmp_path: Path, key: str) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "study.json"
    content = json.loads(file.read_text())
    del content[key]
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"study\.json.*'{key}' is missing"):
        read_results(tmp_path)
