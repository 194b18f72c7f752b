"""Run folders: new or empty, written file by file, each complete or absent."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gloss_graph._files import atomic_write


def new_folder(out: str | Path) -> Path:
    """Make `out`, refusing a folder that holds anything.

    Raises:
        FileExistsError: It exists and is not empty.
        PermissionError: It cannot be written.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(
            f"'out' must be a new or empty folder ({out} holds files). Choose another name or "
            "remove it."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise PermissionError(f"'out' cannot be written ({out}: {error.strerror}).") from error
    return out


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically; NaN becomes null."""
    plain = {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in content.items()
    }
    text = json.dumps(plain, indent=2) + "\n"
    with atomic_write(file, overwrite=True) as draft:
        draft.write(text.encode())
