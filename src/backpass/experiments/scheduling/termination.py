"""What a process does when it is told to end."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

__all__ = ["when_terminated"]


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
