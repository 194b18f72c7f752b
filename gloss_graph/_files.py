"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["atomic_path", "atomic_write", "utf8_folder"]


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its name only once it is complete.

    The bytes go to a hidden neighbour in the same folder, which replaces ``path`` when the block
    ends well and is removed when it does not. A reader never meets half a file, and an older
    file survives a failed rewrite.

    Args:
        path: where the file shall appear; its folder must exist.
        overwrite: replace a file that is already there.

    Yields:
        The open binary handle.

    Raises:
        FileExistsError: if ``path`` exists and ``overwrite`` is false.
        IsADirectoryError: if ``path`` is a folder.
        OSError: of the fitting kind if the folder is missing or cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_write(Path(folder) / "note.txt") as handle:
        ...         _ = handle.write(b"whole")
        ...     [file.name for file in Path(folder).iterdir()]
        ['note.txt']
    """
    target = Path(path)
    _check_free(target, overwrite)
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        # "xb" and not tempfile: the finished file gets the permissions of the user's umask.
        handle = draft.open("xb")
    except OSError as error:
        raise _explained(error, target) from error
    try:
        with handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        _check_free(target, overwrite)
        draft.replace(target)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """As `atomic_write`, for libraries that want a name and may put a file of their own there.

    Safetensors does, one that only its owner may read: it gets the rights of the user's umask.

    Yields:
        Where to write.
    """
    with atomic_write(path, overwrite=overwrite) as draft:
        rights = stat.S_IMODE(os.fstat(draft.fileno()).st_mode)
        yield Path(draft.name)
        os.chmod(draft.name, rights)
        # The handle may be that of the file which was replaced.
        with open(draft.name, "rb+") as written:
            os.fsync(written.fileno())


def utf8_folder(folder: Path) -> Path:
    """A folder under a name in UTF-8, the only names that safetensors takes.

    Where the name is none, as in old archives, an existing folder is named by a descriptor. The
    descriptor and the name live as long as the process.
    """
    try:
        os.fspath(folder).encode()
    except UnicodeEncodeError:
        if not folder.is_dir():
            return folder
        return Path(f"/proc/self/fd/{os.open(folder, os.O_RDONLY | os.O_DIRECTORY)}")
    return folder


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
    """Rewrite the error of opening the draft so that it speaks of the user's path.

    ``OSError(errno, ...)`` picks the subclass (PermissionError, FileNotFoundError, ...) itself.
    """
    folder = target.parent
    if not folder.exists():
        advice = f"The folder '{folder}' does not exist. Create it first"
    elif not folder.is_dir():
        advice = f"'{folder}' is not a folder. Choose another path"
    else:
        reason = error.strerror or str(error)
        advice = f"Cannot write into the folder '{folder}' ({reason}). Choose another"
    return OSError(error.errno or errno.EIO, advice, str(target))
