"""Folders with one owner at a time, whose files are whole or not there.

A folder written at one go, as a saved model, is made next to its place and swapped with the old
one (`whole_folder`). A folder that a command works on for long has its place from the start:
`claim` locks it, gives a draft folder to fill, and at the end moves everything up, the file that
marks it as whole last. A folder that stays open, as that of a search, is only locked (`hold`).
"""

from __future__ import annotations

import ctypes
import errno
import glob
import json
import math
import os
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from gloss_graph._internal.files import (
    HELD,
    atomic_write,
    clear_drafts,
    draft_beside,
    full_disk_named,
    is_draft,
    keep_from_children,
    let_go,
    remove,
    share_lock,
    sync_folder,
    try_lock,
    utf8_folder,
)

#: Locked while a folder has an owner; says who, and which names it is about to write.
_LOCK = ".gloss-graph.lock"
#: What a command fills.
_DRAFT = ".gloss-graph.draft"
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS
_HERE = -100  # AT_FDCWD
_PATIENCE = 30.0  # seconds


class Claim(NamedTuple):
    """A folder that this process owns."""

    #: Where to write; everything in it goes to the folder at the end.
    draft: Path
    #: Whether an earlier run of the same command did not finish here.
    interrupted: bool


def check_folder(out: str | Path, command: str, *, marker: str, work: Sequence[str] = ()) -> None:
    """Refuse early what `claim` would refuse, and clear what a killed process left there."""
    out = Path(out)
    if out.exists():
        with _owner(out):
            try:
                _leftovers(out, command, marker, work)
            finally:
                if not _record(out):
                    _clean(out)
        return
    place = next(parent for parent in out.absolute().parents if parent.exists())
    if not place.is_dir():
        raise _forbidden(out, os.strerror(errno.ENOTDIR))
    if not os.access(place, os.W_OK | os.X_OK):
        raise _forbidden(out, os.strerror(errno.EACCES))


@contextmanager
def claim(
    out: str | Path, command: str, *, marker: str, work: Sequence[str] = (), resume: bool = False
) -> Iterator[Claim]:
    """Own a new folder while the block fills it; it is finished when the block ends well.

    Files go into `Claim.draft` and from there to `out` at the end, `marker` last: a folder with it
    is whole. Names in `work` the block writes into `out` itself, to `resume` from after an
    interruption; they are removed before the folder is whole. Leftovers of an interrupted run of
    the same command are removed first; other content raises a FileExistsError. BlockingIOError if
    another process owns the folder.
    """
    out = Path(out)
    with _owner(out) as number, full_disk_named(out):
        interrupted = _record(out).get("command") == command
        begun = _leftovers(out, command, marker, work)
        clear_drafts(out)
        _clean(out, [name for name in begun if not (resume and name in work)], keep_lock=True)
        try:
            _note(number, command)
            draft = out / _DRAFT
            draft.mkdir()
            yield Claim(utf8_folder(draft), bool(begun or interrupted))
            _publish(number, command, out, marker, work)
        finally:
            _clean(out)


@contextmanager
def hold(out: str | Path, command: str) -> Iterator[None]:
    """Own a folder whose files are written one by one, each whole; raises as `claim`."""
    out = Path(out)
    with _owner(out) as number, full_disk_named(out):
        try:
            clear_drafts(out)
            _note(number, command)
            yield
        finally:
            _clean(out)


