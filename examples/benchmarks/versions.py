"""The step of two versions of this project by turns, each in a process of its own."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from made import bank_state, clustered, clusters_for_links

if TYPE_CHECKING:
    from stages import StageSettings

# Uses only what every version has: the constructors, `load_state_dict` and the call itself.
_WORKER = """
import sys, time, torch
from gloss_graph import GraphGuidedObjective, MemoryBank
file, threads = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(threads)
made = torch.load(file, weights_only=True)
settings, x, y = made["settings"], made["x"], made["y"]
bank = None
if settings["bank"]:
    bank = MemoryBank(settings["bank"], x.size(1), k=settings["k"], search=settings["search"])
    bank.load_state_dict(made["bank"])
objective = GraphGuidedObjective(
    settings["classes"], memory=bank, k=settings["k"],
    visible_fraction=0.0 if settings["bank"] else 0.7, bandwidth="sqrt",
)
generator = torch.Generator().manual_seed(1)
print("ready", flush=True)
for line in sys.stdin:
    ids = torch.randperm(len(x), generator=generator)[: settings["batch"]]
    noise = torch.randn(len(ids), x.size(1), generator=generator)
    rows = (x[ids] + 0.002 * noise).requires_grad_()
    start = time.perf_counter()
    objective(rows, y[ids], ids=ids).backward()
    print(time.perf_counter() - start, flush=True)
"""


class _Version:
    """A process that runs steps of the package in `folder` when asked."""

    def __init__(self, folder: Path, file: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _WORKER, file, str(torch.get_num_threads())],
            env={**os.environ, "PYTHONPATH": str(folder)},
            cwd=file.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._answer(folder)

    def step(self) -> float:
        print(file=self.process.stdin, flush=True)
        return float(self._answer())

    def close(self) -> None:
        self.process.communicate()

    def _answer(self, folder: Path | None = None) -> str:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if not line:
            raise SystemExit(f"The step failed in the checkout {folder or ''}.")
        return line


def compare_versions(other: Path, settings: StageSettings, warm: int = 3) -> pd.DataFrame:
    """Median milliseconds of a step here and in the checkout `other`, and their ratio.

    Returns:
        Columns `dim`, `bank`, `this ms`, `other ms`, `this / other` (the median over the rounds of
        the ratio within a round), `low` and `high`, its quartiles.
    """
    if not (other / "gloss_graph" / "__init__.py").is_file():
        raise ValueError(f"'against' must be a checkout of this project (got {other}).")
    here = Path(__file__).resolve().parents[2]
    rows = []
    for dim in settings.dims:
        for bank in settings.banks:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "step.pt"
                torch.save(_made(bank, dim, settings), file)
                versions = [_Version(here, file), _Version(other.resolve(), file)]
                taken: list[tuple[float, float]] = []
                for number in range(settings.repeats + warm):
                    order = (0, 1) if number % 2 else (1, 0)
                    spent = {which: versions[which].step() for which in order}
                    if number >= warm:
                        taken.append((spent[0], spent[1]))
                for version in versions:
                    version.close()
            ratios = [first / second for first, second in taken]
            low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else 3 * ratios
            this, that = (1e3 * statistics.median(part) for part in zip(*taken, strict=True))
            row = {"dim": dim, "bank": bank, "this ms": this, "other ms": that}
            rows.append(row | {"this / other": middle, "low": low, "high": high})
    return pd.DataFrame(rows)


def _made(bank: int, dim: int, settings: StageSettings) -> dict[str, object]:
    count = max(bank, 4 * settings.batch)
    many = clusters_for_links(count)
    x, y, clusters = clustered(count, dim, settings.classes, seed=bank, clusters=many)
    known = torch.rand(count, generator=torch.Generator().manual_seed(2)) < settings.labeled
    numbers = {"bank": bank, "k": settings.k, "batch": settings.batch}
    made: dict[str, object] = {"x": x, "y": y}
    made["settings"] = numbers | {"classes": settings.classes, "search": settings.search}
    if bank:
        made["bank"] = bank_state(x, torch.where(known, y, -1), clusters, settings.k)
    return made
