"""Damaged input of every kind ends in success or in a named error: no traceback, no hang."""

from __future__ import annotations

import copy
import gzip
import io
import json
import os
import random
import resource
import shutil
import signal
import struct
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training.tiny import tiny_encoder, tiny_splits

from gloss_graph import MemoryBank
from gloss_graph.analysis import document_graph
from gloss_graph.cli import main
from gloss_graph.export import read_graph, write_graph
from gloss_graph.reports.run_page import read_files
from gloss_graph.studies import Study, read_results, read_study
from gloss_graph.text import FeatureEncoder, load_encoder, read_features, read_table
from gloss_graph.training import Run, TextClassifier, TrainConfig, train_text

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="cases run in forked processes")

_CHUNK = 50
# Seconds of the processor, so that other work on the machine does not matter.
_SECONDS = 10.0
_GROWTH = 1 << 30
_FAULTS = (ValueError, OSError)
_VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**40, -(10**40), 0.5, -0.0, 1e308, 1e-320),
    *(float("nan"), float("inf"), "", " ", "x", "nan", "\ud800", "\x00", "a/b", "..", "é" * 300),
    *([], {}, [[]], [None], {"": None}, {"a": {"b": [1, "2", None]}}, ["x", 1], "1:2", "1e999"),
]
_WORDS = ["", "-1", "0", "nan", "inf", "1e999", "99999999999999999999", "x", "\x00", "é", "--", "="]
_WORDS += ["a" * 5000, ".", "/", "/dev/null", "no/such/file.csv", "true", "[1]", "1:2:3"]


# ---------------------------------------------------------------------- what is damaged


def _tensor_files(folder: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(12, 4)).astype("float32")
    np.save(folder / "f.npy", rows)
    torch.save(torch.from_numpy(rows), folder / "f.pt")
    save_file({"rows": torch.from_numpy(rows)}, folder / "f.safetensors")
    pd.DataFrame(rows, columns=list("abcd")).to_parquet(folder / "f.parquet")


def _tables(folder: Path) -> None:
    frame = pd.DataFrame(
        {"text": [f'tea and, "cake" {i}' for i in range(12)], "label": ["a", "b", ""] * 4}
    )
    frame.to_csv(folder / "t.csv", index=False)
    frame.to_csv(folder / "t.tsv", index=False, sep="\t")
    frame.to_csv(folder / "t.csv.gz", index=False)
    frame.to_json(folder / "t.jsonl", orient="records", lines=True)
    frame.to_parquet(folder / "t.parquet")


def _graphs(folder: Path) -> None:
    labels = [0, 1, -1] * 4
    graph = document_graph(
        torch.from_numpy(np.load(folder.parent / "features" / "f.npy")),
        k=3,
        labels=labels,
        texts=[f"text {i}" for i in range(12)],
        label_names=["tea", "cake"],
    )
    for suffix in ("graphml", "graphml.gz", "gexf", "json", "json.gz", "npz", "csv", "parquet"):
        write_graph(graph, folder / f"g.{suffix}")


def _bank(folder: Path) -> None:
    bank = MemoryBank(8, 4, k=2)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(8, 4, generator=generator)
    bank.enqueue(rows, torch.arange(8) % 3, torch.arange(8))
    bank.save(folder / "b.safetensors")


def _run(folder: Path) -> None:
    splits = tiny_splits(24, 9, 0)
    table = np.random.default_rng(0).normal(size=(33, 6)).astype("float32")
    parts = {"train": splits.train, "val": splits.val}
    carried = {name: replace(part, features=table[part.ids]) for name, part in parts.items()}
    config = TrainConfig(max_steps=2, batch_size=8, k=3, device="cpu")
    train_text(replace(splits, **carried), FeatureEncoder.scaled_to(table), config, folder / "run")
    np.save(folder / "new.npy", table[:5])
    (folder / "new.csv").write_text("text\n" + "tea\n" * 5)


