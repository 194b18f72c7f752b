"""Finished runs side by side: arms, pairs, blocks of data, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from gloss_graph.runs import compare_runs, find_runs, read_run

from .made_runs import DATA, write_run, write_series
from .tiny import quick, run

F1 = "test.macro_f1"
CE = {0: 0.60, 1: 0.64, 2: 0.61, 3: 0.66}
GLOSS = {0: 0.66, 1: 0.67, 2: 0.65, 3: 0.76}


def arms(folder: Path, **options: object) -> list[str]:
    return sorted(set(compare_runs([folder], **options).runs["arm"]))


# ------------------------------------------------------------------ one folder


def test_a_run_is_settings_and_numbers(tmp_path: Path) -> None:
    numbers = {F1: 0.5, "test.macro_silhouette": None, "steps": 4, "seconds.train": 9.0}
    stages = {"seconds.encoder": 2.0, "seconds.backward": 4.0, "seconds.warm_start": 50.0}
    found = read_run(write_run(tmp_path / "a", "gloss", 7, numbers | stages))
    assert (found.seed, found.settings["loss"], found.folder) == (7, "gloss", tmp_path / "a")
    assert found.metrics[F1] == 0.5
    assert "test.macro_silhouette" not in found.metrics
    assert found.metrics["seconds.per_step"] == pytest.approx(6.0 / 4)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", None, "config.json is missing"),
        ("metrics.json", None, "metrics.json is missing"),
        ("config.json", "{", "config.json cannot be read"),
        ("metrics.json", "\udcff", "metrics.json cannot be read"),
        ("metrics.json", "[1]", "metrics.json must hold an object"),
        ("config.json", '{"loss": "ce"}', "config.json lacks 'seed'"),
        ("config.json", '{"seed": true, "loss": "ce"}', "config.json lacks 'seed'"),
        ("config.json", '{"seed": 1, "loss": "ce"}', "config.json lacks 'data'"),
        ("config.json", '{"seed": 1, "loss": "ce", "data": {}}', "name and classes of 'data'"),
        (
            "config.json",
            '{"seed": 1, "loss": "ce", "data": {"name": "", "classes": [], "test": "x"}}',
            "no number for 'data.test'",
        ),
        ("metrics.json", '{"test.macro_f1": "0.5"}', "no number for 'test.macro_f1'"),
        ("metrics.json", '{"test.macro_f1": true}', "no number for 'test.macro_f1'"),
    ],
)
def test_damaged_folders_are_named(
    tmp_path: Path, file: str, content: str | None, words: str
) -> None:
    folder = write_run(tmp_path / "bad-run", "ce", 0, {F1: 0.5})
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content, errors="surrogateescape")
    with pytest.raises(ValueError, match=words) as caught:
        read_run(folder)
    assert "bad-run" in str(caught.value)


def test_runs_are_found_below_a_folder_each_once(tmp_path: Path) -> None:
    one = write_run(tmp_path / "deep" / "er" / "one", "ce", 0, {F1: 0.5})
    two = write_run(tmp_path / "two", "ce", 1, {F1: 0.5})
    (tmp_path / "metrics.json").write_text("{}")  # as of `gloss-graph demo`
    stopped = tmp_path / "stopped"
    (stopped / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    # A run inside of a run is not looked for.
    shutil.copytree(two, one / "model" / "copy")
    assert find_runs([tmp_path]) == ([one, two], [stopped])
    assert find_runs([two, tmp_path, tmp_path / "deep"]) == ([two, one], [stopped])
    with pytest.raises(ValueError, match=r"stopped: no config.json and .* has not finished"):
        find_runs([stopped])
    with pytest.raises(ValueError, match="at least one run folder"):
        find_runs([])


def test_foreign_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match=r"photos: no config.json and no metrics.json in it"):
        compare_runs([tmp_path / "photos"])
    (tmp_path / "photos" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"photos: no metrics.json in it"):
        compare_runs([tmp_path / "photos"])
    with pytest.raises(ValueError, match=r"nowhere: there is no such folder"):
        compare_runs([tmp_path / "nowhere"])
    for bad in ({"folders": str(tmp_path)}, {"folders": [tmp_path], "metrics": F1}):
        with pytest.raises(ValueError, match="must be a list"):
            compare_runs(**bad)


# ------------------------------------------------------------------ statistics


def test_summary_and_tests_are_those_of_scipy(tmp_path: Path) -> None:
    """Seeds pair up by number, whatever is missing on either side."""
    write_series(tmp_path, "ce", {**CE, 9: 0.1}, "ce")
    write_series(tmp_path, "gloss", {**GLOSS, 5: 0.9})
    found = compare_runs([tmp_path])
    assert found.metrics == (F1,)
    assert found.baselines == {"R8": "ce"}
    assert found.runs[["arm", "seed"]].to_numpy().tolist()[:3] == [["ce", 0], ["ce", 1], ["ce", 2]]
    assert found.runs["run"].iloc[-1] == str(tmp_path / "gloss-5")
    summary = found.summary.set_index("arm")
    values = [*GLOSS.values(), 0.9]
    assert summary.loc["gloss", "n"] == 5
    assert summary.loc["gloss", "mean"] == pytest.approx(np.mean(values))
    assert summary.loc["gloss", "std"] == pytest.approx(np.std(values, ddof=1))
    interval = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert tuple(summary.loc["gloss", ["low", "high"]]) == pytest.approx(interval)
    (test,) = found.tests.to_dict("records")
    one, other = list(GLOSS.values()), list(CE.values())
    assert (test["arm"], test["baseline"], test["pairs"]) == ("gloss", "ce", 4)
    assert test["difference"] == pytest.approx(np.mean(one) - np.mean(other))
    assert test["p_t"] == pytest.approx(stats.ttest_rel(one, other).pvalue)
    assert test["p_wilcoxon"] == pytest.approx(stats.wilcoxon([6, 3, 4, 10]).pvalue)
    assert test["p_t_holm"] == test["p_t"]
    gaps = np.subtract(one, other)
    assert test["effect"] == pytest.approx(gaps.mean() / gaps.std(ddof=1))


def test_holm_counts_the_comparisons_of_a_metric_only(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name, shift in {"ce": 0.0, "gloss": 0.05, "setfit": 0.02}.items():
        for seed in range(4):
            one, other = (shift + 0.03 * random.random(2)).tolist()
            write_run(tmp_path / f"{name}{seed}", name, seed, {F1: one, "test.accuracy": other})
    tests = compare_runs([tmp_path]).tests
    assert len(tests) == 4
    for _, family in tests.groupby("metric"):
        low, high = sorted(family["p_t"])
        assert high < 0.5
        expected = [min(1, 2 * low), max(min(1, 2 * low), high)]
        assert sorted(family["p_t_holm"]) == pytest.approx(expected)


def test_missing_numbers_are_left_out_of_their_metric_only(tmp_path: Path) -> None:
    for seed in range(3):
        both = {F1: 0.5 + 0.1 * seed, "test.accuracy": 0.8}
        write_run(tmp_path / f"ce{seed}", "ce", seed, both)
        numbers = {F1: 0.6 + 0.05 * seed} | ({"test.accuracy": 0.9} if seed == 1 else {})
        write_run(tmp_path / f"gloss{seed}", "gloss", seed, numbers)
    found = compare_runs([tmp_path])
    assert found.runs["test.accuracy"].isna().sum() == 2
    summary = found.summary.set_index(["metric", "arm"])
    assert summary.loc[("test.accuracy", "gloss"), "n"] == 1
    assert math.isnan(summary.loc[("test.accuracy", "gloss"), "std"])
    tests = found.tests.set_index("metric")
    assert tests["pairs"].to_dict() == {F1: 3, "test.accuracy": 1}
    assert math.isnan(tests.loc["test.accuracy", "p_t"])
    assert tests.loc["test.accuracy", "difference"] == pytest.approx(0.1)


def test_arms_without_a_common_seed(tmp_path: Path) -> None:
    write_series(tmp_path, "ce", {0: 0.5, 1: 0.6}, "ce")
    write_series(tmp_path, "gloss", {2: 0.5, 3: 0.6})
    (test,) = compare_runs([tmp_path]).tests.to_dict("records")
    assert test["pairs"] == 0
    assert all(math.isnan(test[name]) for name in ("difference", "p_t", "p_wilcoxon", "effect"))


# ------------------------------------------------------------------ arms


def test_arms_are_named_by_what_differs(tmp_path: Path) -> None:
    write_series(tmp_path, "a", CE, "ce")
    write_series(tmp_path, "b", CE)
    write_series(tmp_path, "c", CE, memory_size=0)
    write_series(tmp_path, "d", CE, k=8, learning_rate=2e-5)
    # Without a setting that came later, and with a whole number for a float: the same arm.
    write_series(tmp_path, "e", {7: 0.5}, drop=["refresh_every"], epochs=3)
    expected = ["ce", "gloss", "gloss, learning_rate=2e-05, k=8", "gloss, memory_size=0"]
    assert arms(tmp_path) == expected


def test_other_settings_than_the_configuration_name_arms_too(tmp_path: Path) -> None:
    short = {"max_length": 48, "encoder_name": "minilm"}
    write_series(tmp_path, "a", CE, extra=short)
    write_series(tmp_path, "b", CE, extra={**short, "max_length": 128})
    write_series(tmp_path, "c", CE, extra={**short, "encoder_name": "other", "encoder": "X"})
    expected = ["gloss, encoder_name=minilm, max_length=128"]
    expected += ["gloss, encoder_name=minilm, max_length=48"]
    assert arms(tmp_path) == [*expected, "gloss, encoder_name=other, max_length=48"]


def test_settings_that_differ_between_data_only_do_not_name_arms(tmp_path: Path) -> None:
    write_series(tmp_path, "a", CE, "ce", k=8)
    write_series(tmp_path, "b", GLOSS, "gloss", k=8)
    write_series(tmp_path, "c", CE, "ce", data={**DATA, "name": "MR"})
    assert arms(tmp_path) == ["ce", "gloss"]


def test_arms_by_choice(tmp_path: Path) -> None:
    write_series(tmp_path, "a", {0: 0.5}, k=8, eta=0.5)
    write_series(tmp_path, "b", {1: 0.5}, k=8, eta=0.1)
    write_series(tmp_path, "c", {0: 0.5})
    assert len(arms(tmp_path)) == 3
    assert arms(tmp_path, by=["k"]) == ["k=16", "k=8"]
    assert arms(tmp_path, by=["loss", "k"]) == ["gloss, k=16", "gloss, k=8"]
    assert arms(tmp_path, by=["k", "bank.capacity"])[0] == "k=16, bank.capacity=90"
    with pytest.raises(ValueError, match=r"'by' must name settings .*\(got 'lambda'\).* eta, "):
        arms(tmp_path, by=["lambda"])
    for bad in (["seed"], []):
        with pytest.raises(ValueError, match="other than 'seed'"):
            arms(tmp_path, by=bad)


def test_two_runs_of_one_arm_and_seed(tmp_path: Path) -> None:
    write_series(tmp_path, "one", {0: 0.5})
    write_series(tmp_path, "other", {0: 0.6})
    with pytest.raises(ValueError, match=r"seed 0.*one-0 and .*other-0.*--by"):
        compare_runs([tmp_path])
    shutil.rmtree(tmp_path / "other-0")
    write_series(tmp_path, "other", {0: 0.6}, k=8)
    assert len(arms(tmp_path)) == 2
    with pytest.raises(ValueError, match=r"They differ in k: add --by with these"):
        compare_runs([tmp_path], by=["loss"])


def test_the_baseline_is_cross_entropy_or_the_first(tmp_path: Path) -> None:
    write_series(tmp_path, "a", GLOSS)
    write_series(tmp_path, "b", CE, "ce")
    assert compare_runs([tmp_path]).arms("R8") == ["ce", "gloss"]
    assert compare_runs([tmp_path], baseline="gloss").arms("R8") == ["gloss", "ce"]
    write_series(tmp_path, "c", CE, "ce", dropout=0.5)
    found = compare_runs([tmp_path])
    assert found.baselines == {"R8": "gloss"}
    assert set(found.tests["arm"]) == {"ce", "ce, dropout=0.5"}
    with pytest.raises(ValueError, match=r"'baseline' must be one of the arms 'gloss', 'ce'"):
        compare_runs([tmp_path], baseline="scl")


# ------------------------------------------------------------------ data


def test_runs_on_other_data_stand_apart(tmp_path: Path) -> None:
    """Nothing is compared across names, classes, sizes or label budgets."""
    others = [
        {**DATA, "name": "MR"},
        {**DATA, "classes": ["a", "b", "c"]},
        {**DATA, "test": 21},
    ]
    for place, data in enumerate([DATA, *others]):
        write_series(tmp_path, f"ce{place}", CE, "ce", data=data)
        write_series(tmp_path, f"gloss{place}", GLOSS, data=data)
    write_series(tmp_path, "few", CE, "ce", data=others[0], labels_per_class=5)
    found = compare_runs([tmp_path])
    sizes = "3 classes, train 90, val 10, test"
    names = [f"R8 ({sizes} 20) #1", "MR", f"R8 ({sizes} 20) #3", f"R8 ({sizes} 21)"]
    assert sorted(found.baselines) == sorted([*names, "MR (labels_per_class=5)"])
    assert len(found.tests) == 4
    assert (found.tests["pairs"] == 4).all()
    few = compare_runs([tmp_path], baseline="gloss")
    assert few.baselines["MR (labels_per_class=5)"] is None
    assert "MR (labels_per_class=5)" not in set(few.tests["data"])


def test_pairs_must_have_seen_the_same_labels(tmp_path: Path) -> None:
    few = {"label_fraction": 0.1}
    write_series(tmp_path, "ce", CE, "ce", ids=(1, 2, 3), **few)
    write_series(tmp_path, "gloss", GLOSS, ids=(3, 1, 2), **few)
    assert len(compare_runs([tmp_path]).tests) == 1
    write_run(tmp_path / "odd", "setfit", 2, {F1: 0.5}, ids=(1, 2, 4, 5), **few)
    with pytest.raises(ValueError, match=r"ce-2 and .*odd \(seed 2\) differ in 3 documents"):
        compare_runs([tmp_path])
    (tmp_path / "odd" / "labels_used.csv").write_text("number\n1\n")
    with pytest.raises(ValueError, match=r"odd: labels_used.csv cannot be read"):
        compare_runs([tmp_path])
    (tmp_path / "odd" / "labels_used.csv").unlink()
    with pytest.raises(ValueError, match=r"odd: labels_used.csv is missing"):
        compare_runs([tmp_path])


def test_all_labels_need_no_list_of_them(tmp_path: Path) -> None:
    write_series(tmp_path, "ce", CE, "ce", ids=None)
    write_series(tmp_path, "gloss", GLOSS, ids=(1,))
    assert len(compare_runs([tmp_path]).tests) == 1


# ------------------------------------------------------------------ metrics


def test_metrics_by_choice(tmp_path: Path) -> None:
    numbers = {F1: 0.5, "val.macro_f1": 0.4, "head.C": 10.0, "steps": 60}
    write_run(tmp_path / "a", "ce", 0, numbers)
    assert compare_runs([tmp_path]).metrics == (F1, "steps")
    found = compare_runs([tmp_path], metrics=["head.C", "val.macro_f1", "head.C"])
    assert found.metrics == ("head.C", "val.macro_f1")
    assert found.runs.columns.tolist() == ["data", "arm", "seed", *found.metrics, "run"]
    with pytest.raises(ValueError, match=r"\(got 'f1'\)\. They have head.C, "):
        compare_runs([tmp_path], metrics=["f1"])


def test_validation_scores_where_there_is_no_test_split(tmp_path: Path) -> None:
    numbers = {"val.macro_f1": 0.4, "val_propagation.macro_f1": 0.5, "steps": 3}
    write_run(tmp_path / "a", "ce", 0, numbers)
    assert compare_runs([tmp_path]).metrics == tuple(numbers)


def test_runs_without_numbers(tmp_path: Path) -> None:
    write_run(tmp_path / "a", "ce", 0, {})
    with pytest.raises(ValueError, match="at least one metric"):
        compare_runs([tmp_path])


# ------------------------------------------------------------------ real runs


def test_two_real_runs(tmp_path: Path) -> None:
    """What training writes is what comparing reads."""
    for loss in ("ce", "gloss"):
        run(tmp_path / loss, quick(loss=loss, max_steps=2, labels_per_class=3, select="best"))
    found = compare_runs([tmp_path])
    assert found.baselines == {"tiny (labels_per_class=3)": "ce"}
    assert found.runs["arm"].tolist() == ["ce", "gloss"]
    assert set(found.metrics) >= {F1, "test_propagation.macro_f1", "seconds.per_step", "best_step"}
    for row in found.runs.to_dict("records"):
        stored = json.loads((Path(row["run"]) / "metrics.json").read_text())
        assert row[F1] == stored[F1]
        assert row["steps"] == 2
        assert 0 < row["seconds.per_step"] < row["seconds.train"]
    assert set(found.tests["pairs"]) == {1}
