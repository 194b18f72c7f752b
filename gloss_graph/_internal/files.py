"""Files that appear whole or not at all, and locks that die with their process."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# Of `.NAME.TOKEN.KIND`: `part` is locked while its writer lives, `new` and `old` go with it.
_DRAFT = re.compile(r"\.(?P<name>.+)\.(?P<token>[0-9a-f]{8})\.(?P<kind>part|new|old)")
_FULL_ADVICE = (
    "No space left on the disk. Free some and run the same again; nothing half-written was kept"
)
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
# Libraries that write by themselves say it in words: Rust's, SQLite's, torch's.
_FULL_WORDS = re.compile(
    r"os error 28\b|No space left|disk is full|PytorchStreamWriter|unexpected pos"
)
#: Results of `try_lock`: this process has the lock now, another has it, or the system has none.
TAKEN, HELD, UNKNOWN = "taken", "held", "unknown"
# Open locks that a forked child must not keep alive.
_OPEN: set[int] = set()


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name only once it is complete.

    The bytes go to a hidden file in the same folder, which takes the name when the block ends well
    and is removed when it does not. A reader never meets half a file, and an older file survives a
    failed rewrite. The next write of that name removes what a killed process left.
    """
    with atomic_path(path, overwrite=overwrite) as fresh, fresh.open("xb") as handle:
        yield handle


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Like `atomic_write`, for libraries that take a name; yields where to write.

    Safetensors writes files that only their owner may read: the result follows the user's umask.
    """
    target = Path(path)
    _check_free(target, overwrite)
    with draft_beside(target) as (handle, fresh), full_disk_named(target):
        yield fresh
        os.chmod(fresh, stat.S_IMODE(os.fstat(handle.fileno()).st_mode))
        _sync(fresh)
        _move(fresh, target, overwrite)
        sync_folder(target.parent)


@contextmanager
def draft_beside(target: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A locked hidden file next to `target`, and a free name for another file or folder there.

    Drafts of dead processes are removed first; both names are removed unless they were renamed.
    """
    clear_drafts(target.parent, target.name)
    while True:
        draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        try:
            # "xb" and not tempfile: the finished file gets the permissions of the user's umask.
            handle = draft.open("xb")
        except OSError as error:
            raise _explained(error, target) from error
        # Before it was locked another process may have taken it for a dead one's.
        if try_lock(handle.fileno()) != HELD and draft.exists():
            break
        handle.close()
    fresh = draft.with_suffix(".new")
    try:
        yield handle, fresh
    finally:
        remove(fresh)
        remove(draft.with_suffix(".old"))
        remove(draft)  # last, as the others go with it
        with suppress(OSError):  # a full disk shows once more
            handle.close()


def is_draft(name: str) -> bool:
    """Whether an entry of a folder is a draft, which is no content."""
    return bool(_DRAFT.fullmatch(name))


def clear_drafts(folder: Path, name: str | None = None) -> None:
    """Remove drafts of killed processes from a folder, of one target or of all."""
    try:
        entries = os.listdir(folder)
    except OSError:
        return
    for entry in entries:
        found = _DRAFT.fullmatch(entry)
        if not found or found["kind"] != "part" or name not in (None, found["name"]):
            continue
        draft, target = folder / entry, folder / found["name"]
        fresh, old = draft.with_suffix(".new"), draft.with_suffix(".old")
        with suppress(OSError), draft.open("rb+") as handle:
            if try_lock(handle.fileno()) != TAKEN:
                continue
            # Its writer died between two renames: the new one was whole by then.
            if old.exists() and fresh.exists() and not target.exists():
                fresh.rename(target)
            remove(fresh)
            remove(old)
            remove(draft)


def remove(path: Path) -> None:
    """Remove a file or folder of ours, if it is there and can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


@contextmanager
def full_disk_named(target: str | os.PathLike[str]) -> Iterator[None]:
    """Turn a full disk, whatever the library raised, into an `OSError` that names the target."""
    try:
        yield
    except Exception as error:
        # The innermost has the name of the file.
        if not is_full_disk(error) or getattr(error, "strerror", None) == _FULL_ADVICE:
            raise
        raise OSError(errno.ENOSPC, _FULL_ADVICE, os.fspath(target)) from error


def is_full_disk(error: BaseException) -> bool:
    """Whether a library failed because the disk is full, whatever it raised."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return bool(_FULL_WORDS.search(str(error)))


def sync_folder(folder: Path, *, deep: bool = False) -> None:
    """Force the names in a folder to the disk; with `deep` everything below it."""
    for place, _, files in os.walk(folder) if deep else ():
        for name in (*files, "."):
            _sync(Path(place, name))
    _sync(folder)


def _sync(path: Path) -> None:
    try:
        number = os.open(path, os.O_RDONLY)
    except OSError:  # a folder on Windows, which needs none
        return
    try:
        os.fsync(number)
    except OSError as error:
        # Some file systems sync no folders; a disk that fails must be heard of.
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EROFS):
            raise
    finally:
        os.close(number)


def utf8_folder(folder: Path) -> Path:
    """A folder under a name in UTF-8, the only names that safetensors takes.

    Else an existing folder is named by a descriptor that lives as long as the process.
    """
    try:
        os.fspath(folder).encode()
    except UnicodeEncodeError:
        if folder.is_dir():
            return Path(f"/proc/self/fd/{os.open(folder, os.O_RDONLY | os.O_DIRECTORY)}")
    return folder


def _move(draft: Path, target: Path, overwrite: bool) -> None:
    _check_free(target, overwrite)
    if not overwrite:
        try:
            # Refused if another process was faster; the draft goes later.
            os.link(draft, target)
            return
        except FileExistsError:
            _check_free(target, overwrite)
        except OSError:  # no links on this file system
            pass
    os.replace(draft, target)


def _check_free(target: Path, overwrite: bool) -> None:
    if target.is_dir():
        raise IsADirectoryError(
            errno.EISDIR, "This is a folder. Name a file inside it", str(target)
        )
    if not overwrite and target.exists():
        raise FileExistsError(
            errno.EEXIST, "The file exists. Pass overwrite=True or choose another", str(target)
        )


def _explained(error: OSError, target: Path) -> OSError:
    """The error of opening a draft, about the user's path; `errno` picks the subclass."""
    folder = target.parent
    advice = f"Cannot write into the folder '{folder}' ({error.strerror or error}). Choose another"
    if not folder.exists():
        advice = f"The folder '{folder}' does not exist. Create it first"
    elif not folder.is_dir():
        advice = f"'{folder}' is not a folder. Choose another path"
    return OSError(error.errno or errno.EIO, advice, str(target))


def try_lock(number: int) -> str:
    """Lock an open file descriptor without waiting: `TAKEN`, `HELD`, `UNKNOWN`.

    Closing it gives the lock back, and so does the end of the process, so no lock is ever stale.
    """
    if fcntl is None:
        return UNKNOWN
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return HELD if error.errno in (errno.EAGAIN, errno.EACCES) else UNKNOWN
    return TAKEN


def share_lock(number: int) -> None:
    """Hold the lock of an open file together with others that share it."""
    if fcntl is not None:
        with suppress(OSError):  # a disk without locks
            fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)


def keep_from_children(number: int) -> None:
    """Close a locked file in forked children, which would hold the lock after their parent."""
    _OPEN.add(number)


def let_go(number: int) -> None:
    """Close a locked file, unless this is a child in which it is closed already."""
    if number in _OPEN:
        _OPEN.discard(number)
        os.close(number)


def _close_all() -> None:
    for number in _OPEN:
        os.close(number)
    _OPEN.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all)
