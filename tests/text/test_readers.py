from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from gloss_graph.text import read_splits, read_table
from gloss_graph.text.tables import has_column

ROWS = {
    "text": ["fine, film", 'she said "no"', "NA", "two\nlines", "null", "žluťoučký 猫\u2028end"],
    "label": ["1", "0", "00", "", "1", "NA"],
    "other": ["a", "b", "c", "d", "e", "f"],
}
SUFFIXES = [".csv", ".tsv", ".jsonl", ".ndjson", ".csv.gz", ".tsv.gz", ".jsonl.gz", ".parquet"]


def write(path: Path, rows: dict[str, list[object]] | dict[str, list[str]]) -> Path:
    frame = pd.DataFrame(rows)
    if path.suffix == ".parquet":
        frame.to_parquet(path)
        return path
    if ".csv" in path.name or ".tsv" in path.name:
        # A lone carriage return ends a row unless it is quoted, and writers do not always quote it.
        quoting = csv.QUOTE_ALL if any("\r" in str(text) for text in rows["text"]) else 0
        separator = "\t" if ".tsv" in path.name else ","
        content = frame.to_csv(index=False, sep=separator, quoting=quoting)
    else:
        content = frame.to_json(orient="records", lines=True, force_ascii=False)
    data = content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_reads_the_same_rows(tmp_path: Path, suffix: str) -> None:
    corpus = read_table(write(tmp_path / f"rows{suffix}", ROWS))
    assert corpus.texts == ROWS["text"]
    assert corpus.label_names == ["0", "00", "1", "NA"]
    assert corpus.labels == [2, 0, 1, -1, 2, 3]
    assert corpus.ids == list(range(6))
    assert (corpus.name, corpus.texts_b) == ("rows", None)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_column_is_there_or_not(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", ROWS)
    assert [has_column(path, name) for name in (*ROWS, "Text", "fine, film")] == [True] * 3 + [
        False
    ] * 2
    path.write_bytes(b"\xff\x00")
    assert not has_column(path, "text")
    assert not has_column(tmp_path / f"none{suffix}", "text")


def test_a_column_is_told_by_the_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbf\ntext,label,label\n"never closed' + b"x" * 100_000 + b"\xff")
    assert has_column(path, "text")
    # Given twice it is there, which the reader refuses, rather than not.
    assert has_column(path, "label")
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n\n{"text": "b", "label": "x"}\nnot JSON')
    assert has_column(path, "label")
    assert not has_column(path, "more")
    assert not has_column(tmp_path / "a.xlsx", "label")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pairs_only_where_asked_for(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"rows{suffix}", {**ROWS, "text_b": ROWS["other"]})
    assert read_table(path).texts_b is None
    assert read_table(path, text_b="other").texts_b == ROWS["other"]
    with pytest.raises(ValueError, match=r"no column 'second' \(found 'text', 'label', 'other'"):
        read_table(path, text_b="second")
    with pytest.raises(ValueError, match="must name different columns"):
        read_table(path, text_b="text")


@settings(deadline=None, max_examples=60)
@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30),
        min_size=1,
        max_size=8,
    ),
    suffix=st.sampled_from([".csv", ".tsv", ".jsonl", ".jsonl.gz", ".parquet"]),
)
def test_any_unicode_text_survives(texts: list[str], suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"any{suffix}")
        if ".jsonl" in suffix:
            lines = [json.dumps({"text": text}, ensure_ascii=len(text) % 2 == 0) for text in texts]
            data = "\n".join(lines).encode()
            path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
        else:
            write(path, {"text": texts})
        corpus = read_table(path, label=None, allow_empty=True)
    assert corpus.texts == texts
    assert corpus.labels == [-1] * len(texts)
    assert corpus.num_classes == 0


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    for name, content in (("a.csv", "text,label\nx,1\n"), ("b.jsonl", '{"text":"x","label":1}')):
        path = tmp_path / name
        path.write_bytes(b"\xef\xbb\xbf" + content.encode())
        corpus = read_table(path)
        assert (corpus.texts, corpus.label_names) == (["x"], ["1"])


