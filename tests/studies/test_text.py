"""Studies of text classifiers: both costs, YAML files, the command."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training.tiny import tiny_corpus, tiny_encoder, tiny_splits

from gloss_graph.cli import main
from gloss_graph.studies import (
    Study,
    TextRun,
    read_results,
    read_study,
    text_classifiers,
    write_report,
)

STUDIES = sorted((Path(__file__).resolve().parents[2] / "examples" / "ablations").glob("*.yaml"))
SMALL = {"max_steps": 2, "batch_size": 8, "k": 3, "select": "last"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GLOSS_GRAPH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def text_run(cost: str = "replay") -> TextRun:
    return TextRun(tiny_splits(), tiny_encoder, cost=cost, encoder={"encoder": "tiny"})


def text_study(cost: str = "replay", **changes: Any) -> Study:
    settings: dict[str, Any] = {
        "factors": {"memory_size": [0, 8, None]},
        "baseline": {"memory_size": None, **SMALL},
        "seeds": 2,
        "run": text_run(cost),
    }
    return Study(**{**settings, **changes})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files and a tiny encoder."""
    folder = tmp_path_factory.mktemp("data")
    for number, (part, size) in enumerate((("train", 30), ("val", 9), ("test", 12))):
        corpus = tiny_corpus(size, seed=number)
        with (folder / f"{part}.csv").open("w", newline="") as handle:
            rows = csv.writer(handle)
            rows.writerow(["text", "label"])
            names = [corpus.label_names[label] for label in corpus.labels]
            rows.writerows(zip(corpus.texts, names, strict=True))
    tiny_encoder().save(folder / "encoder")
    return folder


@pytest.mark.parametrize("cost", ["replay", "full"])
def test_one_study_at_both_costs(tmp_path: Path, cost: str) -> None:
    results = text_study(cost).run(tmp_path / "s", progress=False)
    table = results.table
    assert (table["status"] == "ok").all(), results.problems()
    assert set(table["cost"]) == {cost}
    wanted = {"accuracy", "macro_f1", "macro_silhouette", "hidden_loss", "unreachable_share"}
    assert {*wanted, "seconds_per_step", "leak", "peak_memory_mb"} <= set(table)
    assert results.metrics[0] == "macro_f1"
    assert results.baseline == "memory_size=None"
    assert f"Cost {cost}: " in results.study["about"]
    # Without a bank there are fewer seeds to reach, never more.
    assert table["unreachable_share"].between(0, 1).all()


def test_embeddings_are_recorded_once(cache: Path) -> None:
    first = text_run()
    first.prepare()
    (file,) = (cache / "embeddings").iterdir()

    def forbidden() -> Any:
        raise AssertionError("the encoder was loaded again")

    second = TextRun(tiny_splits(), forbidden, encoder={"encoder": "tiny"})
    second.prepare()
    file.write_bytes(b"torn")
    text_run().prepare()
    assert file.stat().st_size > 100


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"factors": {"bank": [1, 2]}}, "'bank' is no setting of a training. Known are"),
        ({"factors": {"margin": [0.1, 0.2]}}, "factor 'margin' is not used by any arm"),
        ({"factors": {"lora_rank": [2, 4]}}, "factor 'lora_rank' is not used by any arm"),
        ({"factors": {"k": [4, 2.5]}}, "arm k=2.5 cannot be run: 'k' must be int"),
        ({"factors": {"pictures": [True, False]}}, "'pictures' is no setting"),
        ({"factors": {"rule": ["harmonic", "magic"]}}, "'rule' must be one of"),
        ({"baseline": {**SMALL, "temperature": 0.2}}, "'baseline' sets 'temperature', which no"),
    ],
)
def test_unknown_or_unused_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        text_study(**changes)


def test_settings_without_effect_are_noted() -> None:
    one = text_study(factors={"loss": ["ce", "gloss"], "visible_fraction": [0.2, 0.8]})
    assert "visible_fraction has no effect in 2 of 4 arms." in one.notes
    other = text_study(baseline={**SMALL, "freeze_layers": 1})
    assert other.notes == ["freeze_layers of the baseline mean nothing at this cost."]


