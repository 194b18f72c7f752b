"""Shared fixtures: one generator, the real corpora, no network."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


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
