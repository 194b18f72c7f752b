"""The page of a run: whole, self-contained, escaped, and rebuilt from the folder."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from training.tiny import quick, run, tiny_splits

from gloss_graph._internal.timing import stage_seconds
from gloss_graph.cli import main
from gloss_graph.reports import write_run_report
from gloss_graph.reports.run_page import read_files
from gloss_graph.text import Splits

SECTIONS = ["run", "data", "scores", "curves", "pictures", "time", "repeat", "versions"]
EVIL = ["<script>alert(1)</script>", "a & b", 'c"></td><img src=x onerror=y>']
NOT_COPIED = shutil.ignore_patterns("model", "memory", "report.html", "*.png")
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """What a page holds: tags, addresses, sections with their text; complains if tags cross."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.attributes: set[str] = set()
        self.alternatives: list[str] = []
        self.sections: dict[str, str] = {}
        self.title = ""
        self._open: list[str] = []
        self._section = ""
        self.feed(file.read_bytes().decode("utf-8"))
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.attributes |= set(values)
        self.addresses += [values[name] or "" for name in ("src", "href") if name in values]
        if tag == "img":
            self.alternatives.append(values["alt"] or "")
        if tag == "section":
            self._section = values["id"] or ""
            self.sections[self._section] = ""
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if self._section and tag in ("td", "th"):
            self.sections[self._section] += " "
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["title"]:
            self.title += data
        if self._section:
            self.sections[self._section] += data

    def pictures(self) -> list[bytes]:
        found = [a for a in self.addresses if a.startswith("data:image/png;base64,")]
        return [base64.b64decode(a.split(",", 1)[1], validate=True) for a in found]


def renamed(splits: Splits, names: list[str]) -> Splits:
    parts = {
        part: replace(getattr(splits, part), label_names=names) for part in ("train", "val", "test")
    }
    return Splits(**parts)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with labels that would break out of a page that does not escape."""
    out = tmp_path_factory.mktemp("runs") / "a <b> & c"
    run(out, quick(max_steps=3, eval_steps=2), renamed(tiny_splits(), EVIL))
    return out


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(finished, tmp_path / "run", ignore=NOT_COPIED))


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stands a small picture in for the slow ones; returns which were drawn."""
    from gloss_graph.visualization import plot_stage_times

    drawn: list[str] = []

    def stand_in(name: str) -> Callable[..., Any]:
        def plot(*_: Any, **__: Any) -> Any:
            drawn.append(name)
            return plot_stage_times({name: {"a": 1.0}})

        return plot

    for name in ("plot_embeddings", "plot_graph_change", "plot_similarities", "plot_training"):
        monkeypatch.setattr(f"gloss_graph.reports.run_page.{name}", stand_in(name))
    return drawn


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


# ------------------------------------------------------------------ the page


def test_a_page_is_whole_and_stands_alone(finished: Path) -> None:
    file = write_run_report(finished)
    assert file == finished / "report.html"
    text = file.read_bytes().decode("utf-8")
    page = Page(file)
    assert list(page.sections) == SECTIONS
    assert page.title == "a <b> & c"
    # Nothing is fetched: pictures are inside, links lead to the page's own sections.
    for address in page.addresses:
        assert address.startswith("data:") or address[1:] in SECTIONS, address[:80]
    assert re.findall(r"(?:https?:)?//\w", re.sub(r"base64,[^\"]+", "", text)) == []
    assert not {"script", "iframe", "object", "form", "base"} & set(page.tags)
    assert not {name for name in page.attributes if name.startswith("on")}
    assert '<meta charset="utf-8">' in text
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text

    pictures = page.pictures()
    assert len(pictures) == 5
    assert all(png.startswith(b"\x89PNG") and len(png) > 5000 for png in pictures)
    assert len(set(pictures)) == 5
    assert all(page.alternatives)
    saved = {path.name: path.read_bytes() for path in (finished / "pictures").glob("*.png")}
    assert set(saved) == {"embeddings.png", "similarities.png", "graph.png"}
    assert set(saved.values()) < set(pictures)

    # Again, elsewhere: the same bytes, nothing else written.
    again = write_run_report(finished, finished.parent / "again.html")
    assert again.read_bytes() == file.read_bytes()
    assert {path.name for path in finished.parent.iterdir()} == {"again.html", finished.name}