@contextmanager
def join(
    out: str | Path,
    command: str,
    crowd: Path,
    *,
    same: Callable[[], bool],
    begin: Callable[[], object],
) -> Iterator[None]:
    """Work in a folder together with all processes that do the same and lock the file `crowd`.

    If the folder does not describe the `same` work yet, `begin` describes it there; BlockingIOError
    if others are at work on something else.
    """
    number = os.open(crowd, os.O_RDWR | os.O_CREAT, 0o666)
    keep_from_children(number)
    try:
        # One at a time decides; leaving needs no turn.
        with ExitStack() as turn:
            patience = time.monotonic() + _PATIENCE
            while time.monotonic() < patience:
                with suppress(BlockingIOError):
                    turn.enter_context(hold(out, command))
                    break
                time.sleep(0.02)
            else:
                raise _owned(Path(out))
            if not same():
                if try_lock(number) == HELD:
                    raise BlockingIOError(
                        f"'out' must be of one study at a time ({out} is being written by another "
                        "process for a study with other settings). Wait until it ends, or choose "
                        "another folder."
                    )
                begin()
            share_lock(number)
        yield
    finally:
        let_go(number)


@contextmanager
def whole_folder(folder: str | Path, marker: str) -> Iterator[Path]:
    """Fill a hidden new folder that takes the place of `folder` only when it is complete.

    The two are exchanged in one step if the system can (Linux, macOS). Elsewhere the old one is
    moved away first; a reader in between finds the new one by `newest_whole`, and the next writer
    puts it in its place. The file `marker`, which the block writes too, tells a folder of ours,
    which may be replaced, from a foreign one.
    """
    folder = Path(folder).expanduser().resolve()
    foreign = folder.exists() and not (folder / marker).is_file()
    if foreign and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"'folder' must be new, empty or written by this method before ({folder} holds "
            "something else). Choose another folder; this one is left as it is."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with draft_beside(folder) as (_, fresh), full_disk_named(folder):
        fresh.mkdir()
        yield fresh
        # Safetensors writes files that only their owner may read, whatever the umask is.
        rights = stat.S_IMODE((fresh / marker).stat().st_mode)
        for file in fresh.glob("*.safetensors"):
            file.chmod(rights)
        sync_folder(fresh, deep=True)
        swap(fresh, folder)
        sync_folder(folder.parent)


def newest_whole(folder: str | Path) -> Path:
    """Where to read a folder of `whole_folder`: its place, or, with a warning, next to it."""
    folder = Path(folder).expanduser()
    if folder.exists():
        return folder
    olds = sorted(folder.parent.glob(f".{glob.escape(folder.name)}.*.old"))
    if not olds:
        return folder
    fresh = olds[0].with_suffix(".new")
    found = fresh if fresh.exists() else olds[0]
    warnings.warn(
        f"The writer of {folder} stopped while it was replaced; {found} is read, which is whole. "
        "Save again to put it in its place.",
        UserWarning,
        stacklevel=3,
    )
    return found


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder for the time of the block; folders of killed processes are removed."""
    user = f"-{os.getuid()}" if hasattr(os, "getuid") else ""
    with draft_beside(Path(tempfile.gettempdir(), f"gloss-graph{user}")) as (_, fresh):
        fresh.mkdir(mode=0o700)
        yield fresh


def check_content(out: Path, *, known: Sequence[str] = ()) -> None:
    """Refuse a folder that holds anything but drafts and `known` names; it may be missing."""
    if out.exists() and (not out.is_dir() or _content(out) - {*known}):
        raise _used(out)


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically; NaN becomes null."""
    plain = {
        key: None if isinstance(value, float) and math.isnan(value) else value
        for key, value in content.items()
    }
    with atomic_write(file, overwrite=True) as draft:
        draft.write(f"{json.dumps(plain, indent=2)}\n".encode())


@contextmanager
def _owner(out: Path) -> Iterator[int]:
    """The lock file of a folder, made with the folder; a folder that stays empty is given back."""
    made = not out.exists()
    number = _locked(out)
    try:
        yield number
    finally:
        # While the lock is held no other process can have begun.
        if made:
            with suppress(OSError):
                out.rmdir()
        let_go(number)


