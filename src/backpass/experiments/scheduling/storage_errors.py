"""What a storage raises, and which of its errors may pass."""

import errno
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from backpass.errors import StateError

__all__ = ["STORAGE_ERRORS", "StorageLostError", "lasting_cause", "naming_lost_storage", "root_cause"]

# What a storage raises that may answer again: databases the first two, journal files the rest (a lock or a line that is
# gone). Our own errors and Optuna's UpdateFinishedTrialError are among the last two, and are to be caught before.
STORAGE_ERRORS = (StorageInternalError, SQLAlchemyError, OSError, RuntimeError, ValueError)

_FULL = (errno.ENOSPC, errno.EDQUOT)
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_POSTGRESQL_FULL = "53100"


class StorageLostError(StateError):
    """The storage of a study cannot be used any more; the folders of its runs are unharmed."""


@contextmanager
def naming_lost_storage(file: Path | None) -> Iterator[None]:
    """Turn what a database raises in the ``with`` block into an error that names what to do.

    Args:
        file: of the storage; ``None`` for a database server.

    Raises:
        StorageLostError: the storage did not answer.
    """
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        cause = lasting_cause(error, file)
        cause = cause or f"expected the study's storage to answer, got {root_cause(error)}; mend it"
        raise StorageLostError(f"{cause}, and start the same command again to resume") from error


def lasting_cause(error: BaseException, file: Path | None) -> str | None:
    """Return what is to be mended before the storage can answer again; ``None`` for causes that may pass.

    Args:
        error: one of :data:`STORAGE_ERRORS`.
        file: of the storage; ``None`` for a database server.
    """
    if file is not None and _is_missing(file):
        return f"expected the study's storage at {file}, found none; give the folder that it has been moved to"
    for cause in _causes(error):
        number = cause.errno if isinstance(cause, OSError) else None
        code = (getattr(cause, "sqlite_errorcode", None) or 0) & 0xFF  # the primary one
        if number in _FULL or code == sqlite3.SQLITE_FULL or getattr(cause, "sqlstate", None) == _POSTGRESQL_FULL:
            place = "on the database server" if file is None else f"in {file.parent}"
            return f"expected room {place} for the study's storage, got a full disk ({cause}); free some"
        if code in _DAMAGED:
            return (
                f"expected the database of a study at {file}, got {cause}; remove it (the records of complete runs are "
                "in their folders)"
            )
        if number == errno.EROFS or code == sqlite3.SQLITE_READONLY:
            return f"expected to write to the study's storage at {file}, got {cause}; make it writable"
    return None


def root_cause(error: BaseException) -> BaseException:
    """Return the error that an error was raised for: Optuna's own name the commit and not what failed."""
    *_, first = _causes(error)
    return first


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _is_missing(file: Path) -> bool:
    try:
        file.stat()
    except FileNotFoundError:
        return True
    except OSError:  # A network file system that does not answer.
        return False
    return False
