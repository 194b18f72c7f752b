"""The notebooks run as they stand, and keep small outputs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from scripts import EXAMPLES, ROOT

NOTEBOOKS = sorted(path.name for path in EXAMPLES.glob("*.ipynb"))


def text_of(cell: dict) -> str:
    return "".join(cell["source"])


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_are_there_small_and_without_errors(name: str) -> None:
    content = (EXAMPLES / name).read_text("utf-8")
    assert len(content) < 400_000
    cells = json.loads(content)["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    assert len(outputs) >= 3
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    # No path of the machine that ran it.
    assert str(Path.home()) not in content
    assert text_of(cells[0]).startswith("# ")
    assert text_of(cells[-1]).startswith("## Where to go next")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name.startswith("memory") else [pytest.mark.slow])
        for name in NOTEBOOKS
    ],
)
def test_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    client = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    # Without widgets tqdm warns once.
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress not found")
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    client.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.get("name") == "stderr"]