@pytest.mark.parametrize("suffix", [".csv", ".tsv.gz", ".jsonl"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_other_encodings_are_refused(tmp_path: Path, suffix: str, mark: bytes) -> None:
    data = mark + "text,label\nok,1\ncafé,0\n".encode("latin-1")
    path = tmp_path / f"latin{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    place = rf"not UTF-8: byte 0xe9 at position {data.index(0xE9)} \(line 3\).*iconv"
    with pytest.raises(ValueError, match=place) as caught:
        read_table(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "is empty"),
        ("a.csv", "  \n\n", "is empty"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.jsonl", "\n", "is empty"),
        ("a.csv", "review,label\nx,1\n", r"no column 'text' \(found 'review', 'label'\)"),
        ("a.csv", "text,text,label\nx,y,1\n", "more than one column 'text'"),
        ("a.csv", "text,label\nx,1\na, b,1\n", r"line 3: expected 2 fields .* \(got 3\)"),
        ("a.csv", "text,label\nx,1\nalone\n", r"line 3: expected 2 fields .* \(got 1\)"),
        ("a.csv", 'text,label\nx,1\n"open,1\ny,0\n', r"line 3: .*quoting=False"),
        ("a.csv", 'text,label\n"a"b,1\n', r"line 2: .*quoting=False"),
        ("a.csv", "text,label\nx,1\n ,0\n,1\n", r"got 2 empty texts: line 3, line 4"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text"', "line 2: not valid JSON"),
        ("a.jsonl", '["x", 1]', r"line 1: expected an object \(got list\)"),
        ("a.jsonl", '{"text": 5, "label": 1}', r"'text' must hold strings \(got int at line 1\)"),
        ("a.jsonl", '{"text": null, "label": 1}', r"\(got null at line 1\)"),
        ("a.jsonl", '{"text": "\\ud800", "label": 1}', "half of a surrogate pair at line 1"),
        ("a.jsonl", '{"text": "x", "label": [1]}', r"one label per document \(got list at line"),
        ("a.jsonl", '{"text": "x"}', r"no column 'label' \(found 'text'\)"),
        ("a.txt", "x", r"must end in one of \.csv, \.csv\.gz, .*\.parquet \(got 'a\.txt'\)"),
        ("a.csv.gz", "text,label\nx,1\n", "cannot be unpacked"),
        ("a.parquet", "text,label\nx,1\n", "cannot be read as Parquet"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        read_table(path)
    assert name in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no\.csv does not exist"):
        read_table(tmp_path / "no.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(ValueError, match=r"folder\.csv is not a file"):
        read_table(tmp_path / "folder.csv")


def test_broken_gzip(tmp_path: Path) -> None:
    path = tmp_path / "cut.csv.gz"
    path.write_bytes(gzip.compress(b"text,label\n" + b"x,1\n" * 999)[:-20])
    with pytest.raises(ValueError, match="cannot be unpacked"):
        read_table(path)


def test_labels_of_typed_formats(tmp_path: Path) -> None:
    path = tmp_path / "typed.jsonl"
    values = ["0", "1.0", "true", '" b "', "null", "NaN", "2.5", '""']
    path.write_text("".join(f'{{"text": "x", "label": {value}}}\n' for value in values))
    corpus = read_table(path)
    assert corpus.label_names == sorted(["0", "1", "True", "b", "2.5"])
    named = [corpus.label_names[label] if label >= 0 else None for label in corpus.labels]
    assert named == ["0", "1", "True", "b", None, None, "2.5", None]

    path = tmp_path / "absent.jsonl"
    path.write_text('{"text": "x", "label": "a"}\n\n{"text": "y"}\n')
    assert read_table(path).labels == [0, -1]

    path = tmp_path / "typed.parquet"
    column = pa.array(["a", None, "b"]).dictionary_encode()
    parquet.write_table(pa.table({"text": ["x", "y", "z"], "label": column}), path)
    assert read_table(path).labels == [0, -1, 1]
    parquet.write_table(pa.table({"text": ["x", "y", "z"], "label": [1.0, None, 10.0]}), path)
    assert read_table(path).label_names == ["1", "10"]


def test_class_numbers_follow_numerical_labels(tmp_path: Path) -> None:
    path = write(
        tmp_path / "n.csv", {"text": ["x"] * 12, "label": [str(n) for n in range(11, -1, -1)]}
    )
    assert read_table(path).labels == list(range(11, -1, -1))


def test_known_label_names(tmp_path: Path) -> None:
    path = write(tmp_path / "n.csv", {"text": ["x", "y"], "label": ["b", "a"]})
    assert read_table(path, label_names=["b", "z", "a"], first_id=10).labels == [0, 2]
    assert read_table(path, first_id=10).ids == [10, 11]
    with pytest.raises(ValueError, match=r"label 'b' at line 2 is not among 'label_names' \('a'"):
        read_table(path, label_names=["a"])


def test_unquoted_tables(tmp_path: Path) -> None:
    path = tmp_path / "glue.tsv"
    path.write_text('text\tlabel\n"half a quote\t1\nplain\t0\n')
    assert read_table(path, quoting=False).texts == ['"half a quote', "plain"]
    with pytest.raises(ValueError, match="quoting=False"):
        read_table(path)


def test_long_fields_and_the_modules_limit(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    path = write(tmp_path / "long.csv", {"text": ["x" * 200_000], "label": ["1"]})
    assert len(read_table(path).texts[0]) == 200_000
    assert csv.field_size_limit() == limit


def table(rows: list[tuple[str, str]]) -> dict[str, list[str]]:
    return {"text": [text for text, _ in rows], "label": [label for _, label in rows]}


def test_splits_number_documents_across_files(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", table([("a", "x"), ("b", "y"), ("c", "")]))
    val = write(tmp_path / "val.jsonl", table([("d", "y")]))
    test = write(tmp_path / "test.parquet", table([("e", "x"), ("f", "")]))
    splits = read_splits(train, val, test)
    assert splits.val is not None
    assert splits.test is not None
    assert (splits.train.ids, splits.val.ids, splits.test.ids) == ([0, 1, 2], [3], [4, 5])
    assert splits.train.labels == [0, 1, -1]
    assert splits.val.labels == [1]
    assert splits.test.labels == [0, -1]


def test_validation_part_is_drawn_by_class(tmp_path: Path) -> None:
    rows = [(f"x{n}", "x") for n in range(40)] + [(f"y{n}", "y") for n in range(20)]
    rows += [("alone", "z"), *[(f"u{n}", "") for n in range(9)]]
    train = write(tmp_path / "train.csv", table(rows))
    test = write(tmp_path / "test.csv", table([("t", "z")]))
    splits = read_splits(train, test=test, val_fraction=0.1, seed=3)
    assert splits.val is not None
    assert splits.test is not None
    assert splits.val.class_counts == [4, 2, 0]
    assert splits.train.class_counts == [36, 18, 1]
    assert splits.train.labels.count(-1) == 9
    assert sorted(splits.train.ids + splits.val.ids) == list(range(70))
    assert splits.test.ids == [70]
    again = read_splits(train, test=test, seed=3)
    assert again == splits
    other = read_splits(train, seed=4)
    assert other.val is not None
    assert other.val.ids != splits.val.ids
    assert read_splits(train, val_fraction=0).val is None
    with pytest.raises(ValueError, match=r"'val_fraction' must be at least 0 and below 1 \(got 1"):
        read_splits(train, val_fraction=1)


def test_unknown_test_label_names_label_and_file(tmp_path: Path) -> None:
    train = write(tmp_path / "train.csv", table([("a", "x"), ("b", "y")]))
    test = write(tmp_path / "test.csv", table([("c", "x"), ("d", "new")]))
    for val_file, test_file in ((test, None), (train, test)):
        with pytest.raises(ValueError, match=r"test\.csv: label 'new' at line 3 .*train\.csv"):
            read_splits(train, val_file, test_file)


@pytest.mark.parametrize(("labels", "count"), [(["", ""], 0), (["x", "x"], 1), (["x", ""], 1)])
def test_training_needs_two_classes(tmp_path: Path, labels: list[str], count: int) -> None:
    train = write(tmp_path / "train.csv", {"text": ["a", "b"], "label": labels})
    with pytest.raises(ValueError, match=rf"at least two classes \(got {count} in .*train\.csv"):
        read_splits(train)


@pytest.mark.parametrize(
    ("name", "classes", "sizes"),
    [("MR", 2, (6397, 711, 3554)), ("R8", 8, (4936, 549, 2189)), ("R52", 52, (5865, 667, 2568))],
)
def test_real_corpora(shared_data: Path, name: str, classes: int, sizes: tuple[int, ...]) -> None:
    files = [shared_data / name / f"{part}.csv.gz" for part in ("train", "val", "test")]
    splits = read_splits(*files)
    assert splits.val is not None
    assert splits.test is not None
    assert (len(splits.train), len(splits.val), len(splits.test)) == sizes
    assert splits.train.num_classes == classes
    assert min(splits.train.class_counts) > 0
    assert splits.next_id == sum(sizes)


def test_reader_agrees_with_pandas(shared_data: Path) -> None:
    file = shared_data / "MR" / "test.csv.gz"
    frame = pd.read_csv(
        io.BytesIO(gzip.decompress(file.read_bytes())), dtype=str, keep_default_na=False
    )
    corpus = read_table(file)
    assert corpus.texts == frame["text"].tolist()
    assert [corpus.label_names[label] for label in corpus.labels] == frame["label"].tolist()
