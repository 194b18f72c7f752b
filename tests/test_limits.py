"""Small files that stand for gigabytes, or for no end, are refused before they are unpacked."""

from __future__ import annotations

import gzip
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from gloss_graph._internal.limits import VARIABLE
from gloss_graph.export import read_graph
from gloss_graph.studies import read_study
from gloss_graph.text import read_features, read_table
from gloss_graph.text.tables import has_column


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """Twenty megabytes of one word in as many kilobytes."""
    file = tmp_path / "t.csv.gz"
    file.write_bytes(gzip.compress(b"text,label\n" + b"tea,a\n" * 3_500_000, 9))
    return file


def test_a_packed_table_is_bounded_by_its_size(packed: Path) -> None:
    with pytest.raises(ValueError, match=rf"t\.csv\.gz stands for far more .*{VARIABLE}"):
        read_table(packed)
    assert not has_column(packed, "text")


def test_the_limit_can_be_raised(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(32 << 20))
    assert has_column(packed, "label")
    monkeypatch.setenv(VARIABLE, "much")
    with pytest.raises(ValueError, match=rf"'{VARIABLE}' must be a positive number.*'much'"):
        read_table(packed)


def test_packed_text_of_the_usual_kind_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much it is: packed text is a few times smaller, not a thousand times."""
    monkeypatch.setenv(VARIABLE, "1000")
    words = np.random.default_rng(0).integers(0, 5000, 2000)
    text = "text,label\n" + "".join(f"w{word},a\n" for word in words)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert len(read_table(tmp_path / "t.csv.gz")) == 2000


def test_parquet_is_bounded_by_what_it_declares(tmp_path: Path) -> None:
    count = 5_000_000
    table = pa.table({"text": pa.array(["tea"]).take(pa.array(np.zeros(count, "i4")))})
    parquet.write_table(table, tmp_path / "many.parquet")
    with pytest.raises(ValueError, match=r"many\.parquet stands for far more"):
        read_table(tmp_path / "many.parquet", label=None)


def test_parquet_is_bounded_by_what_its_dictionaries_repeat(tmp_path: Path) -> None:
    long = pa.array(["tea " * 10_000]).take(pa.array(np.zeros(2000, "i4")))
    parquet.write_table(pa.table({"text": long}), tmp_path / "long.parquet")
    assert (tmp_path / "long.parquet").stat().st_size < 10_000
    with pytest.raises(ValueError, match=r"long\.parquet stands for far more"):
        read_table(tmp_path / "long.parquet", label=None)


def test_repeated_texts_of_parquet_are_read_whole(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["tea", "cake", "tea"], "label": ["a", None, "b"]})
    frame.to_parquet(tmp_path / "t.parquet")
    corpus = read_table(tmp_path / "t.parquet")
    assert corpus.texts == ["tea", "cake", "tea"]
    assert corpus.labels == [0, -1, 1]


def _matrix(file: Path, **arrays: Any) -> Path:
    np.savez_compressed(file, **arrays)
    return file


def test_a_matrix_of_far_more_nodes_than_its_file(tmp_path: Path) -> None:
    none = {"row": np.zeros(0, "i8"), "col": np.zeros(0, "i8"), "data": np.zeros(0)}
    shape = np.array([10**8, 10**8])
    file = _matrix(tmp_path / "m.npz", format=np.array(b"coo"), shape=shape, **none)
    with pytest.raises(ValueError, match=r"'path' must be a SciPy matrix .*m\.npz stands for far"):
        read_graph(file)


def test_an_archive_of_zeros(tmp_path: Path) -> None:
    file = _matrix(tmp_path / "m.npz", indptr=np.zeros(3_000_000), format=np.array(b"csr"))
    with pytest.raises(ValueError, match=r"m\.npz stands for far more"):
        read_graph(file)


def test_an_array_that_promises_more_than_it_has(tmp_path: Path) -> None:
    np.save(tmp_path / "f.npy", np.zeros((2, 3), "f4"))
    whole = (tmp_path / "f.npy").read_bytes()
    wide = whole.replace(b"(2, 3), }        ", b"(99999999999, 3),}", 1)
    assert len(wide) == len(whole) + 1
    (tmp_path / "f.npy").write_bytes(wide.replace(b"}  ", b"} ", 1))
    with pytest.raises(ValueError, match=r"'features' cannot be read from .*f\.npy"):
        read_features(tmp_path / "f.npy")
    with zipfile.ZipFile(tmp_path / "m.npz", "w") as archive:
        archive.writestr("data.npy", (tmp_path / "f.npy").read_bytes())
    with pytest.raises(ValueError, match=r"data\.npy promises"):
        read_graph(tmp_path / "m.npz")


def test_a_tensor_that_repeats_one_number(tmp_path: Path) -> None:
    torch.save(torch.zeros(1).expand(100_000, 1000), tmp_path / "f.pt")
    with pytest.raises(ValueError, match=r"f\.pt stands for far more"):
        read_features(tmp_path / "f.pt")


_NESTED = "".join(
    f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x, x'}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"factors:\n{_NESTED}", "its aliases stand for more than 100,000 values"),
        ("factors:\n  k: &a [*a]\n", "an alias stands within what it names"),
        ("factors: " + "[" * 20_000, "nested too deeply"),
        ("factors: !!int ''\n", "must be a YAML file"),
        ("factors: 2001-99-99\n", "must be a YAML file"),
        ("question: " + "x" * 300_000, "must be a small YAML file"),
    ],
)
def test_a_study_file_without_end(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=rf"s\.yaml .*{words}"):
        read_study(file)


_ENTITIES = '<!DOCTYPE a [<!ENTITY b "bb">]>'


@pytest.mark.parametrize("suffix", ["graphml", "gexf"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_document_type_is_refused(tmp_path: Path, suffix: str, encoding: str) -> None:
    file = tmp_path / f"g.{suffix}"
    file.write_bytes(f'<?xml version="1.0"?>{_ENTITIES}<a>&b;</a>'.encode(encoding))
    with pytest.raises(ValueError, match=rf"g\.{suffix}: it declares a document type"):
        read_graph(file)


def test_deep_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"text": ' + "[" * 100_000)
    with pytest.raises(ValueError, match=r"t\.jsonl, line 1: not valid JSON \(it is nested too"):
        read_table(tmp_path / "t.jsonl")
    assert not has_column(tmp_path / "t.jsonl", "text")


def test_pipes_and_devices_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "t.csv")
    (tmp_path / "g.json").symlink_to("/dev/zero")
    assert not has_column(tmp_path / "t.csv", "text")
    with pytest.raises(FileNotFoundError, match=r"g\.json is not a file"):
        read_graph(tmp_path / "g.json")
