"""Tiny checkpoints, saved as any checkpoint is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from gloss_graph.text.checkpoints import quiet_transformers

from .tiny_models import build_model, build_tokenizer


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a tiny checkpoint of a family; made once per family."""
    made: dict[str, Path] = {}

    def folder_of(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            with quiet_transformers():
                build_model(family).save_pretrained(folder)
                build_tokenizer(family).save_pretrained(folder)
            made[family] = folder
        return made[family]

    return folder_of
