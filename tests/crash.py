"""Commands and saves that are killed, run twice at once, or meet a full disk.

Run as a program: `python tests/crash.py KIND COUNT NAME...` prints what it found as JSON. It is
no part of a test process, as it forks children that must begin at once.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

HIDDEN = (".gloss-graph.lock", ".gloss-graph.draft")
# Events of the interpreter before which a process can be killed.
EVENTS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod")


class Case(NamedTuple):
    """What is tried: `act(place, seed)` writes `place`, once with a seed; 0 = done.

    `saves` replace what is there; of the others only those that `go_on` may be repeated once they
    are finished. `unfinished` are names that may be in the folder before it is whole.
    """

    act: Callable[[Path, int], int]
    marker: str
    saves: bool = False
    go_on: bool = False
    unfinished: tuple[str, ...] = ()
    # Of the seed alone: the same in every run.
    stable: tuple[str, ...] = ()
    name: str = "out"


class Ended(NamedTuple):
    code: int
    said: str


def start(action: Callable[[], int], *, die_at: int = 0, under: Path | None = None) -> int:
    """Fork a child that runs `action`, and kills itself before event number `die_at`."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        with open(said_by(os.getpid()), "w") as said:
            os.dup2(said.fileno(), 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        if under is not None:
            _count_events(under, die_at)
        code = action()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def said_by(process: int) -> Path:
    return Path(tempfile.gettempdir(), f"said-{process}")


def end(child: int) -> Ended:
    status = os.waitpid(child, 0)[1]
    said = said_by(child)
    ended = Ended(
        os.waitstatus_to_exitcode(status), said.read_text(errors="replace") if said.exists() else ""
    )
    said.unlink(missing_ok=True)
    return ended


def _count_events(under: Path, die_at: int) -> None:
    counted = [0]
    own = os.fsencode(under.parent)
    log = os.open(under.parent.with_name("events"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def watch(event: str, details: tuple[object, ...]) -> None:
        if event not in EVENTS or not isinstance(details[0], (str, bytes, os.PathLike)):
            return
        if not os.fsencode(details[0]).startswith(own):
            return
        counted[0] += 1
        if counted[0] == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if not die_at:
            os.pwrite(log, f"{counted[0]}".encode(), 0)

    sys.addaudithook(watch)


def names_in(folder: Path) -> list[str]:
    """Every file that is there for others, drafts left out."""
    if folder.is_file():
        return [folder.name]
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def digest(place: Path, stable: Sequence[str]) -> str:
    """What the seed decides of a folder, or of a file."""
    files = [place] if place.is_file() else [place / name for name in stable]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


class Harness:
    """Tries one case again and again, and notes what was wrong."""

    def __init__(self, case: Case, home: Path, seed: int = 0) -> None:
        self.case, self.home = case, home
        self.random = random.Random(seed)
        self.wrong: list[str] = []
        self.killed = 0
        self.place = home / "place" / case.name
        self.place.parent.mkdir(parents=True)
        self.before = time.perf_counter()
        self.digests = {}
        for number in (0, 1):
            ended = end(start(lambda number=number: case.act(self.place, number), under=self.place))
            if ended.code:
                raise RuntimeError(f"undisturbed: exit {ended.code}: {ended.said[-2000:]}")
            self.digests[digest(self.place, case.stable)] = number
            self.names = names_in(self.place)
            self.events = int(self.place.parent.with_name("events").read_text())
            if not case.saves or number:
                self.clear()
        self.seconds = (time.perf_counter() - self.before) / 2
        if len(self.digests) != 2:
            raise RuntimeError("the seed decides nothing of what is compared")

    def clear(self) -> None:
        shutil.rmtree(self.place.parent)
        self.place.parent.mkdir()

    def expect(self, holds: bool, what: str) -> None:
        if not holds:
            self.wrong.append(what)

    def is_whole(self) -> bool:
        place = self.place
        if not place.exists():
            return False
        if place.is_file():
            return True
        return (place / self.case.marker).exists()

    def check(self, when: str) -> bool:
        """Whether the place is whole; what is half-written under a final name is noted."""
        whole = self.is_whole()
        if whole:
            self.expect(names_in(self.place) == self.names, f"{when}: not all files are there")
            self.expect(
                digest(self.place, self.case.stable) in self.digests, f"{when}: of no run or of two"
            )
        elif self.place.exists():
            seen = {name.split("/")[0] for name in names_in(self.place)}
            # Those that were moved up are cleared away by the next run; they are whole each.
            left = seen - {*self.case.unfinished} - {name.split("/")[0] for name in self.names}
            self.expect(not left, f"{when}: {sorted(left)} under their names")
        return whole

    def kill(self, die_at: int | None) -> None:
        """Kill at an event, or at any time; then the same again must do."""
        case, place = self.case, self.place
        self.clear()
        if case.saves:
            end(start(lambda: case.act(place, 0)))
        if die_at is None:
            child = start(lambda: case.act(place, 1))
            time.sleep(self.random.uniform(0, self.seconds))
            os.kill(child, signal.SIGKILL)
            moment = "at a random moment"
        else:
            child = start(lambda: case.act(place, 1), die_at=die_at, under=place)
            moment = f"at event {die_at} of {self.events}"
        self.killed += end(child).code == -signal.SIGKILL
        whole = self.check(f"killed {moment}")
        if case.saves:
            self.expect(whole, f"killed {moment}: what was whole before is gone")
        again = end(start(lambda: case.act(place, 1)))
        refused = whole and not (case.saves or case.go_on)
        self.expect(
            again.code == (2 if refused else 0),
            f"killed {moment}, again: exit {again.code}: {again.said[-400:]}",
        )
        self.expect(self.check(f"killed {moment}, again"), f"killed {moment}, again: not whole")
        left = [
            path.name
            for folder in (place.parent, place)
            if folder.is_dir()
            for path in folder.iterdir()
            if path.name.startswith(".")
        ]
        left = [name for name in left if name not in case.unfinished]
        self.expect(refused or not left, f"killed {moment}, again: {left} was not cleared")

    def pair(self) -> None:
        """Two at once: one does it, one is refused; or both save, and the last one stays."""
        case, place = self.case, self.place
        self.clear()
        children = [start(lambda seed=seed: case.act(place, seed)) for seed in (0, 1)]
        ended = [end(child) for child in children]
        codes = sorted(one.code for one in ended)
        self.expect(codes == ([0, 0] if case.saves else [0, 2]), f"two at once: exits {codes}")
        for one in ended:
            if one.code == 2:
                told = any(word in one.said for word in (str(place), "begun with other settings"))
                self.expect(told, f"refused without its name: {one.said[-300:]}")
        self.expect(self.check("two at once"), f"two at once: not whole, exits {codes}")
        if not case.saves and codes == [0, 2]:
            winner = [one.code for one in ended].index(0)
            found = self.digests.get(digest(place, case.stable))
            self.expect(found == winner, f"two at once: {winner} ended well, {found} is there")

    def fill(self, disk: Path, free: int) -> None:
        """Run on a disk with `free` bytes left, then with all of them."""
        case = self.case
        self.place = disk / "place" / case.name
        self.place.parent.mkdir(parents=True, exist_ok=True)
        self.clear()
        filler = disk / "filler"
        with filler.open("wb") as file:
            file.write(b"\0" * max(0, shutil.disk_usage(disk).free - free))
        full = end(start(lambda: case.act(self.place, 1)))
        what = f"{free} bytes left"
        if full.code:
            self.killed += 1
            self.expect(full.code == 2, f"{what}: exit {full.code}: {full.said[-400:]}")
            told = "No space left on the disk" in full.said and str(disk) in full.said
            self.expect(told, f"{what}: not by name: {full.said[-400:]}")
            self.expect(not self.check(what), f"{what}: counts as whole")
        filler.unlink()
        if full.code:
            again = end(start(lambda: case.act(self.place, 1)))
            self.expect(again.code == 0, f"{what}, then room: {again.code}: {again.said[-400:]}")
            self.expect(self.check(f"{what}, then room"), f"{what}, then room: not whole")


# ---------------------------------------------------------------------- what is tried


def command(*words: object) -> int:
    from gloss_graph.cli.app import main

    return main(list(map(str, words)))


def saving(save: Callable[[], object]) -> int:
    """A failure of a save as the command line would have it."""
    try:
        save()
    except (ValueError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    return 0


def cases(home: Path, names: Sequence[str]) -> dict[str, Case]:
    """The cases of these names over made data in `home`."""
    import numpy as np
    import torch

    torch.set_num_threads(1)
    words = {"tea": "cup leaf green pot", "rock": "stone hill sand dust", "code": "loop byte bug"}
    drawn = random.Random(0)
    sizes = {"train": 36, "val": 12, "test": 12}
    for name, size in sizes.items():
        with (home / f"{name}.csv").open("w", newline="") as file:
            sheet = csv.writer(file)
            sheet.writerow(["text", "label"])
            for row in range(size):
                label = list(words)[row % 3]
                sheet.writerow([" ".join(drawn.choices(words[label].split(), k=6)), label])
    table = np.random.default_rng(0).normal(size=(sum(sizes.values()), 8)).astype("float32")
    np.save(home / "features.npy", table)
    np.save(home / "train.npy", table[: sizes["train"]])

    def splits(*parts: str) -> list[str]:
        return [word for part in parts for word in (f"--{part}", str(home / f"{part}.csv"))]

    def run(place: Path, seed: int) -> int:
        short = ["--max-steps", 4, "--eval-steps", 2, "--batch-size", 8, "--no-pictures"]
        source = ["--encoder", "none", "--features", home / "features.npy"]
        return command(
            "train", *splits("train", "val", "test"), *source, *short, "--loss", "gloss",
            "--seed", seed, "--out", place,
        )  # fmt: skip

    def text_gcn(place: Path, seed: int) -> int:
        short = ["--epochs", 3, "--min-count", 1, "--no-pictures", "--hidden", 8]
        return command(
            "train", "--model", "text-gcn", *splits("train", "val", "test"), *short,
            "--seed", seed, "--out", place,
        )  # fmt: skip

    def graph(place: Path, seed: int) -> int:
        return command(
            "graph", "--features", home / "train.npy", "--input", home / "train.csv",
            "--format", "graphml,csv", "--measures", "--k", 3 + seed, "--out", place,
        )  # fmt: skip

    def evaluate(place: Path, seed: int) -> int:
        metric = ("test.macro_f1", "test.accuracy")[seed]
        return command("evaluate", home / "runs", "--metric", metric, "--out", place)

    def bert_gcn(place: Path, seed: int) -> int:
        short = ["--epochs", 2, "--fine-tune-epochs", 1, "--min-count", 1, "--no-pictures"]
        return command(
            "train", "--model", "bert-gcn", *splits("train", "val", "test"), *short,
            "--encoder", home / "bert", "--max-length", 12, "--seed", seed, "--out", place,
        )  # fmt: skip

    def tune(place: Path, seed: int) -> int:
        short = ["--max-length", 12, "--trials", 2, "--set", "max_steps=2", "--set", "eval_steps=2"]
        return command(
            "tune", *splits("train", "val"), *short, "--set", "batch_size=8", "--params",
            "bandwidth", "--encoder", home / "bert", "--set", f"seed={seed}", "--out", place,
        )  # fmt: skip

    def demo(place: Path, seed: int) -> int:
        short = ["--steps", 2, "--max-documents", 400]
        return command("demo", *short, "--encoder", home / "bert", "--seed", seed, "--out", place)

    def predict(place: Path, seed: int) -> int:
        source = ["--input", home / "train.csv", "--features", home / "train.npy"]
        return command("predict", "--run", home / "runs" / str(seed), *source, "--output", place)

    def report(place: Path, seed: int) -> int:
        return command("report", home / "runs" / str(seed), "--out", place)

    def bank(place: Path, seed: int) -> int:
        from gloss_graph import MemoryBank

        made = MemoryBank(64, 16)
        rows = torch.randn(64, 16, generator=torch.Generator().manual_seed(seed))
        made.enqueue(rows, torch.arange(64) % 3)
        return saving(lambda: made.save(place))

    def classifier(place: Path, seed: int) -> int:
        from training.tiny import tiny_classifier

        return saving(lambda: tiny_classifier(seed=seed).save(place))

    def adapter(place: Path, seed: int) -> int:
        from gloss_graph.text import FeatureEncoder

        return saving(lambda: FeatureEncoder(8, hidden=4, seed=seed).save(place))

    found = {
        "train": Case(
            run,
            "metrics.json",
            unfinished=("checkpoints", "unfinished.json"),
            stable=("model/head.safetensors", "labels_used.csv"),
        ),
        "text-gcn": Case(text_gcn, "metrics.json", stable=("model/graph_model.safetensors",)),
        "graph": Case(graph, "config.json", stable=("graph.nodes.csv", "graph.edges.csv")),
        "evaluate": Case(evaluate, "evaluation.md", stable=("summary.csv",)),
        "bert-gcn": Case(bert_gcn, "metrics.json", stable=("model/graph_model.safetensors",)),
        "tune": Case(
            tune,
            "best.json",
            go_on=True,
            # SQLite needs the journal of a broken transaction to undo it.
            unfinished=("trials", "study.db-journal"),
            stable=("study.json",),
        ),
        "demo": Case(demo, "metrics.json", stable=("graph.graphml",)),
        "predict": Case(predict, "", name="out.csv"),
        "report": Case(report, "", saves=True),
        "MemoryBank.save": Case(bank, "", saves=True),
        "TextClassifier.save": Case(
            classifier, "classifier.json", saves=True, stable=("head.safetensors",)
        ),
        "FeatureEncoder.save": Case(
            adapter, "encoder.json", saves=True, stable=("features.safetensors",)
        ),
    }
    if {"bert-gcn", "tune", "demo"} & {*names}:
        from text.tiny_models import build_tokenizer
        from transformers import BertConfig, BertModel

        from gloss_graph.text import TextEncoder

        tokenizer = build_tokenizer("bert")
        torch.manual_seed(0)
        settings = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=64,
        )
        encoder = TextEncoder(BertModel(settings), tokenizer, pooling="mean", max_length=48)
        encoder.save(home / "bert")
    if {"evaluate", "report", "predict"} & {*names}:
        for seed in (0, 1):
            ended = end(start(lambda seed=seed: run(home / "runs" / str(seed), seed)))
            if ended.code:
                raise RuntimeError(ended.said)
    return {name: found[name] for name in names}


def warm(names: Sequence[str]) -> None:
    """Import what the children need, so that they begin at once."""
    import transformers.trainer  # noqa: F401

    if {"TextClassifier.save", "bert-gcn", "tune", "demo"} & {*names}:
        import training.tiny  # noqa: F401


def tried(kind: str, count: int, names: Sequence[str], home: Path) -> dict[str, dict[str, object]]:
    """Try each case `count` times in a way, and say what was wrong.

    Args:
        kind: `kills`, `pairs`, `both` of them, or `full`.
        count: Kills (0 = every event, once), pairs, or disks.
        names: Of cases.
        home: An empty folder.
    """
    warm(names)
    results: dict[str, dict[str, object]] = {}
    for number, (name, case) in enumerate(cases(home, names).items()):
        harness = Harness(case, home / f"case-{number}")
        if kind in ("kills", "both"):
            events = range(1, harness.events + 1)
            if count:
                # Half at events, the last ones among them, half at any time.
                half = (count + 1) // 2
                last = list(events)[-max(1, half // 2) :]
                events = [*last, *harness.random.choices(events, k=half - len(last))]
            for event in events:
                harness.kill(event)
            for _ in range(count // 2):
                harness.kill(None)
        if kind in ("pairs", "both"):
            for _ in range(count):
                harness.pair()
        if kind == "full":
            disk = home / "disk"
            disk.mkdir(exist_ok=True)
            size = ["-t", "tmpfs", "-o", "size=2m", "tmpfs"]
            subprocess.run(["mount", *size, str(disk)], check=True)
            try:
                for turn in range(count):
                    harness.fill(disk, [0, 4096, 20_000, 8192, 60_000, 120_000][turn % 6])
            finally:
                subprocess.run(["umount", str(disk)], check=True)
        results[name] = {
            "events": harness.events,
            "disturbed": harness.killed,
            "wrong": harness.wrong,
            "seconds": round(harness.seconds, 2),
        }
        print(name, results[name], file=sys.stderr, flush=True)
    return results


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="crash-") as made:
        os.environ["TMPDIR"] = os.environ["GLOSS_GRAPH_CACHE"] = made
        tempfile.tempdir = made
        print(json.dumps(tried(sys.argv[1], int(sys.argv[2]), sys.argv[3:], Path(made))))
