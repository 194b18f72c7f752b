"""Shared fixtures: one generator, the real corpora, no network."""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from hypothesis import HealthCheck, settings

# No deadline (shared machines), the same examples in every run, and no files left behind.
settings.register_profile(
    "gloss_graph",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
# Fresh examples: HYPOTHESIS_PROFILE=explore pytest tests/properties
settings.register_profile("explore", parent=settings.get_profile("gloss_graph"), derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gloss_graph"))

SHARED = Path(__file__).resolve().parents[2] / "shared"


# No test cuts the power, and a killed process loses nothing that it has written.
os.fsync = lambda _: None

# A study thaws what it froze at its end; what `pytest_runtest_setup` froze is to stay so.
gc.unfreeze = lambda: None

_LOADED = [0]


def pytest_runtest_setup() -> None:
    """Trainings and trials end with a full garbage collection; it need not walk the libraries."""
    if len(sys.modules) > _LOADED[0]:
        _LOADED[0] = len(sys.modules) + 20
        gc.collect()
        gc.freeze()


@pytest.fixture
def generator() -> torch.Generator:
    """The one source of randomness of a test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real corpora; tests that need it are skipped where it is absent."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip(f"real corpora not found at {folder}")
    return folder


@pytest.fixture(scope="session")
def parity_file() -> Path:
    """Values computed with the paper's released code."""
    file = SHARED / "reference" / "gloss_parity.npz"
    if not file.is_file():
        pytest.skip(f"parity values not found at {file}")
    return file