def _study(folder: Path) -> None:
    (folder / "data").mkdir()
    frame = pd.DataFrame({"text": [f"tea {i}" for i in range(40)], "label": ["a", "b"] * 20})
    frame.to_csv(folder / "data" / "train.csv", index=False)
    content = {"factors": {"k": [2, 4]}, "baseline": {"loss": "gloss", "epochs": 1.0}, "seeds": 2}
    content |= {"data": "data", "encoder": "none-such", "text": "text", "design": "grid"}
    (folder / "s.yaml").write_text(yaml.safe_dump(content))
    study = Study(factors={"a": [1, 2]}, run=_score, seeds=2)
    study.run(folder / "results", progress=False)


def _score(config: dict[str, Any], seed: int) -> dict[str, float]:
    return {"score": config["a"] + seed}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound files of every kind."""
    root = tmp_path_factory.mktemp("whole")
    made = {
        "features": _tensor_files,
        "tables": _tables,
        "graphs": _graphs,
        "banks": _bank,
        "runs": _run,
        "studies": _study,
    }
    for name, make in made.items():
        (root / name).mkdir()
        make(root / name)
    tiny_encoder().save(root / "models" / "tiny")
    return root


# ---------------------------------------------------------------------- how it is damaged


def _flip(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        if changed:
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def _cut(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content) + 1)]


def _slice(content: bytes, draw: random.Random) -> bytes:
    """A stretch is lost or comes twice."""
    start = draw.randrange(len(content) + 1)
    end = min(len(content), start + draw.randint(1, 64))
    return content[:start] + draw.choice((b"", content[start:end] * 2)) + content[end:]


def _lines(content: bytes, draw: random.Random) -> bytes:
    lines = content.split(b"\n")
    place = draw.randrange(len(lines))
    lines[place : place + 1] = draw.choice(([], [lines[place]] * 2, [b""], lines[:2]))
    return b"\n".join(lines)


def _word(content: bytes, draw: random.Random) -> bytes:
    """One stretch of letters or digits becomes something else."""
    kind = bytes.isdigit if draw.random() < 0.5 else bytes.isalnum
    places = [i for i in range(len(content)) if kind(content[i : i + 1])]
    if not places:
        return content
    start = end = draw.choice(places)
    while end < len(content) and kind(content[end : end + 1]):
        end += 1
    words = [b"9" * 30, b"-1", b"NaN", b"1e999", b"", b"null", b"[1]", b"true", b"<", b"\xff", b'"']
    return content[:start] + draw.choice(words) + content[end:]


def _encoding(content: bytes, draw: random.Random) -> bytes:
    text = content.decode("utf-8", "replace")
    return draw.choice(
        (
            text.encode("utf-16"),
            text.encode("utf-32-le"),
            b"\xef\xbb\xbf" + content,
            content.replace(b"e", "é".encode("latin-1")),
            content.replace(b"\n", b"\r"),
            content.replace(b"UTF-8", draw.choice((b"utf-7", b"x", b"cp1252"))),
        )
    )


def _head(content: bytes, draw: random.Random) -> bytes:
    """Another length in the first eight bytes, as safetensors has it."""
    length = draw.choice((0, 1, 2**31, 2**62, len(content), draw.randrange(1 << 16)))
    return struct.pack("<Q", length) + content[8:]


def _deep(content: bytes, draw: random.Random) -> bytes:
    opening = draw.choice((b"[", b'{"a":', b"<a>", b"- ", b"{a: "))
    return draw.choice((b"", content)) + opening * draw.choice((50, 5000, 50_000))


_BYTES = [_flip, _flip, _cut, _slice, _slice, _lines, _word, _word, _word, _encoding, _head, _deep]


def _inner(value: Any, draw: random.Random) -> Any:
    """Another value somewhere within lists and dictionaries."""
    if isinstance(value, (dict, list)) and value and draw.random() < 0.8:
        changed = copy.copy(value)
        key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if draw.random() < 0.15:
            del changed[key]
        elif isinstance(changed, list) and draw.random() < 0.1:
            changed.append(changed[key])
        else:
            changed[key] = _inner(value[key], draw)
        return changed
    return draw.choice(_VALUES)


def _tensors(file: Path, draw: random.Random) -> None:
    """Another type, shape or content of one tensor in a file."""
    with safe_open(file, framework="pt") as stored:
        noted = stored.metadata()
    tensors = load_file(file)
    name = draw.choice(sorted(tensors))
    value = tensors[name]
    kinds = [torch.float64, torch.float16, torch.int64, torch.uint8, torch.bool, torch.bfloat16]
    fills: list[Any] = [0, 1]
    if value.is_floating_point():
        fills += [-1, float("nan"), float("inf"), torch.finfo(value.dtype).max]
    elif value.dtype != torch.bool:
        fills += [99, torch.iinfo(value.dtype).min, torch.iinfo(value.dtype).max]
    changes: list[Callable[[], torch.Tensor]] = [
        lambda: value.to(draw.choice(kinds)),
        lambda: value[:0] if value.dim() else value.reshape(1),
        lambda: torch.cat([value, value]) if value.dim() else value.reshape(1, 1),
        lambda: value.unsqueeze(-1).contiguous(),
        lambda: value.reshape(-1).contiguous(),
        lambda: torch.full_like(value, draw.choice(fills)),
    ]
    tensors[name] = draw.choice(changes)().contiguous()
    if draw.random() < 0.2:
        del tensors[name]
    save_file(tensors, file, metadata=noted)


def _damage(file: Path, draw: random.Random) -> None:
    """Damage a file in place, with regard to its format as often as not."""
    content, structured = file.read_bytes(), draw.random() < 0.5
    if structured and file.suffix in (".json", ".yaml", ".jsonl"):
        if file.suffix == ".yaml":
            file.write_text(yaml.safe_dump(_inner(yaml.safe_load(content), draw)), errors="replace")
            return
        lines = content.splitlines() if file.suffix == ".jsonl" else [content]
        place = draw.randrange(len(lines))
        lines[place] = json.dumps(_inner(json.loads(lines[place]), draw)).encode()
        file.write_bytes(b"\n".join(lines))
    elif structured and file.suffix == ".safetensors":
        _tensors(file, draw)
    elif structured and file.suffix == ".npz":
        with np.load(file) as stored:
            arrays = dict(stored)
        name = draw.choice(sorted(arrays))
        kinds = ("i1", "f2", "c8", "i8") if arrays[name].dtype.kind in "if" else ("U3", "S1")
        with np.errstate(all="ignore"):
            value = arrays[name].astype(draw.choice(kinds))
        arrays[name] = draw.choice((value, arrays[name][..., None]))
        np.savez(file, **arrays)
    elif structured and file.suffix == ".gz":
        file.write_bytes(gzip.compress(draw.choice(_BYTES)(gzip.decompress(content), draw)))
    else:
        file.write_bytes(draw.choice(_BYTES)(content, draw))


# ---------------------------------------------------------------------- what is done with it


def _command(*words: object) -> None:
    """Run a command; a failure that is not the user's is raised."""
    said = io.StringIO()
    before = sys.stdout, sys.stderr
    sys.stdout = sys.stderr = said
    try:
        status = main([str(word) for word in words])
    finally:
        sys.stdout, sys.stderr = before
    if status not in (0, 2) or "Traceback" in said.getvalue():
        raise RuntimeError(f"exit {status}: {said.getvalue()[-300:]}")


