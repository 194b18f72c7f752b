"""Which files a run is made of, by what they hold: parts of two runs must not be mixed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gloss_graph.text.checkpoints import file_digest

#: Key in `config.json`.
CONTENTS = "contents"
_PARTS = ("model", "memory")


def run_contents(folder: Path) -> dict[str, str]:
    """File -> digest of the model and the memory in a run folder.

    Cost: reading them once.
    """
    files = (file for part in _PARTS for file in sorted(folder.glob(f"{part}/*")))
    return {
        file.relative_to(folder).as_posix(): file_digest(file) for file in files if file.is_file()
    }


def check_contents(folder: Path, settings: Mapping[str, Any]) -> None:
    """Refuse a run folder whose model or memory is not the one its `config.json` was written with.

    Runs of older versions say nothing of their files and are not checked.

    Raises:
        ValueError: Names the file.
    """
    recorded = settings.get(CONTENTS, {})
    if not isinstance(recorded, Mapping):
        raise ValueError(f"{folder / 'config.json'} must hold an object under {CONTENTS!r}")
    for name, digest in recorded.items():
        file = folder / name
        if not file.is_file():
            raise ValueError(f"{file} is missing")
        if file_digest(file) != digest:
            raise ValueError(
                f"{file} is damaged or of another run: it is not the file that training wrote"
            )
