"""The small corpus the scripts of examples/ are run on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from scripts import ENDINGS, EXAMPLES, TOPICS

sys.path.insert(0, str(EXAMPLES / "benchmarks"))  # the parts that benchmarks share


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Sixty labeled texts of three topics."""
    rows = [
        f"{start} {end},{topic}" for topic in TOPICS for start in TOPICS[topic] for end in ENDINGS
    ]
    path = tmp_path / "texts.csv"
    path.write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return path
