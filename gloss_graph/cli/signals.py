"""How a command is stopped: Ctrl-C, SIGTERM, and a reader that closes the pipe."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from gloss_graph._internal.processes import is_main, launched

#: Exit status after Ctrl-C and after SIGTERM, as shells count them.
INTERRUPTED, TERMINATED = 130, 143
#: Set for processes that help another one: they say nothing when they are stopped.
HELPER = "GLOSS_GRAPH_ABLATE_HELPER"
_PATIENCE = 10.0
_kept: Callable[[], str] = str


class Terminated(KeyboardInterrupt):
    """SIGTERM; a `KeyboardInterrupt`, so that code that cleans up after Ctrl-C does so here too."""


def farewell(stop: BaseException) -> tuple[str, int]:
    """The last line of a stopped command, empty for helpers, and its exit status."""
    ended = isinstance(stop, Terminated)
    status = TERMINATED if ended else INTERRUPTED
    if os.environ.get(HELPER) or not is_main():
        return "", status
    return f"{'Terminated' if ended else 'Interrupted'}. {stop}".rstrip(), status


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
    numbers = [signal.SIGINT]
    if launched() == 1:
        # A launcher's processes wait for each other in calls that no Python code interrupts.
        numbers.append(signal.SIGTERM)
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
    if not _importing(frame):
        raise kind
    line, status = farewell(kind(_kept()))
    if line:
        os.write(2, f"{line}\n".encode())
    os._exit(status)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def end_quietly() -> None:
    """Ignore Ctrl-C from here on, at the end of a program."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def follow_parent() -> None:
    """End this process when the parent that holds the other end of its stdin has ended."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    # For a main thread that does not return to Python code.
    time.sleep(_PATIENCE)
    os._exit(TERMINATED)


class ClosedPipe:
    """A text stream that goes on in silence once its reader is gone, as in `train ... | head`."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop the text."""
        try:
            return int(self._stream.write(text))
        except BrokenPipeError:
            self._drop()
            return len(text)

    def writelines(self, lines: Any) -> None:
        """Write, or drop the lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, or drop what is left."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        # What the stream still holds, and all that follows, goes nowhere.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


@contextmanager
def open_streams() -> Iterator[None]:
    """While open, a closed pipe behind stdout or stderr is silence and no error."""
    before = sys.stdout, sys.stderr
    guards = [None if stream is None else ClosedPipe(stream) for stream in before]
    sys.stdout, sys.stderr = guards
    try:
        yield
    finally:
        for guard in guards:
            if guard is not None:
                guard.flush()
        sys.stdout, sys.stderr = before
