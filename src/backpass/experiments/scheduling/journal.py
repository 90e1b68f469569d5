"""A storage in a journal file, which stays readable when a line was not written to its end."""

import logging
from pathlib import Path

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

__all__ = ["Journal"]

_LOG = logging.getLogger(__name__)


class Journal(JournalStorage):
    """Storage in a journal file, for workers on machines that share a folder.

    Args:
        path: of the file; made if missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(JournalFileBackend(str(path), lock_obj=_Lock(path)))


class _Lock(JournalFileOpenLock):
    """Lock under which the journal has whole lines only.

    A full disk or a lost machine leaves the last line without its end. The next line would be appended to it, and
    neither could be read again. The other lock of Optuna, a symbolic link, leads nowhere from a relative path: a link
    that a killed worker has left would be waited for without end.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def acquire(self) -> bool:
        """Wait for the lock, and remove a torn last line.

        Raises:
            FileNotFoundError: the journal is gone; a writer would begin a new one without its past.
        """
        super().acquire()
        try:
            _remove_torn_line(self._path)
        except BaseException:
            self.release()
            raise
        return True


def _remove_torn_line(path: Path) -> None:
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        if size == 0:
            return
        file.seek(size - 1)
        if file.read() == b"\n":
            return
        file.seek(0)
        whole = file.read().rfind(b"\n") + 1
        file.truncate(whole)
    _LOG.warning("%s: removed its last line, %d bytes that were not written to their end", path, size - whole)
