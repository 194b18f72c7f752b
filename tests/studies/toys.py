"""Functions that cost nothing, at module level so that other processes find them."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from gloss_graph.studies import Study

FACTORS = {"rate": [1, 2, 3, 4], "size": [10, 20, 30]}


def score(config: dict[str, Any], seed: int) -> dict[str, float]:
    return {"score": config["rate"] * 10 + config["size"] / 10 + seed, "loss": 1 / config["rate"]}


class Logged:
    """The same, slower, and every call that ends leaves a line in a file."""

    name = "logged"

    def __init__(self, log: Path, seconds: float = 0.02) -> None:
        self.log, self.seconds = log, seconds

    def __call__(self, config: dict[str, Any], seed: int) -> dict[str, float]:
        time.sleep(self.seconds)
        found = score(config, seed)
        line = f"{config['rate']} {config['size']} {seed} {os.getpid()}\n"
        descriptor = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, line.encode())
        os.close(descriptor)
        return found


def study(run: Any = score, **changes: Any) -> Study:
    settings: dict[str, Any] = {"factors": FACTORS, "run": run, "seeds": 3}
    return Study(**{**settings, **changes})


def work(folder: str, log: str, seconds: float) -> None:
    """Body of a worker process."""
    study(Logged(Path(log), seconds)).run(folder, progress=False)
