"""Results on disk: one file of JSON lines a process, and claims that say who runs what."""

from __future__ import annotations

import json
import math
import os
import platform
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, TextIO

import psutil

from gloss_graph._internal.limits import load_json

__all__ = ["TrialStore"]

# A claim of another machine without a sign of life for so long counts as abandoned.
_SILENT_SECONDS = 120.0
# A claim without content: its owner is about to write it, or was killed before it could.
_EMPTY_SECONDS = 5.0
# Claims that processes of this interpreter hold, by store.
_LIVE: set[str] = set()


class TrialStore:
    """Rows of finished trials in a folder that several processes write to at once.

    Every process appends to a file of its own, a line a trial, forced to the disk; a last line
    that a killed process left torn is ignored. A trial is claimed by creating a file, which one
    process alone can do. Claim number n + 1 of a trial can be made only when the owner of claim n
    is dead, and rows are written before their owner dies, so that a trial is neither lost nor run
    twice.

    Args:
        folder: Of the study; made if it is missing.

    Raises:
        OSError: The folder cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, TrialStore(folder) as store:
        ...     claimed = store.claim("trial-a"), store.claim("trial-a")
        ...     store.append({"id": "trial-a", "status": "ok"})
        ...     claimed, sorted(store.rows())
        ((0, None), ['trial-a'])
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._rows, self._claims = self.folder / "trials", self.folder / "claims"
        for place in (self._rows, self._claims):
            place.mkdir(parents=True, exist_ok=True)
        self._token = secrets.token_hex(6)
        _LIVE.add(self._token)
        process = psutil.Process()
        self._owner = {
            "host": platform.node(),
            "pid": process.pid,
            "born": process.create_time(),
            "token": self._token,
        }
        self._file: TextIO | None = None
        self._held: dict[str, Path] = {}
        # File -> bytes and lines read so far.
        self._read: dict[Path, tuple[int, int]] = {}
        self._found: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> TrialStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop writing; claims of trials that have not ended are given back."""
        for trial in list(self._held):
            self.release(trial)
        _LIVE.discard(self._token)
        if self._file is not None:
            self._file.close()
            self._file = None

    # ------------------------------------------------------------------ rows

    def append(self, row: Mapping[str, Any]) -> None:
        """Write the row of a trial, whole and for good; the claim stays."""
        if self._file is None:
            name = f"{platform.node()}-{os.getpid()}-{self._token}.jsonl"
            self._file = (self._rows / name).open("x", encoding="utf-8")
        self._file.write(json.dumps(encoded(row), allow_nan=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._held.pop(str(row["id"]), None)

    def rows(self) -> Mapping[str, dict[str, Any]]:
        """Trial id -> its row, of all processes; of a trial tried again the latest attempt.

        A view that later calls fill. Cost: reading what was written since the call before.

        Raises:
            ValueError: A line that is no row, other than a torn last one.
        """
        for file in sorted(self._rows.glob("*.jsonl")):
            for row in self._new_rows(file):
                older = self._found.get(row["id"])
                if older is None or older.get("attempt", 0) <= row.get("attempt", 0):
                    self._found[row["id"]] = row
        return MappingProxyType(self._found)

    def _new_rows(self, file: Path) -> list[dict[str, Any]]:
        """Rows of a file, which only grows, that were not read before."""
        done, lines = self._read.get(file, (0, 0))
        with file.open("rb") as source:
            source.seek(done)
            content = source.read()
        rows = []
        whole, newline, _ = content.rpartition(b"\n")
        if newline:
            for number, line in enumerate(whole.split(b"\n"), lines + 1):
                try:
                    row = decoded(load_json(line))
                    _check_row(row)
                except (ValueError, RecursionError) as error:
                    raise ValueError(
                        f"{file} must hold a row of a trial in every line (line {number}: {error})."
                        " Remove the line; its trial is done again."
                    ) from error
                rows.append(row)
            self._read[file] = (done + len(whole) + 1, lines + len(rows))
        return rows

    # ------------------------------------------------------------------ claims

    def claim(self, trial: str, *, after: int = -1) -> int | None:
        """Take a trial, or learn that somebody alive has it.

        Args:
            trial: Its id.
            after: Number of a claim that ended in a row which shall be replaced.

        Returns:
            The number of the claim, counted from 0, or None. Look at `rows` again before running:
            the one before may have died after its last line.
        """
        number = after + 1
        while (file := self._claims / f"{trial}.{number}").exists():
            if self._alive(file):
                return None
            number += 1
        # A link and not a file opened for writing: nobody meets a claim without content.
        draft = self._claims / f".{trial}.{self._token}"
        draft.write_text(json.dumps(self._owner), encoding="utf-8")
        try:
            try:
                os.link(draft, file)
            except FileExistsError:
                return None
            except OSError:  # no links on this file system
                try:
                    with file.open("x", encoding="utf-8") as handle:
                        handle.write(json.dumps(self._owner))
                except FileExistsError:
                    return None
        finally:
            draft.unlink(missing_ok=True)
        self._held[trial] = file
        return number

    def release(self, trial: str) -> None:
        """Give a trial back that did not end."""
        file = self._held.pop(trial, None)
        if file is not None:
            file.unlink(missing_ok=True)

    def beat(self) -> None:
        """Sign of life of the claims this process holds, for other machines."""
        for file in list(self._held.values()):
            with suppress(OSError):
                os.utime(file)

    def _alive(self, claim: Path) -> bool:
        try:
            silent = time.time() - claim.stat().st_mtime
            owner = json.loads(claim.read_text(encoding="utf-8") or "{}")
        except FileNotFoundError:  # given back just now
            return True
        except ValueError:
            owner = {}
        if not isinstance(owner, dict) or not owner:
            return silent < _EMPTY_SECONDS
        if owner.get("host") != self._owner["host"]:
            return silent < _SILENT_SECONDS
        if owner.get("pid") == self._owner["pid"] and owner.get("born") == self._owner["born"]:
            return owner.get("token") in _LIVE
        return _runs(int(owner.get("pid", -1)), float(owner.get("born", 0.0)))


def _check_row(row: Any) -> None:
    """Refuse a row without identity, or with a part of another kind than `Runner` writes."""
    if not isinstance(row, dict):
        raise ValueError("it holds no object")
    for key in ("id", "status"):
        if not isinstance(row.get(key), str):
            raise ValueError(f"{key!r} must be a word")
    for key in ("arm", "config", "metrics", "versions", "identity"):
        if not isinstance(row.get(key, {}), dict):
            raise ValueError(f"{key!r} must be an object")
    for key in ("seed", "attempt"):
        if not isinstance(row.get(key, 0), int) or isinstance(row.get(key, 0), bool):
            raise ValueError(f"{key!r} must be a whole number")
    for key, value in {
        "seconds": row.get("seconds", 0.0),
        "peak_memory_mb": row.get("peak_memory_mb", 0.0),
        **{f"metrics.{name}": value for name, value in row.get("metrics", {}).items()},
    }.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            raise ValueError(f"{key!r} must be a number")
    unread = row.get("unread", [])
    if not isinstance(unread, list) or not all(isinstance(name, str) for name in unread):
        raise ValueError("'unread' must be a list of names")
    for key in ("error", "traceback", "cost", "started", "finished"):
        if not isinstance(row.get(key, ""), str):
            raise ValueError(f"{key!r} must be a word")


def _runs(pid: int, born: float) -> bool:
    """Whether a process is alive, and not another one with its number."""
    try:
        process = psutil.Process(pid)
        # Clocks that are set meanwhile move the time of birth.
        same = abs(process.create_time() - born) < 2.0
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.AccessDenied:
        return True
    except psutil.Error:
        return False


def encoded(value: Any) -> Any:
    """The value for JSON, which has no NaN; none may vanish, so they become strings."""
    if isinstance(value, Mapping):
        return {str(key): encoded(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [encoded(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    return value


def decoded(value: Any) -> Any:
    """What `encoded` was made from."""
    if isinstance(value, dict):
        if value.keys() == {"float"} and value["float"] in ("nan", "inf", "-inf"):
            return float(value["float"])
        return {key: decoded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [decoded(inner) for inner in value]
    return value