def _of_table(here: Path, draw: random.Random) -> None:
    file = draw.choice(sorted((here / "tables").iterdir()))
    _damage(file, draw)
    read_table(file, separator=draw.choice((None, None, ";")))


def _of_features(here: Path, draw: random.Random) -> None:
    file = draw.choice(sorted((here / "features").iterdir()))
    _damage(file, draw)
    read_features(file)


def _of_graph(here: Path, draw: random.Random) -> None:
    file = draw.choice(sorted((here / "graphs").iterdir()))
    _damage(file, draw)
    # One of several files of a table stands for all.
    name = "g.csv" if file.name.endswith("schema.json") else file.name
    read_graph(file.with_name(name))


def _of_bank(here: Path, draw: random.Random) -> None:
    file = here / "banks" / "b.safetensors"
    _damage(file, draw)
    if draw.random() < 0.5:
        MemoryBank.load(file)
    else:
        document_graph(file, k=2)


def _of_run(here: Path, draw: random.Random) -> None:
    runs = here / "runs"
    files = [path for path in sorted((runs / "run").rglob("*")) if path.is_file()]
    file = draw.choice([path for path in files if path.suffix in (".json", ".csv", ".safetensors")])
    if draw.random() < 0.7:  # A run of an older version, which does not know its files.
        config = runs / "run" / "config.json"
        settings = json.loads(config.read_text())
        settings.pop("contents", None)
        config.write_text(json.dumps(settings))
    _damage(file, draw)
    action = draw.randrange(60)
    if action == 0:
        # Drawing its pictures takes seconds.
        _command("report", runs / "run", "--out", here / "page.html")
    elif action < 10:
        read_files(runs / "run")
    elif action < 15:
        _command("evaluate", runs / "run")
    elif action < 30:
        TextClassifier.load(runs / "run" / "model")
    elif action < 45:
        document_graph(runs / "run", k=2)
    else:
        Run(runs / "run").predict(features=np.load(runs / "new.npy"))


