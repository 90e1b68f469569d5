"""Where the states of runs are kept: a SQLite file, a database server, or a journal file in a shared folder."""

import errno
import time
from pathlib import Path
from typing import Any

import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, SQLAlchemyError

from backpass.errors import InputError, missing_extra
from backpass.experiments.scheduling.journal import Journal

__all__ = ["open_storage", "storage_file"]

_FILE = "study.db"
_TRIES = 5
# A PostgreSQL server that has vanished is to be an error, which workers outlive, and not a wait without end: seconds to
# connect, seconds of silence before asking whether it is there, milliseconds without an answer before giving up.
_PATIENCE = {"connect_timeout": 10, "keepalives_idle": 10, "tcp_user_timeout": 30_000}


def open_storage(address: str, *, create: bool = False) -> BaseStorage:
    """Return the Optuna storage at ``address``.

    Args:
        address: a folder, for the SQLite file ``study.db`` in it (workers on one machine; SQLite's locks do not work on
            most network file systems); ``journal:PATH``, for a journal file (workers on machines that share a folder);
            or a database URL of SQLAlchemy, such as ``postgresql://user@host/database`` (workers anywhere).
        create: make missing folders and files.

    Raises:
        InputError: there is nothing at the address and ``create`` is not given, the database cannot be reached, or the
            file is no storage.
        MissingExtraError: the database's driver is not installed.
    """
    if address.startswith("journal:"):
        path = _existing(Path(address.removeprefix("journal:")), create)
        try:
            return Journal(path)
        except OSError:
            raise
        except Exception as error:  # Optuna replays the journal, and fails in many ways at a line that is another.
            raise InputError(
                f"expected the journal of a study at {path}, got a line that Optuna did not write "
                f"({type(error).__name__}: {error}); remove it and start the study again: the records of its complete "
                "runs are in their folders"
            ) from error
    if "://" not in address:
        path = _existing(Path(address) / _FILE, create)
        return _open_database(sqlalchemy.URL.create("sqlite", database=str(path)))
    return _open_database(address)


def storage_file(storage: BaseStorage) -> Path | None:
    """Return the file of a storage; ``None`` for a database server."""
    if isinstance(storage, Journal):
        return storage.path
    if isinstance(storage, RDBStorage) and storage.engine.url.get_backend_name() == "sqlite":
        return Path(str(storage.engine.url.database))
    return None


def _existing(path: Path, create: bool) -> Path:
    if create:
        path.parent.mkdir(parents=True, exist_ok=True)
    elif not path.is_file():
        raise InputError(
            f"expected the runs of a study at {path}, found none; start one with backpass compare, search or "
            "reproduce, and give its folder, journal:PATH or database URL"
        )
    return path


class _Database(RDBStorage):
    """A database that closes its connections when it cannot be opened."""

    def __init__(self, url: str, engine_kwargs: dict[str, Any]) -> None:
        try:
            super().__init__(url, engine_kwargs)
        except BaseException:
            if hasattr(self, "engine"):
                self.engine.dispose()
            raise


def _open_database(address: str | sqlalchemy.URL) -> RDBStorage:
    try:
        url = sqlalchemy.make_url(address)
    except (ArgumentError, ValueError) as error:
        raise InputError(
            f"expected a database URL such as postgresql://user@host/database, got {address!r}; correct the address"
        ) from error
    if url.drivername == "postgresql":
        # Which driver that means depends on the version of SQLAlchemy.
        url = url.set(drivername="postgresql+psycopg")
    is_sqlite = url.get_backend_name() == "sqlite"
    if is_sqlite and url.database in (None, "", ":memory:"):
        raise InputError(f"expected a SQLite file that workers share, got {address!r}; give sqlite:///PATH")
    options: dict[str, Any] = {"pool_pre_ping": True}
    if is_sqlite:
        # isolation_level None leaves transactions to the BEGIN below.
        options = {"connect_args": {"timeout": 60, "isolation_level": None}}
    elif url.drivername == "postgresql+psycopg":
        options["connect_args"] = {name: value for name, value in _PATIENCE.items() if name not in url.query}
    for remaining in reversed(range(_TRIES)):
        try:
            storage = _Database(url.render_as_string(hide_password=False), engine_kwargs=options)
            break
        except ImportError as error:
            if url.drivername == "postgresql+psycopg":
                raise missing_extra("psycopg", "postgresql", "studies on a PostgreSQL server") from error
            raise InputError(
                f"expected the Python driver of {url.drivername} to be installed, got none ({error}); install it, or "
                "use PostgreSQL, a journal file or SQLite, the storages that are tested"
            ) from error
        except NoSuchModuleError as error:
            raise InputError(
                f"expected a database that SQLAlchemy knows, got {url.drivername!r}; "
                "use sqlite:///PATH or postgresql://user@host/database"
            ) from error
        except SQLAlchemyError as error:
            # Workers that start at once may all try to make the tables, or to enter their version; one succeeds.
            if remaining == 0 or not (isinstance(error, IntegrityError) or "already exists" in str(error)):
                raise InputError(
                    f"cannot open {url.render_as_string(hide_password=True)}: {error}; "
                    "check the address, and that the server runs and knows the user"
                ) from error
            time.sleep(0.2)
    if is_sqlite:
        # SQLite knows no row locks: without the write lock from the start, two workers can read the same waiting trial
        # before either sets it running, and both win.
        sqlalchemy.event.listen(
            storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE")
        )
        sqlalchemy.event.listen(storage.engine, "do_connect", _require_file)
    return storage


def _require_file(dialect: Any, record: Any, arguments: list[Any], options: dict[str, Any]) -> None:
    """Refuse to connect to a SQLite file that is gone: SQLite would make a new, empty one."""
    if not arguments[0].startswith("file:") and not Path(arguments[0]).is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", arguments[0])