def test_numbers_and_settings_are_those_of_the_run(folder: Path, quickly: list[str]) -> None:
    page = Page(write_run_report(folder))
    assert len(quickly) == 4
    metrics = json.loads((folder / "metrics.json").read_text())
    for key in ("val.macro_f1", "test.accuracy", "test_propagation.macro_f1"):
        assert f"{100 * metrics[key]:.1f}" in page.sections["scores"]
    assert f"{metrics['test.macro_silhouette']:.3f}" in page.sections["scores"]
    changed, everything = page.sections["run"].split("All settings", 1)
    assert re.search(r"max_steps 3 – ", changed)
    assert "weight_decay" not in changed
    assert "weight_decay" in everything
    assert "graph-guided" not in changed  # stands over the sections
    assert page.sections["data"].count("12") >= 3
    assert "TrainConfig(" in page.sections["repeat"]
    assert "loss='gloss'" in page.sections["repeat"]
    assert "max_steps=3" in page.sections["repeat"]
    assert "torch" in page.sections["versions"]
    assert "seconds" in page.sections["time"].lower()


def test_what_users_name_is_escaped(folder: Path, quickly: list[str]) -> None:
    change(folder / "config.json", command=["gloss-graph", "train", "--train", "<b>.csv"])
    pd.DataFrame({"class": EVIL, "<i>f1</i>": [0.5, 1.0, 1 / 3], "n": [1, 2, 3]}).to_csv(
        folder / "classes.csv", index=False
    )
    file = write_run_report(folder)
    page, text = Page(file), file.read_text(encoding="utf-8")
    assert "script" not in page.tags
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "onerror" not in page.attributes
    for name in EVIL:
        assert name in page.sections["data"]
        assert name in page.sections["scores"]
    assert "0.333" in page.sections["scores"]
    assert "<i>f1</i>" in page.sections["scores"]
    assert len(page.pictures()) == 5


@pytest.mark.parametrize("words", [["--out", "runs/x", "--k", "4"], ["--k", "4", "--out=runs/x"]])
def test_the_command_gets_a_new_folder(folder: Path, quickly: list[str], words: list[str]) -> None:
    command = ["gloss-graph", "train", "--train", "my file.csv", *words]
    change(folder / "config.json", command=command)
    page = Page(write_run_report(folder))
    lines = ["gloss-graph train", "--train 'my file.csv'", "--k 4", "--out NEW_FOLDER"]
    assert " \\\n    ".join(lines) in page.sections["repeat"]
    assert "runs/x" not in page.sections["repeat"]
    assert "read_splits(" in page.sections["repeat"]


def test_what_a_run_lacks_is_left_out(folder: Path, quickly: list[str]) -> None:
    shutil.rmtree(folder / "pictures")
    (folder / "history.csv").write_text("\n")
    metrics = json.loads((folder / "metrics.json").read_text())
    kept = {k: v for k, v in metrics.items() if k in ("steps", "seconds.train")}
    (folder / "metrics.json").write_text(json.dumps({**kept, "val.macro_f1": None}))
    page = Page(write_run_report(folder))
    assert list(page.sections) == [name for name in SECTIONS if name != "curves"]
    assert page.pictures() == []
    assert quickly == []
    assert "recorded none" in page.sections["pictures"]
    assert "No part with labels" in page.sections["scores"]
    # Training labels are known from the labels that were used.
    assert EVIL[0] in page.sections["data"]
    assert not (folder / "pictures").exists()


