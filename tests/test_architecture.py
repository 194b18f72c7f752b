"""Rules the source keeps: direction of imports, docstrings, safe loading."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import gloss_graph

PACKAGE = Path(gloss_graph.__file__).parent
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)

# Bottom to top: a room imports only `_internal` and the rooms named before it.
ROOMS = (
    "neighbors",
    "propagation",
    "text",
    "export",
    "memory",
    "graph",
    "losses",
    "inference",
    "step",
    "objective",
    "runs",
    "analysis",
    "visualization",
    "training",
    "baselines",
    "reports",
    "adapters",
    "studies",
    "cli",
)
CORE = ("neighbors", "propagation", "memory", "graph", "losses", "inference", "step")
# Former names of rooms, which load from the new ones on first use.
FORMER = ("ablation", "models")
# Still to be mended; each line that goes is a step forward.
EXCEPTIONS = {
    ("objective", "_paper"),
}


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE.parent).as_posix()


def room_of(path: Path) -> str:
    """First level under the package: a folder, or a module without its ending."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


# Parsed once: every rule below reads all files.
TREES = {path: ast.parse(path.read_text()) for path in FILES}
NODES = {path: list(ast.walk(tree)) for path, tree in TREES.items()}


def modules_of(node: ast.AST) -> Iterator[str]:
    """Absolute module names an import statement reads, names imported from packages included."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls_of(path: Path) -> Iterator[tuple[ast.Call, str]]:
    for node in NODES[path]:
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func)


def imported_rooms(path: Path) -> set[tuple[int, str]]:
    found = set()
    for node in NODES[path]:
        for module in modules_of(node):
            parts = module.split(".")
            if parts[0] == "gloss_graph" and len(parts) > 1:
                found.add((node.lineno, parts[1]))
    return found


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def split_imports(path: Path) -> tuple[list[tuple[int, str]], list[tuple[int, str]]]:
    """Line and name of the modules imported with the module, and of those in its functions."""
    early: list[tuple[int, str]] = []
    late: list[tuple[int, str]] = []

    def walk(node: ast.AST, found: list[tuple[int, str]]) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        for name in modules_of(node):
            # `from module import name` may name a module or something in one.
            parent = name.rpartition(".")[0]
            is_part = isinstance(node, ast.ImportFrom) and name not in MODULES
            found.append((getattr(node, "lineno", 0), parent if is_part else name))
        inner = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        for child in ast.iter_child_nodes(node):
            walk(child, late if inner else found)

    walk(TREES[path], early)
    return early, late


IMPORTS = {module: split_imports(path) for module, path in MODULES.items()}


@cache
def loaded_with(module: str) -> tuple[set[str], set[str]]:
    """Modules of the package and libraries that come with the import of a module."""
    ours: set[str] = set()
    libraries: set[str] = set()
    waiting = [module]
    while waiting:
        current = waiting.pop()
        if current in ours:
            continue
        ours.add(current)
        for _, name in IMPORTS[current][0]:
            if name in MODULES:
                waiting.append(name)
            else:
                libraries.add(name.split(".")[0])
    return ours, libraries - sys.stdlib_module_names - {"gloss_graph"}


def broken(path: Path, line: int, rule: str) -> str:
    return f"{name_of(path)}:{line}: {rule}"


def test_imports_are_absolute() -> None:
    found = [
        broken(path, node.lineno, "imports are absolute")
        for path in FILES
        for node in NODES[path]
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert found == []


def test_the_design_knows_every_room() -> None:
    known = (*ROOMS, *FORMER, "_internal", "_paper", "__init__", "__main__")
    assert {room_of(path) for path in FILES} - set(known) == set()


def test_a_room_imports_only_the_rooms_before_it() -> None:
    found = []
    for path in FILES:
        room = room_of(path)
        if room in ("__init__", "__main__"):
            continue
        before = ROOMS[: ROOMS.index(room)] if room in ROOMS else ()
        for line, target in imported_rooms(path):
            fine = target in (room, "_internal", "__version__", *before)
            if not fine and (room, target) not in EXCEPTIONS:
                found.append(broken(path, line, f"{room} must not import {target}"))
    assert found == []


def test_modules_do_not_import_each_other() -> None:
    """Not in a circle either; packages load what they name on first use."""
    found = []
    for module, path in MODULES.items():
        for line, name in IMPORTS[module][0]:
            if path.name != "__init__.py" and name in MODULES and module in loaded_with(name)[0]:
                found.append(broken(path, line, f"{name} imports it too"))
    assert found == []


def test_an_import_waits_for_a_call_only_to_spare_a_library() -> None:
    """Settings are read without torch, files written without pyarrow; commands import late."""
    found = []
    for module, path in MODULES.items():
        if path.name == "__init__.py" or room_of(path) == "cli":
            continue
        for line, name in IMPORTS[module][1]:
            if name in MODULES and loaded_with(name)[1] <= loaded_with(module)[1]:
                found.append(broken(path, line, f"{name} brings nothing new: import it at the top"))
    assert found == []


def test_nothing_imports_the_adapters() -> None:
    found = [
        broken(path, line, "imports the adapters")
        for path in FILES
        for line, room in imported_rooms(path)
        if room == "adapters" and room_of(path) != "adapters"
    ]
    assert found == []


def test_library_code_raises_instead_of_asserting() -> None:
    found = [
        broken(path, node.lineno, "assert")
        for path in FILES
        for node in NODES[path]
        if isinstance(node, ast.Assert)
    ]
    assert found == []


def test_nothing_is_unpickled() -> None:
    found = []
    for path in FILES:
        for node in NODES[path]:
            for module in modules_of(node):
                if module.split(".")[0] in ("pickle", "cPickle", "dill", "joblib", "shelve"):
                    found.append(broken(path, node.lineno, f"imports {module}"))
        for call, function in calls_of(path):
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            loads = function.endswith(("np.load", "numpy.load"))
            model = function.endswith(("from_pretrained", "from_config"))
            if (
                (function == "torch.load" and options.get("weights_only") != "True")
                or (loads and options.get("allow_pickle", "False") != "False")
                or (model and options.get("trust_remote_code") != "False")
                or function.endswith("read_pickle")
                or function in ("eval", "exec")
            ):
                found.append(broken(path, call.lineno, f"{function}() may run foreign code"))
    assert found == []


def test_global_random_state_is_left_alone() -> None:
    """Randomness comes from generators that are passed in; only training may seed the process."""
    banned = ("torch.manual_seed", "np.random.seed", "random.seed")
    found = [
        broken(path, call.lineno, function)
        for path in FILES
        if room_of(path) in (*CORE, "objective")
        for call, function in calls_of(path)
        if function in banned
    ]
    assert found == []


def public_names() -> list[tuple[str, str]]:
    found = []
    for path in FILES:
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for node in TREES[path].body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                found += [(module, name) for name in ast.literal_eval(node.value)]
    return found


PUBLIC = public_names()


def test_every_room_says_what_is_public() -> None:
    rooms = {module for module, _ in PUBLIC}
    for room in ("", *(f".{name}" for name in CORE)):
        assert f"gloss_graph{room}" in rooms


def test_public_names_exist_and_are_documented() -> None:
    found = []
    for module, name in PUBLIC:
        try:
            value = getattr(importlib.import_module(module), name)
        except ImportError:
            if not module.startswith("gloss_graph.adapters"):
                raise
            continue  # of a library that is not installed
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            continue  # a constant
        # The text that `NamedTuple` and `dataclass` generate is no documentation.
        written = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
        if not written:
            found.append(f"{module}.{name} has no docstring")
        elif written.startswith(f"{name}("):
            found.append(f"{module}.{name} has a generated docstring only")
        elif not written.strip().splitlines()[0].endswith((".", ":", "?")):
            found.append(f"{module}.{name} does not start with one sentence")
    assert found == []


def test_public_names_are_sorted_and_unique() -> None:
    for module in {module for module, _ in PUBLIC}:
        names = [name for other, name in PUBLIC if other == module]
        assert len(names) == len(set(names)), module


def test_the_package_is_typed_and_versioned() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert gloss_graph.__version__.count(".") == 2
    assert set(gloss_graph.__all__) <= set(dir(gloss_graph))
