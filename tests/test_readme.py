"""The README's Python runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import gloss_graph

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "examples").rglob("README.md"))]
# A block of code, and the output that the page shows below it.
BLOCK = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
BLOCKS = [
    pytest.param(page, code, output, id=f"{page.parent.name}-{number}")
    for page in PAGES
    for number, (code, output) in enumerate(BLOCK.findall(page.read_text("utf-8")))
    if "runs/mine" not in code
]


@pytest.mark.parametrize(("page", "code", "output"), BLOCKS)
def test_block_runs_and_prints_what_the_page_shows(
    page, code, output, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(code, str(page), "exec"), {})
    printed = capsys.readouterr().out.strip()
    assert printed
    assert output or page != PAGES[0], "README shows the output of every block"
    if output:
        assert printed == output.strip()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_files_a_page_names_exist(page):
    text = page.read_text("utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert targets
    for target in targets:
        assert (page.parent / target).exists(), target
    assert "@@" not in text


def test_public_names_are_documented():
    for name in gloss_graph.__all__:
        if not name.startswith("__"):
            assert getattr(gloss_graph, name).__doc__
