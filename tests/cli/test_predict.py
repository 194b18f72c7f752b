"""`gloss-graph train` with few labels and `gloss-graph predict`, through files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cli.conftest import Command, rows, write
from cli.test_train import fast, run_of
from gloss_graph.inference import predictor
from gloss_graph.text.tables import read_columns
from gloss_graph.training import Run

DATA = Path(__file__).parents[1] / "data"

pytestmark = pytest.mark.filterwarnings("ignore:Graph skill")
FEW = ["--labels-per-class", 3, "--unlabeled-batch-size", 4, "--no-pictures"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path) -> Path:
    """A run with few labels."""
    from gloss_graph.cli import main

    folder = tmp_path_factory.mktemp("few")
    train = write(rows(36), folder / "train.csv")
    words = [
        "train",
        "--train",
        train,
        *FEW,
        "--no-pictures",
        *fast(encoder_folder, folder / "run"),
    ]
    assert main([str(word) for word in words]) == 0
    return folder / "run"


def test_predictions_have_labels_confidence_and_reasons(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    source = write(rows(7, seed=5), tmp_path / "new.jsonl")
    out = tmp_path / "labels.csv"
    result = command("predict", "--run", trained, "--input", source, "--output", out)
    assert result.status == 0, result.err
    frame = pd.read_csv(out)
    assert frame["text"].tolist() == rows(7, seed=5)["text"].tolist()
    assert set(frame["label"]) <= {"graphs", "labels", "numbers"}
    assert frame["probability"].between(1 / 3, 1).all()
    assert frame["confidence"].between(0, 1).all()
    used = pd.read_csv(trained / "labels_used.csv").set_index("id")
    assert len(used) == 9
    named = frame["reason_1_id"].dropna().astype(int)
    assert len(named) > 0
    assert used.loc[named, "text"].tolist() == frame.loc[named.index, "reason_1_text"].tolist()
    assert (frame["reason_1_share"] >= frame["reason_2_share"]).all()
    again = command("predict", "--run", trained, "--input", source, "--output", out)
    assert again.status == 2
    assert "'output' must not exist" in again.complaint()


def test_both_modes_and_the_learned_view_alone(
    command: Command, trained: Path, tmp_path: Path
) -> None:
    source = write(rows(9, seed=6), tmp_path / "new.csv")
    seen = {}
    for name, words in {
        "inductive": [],
        "transductive": ["--mode", "transductive"],
        "learned": ["--anchor", 0],
    }.items():
        out = tmp_path / f"{name}.csv"
        words = ["--run", trained, "--input", source, "--output", out, *words]
        assert command("predict", *words).status == 0
        seen[name] = pd.read_csv(out)["probability"].tolist()
    assert seen["inductive"] != seen["transductive"]
    assert seen["inductive"] != seen["learned"]


def test_a_file_without_labels_joins_and_its_label_column_is_not_read(
    command: Command, encoder_folder: Path, tmp_path: Path
) -> None:
    train = write(rows(12), tmp_path / "train.csv")
    more = write(rows(20, seed=3), tmp_path / "more.csv")
    out = tmp_path / "run"
    words = ["--train", train, "--unlabeled", more, "--unlabeled-batch-size", 4, "--no-pictures"]
    result = command("train", *words, *fast(encoder_folder, out))
    assert result.status == 0, result.err
    assert "is not read" in result.out.replace("\n", " ")
    config, _ = run_of(out)
    # Nothing is held back to pick a step.
    assert len(pd.read_csv(out / "labels_used.csv")) == 12
    assert config["data"]["train"] == 12 + 20
    assert config["select"] == "last"


def test_no_unlabeled_documents_is_said_once(
    command: Command, encoder_folder: Path, tmp_path: Path, files: tuple[Path, Path]
) -> None:
    words = ["train", "--train", files[0], "--no-pictures"]
    result = command(*words, *fast(encoder_folder, tmp_path / "run"))
    assert result.status == 0
    said = " ".join(result.out.split())
    assert said.count("No unlabeled documents") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labels-per-class", 2, "--label-fraction", 0.1], "either 'label_fraction'"),
        (["--label-fraction", 0], "'label_fraction' must be in"),
        (["--unlabeled", "missing.csv"], "'path' must be a file"),
    ],
)
def test_bad_few_label_options(
    command: Command,
    encoder_folder: Path,
    tmp_path: Path,
    files: tuple[Path, Path],
    words: list[object],
    message: str,
) -> None:
    result = command("train", "--train", files[0], *words, *fast(encoder_folder, tmp_path / "out"))
    assert result.status == 2
    assert message in result.complaint()


def test_bad_runs_and_modes(command: Command, trained: Path, tmp_path: Path) -> None:
    source = write(rows(3), tmp_path / "new.csv")
    out = tmp_path / "out.csv"
    empty = tmp_path / "empty"
    empty.mkdir()
    result = command("predict", "--run", empty, "--input", source, "--output", out)
    assert result.status == 2
    assert "'run' must be a folder written by gloss-graph train" in result.complaint()
    words = ["--run", trained, "--input", source, "--output", out, "--mode", "both"]
    result = command("predict", *words)
    assert result.status == 2
    assert not out.exists()


# ------------------------------------------------------------------ in chunks


def answers(file: Path) -> pd.DataFrame:
    """A file of answers in types that all formats share."""
    table = read_columns(file)
    return pd.DataFrame({name: table.values(name) for name in table.columns})


def in_chunks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr("gloss_graph.cli.predict._ROWS", size)


@pytest.mark.parametrize(
    ("source", "output"),
    [
        ("new.csv", "out.csv"),
        ("new.csv.gz", "out.jsonl"),
        ("new.tsv", "out.parquet"),
        ("new.jsonl", "out.csv"),
        ("new.jsonl", "out.parquet"),
        ("new.jsonl.gz", "out.jsonl.gz"),
        ("new.parquet", "out.parquet"),
        ("new.parquet", "out.csv.gz"),
    ],
)
def test_many_chunks_answer_as_one(
    command: Command,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    output: str,
) -> None:
    """The numbers to rounding: batches of another composition are padded otherwise."""
    frame = rows(23, seed=5).assign(id=range(23), note=[f"a, {i}" for i in range(23)])
    file = write(frame, tmp_path / source)
    files = []
    for size in (1024, 5):
        in_chunks(monkeypatch, size)
        files.append(tmp_path / f"{size}{output}")
        words = ["--run", trained, "--input", file, "--output", files[-1], "--anchor", 0]
        result = command("predict", *words)
        assert result.status == 0, result.err
        assert "23 documents," in result.out
    one, many = map(answers, files)
    assert list(one["text"]) == list(frame["text"])
    assert [int(value) for value in one["id"]] == list(range(23))
    for name in one:
        if one[name].dtype == float or name.endswith(("probability", "confidence", "_share")):
            one[name], many[name] = one[name].astype(float), many[name].astype(float)
    pd.testing.assert_frame_equal(one, many, check_exact=False, rtol=1e-4, atol=1e-5)


def test_keys_and_types_of_later_rows_count(
    command: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that comes late is a column; a type holds the values of all chunks."""
    big = 2**60 + 1
    columns: dict[str, list[Any]] = {
        "late": [None, None, None, None, "x", "y"],
        "number": [1, 2, 3, 4, 5, 6.5],
        "large": [big, 1, 1, 1, 0.5, 0.5],
        "mixed": [1, 1, 1, 1, "a", "a"],
        "list": [[], [], [1], [2], [], [3]],
        "none": [None] * 6,
    }
    file = tmp_path / "new.jsonl"
    with file.open("w") as out:
        for number, text in enumerate(rows(6)["text"]):
            found = {name: values[number] for name, values in columns.items()}
            kept = {name: value for name, value in found.items() if value is not None}
            out.write(json.dumps({"text": text, **kept}) + "\n")
    schemas = []
    for size in (1024, 2):
        in_chunks(monkeypatch, size)
        out = tmp_path / f"{size}.parquet"
        assert command("predict", "--run", trained, "--input", file, "--output", out).status == 0
        found = read_columns(out).columns
        schemas.append({name: column.type for name, column in found.items()})
        assert found["late"].to_pylist() == columns["late"]
        assert found["number"].to_pylist() == columns["number"]
        assert found["large"].to_pylist() == [str(value) for value in columns["large"]]
        assert found["mixed"].to_pylist() == ["1", "1", "1", "1", "a", "a"]
        assert found["list"].to_pylist() == columns["list"]
        assert "none" not in found
    assert schemas[0] == schemas[1]
    assert list(schemas[0]) == list(schemas[1])


