"""How a command is stopped (Ctrl-C, SIGTERM), and streams that no reader or encoding breaks."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from types import FrameType
from typing import Any

from gloss_graph._internal.processes import is_main, launched

#: Set for processes that help another one: they say nothing when they are stopped.
HELPER = "GLOSS_GRAPH_ABLATE_HELPER"
_PATIENCE = 10.0
_kept: Callable[[], str] = str


class Terminated(KeyboardInterrupt):
    """SIGTERM; a `KeyboardInterrupt`, so that code that cleans up after Ctrl-C does so here too."""


def farewell(stop: BaseException) -> tuple[str, int]:
    """The last line of a stopped command, empty for helpers, and its exit status."""
    word, status = ("Terminated", 143) if isinstance(stop, Terminated) else ("Interrupted", 130)
    silent = os.environ.get(HELPER) or not is_main()
    return "" if silent else f"{word}. {stop}".rstrip(), status


@contextmanager
def keeping(kept: Callable[[], str]) -> Iterator[None]:
    """If the block is interrupted, the last line of the command is the sentence of `kept()`."""
    global _kept
    before, _kept = _kept, kept
    try:
        yield
    except KeyboardInterrupt as stop:
        raise (stop if str(stop) else type(stop)(kept())) from None
    finally:
        _kept = before


@contextmanager
def stoppable() -> Iterator[None]:
    """While open, Ctrl-C raises `KeyboardInterrupt` and SIGTERM `Terminated`.

    During an import both end the process at once: there an exception may be swallowed, or leave
    half a module. Nothing needs to be undone, since files are written whole or not at all. No
    effect outside of the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # A launcher's processes wait for each other in calls that no Python code interrupts.
    numbers = (signal.SIGINT, signal.SIGTERM) if launched() == 1 else (signal.SIGINT,)
    before = {
        number: signal.signal(number, _stop)
        for number in numbers
        # Shells ignore it for processes in the background.
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    kind = Terminated if number == signal.SIGTERM else KeyboardInterrupt
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            line, status = farewell(kind(_kept()))
            os.write(2, f"{line}\n".encode() if line else b"")
            os._exit(status)
        frame = frame.f_back
    raise kind


def follow_parent() -> None:
    """End this process when the parent that holds the other end of its stdin has ended."""

    def wait() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        # For a main thread that does not return to Python code.
        time.sleep(_PATIENCE)
        os._exit(143)

    threading.Thread(target=wait, daemon=True).start()


class ClosedPipe:
    """A text stream that goes on in silence once its reader is gone, as in `train ... | head`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop the text."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write, or drop the lines."""
        self._try(lambda: self._stream.writelines(lines))

    def flush(self) -> None:
        """Flush, or drop what is left."""
        self._try(self._stream.flush)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except BrokenPipeError:
            # What the stream still holds, and all that follows, goes nowhere.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def open_streams() -> Iterator[None]:
    """While open, stdout and stderr take every character, and a closed pipe is no error.

    Characters that a stream cannot show, as Greek letters and file names that are not UTF-8, are
    escaped: a stream that is not UTF-8 gets ASCII, which every encoding shares.
    """
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, TextIOWrapper):
            encoding = stream.encoding if stream.encoding.lower().startswith("utf") else "ascii"
            stream.reconfigure(encoding=encoding, errors="backslashreplace")
    guards = [stream and ClosedPipe(stream) for stream in before]
    sys.stdout, sys.stderr = guards
    try:
        yield
    finally:
        for guard in filter(None, guards):
            guard.flush()
        sys.stdout, sys.stderr = before
