"""Exit codes, and how failures reach the shell."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gloss_graph import __version__
from gloss_graph.cli import main
from gloss_graph.training import TrainConfig

from .conftest import Command

COMMANDS = ("demo", "train", "predict", "evaluate", "tune", "ablate", "graph", "report")


def installed() -> list[str]:
    """The installed command, or its entry point where the package is not installed."""
    script = Path(sys.executable).with_name("gloss-graph")
    if script.is_file():
        return [str(script)]
    return [sys.executable, "-c", "from gloss_graph.cli import main; raise SystemExit(main())"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--bogus"], r"Error: .*--bogus.*\n"),
        pytest.param(
            ["train", "--train", "no.csv", "--out", "out"],
            r"Error: 'path' must be a file .*no\.csv does not exist.*\n",
            marks=pytest.mark.slow,  # imports all of it
        ),
    ],
)
def test_installed_command(tmp_path: Path, words: list[str], said: str) -> None:
    """Its exit code in the shell, and that nothing but the reason is said."""
    done = subprocess.run(
        [*installed(), *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(said, done.stderr)


def test_words_of_the_process_are_the_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["anything", "--version"])
    assert main() == 0
    assert capsys.readouterr().out == f"gloss-graph {__version__}\n"


@pytest.mark.parametrize(
    "words", [["--help"], *([name, "--help"] for name in ("train", "demo", "tune"))]
)
def test_help(command: Command, words: list[str]) -> None:
    result = command(*words)
    assert result.status == 0
    assert "Usage: gloss-graph" in result.out
    assert result.err == ""
    if words == ["--help"]:
        for word in ("demo", "train", "--debug", "--version"):
            assert word in result.out


def test_every_setting_of_a_training_has_an_option(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that `tune` can print a command for any of them."""
    monkeypatch.setenv("COLUMNS", "200")
    result = command("train", "--help")
    options = set(re.findall(r"--([a-z][a-z0-9-]*)", result.out))
    settings = {name.replace("_", "-") for name in TrainConfig().as_dict()}
    assert settings <= options


def test_no_words_show_the_help(command: Command) -> None:
    result = command()
    assert result.status == 2
    assert "Usage: gloss-graph" in result.out
    assert result.err == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bogus"], "--bogus"),
        (["nope"], "nope"),
        (["train"], "--train"),
        (["train", "--train", "x.csv"], "--out"),
        (["train", "--train"], "--train"),
        (["train", "--lamda", "0.3"], "--lamda"),
        (["train", "--train", "x", "--out", "y", "--epochs", "many"], "--epochs"),
        (["train", "--train", "x", "--out", "y", "--max-length", "0"], "--max-length"),
        (["demo", "--max-documents", "399"], "--max-documents"),
        (["demo", "--steps", "0"], "--steps"),
        (["demo", "surplus"], "surplus"),
    ],
)
def test_bad_usage(command: Command, words: list[str], message: str) -> None:
    result = command(*words)
    assert result.status == 2
    assert result.out == ""
    line = result.complaint()
    assert line.startswith("Error: ")
    assert message in line
    assert re.search(r"\. Try 'gloss-graph( train| demo)? --help'\.$", line)


@pytest.mark.parametrize(
    ("option", "value", "known"),
    [
        ("loss", "foo", "gloss-released"),
        ("rule", "foo", "harmonic"),
        ("normalization", "foo", "hub"),
        ("bandwidth", "foo", "sqrt"),
        ("bandwidth", "-1", "bandwidth"),
        ("graph-weight", "1.5", "[0, 1]"),
        ("visible-fraction", "nan", "[0, 1]"),
        ("learning-rate", "0", "learning_rate"),
        ("k", "0", "at least 1"),
        ("eta", "-1", "[0.0, inf)"),
        ("memory-size", "-1", "at least 0"),
        ("max-steps", "-1", "at least 0"),
        ("epochs", "-3", "epochs"),
        ("seed", "-1", "at least 0"),
        ("patience", "0", "at least 1"),
    ],
)
def test_bad_values_are_refused_before_anything_is_written(
    command: Command, tmp_path: Path, option: str, value: str, known: str
) -> None:
    out = tmp_path / "out"
    result = command("train", "--train", "no.csv", "--out", out, f"--{option}", value)
    assert result.status == 2
    line = result.complaint()
    assert line.startswith(f"Error: '{option.replace('-', '_')}' must be")
    assert known in line
    assert not out.exists()


