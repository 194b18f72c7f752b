"""Ctrl-C, SIGTERM and a closed pipe; an interrupted training that goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gloss_graph.cli.signals import ClosedPipe, keeping, stoppable

from .conftest import Command, fast


@pytest.mark.parametrize(("number", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_stopped_command_says_what_is_kept(
    command: Command, monkeypatch: pytest.MonkeyPatch, number: str, status: int
) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        with keeping(lambda: "All is kept."):
            os.kill(os.getpid(), getattr(signal, number))

    monkeypatch.setattr("gloss_graph._internal.folders.check_folder", stopped)
    before = signal.getsignal(signal.SIGTERM)
    result = command("demo")
    word = "Interrupted" if status == 130 else "Terminated"
    assert (result.status, result.complaint()) == (status, f"{word}. All is kept.")
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_import_is_ended_at_once(tmp_path: Path) -> None:
    """There an exception may be swallowed."""
    (tmp_path / "slow_module.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n"
        "except BaseException:\n    pass\n"
    )
    code = (
        "from gloss_graph.cli.signals import stoppable\n"
        "with stoppable():\n    import slow_module\nprint('went on')"
    )
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Interrupted.\n")


def test_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with stoppable():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_a_closed_pipe_is_silence() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        pipe = ClosedPipe(stream)
        os.close(reading)
        for _ in range(3):
            assert pipe.write("text") == 4
            pipe.flush()
        assert pipe.encoding == stream.encoding


def test_a_helper_ends_with_its_parent() -> None:
    """Killed, so that the parent cannot pass it on."""
    helper = (
        "from gloss_graph.cli.signals import follow_parent; follow_parent()\n"
        "import time; print('ready', flush=True); time.sleep(600)"
    )
    parent = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-c', {helper!r}], stdin=subprocess.PIPE, "
        "start_new_session=True)\nprint(p.pid, flush=True)\ntime.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as one:
        assert one.stdout is not None
        # Two lines in either order; afterwards the end of the pipe that both hold.
        assert {one.stdout.readline().strip().isdigit() for _ in range(2)} == {True, False}
        one.kill()
        assert one.stdout.read() == ""


def test_train_goes_on(
    command: Command,
    tmp_path: Path,
    files: tuple[Path, Path],
    encoder_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    words = ["train", "--train", files[0], *fast(encoder_folder, out), "--no-pictures"]
    words += ["--eval-steps", "1", "--resume"]
    with monkeypatch.context() as patched:

        def stop(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        patched.setattr("gloss_graph.training.outcome.split_scores", stop)
        result = command(*words)
    assert result.status == 130
    assert "Nothing to resume: the run starts." in result.out
    last = result.err.splitlines()[-1]
    assert last == f"Interrupted. The run up to step 3 is kept in {out}: add --resume to the " + (
        "command to continue."
    )
    other = command(*words, "--seed", "4")
    assert other.status == 2
    assert "'seed' was 0, is 4" in other.complaint()
    assert command(*words).status == 0
    again = command(*words)
    assert again.status == 0
    assert "The run is finished, there is nothing to resume." in again.out
    other = command(*words, "--seed", "4")
    assert other.status == 2
    assert "'seed' was 0, is 4" in other.complaint()