def test_graph_skill_and_few_labels(tmp_path: Path, quickly: list[str]) -> None:
    config = quick(labels_per_class=3, warm_start_steps=1, max_steps=2)
    result = run(tmp_path / "run", config)
    page = Page(write_run_report(tmp_path / "run"))
    assert list(page.sections) == [*SECTIONS[:3], "skill", *SECTIONS[3:]]
    assert str(result.skill) in page.sections["skill"]
    assert re.search(r"training 36 9 ", page.sections["data"])


def test_scores_of_other_heads_have_a_row(folder: Path, quickly: list[str]) -> None:
    metrics = {"test_knn.macro_f1": 0.123456, "test.calibration_error": 0.0444, "odd": 1.0}
    change(folder / "metrics.json", **metrics)
    scores = Page(write_run_report(folder)).sections["scores"]
    for word in ("knn", "12.3", "calibration error", "0.044"):
        assert word in scores
    assert "odd" not in scores


def test_stages_are_in_the_order_of_a_step() -> None:
    metrics = {"seconds.optimizer": 1.0, "seconds.encoder": 2.0, "seconds.total": 9.0}
    assert list(stage_seconds(metrics).items()) == [("encoder", 2.0), ("optimizer", 1.0)]
    assert stage_seconds({"seconds.encoder": float("nan")}) == {}


# ------------------------------------------------------------------ the command and damage


def test_the_command_writes_it(
    folder: Path, quickly: list[str], capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["report", str(folder)]) == 0
    assert capfd.readouterr().out == f"Report: {folder / 'report.html'}\n"
    assert main(["report", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_bytes() == (folder / "report.html").read_bytes()


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def fill(name: str, text: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_text(text)

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("config.json"), "config.json"),
        (remove("metrics.json"), "metrics.json"),
        (remove("history.csv"), "history.csv"),
        (remove("pictures/data.safetensors"), "data.safetensors"),
        (fill("config.json", "{"), "config.json cannot be read: Expecting"),
        (fill("config.json", "[]"), "config.json must hold an object"),
        (fill("config.json", '{"model_type": "bert"}'), "config.json lacks 'seed'"),
        (fill("config.json", '{"loss": "ce", "seed": 0}'), "config.json lacks 'data'"),
        (fill("metrics.json", '{"steps": "many"}'), "metrics.json has no number for 'steps'"),
        (fill("history.csv", 'step,loss\n"1,2\n'), "history.csv: Error"),
        (fill("pictures/data.json", "{}"), "'format'"),
        (shutil.rmtree, "there is no such folder"),
    ],
    ids=range(12),
)
def test_damaged_and_foreign_folders_are_refused(
    folder: Path,
    damage: Callable[[Path], None],
    message: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    damage(folder)
    assert main(["report", str(folder)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("Error: 'folder' must be a finished run folder of gloss-graph train")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (folder / "report.html").exists()


def test_a_page_that_cannot_be_written(
    folder: Path, quickly: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(folder), "--out", str(folder / "no" / "page.html")]) == 2
    assert "Create it first" in capfd.readouterr().err
    assert main(["report", str(folder), "--out", str(folder)]) == 2
    assert "This is a folder" in capfd.readouterr().err


@pytest.mark.parametrize("versions", [None, "2.13", ["torch", "2.13"]])
def test_versions_of_another_form_are_left_out(
    folder: Path, quickly: list[str], versions: Any
) -> None:
    change(folder / "config.json", versions=versions, python="3.11.7")
    page = Page(write_run_report(folder))
    assert "3.11.7" in page.sections["versions"]


def test_numbers_that_are_null_are_skipped(folder: Path) -> None:
    change(folder / "metrics.json", **{"test.macro_silhouette": None})
    assert "test.macro_silhouette" not in read_files(folder).metrics


def test_the_former_name_works_and_warns() -> None:
    with pytest.warns(DeprecationWarning, match=r"Use gloss_graph\.reports\.write_run_report"):
        from gloss_graph.reports import write_report
    assert write_report is write_run_report
