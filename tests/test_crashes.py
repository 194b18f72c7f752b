"""Killed, run twice at once or out of room: what was whole stays whole, nothing is mixed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).resolve().parent
COMMANDS = ["train", "text-gcn", "bert-gcn", "graph", "evaluate", "tune", "demo", "predict"]
SAVES = ["report", "MemoryBank.save", "TextClassifier.save", "FeatureEncoder.save"]
# Kills a command in the slow tests; pairs and disks are a third and a tenth of it.
KILLS = int(os.environ.get("CRASH_KILLS", "60"))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def tried(kind: str, count: int, names: list[str]) -> dict[str, Any]:
    paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "MPLBACKEND": "Agg",
    }
    words = [sys.executable, "-W", "ignore", str(TESTS / "crash.py"), kind, str(count), *names]
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def check(found: dict[str, Any], *, disturbed: bool = True) -> None:
    assert {name: result["wrong"] for name, result in found.items()} == {name: [] for name in found}
    if disturbed:  # else nothing was tried
        assert all(result["disturbed"] for result in found.values()), found


def test_killed_it_goes_through_the_next_time_and_two_at_once_never_mix() -> None:
    check(tried("both", 1, ["graph", "MemoryBank.save"]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*COMMANDS, *SAVES])
def test_killed_many_times(name: str) -> None:
    check(tried("kills", KILLS, [name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", SAVES)
def test_a_save_killed_at_every_write(name: str) -> None:
    check(tried("kills", 0, [name]))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*COMMANDS, *SAVES])
def test_many_pairs_on_one_folder(name: str) -> None:
    check(tried("pairs", max(1, KILLS // 3), [name]), disturbed=False)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root mounts the disk")
@pytest.mark.parametrize("name", [*COMMANDS, *SAVES])
def test_a_full_disk_is_named_and_room_is_all_it_takes(name: str) -> None:
    check(tried("full", max(1, KILLS // 10), [name]))
