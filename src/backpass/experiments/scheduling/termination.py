"""Ending a process from outside: by SIGTERM, and by an interrupt from the terminal (SIGINT)."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

__all__ = ["leave_interrupts_to_starter", "resumable", "when_terminated"]


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)  # as a shell reports the signal


@contextmanager
def when_terminated(handler: Callable[[int, FrameType | None], Any] | signal.Handlers = _stop) -> Iterator[None]:
    """Handle SIGTERM, by which schedulers and service managers end a process, in the main thread; elsewhere do nothing.

    By default it raises SystemExit with status 143, so that a worker puts its run back and
    :func:`backpass.experiments.scheduling.processes.work_in_processes` ends its processes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous or signal.SIG_DFL)


@contextmanager
def resumable(hint: str) -> Iterator[None]:
    """Add a note on how to resume to a KeyboardInterrupt or SystemExit raised inside.

    >>> try:
    ...     with resumable("start it again"):
    ...         raise KeyboardInterrupt
    ... except KeyboardInterrupt as interrupt:
    ...     print(interrupt.__notes__)
    ['start it again']
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as ending:
        ending.add_note(hint)
        raise


@contextmanager
def leave_interrupts_to_starter() -> Iterator[None]:
    """Let the processes that are started inside ignore interrupts from the terminal.

    An interrupt reaches every process of the terminal at once. The one that started the others ends them by SIGTERM,
    so that each puts its run back once, and none shows a traceback while it is still importing.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # A signal mask is inherited.
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
