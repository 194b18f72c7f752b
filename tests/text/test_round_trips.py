"""What is written is read back as it was, by our readers and by pandas, whatever is in it."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from gloss_graph.runs import RunFolder
from gloss_graph.text import Corpus, read_features, read_table
from gloss_graph.text.tables import csv_bytes, read_columns, write_table
from gloss_graph.training.outcome import ClassReport

ODD = {
    "carriage return": "one\rtwo",
    "line ends": "one\r\ntwo\n",
    "quotes": 'she said "no", twice""',
    "byte order mark": "\ufeffmarked",
    "formula": "=1+1",
    "not a number": "NA",
    "spaces": "  led and trailed ",
    "separators": "a;b|c\td\\",
    "line separator": "a\u2028b\x85c",
    "control": "\x1b[1m",
    "emoji": "👩‍🔬",
}
if sys.version_info >= (3, 11):  # the csv module of older versions refuses it
    ODD["nul"] = "a\0b"
SUFFIXES = (".csv", ".tsv", ".csv.gz", ".jsonl", ".ndjson.gz", ".parquet")
LARGE = 2**62 + 1
odd = pytest.mark.parametrize("text", ODD.values(), ids=ODD)


@odd
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_written_table_is_read_back(tmp_path: Path, suffix: str, text: str) -> None:
    file = tmp_path / f"a{suffix}"
    write_table(file, [{"text": [text, "plain"], "label": ["x", text], "id": [LARGE, None]}])
    corpus = read_table(file, allow_empty=True)
    assert corpus.texts == [text, "plain"]
    assert set(corpus.label_names) == {"x", text.strip()}
    ids = read_columns(file, ["id"]).columns["id"]
    assert ids == ([str(LARGE), ""] if suffix[1:4] in ("csv", "tsv") else [LARGE, None])


@odd
def test_pandas_reads_our_csv(text: str) -> None:
    frame = pd.DataFrame({"id": [LARGE, 2], "text": [text, ""], "score": [0.1, np.nan]})
    back = pd.read_csv(io.BytesIO(csv_bytes(frame)), keep_default_na=False, na_values={"score": ""})
    pd.testing.assert_frame_equal(back, frame)


@odd
def test_the_tables_of_a_run_are_read_back(tmp_path: Path, text: str) -> None:
    names = ["plain", text]
    corpus = Corpus([text, "b", "c"], [1, 0, -1], [LARGE, 1, 0], names, ["d", text, "e"])
    RunFolder(tmp_path).write_labels_used(corpus)
    used = RunFolder(tmp_path).read_labels_used()
    assert used == ([LARGE, 1], [text, "plain"], [text, "b"], ["d", text])
    report = ClassReport()
    report.add("test", "linear", np.array([1, 0, 0]), corpus)
    report.write(tmp_path / "classes.csv")
    assert read_columns(tmp_path / "classes.csv", ["class"]).columns["class"] == names


def test_half_a_surrogate_pair_is_replaced_where_it_has_no_place(tmp_path: Path) -> None:
    columns = {"text": ["\ud800", "\ud83d\ude00"]}
    for suffix in (".csv", ".parquet"):
        write_table(tmp_path / f"a{suffix}", [columns])
        assert read_table(tmp_path / f"a{suffix}", label=None).texts == ["\ufffd", "😀"]
    write_table(tmp_path / "a.jsonl", [columns])
    assert read_columns(tmp_path / "a.jsonl", ["text"]).columns["text"] == ["\ud800", "😀"]


def test_types_survive(tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "small": pa.array([1, 2], pa.int8()),
        "day": pa.array([0, 1], pa.date32()),
        "list": [[1], []],
        "mixed": [1, "a"],
    }
    write_table(tmp_path / "a.parquet", [columns])
    rest = read_columns(tmp_path / "a.parquet").columns
    assert list(rest) == list(columns)
    assert rest["small"].type == pa.int8()
    assert rest["day"].type == pa.date32()
    assert rest["list"].to_pylist() == [[1], []]
    assert rest["mixed"].to_pylist() == ["1", "a"]
    write_table(tmp_path / "a.jsonl", [columns])
    rest = read_columns(tmp_path / "a.jsonl").columns
    assert rest["mixed"] == [1, "a"]
    assert rest["list"] == [[1], []]
    write_table(tmp_path / "a.csv", [columns])
    assert read_columns(tmp_path / "a.csv").columns["list"] == ["[1]", "[]"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('"id","label","text"\n1,"a","b"\n2,"a"\n', r"labels_used\.csv, line 3: expected 3 fields"),
        ('"id","label","text"\n1,"a","b"\n2,"a","b', r"labels_used\.csv, line 3: "),
        ('"id","label","text"\n1,"a","b"\nx,"a","b"\n', r"labels_used\.csv, line 3: column 'id'"),
        ('"id","label","text"\n1.5,"a","b"\n', r"line 2: column 'id' must hold numbers"),
        ('"id","label","text"\n1,"a","b"\n1,"a","b"\n', "names a document twice"),
        ("", r"labels_used\.csv is empty"),
    ],
)
def test_a_damaged_table_of_a_run_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "labels_used.csv").write_text(content)
    with pytest.raises(ValueError, match=message):
        RunFolder(tmp_path).read_labels_used()


# ------------------------------------------------------------------ label sets


def test_label_sets_keep_their_separator(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text,label\na,cars; trucks|long\nb,|\nc,\nd,long\n")
    corpus = read_table(file, separator="|")
    RunFolder(tmp_path).write_labels_used(corpus)
    back = read_table(tmp_path / "labels_used.csv", separator="|")
    assert back.label_names == corpus.label_names == ["cars; trucks", "long"]
    assert back.label_sets == [[0, 1], [], [1]]
    lists = tmp_path / "a.jsonl"
    lists.write_text('{"text": "a", "label": ["cars; trucks"]}\n')
    with pytest.raises(ValueError, match=r"must not hold the separator ';'.*--separator"):
        read_table(lists, separator=";")
    assert read_table(lists, separator="|").label_names == ["cars; trucks"]


# ------------------------------------------------------------------ files that are something else


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_other_encodings_of_unicode_are_named(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes("text,label\nbread,food\n".encode(encoding))
    # Without a mark UTF-32 has more zeros than bytes that tell it.
    name = encoding.upper().replace("-L", "L").replace("-B", "B")
    with pytest.raises(ValueError, match=rf"is {name}, not UTF-8.*iconv -f {name} -t UTF-8"):
        read_table(file)
    file.write_bytes(file.read_bytes().decode(encoding).encode())
    assert read_table(file).texts == ["bread"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text;label\na, b;c\n", r"';' separates its fields, and not a comma .*sep=';'"),
        ("a.csv", '"text";"label"\n"a";"b"\n', "';' separates its fields"),
        ("a.csv", "text\tlabel\na\tb\n", r"a tab separates .*Rename it to end in \.tsv"),
        ("a.tsv", "text,label\na,b\n", r"a comma separates .*Rename it to end in \.csv"),
        ("a.csv", "text|label\na|b\n", r"'\|' separates its fields"),
        ("a.csv", "body;label\na;b\n", "no column 'text'"),
    ],
)
def test_another_separator_of_fields_is_named(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / name)


@pytest.mark.parametrize("label", ["-1", "-1.0"])
@pytest.mark.parametrize("separator", [None, ";"])
def test_minus_one_is_a_class_and_asked_about(
    tmp_path: Path, label: str, separator: str | None
) -> None:
    (tmp_path / "a.csv").write_text(f"text,label\na,{label}\nb,1\n")
    with pytest.warns(UserWarning, match=r"1 documents have the label '-1'.*Does it mean unlabel"):
        corpus = read_table(tmp_path / "a.csv", separator=separator)
    assert set(corpus.label_names) == {label, "1"}
    assert read_table(tmp_path / "a.csv", label=None).labels == [-1, -1]


def test_labels_are_unicode_too(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "\\ud800"}\n')
    with pytest.raises(ValueError, match=r"'label' must hold valid Unicode .* at line 1"):
        read_table(tmp_path / "a.jsonl")


# ------------------------------------------------------------------ features


def test_the_index_of_pandas_is_no_feature(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    frame = pd.DataFrame(table, columns=list("abc"), index=[9, 4, 2, 7, 1, 3])
    frame.to_parquet(tmp_path / "a.parquet")
    assert np.array_equal(read_features(tmp_path / "a.parquet"), table)
    frame.rename_axis("document").to_parquet(tmp_path / "b.parquet")
    assert np.array_equal(read_features(tmp_path / "b.parquet"), table)
    pd.DataFrame({"e": list(table)}, index=frame.index).to_parquet(tmp_path / "c.parquet")
    assert np.array_equal(read_features(tmp_path / "c.parquet"), table)
    frame.assign(id=list("123456")).to_parquet(tmp_path / "d.parquet")
    with pytest.raises(ValueError, match="column 'id' holds strings"):
        read_features(tmp_path / "d.parquet")