@pytest.mark.parametrize("file", STUDIES, ids=lambda path: path.stem)
def test_studies_that_ship_can_be_planned(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_classifiers, "read_data", lambda *_, **__: tiny_splits())
    for cost in ("replay", "full"):
        study = read_study(file, cost=cost)
        assert study.question.endswith("?")
        assert study.design == "optuna" or len(study.trials()) >= 10
    assert f"`{file.name}`" in (file.parent / "README.md").read_text()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("factors: {k: [4, 8]}\nseed: 3", "has the unknown key 'seed'. Known are"),
        ("question: why?", "must have 'factors'"),
        ("factors: [k]", "'factors' must be a block"),
        ("- 1", r"must hold keys and values \(got list\)"),
        ("", r"must hold keys and values \(got NoneType\)"),
        ("factors: {k: [4", "must be a YAML file"),
        ("factors: {k: [4, 8]}\ndata: nowhere", "'data' must be 'demo' or a folder"),
        ("factors: {k: [4, 8]}\ntext: []", "'text' must be a word"),
        ("factors: {k: [4, 8]}\nlabel: {a: 1}", "'label' must be a word"),
        ("factors: {k: [4, 8]}\nencoder: [x]", "'encoder' must be a word"),
        ("factors: {k: [4, 8]}\nmetric:", "'metric' must be a word"),
        ("factors: {k: [4, 8]}\nmax_length: [1, 1]", "'max_length' must be an integer"),
        ("factors: {k: [4, 8]}\nmax_length: .inf", "'max_length' must be an integer"),
        ("factors: {k: [4, 8]}\nmax_length:", "'max_length' must be an integer"),
        ("factors: {k: [4, 8]}\ndocuments: 2.5", "'documents' must be an integer"),
        ("factors: {k: [4, 8]}\nminimize: 1", "'minimize' must be true or false"),
        ("factors: {k: [4, 8]}\npooling: 3", "'pooling' must be one of"),
        ("factors: {graph.kk: [4, 8]}\ndata: x", "'graph.kk' must be a setting of 'graph'"),
        ("factors: {graf: {k: [4, 8]}}\ndata: x", "no part 'graf'. Did you mean 'graph'"),
        ("factors: {hopz: [1, 2]}\ndata: x", "'hopz' must be a setting.*Did you mean 'hops'"),
        (
            "factors: {k: [4, 8], graph.k: [4, 8]}\ndata: x",
            "a setting once .got 'k' twice",
        ),
        ("factors: {k: [4, 2.5]}\ndata: x", "'k' must be int"),
        ("factors: {k: [4, 8]}\nbaseline: {graph: {hopz: 1}}\ndata: x", "'baseline': 'graph.hopz'"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_study(file)
    with pytest.raises(ValueError, match="does not exist"):
        read_study(tmp_path / "other.yaml")


@pytest.mark.parametrize(
    "factors", ["{k: [2, 4]}", "{graph.k: [2, 4]}", "{graph: {k: [2, 4]}}", "{graph: {k: '2:4'}}"]
)
def test_a_setting_may_be_named_by_its_part(data: Path, tmp_path: Path, factors: str) -> None:
    file = tmp_path / "study.yaml"
    rest = f"baseline: {{graph: {{k: 2}}, max_steps: 2, batch_size: 8}}\ndata: {data}\n"
    design = "design: latin-hypercube\narms: 3\n" if ":4" in factors else ""
    file.write_text(f"factors: {factors}\n{rest}{design}encoder: {data / 'encoder'}\n")
    study = read_study(file)
    assert {arm["k"] for arm in study.arms} == ({2, 3, 4} if design else {2, 4})
    assert study.settings == {"k": 2, "max_steps": 2, "batch_size": 8}
    config, settings = {"graph.k": 4, "epochs": 1.0}, {"graph": {"k": 4}, "max_steps": None}
    other = read_study(file, config=config, settings=settings)
    assert other.settings == {"k": 4, "epochs": 1.0, "max_steps": None, "batch_size": 8}
    assert other.baseline == {"k": 4}


def test_the_command_plans_runs_resumes_and_reports(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(
        "question: Does the rate matter?\nfactors: {learning_rate: [1e-4, 1e-2]}\n"
        f"baseline: {json.dumps(SMALL | {'k': 2})}\nseeds: 2\nencoder: {data / 'encoder'}\n"
        "max_length: 12\n"
    )
    out = tmp_path / "out"
    words = ["ablate", str(file), "--data", str(data), "--out", str(out)]
    assert main([*words, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "2 arms x 2 seeds = 4 trials, 0 done" in printed
    assert "Time left: about" in printed
    assert len(read_results(out).table) == 1
    assert main(words) == 0
    results = read_results(out)
    assert (results.left, len(results.table)) == (0, 4)
    page = (out / "report.html").read_text()
    assert "Does the rate matter?" in page
    assert "Cost replay" in page
    # The help of a setting explains it; what it sets as code is code here too.
    assert "overriding <code>epochs</code>" in page
    assert "`" not in page
    for name in ("results.csv", "results.parquet", "summary.csv", "tests.csv", "report.md"):
        assert (out / name).stat().st_size > 50
        (out / name).unlink()
    assert main(["ablate", "--report", str(out)]) == 0
    assert (out / "results.parquet").is_file()


def test_another_encoder_in_the_same_folder_reuses_nothing(data: Path, tmp_path: Path) -> None:
    folder, file = tmp_path / "model", tmp_path / "study.yaml"
    file.write_text(
        f"factors: {{k: [2, 4]}}\nbaseline: {json.dumps(SMALL | {'k': 2})}\nseeds: 1\n"
        f"encoder: {folder}\nmax_length: 12\ndata: {data}\n"
    )

    def ids() -> set[str]:
        return {trial.id for trial in read_study(file).trials()}

    def rows() -> torch.Tensor:
        run: Any = read_study(file).function
        return run.prepare()["test"]

    first = tiny_encoder()
    first.save(folder)
    known, embedded = ids(), rows()
    assert ids() == known
    with torch.no_grad():
        for value in first.parameters():
            value.add_(0.1)
    first.save(folder)
    assert not ids() & known
    assert not torch.equal(rows(), embedded)


def test_bad_use_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate"]) == 2
    assert main(["ablate", "--report", str(tmp_path)]) == 2
    assert "must be the folder of a study" in capsys.readouterr().err
    text_study().run(tmp_path / "s", limit=0)
    with pytest.raises(ValueError, match="no finished trial"):
        write_report(read_results(tmp_path / "s"))
