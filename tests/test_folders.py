"""Folders with one owner whose files are whole or not there."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from gloss_graph._internal import folders as _folders
from gloss_graph._internal.files import atomic_path, atomic_write, full_disk_named
from gloss_graph._internal.folders import (
    check_folder,
    claim,
    hold,
    newest_whole,
    scratch_folder,
    whole_folder,
)

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
RUN = {"marker": "done.json", "work": ("checkpoints",)}


def killed_in(action: Callable[[], object]) -> None:
    """Run something in a child that ends by killing itself."""
    child = os.fork()
    if not child:
        action()
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_claimed_folder_is_filled_at_once(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with claim(out, "train", **RUN) as claimed:
        (out / "checkpoints").mkdir()
        (claimed.draft / "model").mkdir()
        (claimed.draft / "model" / "weights").write_text("w")
        (claimed.draft / "done.json").write_text("{}")
        assert not claimed.interrupted
        assert [name for name in names(out) if not name.startswith(".")] == ["checkpoints"]
    assert names(out) == ["done.json", "model"]
    assert (out / "model" / "weights").read_text() == "w"
    for refuse in (lambda: check_folder(out, "train", **RUN), lambda: claimed_once(out)):
        with pytest.raises(FileExistsError, match="'out' must be a new or empty folder"):
            refuse()
    assert names(out) == ["done.json", "model"]


def claimed_once(out: Path, command: str = "train", **options: bool) -> bool:
    with claim(out, command, **RUN, **options) as claimed:
        (claimed.draft / "done.json").write_text(command)
    return claimed.interrupted


def test_a_second_owner_is_refused_by_name(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with claim(out, "train", **RUN) as claimed:
        who = rf"out is being written by process {os.getpid()}, gloss-graph train"
        for refuse in (
            lambda: check_folder(out, "graph", marker="config.json"),
            lambda: claimed_once(out),
            lambda: hold(out, "tune").__enter__(),
        ):
            with pytest.raises(BlockingIOError, match=who):
                refuse()
        (claimed.draft / "done.json").write_text("first")
    assert (out / "done.json").read_text() == "first"


def test_what_fails_gives_the_folder_back(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "new", tmp_path / "empty"):
        with suppress(ZeroDivisionError), claim(out, "graph", marker="config.json") as claimed:
            (claimed.draft / "graph.csv").write_text("1")
            (out / "theirs").write_text("put there by somebody else")
            raise ZeroDivisionError
        assert names(out) == ["theirs"]
        (out / "theirs").unlink()
    with pytest.raises(ZeroDivisionError), claim(tmp_path / "third", "graph", marker="x"):
        raise ZeroDivisionError
    assert names(tmp_path) == ["empty", "new"]


def test_work_outlives_a_failure_and_is_there_to_resume(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with suppress(ZeroDivisionError), claim(out, "train", **RUN):
        (out / "checkpoints").mkdir()
        raise ZeroDivisionError
    assert names(out) == ["checkpoints"]
    with suppress(ZeroDivisionError), claim(out, "train", **RUN, resume=True) as claimed:
        assert claimed.interrupted
        assert (out / "checkpoints").is_dir()
        raise ZeroDivisionError
    with pytest.raises(FileExistsError, match="new or empty"):
        claimed_once_elsewhere(out)
    assert claimed_once(out)  # without resume it starts over
    assert names(out) == ["done.json"]


def claimed_once_elsewhere(out: Path) -> None:
    with claim(out, "graph", marker="config.json"):
        pass


@needs_fork
def test_a_killed_owner_leaves_neither_lock_nor_content(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def begin() -> None:
        with claim(out, "train", **RUN) as claimed:
            (out / "checkpoints").mkdir()
            (claimed.draft / "model").write_text("half")
            with atomic_write(out / "note"):
                die()

    killed_in(begin)
    check_folder(out, "train", **RUN)
    assert claimed_once(out)
    assert names(out) == ["done.json"]


@needs_fork
def test_killed_between_two_moves_it_starts_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rename = tmp_path / "out", os.rename

    def last(source: Path, target: Path) -> None:
        if Path(target).name == "done.json":
            die()
        rename(source, target)

    def begin() -> None:
        monkeypatch.setattr(_folders.os, "rename", last)
        with claim(out, "train", **RUN) as claimed:
            (claimed.draft / "model").write_text("whole")
            (claimed.draft / "done.json").write_text("{}")

    killed_in(begin)
    assert (out / "model").exists()
    with pytest.raises(FileExistsError):  # another command does not know it
        claimed_once_elsewhere(out)
    assert claimed_once(out)
    assert names(out) == ["done.json"]


@needs_fork
def test_killed_right_after_its_last_file_it_is_whole_and_cleared_when_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rename = tmp_path / "out", os.rename

    def last(source: Path, target: Path) -> None:
        rename(source, target)
        if Path(target).name == "done.json":
            die()

    def begin() -> None:
        monkeypatch.setattr(_folders.os, "rename", last)
        with claim(out, "train", **RUN) as claimed:
            (out / "checkpoints").mkdir()
            (out / "checkpoints" / "weights").write_text("many bytes")
            (claimed.draft / "model").write_text("whole")
            (claimed.draft / "done.json").write_text("{}")

    killed_in(begin)
    assert {name for name in names(out) if not name.startswith(".")} == {"model", "done.json"}
    with pytest.raises(FileExistsError):
        check_folder(out, "train", **RUN)
    assert sorted(os.listdir(out)) == ["done.json", "model"]


@needs_fork
def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with hold(out, "tune"):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        try:
            with pytest.raises(BlockingIOError):
                hold(out, "tune").__enter__()
        finally:
            still = os.waitpid(child, os.WNOHANG)[0] == 0
    try:
        assert still
        with hold(out, "tune"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_strays_are_no_content(tmp_path: Path) -> None:
    (tmp_path / ".graph.csv.01234567.part").touch()
    check_folder(tmp_path, "train", **RUN)
    assert not claimed_once(tmp_path)
    assert names(tmp_path) == ["done.json"]
    (tmp_path / "done.json").rename(tmp_path / ".mine.part")
    with pytest.raises(FileExistsError, match="holds files"):
        check_folder(tmp_path, "train", **RUN)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_replaced_folder_is_one_or_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(_folders, "_exchanged", lambda *_: False)
    folder = tmp_path / "model"
    for content in ("first", "second"):
        with whole_folder(folder, "mark") as fresh:
            (fresh / "mark").write_text(content)
            (fresh / content).touch()
        assert (folder / "mark").read_text() == content
        assert names(folder) == sorted([content, "mark"])
    with pytest.raises(ZeroDivisionError), whole_folder(folder, "mark"):
        raise ZeroDivisionError
    assert (folder / "mark").read_text() == "second"
    assert names(tmp_path) == ["model"]
    (folder / "mark").unlink()
    with pytest.raises(ValueError, match="holds something else"), whole_folder(folder, "mark"):
        pass


@needs_fork
def test_killed_between_two_renames_a_reader_finds_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    with whole_folder(folder, "mark") as fresh:
        (fresh / "mark").write_text("first")
    rename = os.rename

    def once(source: Path, target: Path) -> None:
        if Path(target) == folder and not folder.exists():
            die()
        rename(source, target)

    def save() -> None:
        monkeypatch.setattr(_folders, "_exchanged", lambda *_: False)
        monkeypatch.setattr(_folders.os, "rename", once)
        with whole_folder(folder, "mark") as fresh:
            (fresh / "mark").write_text("second")

    killed_in(save)
    assert not folder.exists()
    with pytest.warns(UserWarning, match="stopped while it was replaced"):
        assert (newest_whole(folder) / "mark").read_text() == "second"
    with pytest.raises(ZeroDivisionError), whole_folder(folder, "mark"):
        raise ZeroDivisionError
    assert newest_whole(folder) == folder
    assert (folder / "mark").read_text() == "second"
    assert names(tmp_path) == ["model"]


@needs_fork
def test_the_next_write_removes_drafts_of_the_dead_alone(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"

    def begin() -> None:
        with atomic_path(file) as fresh:
            fresh.write_text("half")
            die()

    killed_in(begin)
    killed_in(begin)
    assert [name for name in names(tmp_path) if name.endswith(".new")]
    with atomic_write(file) as living:
        living.write(b"slow")
        with atomic_write(file) as quick:
            quick.write(b"quick")
        assert file.read_text() == "quick"
        file.unlink()
    assert file.read_text() == "slow"
    assert names(tmp_path) == ["a.csv"]


@needs_fork
def test_scratch_folders_of_the_dead_do_not_pile_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_folders.tempfile, "tempdir", str(tmp_path))

    def begin() -> None:
        with scratch_folder() as folder:
            (folder / "big").touch()
            die()

    killed_in(begin)
    killed_in(begin)
    with scratch_folder() as folder:
        assert names(folder) == []
        assert len(names(tmp_path)) == 2
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
        RuntimeError("(sqlite3.OperationalError) database or disk is full"),
    ],
    ids=["system", "safetensors", "sqlite"],
)
def test_a_full_disk_is_told_by_name(tmp_path: Path, error: Exception) -> None:
    with (
        pytest.raises(OSError, match=r"No space left on the disk.*inner") as told,
        full_disk_named(tmp_path / "outer"),
        full_disk_named(tmp_path / "inner"),
    ):
        raise error
    assert told.value.errno == errno.ENOSPC
    with pytest.raises(ValueError, match="else"), full_disk_named(tmp_path):
        raise ValueError("something else")
