"""A lock on a run folder, which ends with the process that holds it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from backpass.errors import StateError

__all__ = ["FolderLock", "lock_folder"]

_NAME = ".lock"
# Processes that decode images for a trainer that was killed hold its files open for five seconds more.
_PATIENCE = 10.0


class FolderLock:
    """A lock that is held, unless another process has taken the folder over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.stat(path).st_ino

    def check(self) -> None:
        """Raise StateError if another process has taken the folder over."""
        if not self._path.is_file() or os.stat(self._path).st_ino != self._file:
            raise StateError(
                f"expected this process to keep {self._path.parent}, got another one that has taken the run over; "
                "this one stops and leaves the folder to it"
            )


@contextmanager
def lock_folder(folder: Path, *, take_over: bool = False) -> Iterator[FolderLock]:
    """Hold the lock of a folder; the operating system releases it when the process ends, however it ends.

    Args:
        folder: the folder, which exists.
        take_over: take the lock from a process that holds it, such as a suspended one, which then finds it lost.

    Raises:
        StateError: another process works in the folder.
    """
    path = folder / _NAME
    # A lock of its own for each call, also within one process.
    lock = FileLock(path, is_singleton=False)
    try:
        lock.acquire(timeout=0 if take_over else _PATIENCE)
    except Timeout:
        if not take_over:
            raise StateError(
                f"expected {folder} to be free, got one in which another process trains; wait for it or choose "
                "another folder"
            ) from None
        path.unlink(missing_ok=True)
        lock = FileLock(path, is_singleton=False)
        lock.acquire(timeout=_PATIENCE)
    try:
        yield FolderLock(path)
    finally:
        lock.release()