@pytest.mark.parametrize("debug", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (ValueError("'k' must be 3.\n  Try 3."), 2, "Error: 'k' must be 3. Try 3."),
        (FileExistsError("there [bold]already[/]"), 2, "Error: there [bold]already[/]"),
        (PermissionError(13, "denied", "x"), 2, "Error: [Errno 13] denied: 'x'"),
        (RuntimeError("boom " * 50), 1, "RuntimeError: " + "boom " * 49 + "boom"),
        (TypeError("of ours"), 1, "TypeError: of ours"),
        (KeyError("x"), 1, "KeyError: 'x'"),
        (AssertionError(), 1, "AssertionError:"),
    ],
)
def test_failures_are_one_line_and_a_traceback_only_on_demand(
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    status: int,
    line: str,
    debug: bool,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("gloss_graph._internal.folders.check_folder", fail)
    result = command(*(["--debug"] if debug else []), "demo")
    assert result.status == status
    assert result.out == ""
    if debug:
        assert result.err.startswith("Traceback (most recent call last)")
        assert result.err.rstrip().splitlines()[-1] == line
    else:
        assert result.complaint() == line


@pytest.mark.parametrize("place", ["first", "last"])
def test_debug_stands_anywhere(command: Command, tmp_path: Path, place: str) -> None:
    words = ["train", "--train", str(tmp_path / "no.csv"), "--out", str(tmp_path / "out")]
    words = ["--debug", *words] if place == "first" else [*words, "--debug"]
    result = command(*words)
    assert result.status == 2
    assert "Traceback (most recent call last)" in result.err


def test_an_interrupt_is_said_quietly(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gloss_graph._internal.folders.check_folder", interrupt)
    result = command("demo")
    assert (result.status, result.complaint()) == (130, "Interrupted.")


def test_options_arrive(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def read(files: Any, config: TrainConfig, columns: dict[str, Any]) -> tuple[Any, TrainConfig]:
        seen.update(files=files, config=config, columns=columns)
        return None, config

    def load(name: str, **options: Any) -> None:
        seen.update(options, encoder=name)

    monkeypatch.setattr("gloss_graph.cli.train.read_files", read)
    monkeypatch.setattr("gloss_graph.text.load_encoder", load)
    for name in ("described_files", "train_and_report"):
        monkeypatch.setattr(f"gloss_graph.cli.train.{name}", lambda *_: None)
    settings = {
        "loss": "gloss-released",
        "epochs": 1.5,
        "max-steps": 7,
        "eval-steps": 3,
        "patience": 4,
        "batch-size": 5,
        "gradient-accumulation": 2,
        "learning-rate": 1e-4,
        "head-learning-rate": 1e-2,
        "graph-weight": 0.25,
        "visible-fraction": 0.75,
        "bandwidth": 0.5,
        "k": 9,
        "eta": 0.1,
        "rule": "spreading",
        "normalization": "row",
        "memory-size": 11,
        "seed": 13,
    }
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    files = ["--train", "a.csv", "--val", "b.csv", "--test", "c.csv", "--out", tmp_path / "o"]
    columns = ["--text", "first", "--text-b", "second", "--label", "kind"]
    encoder = ["--encoder", "some/id", "--pooling", "last", "--max-length", "33"]
    flags = ["--bf16", "--gradient-checkpointing"]
    assert command("train", *files, *columns, *encoder, *words, *flags).status == 0
    assert seen["files"] == (Path("a.csv"), Path("b.csv"), Path("c.csv"), None)
    named = {name.replace("-", "_"): value for name, value in settings.items()}
    assert seen["config"] == TrainConfig(**named, bf16=True, gradient_checkpointing=True)
    assert seen["columns"] == {"text": "first", "label": "kind", "text_b": "second"}
    assert (seen["encoder"], seen["pooling"], seen["max_length"]) == ("some/id", "last", 33)
    assert command("train", "--train", "a.csv", "--out", tmp_path / "o").status == 0
    assert seen["config"] == TrainConfig()


HEAVY = ("torch", "numpy", "scipy", "pandas", "transformers", "faiss", "optuna")


def test_help_and_bad_options_import_nothing_heavy() -> None:
    code = f"""
import contextlib, io, sys
from gloss_graph.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    for words in (["--version"], ["--help"], *([name, "--help"] for name in {COMMANDS!r})):
        assert main(words) == 0
    for words in (["train", "--bad"], ["tune", "--train", "a", "--out", "b", "--set", "graf.k=1"]):
        assert main(words) == 2
print(sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
def test_a_reader_that_stops_early_is_silence() -> None:
    words = [*installed(), "train", "--help"]
    command = f"({shlex.join(words)}; echo $? >&2) | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stderr.strip() in ("0", "141")


def test_the_common_options_of_a_training_come_first(command: Command) -> None:
    first, others = command("train", "--help").out.split("\u2570", 1)
    named = re.findall(r"\* +--([a-z-]+)|^\u2502 +--([a-z-]+)", first, re.MULTILINE)
    assert len(named) == 21  # with --help
    for group in ("Training", "Graph", "Propagation", "Memory", "Few labels", "Documents"):
        assert f"\u2500 {group} \u2500" in others
