import re
import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import StorageInternalError

from backpass.errors import InputError
from backpass.experiments import compare_study, run_study
from backpass.experiments.scheduling.queue import Queue
from backpass.experiments.scheduling.storage import open_storage, storage_file
from backpass.experiments.scheduling.storage_errors import StorageLostError
from reference.study_workers import TINY


@pytest.mark.parametrize("address", ["{}/new/study", "journal:{}/new/runs.log", "sqlite:///{}/runs.db"])
def test_what_is_written_is_there_when_opened_again(address, tmp_path):
    address = address.format(tmp_path)
    optuna.create_study(storage=open_storage(address, create=True), study_name="s")
    storage = open_storage(address)
    assert optuna.get_all_study_names(storage) == ["s"]
    assert storage_file(storage).is_file()


@pytest.mark.parametrize("name", ["a?b", "a%20b"])
def test_a_folder_may_have_any_name(name, tmp_path):
    open_storage(str(tmp_path / name), create=True).engine.dispose()
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()] == [Path(name) / "study.db"]
    storage = open_storage(str(tmp_path / name))
    assert storage_file(storage) == tmp_path / name / "study.db"
    storage.engine.dispose()


@pytest.mark.parametrize("address", ["{}/none", "journal:{}/none"])
def test_nothing_there(address, tmp_path):
    address = address.format(tmp_path)
    path = re.escape(str(tmp_path / "none"))
    with pytest.raises(InputError, match=rf"expected the runs of a study at {path}.*, found none; start one with"):
        open_storage(address)


def test_addresses_that_lead_nowhere():
    with pytest.raises(
        InputError, match=r"expected a database URL such as postgresql://user@host/database, got '://x'"
    ):
        open_storage("://x")
    with pytest.raises(InputError, match=r"expected a database URL such as .*, got 'postgresql://\[::'"):
        open_storage("postgresql://[::")
    with pytest.raises(
        InputError, match=r"expected a SQLite file that workers share, got 'sqlite://'; give sqlite:///"
    ):
        open_storage("sqlite://")
    with pytest.raises(InputError, match="expected a database that SQLAlchemy knows, got 'oracl'"):
        open_storage("oracl://x/y")
    with pytest.raises(InputError, match=r"the Python driver of mysql\+cymysql to be installed, .* or use PostgreSQL"):
        open_storage("mysql+cymysql://x/y")


def test_a_journal_with_a_relative_path_is_locked_by_a_file_whose_age_can_be_seen(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = open_storage("journal:sub/runs.log", create=True)
    lock = storage._backend._lock
    assert lock.acquire()
    path = tmp_path / "sub" / "runs.log.lock"
    assert path.is_file()  # a link would have to lead to a file as well
    assert not path.is_symlink()
    lock.release()
    assert not path.exists()


@pytest.mark.parametrize(("query", "connect_timeout"), [("", "10"), ("?connect_timeout=3", "3")])
def test_a_postgresql_server_that_vanishes_is_not_waited_for_without_end(query, connect_timeout, postgresql):
    storage = open_storage(postgresql + query, create=True)
    with closing(storage.engine.raw_connection()) as connection:
        parameters = connection.driver_connection.info.get_parameters()
    assert (
        parameters.items()
        >= {
            "connect_timeout": connect_timeout,
            "keepalives_idle": "10",
            "tcp_user_timeout": "30000",
        }.items()
    )
    assert storage_file(storage) is None
    storage.engine.dispose()


def test_a_password_is_not_shown(tmp_path):
    pytest.importorskip("psycopg", reason="psycopg, the driver of PostgreSQL, is not installed")
    with pytest.raises(InputError, match=r"cannot open postgresql\+psycopg://me:\*\*\*@127.0.0.1:1/x: ") as error:
        open_storage("postgresql://me:secret@127.0.0.1:1/x")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("line", [b"{}", b"null", b'{"op_code": 99}', b'{"op_code": 4, "worker_id": "x"}', b"\xff"])
def test_a_journal_with_a_line_of_something_else_is_named(line, tmp_path):
    path = tmp_path / "runs.log"
    optuna.create_study(storage=open_storage(f"journal:{path}", create=True), study_name="s")
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(
        InputError, match=r"expected the journal .*, got a line that Optuna did not write .*; remove it"
    ):
        open_storage(f"journal:{path}")


@pytest.mark.parametrize("call", ["fill", "states"])
def test_a_database_that_cannot_be_written_to_is_named_when_a_study_starts(call, tmp_path, monkeypatch):
    def refuse(queue, *arguments):
        file = f"file:{tmp_path / 'study.db'}?mode=ro"
        try:
            with closing(sqlite3.connect(file, uri=True)) as database:
                database.execute("CREATE TABLE more (n INT)")
        except sqlite3.OperationalError as error:
            raise StorageInternalError("an error occurred during the commit") from error

    monkeypatch.setattr(Queue, call, refuse)
    with pytest.raises(
        StorageLostError, match=r"write to the study's storage at .*study\.db, got .*readonly.*; make it"
    ):
        run_study(compare_study(TINY, ("plain",), (0,)), tmp_path)
