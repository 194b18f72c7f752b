"""Terminals, paths and suffixes: what a shell hands over, and what it is given back."""

from __future__ import annotations

import inspect
import io
import os
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pandas as pd
import pytest
import typer

from cli.conftest import Command
from gloss_graph.cli.app import app, main
from gloss_graph.cli.options import path
from gloss_graph.cli.predict import check_output, kept_names
from gloss_graph.text import load_encoder
from gloss_graph.text.readers import read_documents

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


# ------------------------------------------------------------------ terminals


ENCODINGS = ["ascii", "cp1252", "latin-1", "utf-8"]


def terminal(monkeypatch: pytest.MonkeyPatch, encoding: str) -> io.TextIOWrapper:
    """Standard output of some encoding, which fails on what it cannot show."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    return stream


def shown(stream: io.TextIOWrapper) -> bytes:
    stream.flush()
    content = stream.buffer.getvalue()  # type: ignore[attr-defined]
    return bytes(content)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_help_can_be_shown_anywhere(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    stream = terminal(monkeypatch, encoding)
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
    content = shown(stream)
    assert content.count(b"--help") >= len(COMMANDS)
    assert encoding == "utf-8" or content.isascii()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_cannot_be_shown_is_escaped(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    stream = terminal(monkeypatch, encoding)
    monkeypatch.setattr("gloss_graph.reports.write_run_report", lambda *_: "\udce9 λ")
    assert main(["report", "x"]) == 0
    letter = "λ" if encoding == "utf-8" else "\\u03bb"
    assert shown(stream).strip() == f"Report: \\udce9 {letter}".encode()


# ------------------------------------------------------------------ paths


@pytest.mark.parametrize("name", COMMANDS)
def test_every_path_of_a_command_knows_the_home_folder(name: str) -> None:
    hints = get_type_hints(inspect.unwrap(COMMANDS[name].callback), include_extras=True)
    named = {key: hint for key, hint in hints.items() if "pathlib" in str(get_args(hint)[:1])}
    assert named
    for key, hint in named.items():
        assert get_args(hint)[-1].parser is path, f"{key} must be a path_option"


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert path("~/x") == tmp_path / "x"
    assert path("~") == tmp_path
    assert path("a/~b") == Path("a/~b")
    assert path("~nobody.here.csv") == Path("~nobody.here.csv")


def test_a_folder_of_any_name_has_one_in_utf8(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from torch import ones

    from gloss_graph._internal.files import utf8_folder

    folder = tmp_path / os.fsdecode(b"o\xe9")
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    save_file({"a": ones(2)}, utf8_folder(folder) / "a.safetensors")
    assert (folder / "a.safetensors").is_file()
    assert load_file(utf8_folder(folder) / "a.safetensors")["a"].tolist() == [1, 1]
    assert utf8_folder(tmp_path) == tmp_path


# ------------------------------------------------------------------ predictions


@pytest.mark.parametrize("name", ["a.txt", "a.csv.zip", "a", "a.json"])
def test_an_output_of_an_unknown_suffix_is_refused_first(
    command: Command, tmp_path: Path, name: str
) -> None:
    out = tmp_path / name
    result = command("predict", "--run", "no", "--input", "no.csv", "--output", out)
    assert result.status == 2
    assert "'output' must end in one of .csv, .csv.gz" in result.complaint()
    with pytest.raises(FileNotFoundError, match="Create it first"):
        check_output(tmp_path / "no" / "a.csv")


def kept(source: Path, **columns: Any) -> dict[str, Any]:
    options = {"text": "text", "text_b": None, **columns}
    [(_, table)] = read_documents(source, None, **options)
    names = kept_names(source, table.columns, **options, answers=("label", "probability"))
    return {new: table.columns[name] for name, new in names.items()}


def test_the_other_columns_are_kept_in_their_order(tmp_path: Path) -> None:
    source = tmp_path / "a.csv"
    source.write_text("id,body,label,note,,\n007,a,x,=1+1,,\n2,b,,NA,,\n")
    table = kept(source, text="body")
    assert list(table) == ["id", "text", "input_label", "note"]
    assert table["id"] == ["007", "2"]
    assert table["note"] == ["=1+1", "NA"]
    assert table["text"] == ["a", "b"]


def test_the_types_of_the_other_columns_are_kept(tmp_path: Path) -> None:
    source = tmp_path / "a.parquet"
    frame = pd.DataFrame({"id": pd.array([2**62 + 1, None], "Int64"), "text": ["a", "b"]})
    frame.to_parquet(source)
    assert kept(source)["id"].to_pylist() == [2**62 + 1, None]
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": "a", "tags": ["x"], "n": 1}\n{"text": "b"}\n')
    table = kept(source)
    assert (table["tags"], table["n"]) == ([["x"], None], [1, None])


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("text,label,input_label", "must not have both columns 'label' and 'input_label'"),
        ("text,note,note", "more than one column 'note'"),
    ],
)
def test_columns_of_one_name_are_refused(tmp_path: Path, head: str, message: str) -> None:
    source = tmp_path / "a.csv"
    source.write_text(f"{head}\na,b,c\n")
    with pytest.raises(ValueError, match=message):
        kept(source)


# ------------------------------------------------------------------ encoder none


def test_none_is_no_encoder(command: Command, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'encoder' must name a model .*'none'"):
        load_encoder("none")
    file = tmp_path / "a.csv"
    file.write_text("text,label\n" + "green tea,a\nnight train,b\n" * 12)
    out = tmp_path / "out"
    result = command("graph", "--input", file, "--encoder", "none", "--out", out)
    assert result.status == 2
    assert "'features' must be given" in result.complaint()
    assert not out.exists()
    study = tmp_path / "s.yaml"
    study.write_text("factors: {k: [2, 4]}\ntrain: a.csv\n")
    result = command("ablate", study, "--encoder", "none", "--out", out)
    assert result.status == 2
    assert "'encoder' must name a model" in result.complaint()
