"""Runs a script of examples/ in this process: its imports are paid for once, not once per test."""

from __future__ import annotations

import contextlib
import io
import os
import re
import runpy
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(
    path.relative_to(EXAMPLES).as_posix()
    for path in EXAMPLES.rglob("*.py")
    if "\nif __name__ ==" in path.read_text(encoding="utf-8")
)

TOPICS = {
    "tea": ("green tea", "a cup of black tea", "the tea pot", "herbal infusion"),
    "trains": ("the night train", "a railway station", "the express", "an old locomotive"),
    "weather": ("heavy rain", "a clear sky", "strong wind from the west", "morning fog"),
}
ENDINGS = (
    "was there yesterday",
    "came late",
    "is what we talked about",
    "will be back soon",
    "surprised everyone",
)


def run(script: str, *arguments: str, folder: Path) -> str:
    """What `python script arguments` prints in `folder`; a warning is a failure."""
    printed = io.StringIO()
    with (
        fresh_process(script, arguments, folder),
        contextlib.redirect_stdout(printed),
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.resetwarnings()
        for hidden in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning):
            warnings.simplefilter("ignore", hidden)  # as Python does
        try:
            runpy.run_path(str(EXAMPLES / script), run_name="__main__")
        except SystemExit as stop:
            if stop.code:
                raise
    assert [str(warning.message) for warning in caught] == []
    return printed.getvalue()


@contextlib.contextmanager
def fresh_process(script: str, arguments: tuple[str, ...], folder: Path) -> Iterator[None]:
    """What a script may change in a process is restored afterwards."""
    path, argv, here = list(sys.path), sys.argv, Path.cwd()
    environment, threads, modules = dict(os.environ), torch.get_num_threads(), set(sys.modules)
    beside = (EXAMPLES / script).parent
    sys.path.insert(0, str(beside))
    sys.argv = [str(EXAMPLES / script), *arguments]
    os.environ["TMPDIR"] = str(folder)
    tempdir, tempfile.tempdir = tempfile.tempdir, None
    os.chdir(folder)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        os.chdir(here)
        tempfile.tempdir = tempdir
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:], sys.argv = path, argv
        torch.set_num_threads(threads)
        for name in set(sys.modules) - modules:  # modules in the folder of the script
            file = getattr(sys.modules[name], "__file__", None)
            if file and Path(file).parent == beside:
                del sys.modules[name]


def number(pattern: str, output: str) -> float:
    found = re.search(pattern, output)
    assert found, f"{pattern!r} not in:\n{output}"
    return float(found.group(1).replace(",", ""))