def _locked(out: Path) -> int:
    while True:
        try:
            out.mkdir(parents=True, exist_ok=True)
            number = os.open(out / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # given back by another just now
            continue
        except FileExistsError:
            raise _used(out) from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _forbidden(out, error.strerror) from error
        if try_lock(number) == HELD:
            os.close(number)
            raise _owned(out)
        # The owner before may have removed it in between.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(number), os.stat(out / _LOCK)):
                keep_from_children(number)
                return number
        os.close(number)


def _note(number: int, command: str, names: Sequence[str] = ()) -> None:
    """Write who owns the folder, and which names it is about to put there."""
    content = json.dumps({"command": command, "process": os.getpid(), "names": names})
    os.ftruncate(number, 0)
    os.lseek(number, 0, os.SEEK_SET)
    os.write(number, content.encode())
    os.fsync(number)


def _record(out: Path) -> dict[str, Any]:
    """The note of the last owner; empty if it finished."""
    try:
        found = json.loads((out / _LOCK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _content(out: Path) -> set[str]:
    return {name for name in os.listdir(out) if name not in (_LOCK, _DRAFT) and not is_draft(name)}


def _leftovers(out: Path, command: str, marker: str, work: Sequence[str]) -> list[str]:
    """Names that an interrupted run of the same command left; other content is refused.

    A run that was killed at its very end is cleaned up after.
    """
    record, content = _record(out), _content(out)
    same = record.get("command") == command
    if marker in content or content - {*work, *(record.get("names", ()) if same else ())}:
        if not record or (same and marker in content):
            _clean(out, work if record else ())
        raise _used(out)
    return sorted(content)


def _publish(number: int, command: str, out: Path, marker: str, work: Sequence[str]) -> None:
    draft = out / _DRAFT
    sync_folder(draft, deep=True)
    # The order of names is nothing but repeatable.
    names = sorted(name for name in os.listdir(draft) if not is_draft(name))
    names.remove(marker)
    _note(number, command, [*names, marker])
    try:
        for name in names:
            os.rename(draft / name, out / name)
        # A whole folder never shows them, however long it takes to remove them.
        for name in work:
            with suppress(FileNotFoundError):
                os.rename(out / name, draft / name)
        sync_folder(out)
        os.rename(draft / marker, out / marker)
        sync_folder(out)
    except BaseException:
        if not (out / marker).exists():
            # Those that were moved are in the draft no more.
            for name in names:
                if not (draft / name).exists():
                    remove(out / name)
        raise


def _clean(out: Path, names: Sequence[str] = (), *, keep_lock: bool = False) -> None:
    for name in (*names, _DRAFT, *(() if keep_lock else (_LOCK,))):
        remove(out / name)


def swap(fresh: Path, folder: Path) -> None:
    """Put a whole folder in the place of another, which is then in that of `fresh` or `.old`."""
    old = fresh.with_suffix(".old")
    while True:
        try:
            return os.rename(fresh, folder)  # nothing or an empty folder was there
        except OSError:
            if not folder.is_dir():
                raise
        if _exchanged(fresh, folder):
            return None
        with suppress(FileNotFoundError):  # another process has just moved it
            os.rename(folder, old)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether the system could exchange two names in one step."""
    system: Any = None if os.name == "nt" else ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if hasattr(system, "renameat2"):
        return system.renameat2(_HERE, names[0], _HERE, names[1], _EXCHANGE) == 0
    if hasattr(system, "renamex_np"):
        return system.renamex_np(*names, _EXCHANGE) == 0
    return False


def _used(out: Path) -> FileExistsError:
    return FileExistsError(
        f"'out' must be a new or empty folder ({out} holds files). Choose another name or "
        "remove it."
    )


def _owned(out: Path) -> BlockingIOError:
    record = _record(out)
    known = f"process {record.get('process')}, gloss-graph {record.get('command')}"
    return BlockingIOError(
        f"'out' must have one writer at a time ({out} is being written by "
        f"{known if record else 'another process'}). Wait until it ends, or choose another folder."
    )


def _forbidden(out: Path, reason: str | None) -> PermissionError:
    return PermissionError(f"'out' cannot be written ({out}: {reason}).")
