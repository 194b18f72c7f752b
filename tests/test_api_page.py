"""The page of the API: every public name on its front page, mathematics kept, no warning."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gloss_graph

ROOT = Path(__file__).resolve().parents[1]


def test_front_page_names_everything_in_three_groups() -> None:
    page = gloss_graph.__doc__ or ""
    groups = re.findall(r"^\*\*(.+?)\*\*", page, re.MULTILINE)
    assert groups == ["Import the objective", "Export the graph", "Run ablations"]
    for name in gloss_graph.__all__:
        assert name == "__version__" or f"`{name}`" in page, name
    for room in re.findall(r"`gloss_graph\.(\w+)`", page):
        assert hasattr(gloss_graph, room) or (ROOT / "gloss_graph" / room).is_dir(), room


@pytest.mark.slow
def test_the_command_of_the_contributing_page_makes_it_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("pdoc", reason="pdoc is not installed")
    contributing = (ROOT / ".github" / "CONTRIBUTING.md").read_text("utf-8")
    command = re.search(r"`pdoc (gloss_graph .+?) -o site`", contributing)
    assert command is not None
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m pdoc {command[1]} -o {tmp_path}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Warn" not in done.stdout + done.stderr
    page = (tmp_path / "gloss_graph.html").read_text("utf-8")
    assert r"<p>Weights are \(w_{ij} = \exp(" in page
    assert "mathjax" in page.lower()
    assert (tmp_path / "gloss_graph" / "analysis.html").is_file()