def _of_model(here: Path, draw: random.Random) -> None:
    file = draw.choice(sorted((here / "models" / "tiny").iterdir()))
    _damage(file, draw)
    load_encoder(str(file.parent), local_files_only=True).encode(["a graph", "the edge"])


def _of_study(here: Path, draw: random.Random) -> None:
    if draw.random() < 0.4:
        folder = here / "studies" / "results"
        file = draw.choice([folder / "study.json", folder / "optuna.db"])
        _damage(file, draw)
        found = read_results(folder)
        found.summary(), found.tests(), found.problems()
        return
    file = here / "studies" / "s.yaml"
    _damage(file, draw)
    # Without a folder a study reads the documentation of all that is installed.
    named = b"data:" in file.read_bytes()
    read_study(file, **({} if named else {"data": file.parent / "data"}))


def _of_words(here: Path, draw: random.Random) -> None:
    run, new = here / "runs" / "run", here / "runs" / "new.csv"
    features = here / "runs" / "new.npy"
    predict = ["predict", "--run", run, "--input", new, "--output", here / "p.csv"]
    graph = ["graph", "--input", here / "features" / "f.npy", "--out", here / "g"]
    train = ["train", "--train", here / "no.csv", "--out", here / "o", "--k", 4, "--eta", 0.1]
    lines: list[list[Any]] = [
        [*predict, "--features", features, "--anchor", 0.0, "--mode", "inductive"],
        ["evaluate", run, "--metric", "val.macro_f1", "--by", "loss"],
        [*graph, "--k", 3, "--format", "json"],
        ["report", here / "runs", "--out", here / "r.html"],
        [*train, "--loss", "gloss", "--bandwidth", "sqrt", "--max-steps", 1],
        ["ablate", here / "no.yaml", "--seeds", 2, "--documents", 30],
    ]
    line = draw.choice(lines)
    for _ in range(draw.randint(1, 2)):
        place = draw.randrange(1, len(line))
        line[place : place + 1] = draw.choice(([draw.choice(_WORDS)], [], [line[place]] * 2))
    # Their folders would be made in the working folder.
    os.chdir(here)
    _command(*line)