def test_the_bank_is_solved_once(
    command: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved = []

    class Counted(predictor.PropagationHead):
        def __init__(self, *arguments: Any) -> None:
            solved.append(len(arguments))
            super().__init__(*arguments)

    monkeypatch.setattr(predictor, "PropagationHead", Counted)
    in_chunks(monkeypatch, 3)
    file = write(rows(11, seed=5), tmp_path / "new.csv")
    out = tmp_path / "out.csv"
    assert command("predict", "--run", trained, "--input", file, "--output", out).status == 0
    assert len(solved) == 1
    assert len(pd.read_csv(out)) == 11


def test_a_transductive_answer_takes_the_whole_file(
    command: Command, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(rows(9, seed=6), tmp_path / "new.csv")
    found = []
    for size in (1024, 2):
        in_chunks(monkeypatch, size)
        out = tmp_path / f"{size}.csv"
        words = ["--run", trained, "--input", file, "--output", out, "--mode", "transductive"]
        assert command("predict", *words).status == 0
        found.append(out.read_bytes())
    assert found[0] == found[1]
    assert "the whole file is held" in " ".join(
        command("predict", "--help").out.replace("│", " ").split()
    )


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("new.csv", "alone", "line 10: expected 2 fields as in the header (got 1)"),
        ("new.csv", '" ",graphs', "1 empty texts: line 10"),
        ("new.csv", '"open,graphs', "line 10: unexpected end of data"),
        ("new.csv", "\udce9,graphs", "is not UTF-8: byte 0xe9 at position"),
        ("new.jsonl", '{"text": 5}', "must hold strings (got int at line 9)"),
        ("new.jsonl", '{"label": "x"}', "must hold strings (got null at line 9)"),
        ("new.jsonl", '{"text": "\\ud800"}', "half of a surrogate pair at line 9"),
        ("new.jsonl", "[1]", "line 9: expected an object"),
        ("new.jsonl", '{"text"', "line 9: not valid JSON"),
    ],
)
def test_a_fault_at_the_end_is_found_before_any_work(
    command: Command,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    line: str,
    message: str,
) -> None:
    def worked(*_: Any, **__: Any) -> None:
        raise AssertionError("the file was not looked through")

    monkeypatch.setattr(Run, "predict", worked)
    in_chunks(monkeypatch, 3)
    file = write(rows(8, seed=5), tmp_path / name)
    with file.open("ab") as out:
        out.write(f"{line}\n".encode(errors="surrogateescape"))
    before = sorted(tmp_path.iterdir())
    words = ["--run", trained, "--input", file, "--output", tmp_path / "out.csv"]
    result = command("predict", *words)
    assert result.status == 2
    assert message in result.complaint()
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("suffix", [".csv", ".jsonl.gz", ".parquet"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("no more")])
def test_no_half_of_an_answer_is_left(
    command: Command,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
    error: BaseException,
) -> None:
    plain, calls = Run.predict, []

    def stopped(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise error
        return plain(*arguments, **options)

    monkeypatch.setattr(Run, "predict", stopped)
    in_chunks(monkeypatch, 3)
    file = write(rows(8, seed=5), tmp_path / "new.csv")
    out = tmp_path / f"out{suffix}"
    result = command("predict", "--run", trained, "--input", file, "--output", out)
    if error is KeyboardInterrupt:
        assert result.status == 130
        assert result.complaint() == f"Interrupted. {out} was not written."
    else:
        assert (result.status, result.complaint()) == (2, "Error: no more")
    assert list(tmp_path.iterdir()) == [file]


def test_features_are_read_in_chunks(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = np.load(DATA / "features.npy").astype(np.float64)
    np.save(tmp_path / "f.npy", table)
    pd.DataFrame(table).to_parquet(tmp_path / "f.parquet")
    pd.DataFrame({"id": range(len(table))}).to_csv(tmp_path / "new.csv", index=False)
    words = ["predict", "--run", DATA / "run-features", "--input", tmp_path / "new.csv"]
    found = []
    for number, (file, size) in enumerate((("f.npy", 99), ("f.npy", 4), ("f.parquet", 4))):
        in_chunks(monkeypatch, size)
        out = tmp_path / f"{number}.csv"
        result = command(*words, "--features", tmp_path / file, "--output", out)
        assert result.status == 0, result.err
        found.append(pd.read_csv(out))
    assert found[0]["text"].tolist() == [f"line {i}" for i in range(2, len(table) + 2)]
    for other in found[1:]:
        pd.testing.assert_frame_equal(found[0], other, check_exact=False, rtol=1e-4)
    table[7, 0] = np.nan
    np.save(tmp_path / "f.npy", table)
    result = command(*words, "--features", tmp_path / "f.npy", "--output", tmp_path / "o.csv")
    assert result.status == 2
    assert "'features' must be finite (row 7 of" in result.complaint()


PEAK = """
import sys
from gloss_graph.cli import main
status = main(sys.argv[1:])
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(status, int(peak.split()[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's account")
def test_memory_does_not_grow_with_the_file(trained: Path, tmp_path: Path) -> None:
    texts = rows(500, seed=9)["text"]
    peaks = []
    for size in (20_000, 200_000):
        file = tmp_path / f"{size}.csv"
        frame = pd.DataFrame({"id": range(size), "text": [texts[i % 500] for i in range(size)]})
        frame.to_csv(file, index=False)
        out = tmp_path / f"{size}.out.csv"
        words = ["predict", "--run", trained, "--input", file, "--output", out, "--anchor", 0]
        done = subprocess.run(
            [sys.executable, "-c", PEAK, *map(str, words)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        status, peak = done.stdout.split()[-2:]
        assert status == "0", done.stderr
        peaks.append(int(peak))
        with out.open() as lines:
            assert sum(1 for _ in lines) == size + 1
    # Held whole, these rows and their answers take another 600 MB.
    assert peaks[1] - peaks[0] < 100