#: Name -> cases in a hundred, folders with what is damaged, what is done.
_KINDS: dict[str, tuple[int, tuple[str, ...], Callable[[Path, random.Random], None]]] = {
    "table": (24, ("tables",), _of_table),
    "features": (16, ("features",), _of_features),
    "graph": (30, ("graphs",), _of_graph),
    "bank": (10, ("banks",), _of_bank),
    "run": (8, ("runs",), _of_run),
    "study": (8, ("studies",), _of_study),
    "words": (3, ("runs", "features"), _of_words),
    "model": (1, ("models",), _of_model),
}


# ---------------------------------------------------------------------- cases in processes


def _outcome(number: int, whole: Path, here: Path) -> str:
    """`fine`, `refused`, or what is wrong with a case."""
    draw = random.Random(number)
    kind = draw.choices(list(_KINDS), [share for share, _, _ in _KINDS.values()])[0]
    _, folders, action = _KINDS[kind]
    for folder in folders:
        shutil.copytree(whole / folder, here / folder)
    signal.setitimer(signal.ITIMER_PROF, _SECONDS)
    try:
        action(here, draw)
        said = "fine"
    except _FAULTS as error:
        message = str(error)
        named = "'" in message or str(here) in message or message.startswith("The attribute")
        said = "refused" if named else f"unnamed {type(error).__name__}: {message}"
    except BaseException as error:
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = "" if where is None else f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}"
        said = f"raw {type(error).__name__}: {error} ({place})"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return f"{kind} {said}"


def _work(numbers: range, whole: Path, here: Path, log: Path) -> None:
    """Body of a process: a line a case."""
    warnings.simplefilter("ignore")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with log.open("w") as lines:
        for number in numbers:
            shutil.rmtree(here, ignore_errors=True)
            here.mkdir()
            said = " ".join(_outcome(number, whole, here).split())[:500]
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            if grown - peak > _GROWTH >> 10:
                said = f"{said.split()[0]} grew by {(grown - peak) >> 10} MB"
            peak = max(peak, grown)
            lines.write(f"{number} {said.encode('ascii', 'replace').decode()}\n")
            lines.flush()


def _outcomes(numbers: range, whole: Path, folder: Path) -> Iterator[str]:
    """The lines of all cases; a process that dies leaves one that says so."""
    while numbers:
        log = folder / f"{numbers.start}.log"
        child = os.fork()
        if child == 0:
            try:
                # What forms a file may have is no matter of the warnings a test must not give.
                _work(numbers[:_CHUNK], whole, folder / f"here-{numbers.start}", log)
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        lines = log.read_text().splitlines()
        yield from lines
        done = len(lines)
        if done < len(numbers[:_CHUNK]):
            yield f"{numbers[done]} died with {os.waitstatus_to_exitcode(status)}"
            done += 1
        shutil.rmtree(folder / f"here-{numbers.start}", ignore_errors=True)
        numbers = numbers[done:]


def _check(numbers: range, whole: Path, folder: Path) -> None:
    found = list(_outcomes(numbers, whole, folder))
    wrong = [line for line in found if line.split()[2:] not in (["fine"], ["refused"])]
    counts: dict[str, int] = {}
    for line in found:
        key = " ".join(line.split()[1:3])
        counts[key] = counts.get(key, 0) + 1
    print(json.dumps(dict(sorted(counts.items())), indent=1))
    assert len(found) == len(numbers)
    assert not wrong, f"{len(wrong)} of {len(found)}:\n" + "\n".join(wrong[:40])


def test_damaged_input_is_refused_by_name(whole: Path, tmp_path: Path) -> None:
    _check(range(500), whole, tmp_path)


@pytest.mark.slow
def test_ten_thousand_damaged_inputs(whole: Path, tmp_path: Path) -> None:
    _check(range(10_000), whole, tmp_path)
