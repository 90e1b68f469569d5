import errno
import json
import sqlite3
from contextlib import closing
from types import SimpleNamespace

import pytest
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.trial import TrialState

from backpass.errors import InputError
from backpass.experiments.scheduling import worker as workers
from backpass.experiments.scheduling.queue import LostRunError, Queue
from backpass.experiments.scheduling.storage_errors import StorageLostError, lasting_cause
from backpass.experiments.scheduling.worker import work
from backpass.training.recipe import Runtime
from reference.study_workers import TINY, accuracies, queue_of, run_states, tiny_run

ERRORS = [
    StorageInternalError("the server has closed the connection"),
    OSError("stale file handle"),
    RuntimeError("Error: did not possess lock"),
    json.JSONDecodeError("a line that is half written", "{", 1),
]


def logged(caplog):
    """Return what the worker has logged."""
    return [record.getMessage() for record in caplog.records if record.name == workers.__name__]


def disturb(queue, monkeypatch, error, state, *, answers=True):
    """Let the setting of ``state`` raise before it is done, then after it is done, and then, or never, answer."""
    real, calls = queue._storage.set_trial_state_values, []

    def set_trial_state_values(trial, new, values=None):
        if new != state:
            return real(trial, new, values)
        calls.append(new)
        if len(calls) == 1 or not answers:
            raise error
        done = real(trial, new, values)
        if len(calls) == 2:
            raise error
        return done

    monkeypatch.setattr(queue._storage, "set_trial_state_values", set_trial_state_values)
    return calls


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_trained_run_is_complete_however_the_storage_fails(error, tmp_path, monkeypatch, make_record, let_runs_end):
    let_runs_end(make_record(TINY, "plain", 0, [0.5]))
    queue = queue_of([tiny_run()], tmp_path)
    calls = disturb(queue, monkeypatch, error, TrialState.COMPLETE)
    work(queue, tmp_path, heartbeat=0.02)
    assert len(calls) == 3  # the third finds the trial finished
    assert accuracies(queue) == {"a-seed0": 0.5}
    assert not (tmp_path / "a-seed0").exists()
    queue.close()


def test_a_failed_run_is_failed_however_storage_and_disk_fail(tmp_path, monkeypatch, let_runs_end):
    let_runs_end(InputError("no such thing"))
    queue = queue_of([tiny_run(seed=seed) for seed in (0, 1)], tmp_path)
    disturb(queue, monkeypatch, ERRORS[0], TrialState.FAIL)
    (tmp_path / "a-seed0").write_text("instead of the run folder")
    work(queue, tmp_path, heartbeat=0.02)
    assert [(state.state, state.error) for state in queue.states()] == [("failed", "no such thing")] * 2
    assert "InputError" in (tmp_path / "a-seed1" / "error.txt").read_text()
    queue.close()


def test_an_interrupt_is_not_replaced_by_an_error_of_the_storage(tmp_path, monkeypatch, let_runs_end):
    let_runs_end(KeyboardInterrupt())
    queue = queue_of([tiny_run()], tmp_path)
    calls = disturb(queue, monkeypatch, ERRORS[1], TrialState.FAIL, answers=False)
    with pytest.raises(KeyboardInterrupt):
        work(queue, tmp_path)
    assert calls == [TrialState.FAIL]
    queue.close()


def test_a_worker_stops_recording_an_end_when_the_run_is_lost(tmp_path, monkeypatch, make_record, let_runs_end):
    let_runs_end(make_record(TINY, "plain", 0, [0.5]))
    queue = queue_of([tiny_run()], tmp_path)
    other = Queue.open(str(tmp_path))

    def finish(*arguments):
        while "complete" not in run_states(other):
            other.take_over(grace=-1)
            if (claim := other.claim()) is not None:
                other.finish(claim, 0.25)
        raise OSError("stale file handle")

    monkeypatch.setattr(queue, "finish", finish)
    work(queue, tmp_path, heartbeat=0.02)
    assert accuracies(queue) == {"a-seed0": 0.25}
    other.close()
    queue.close()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("call", ["claim", "take_over", "states"])
def test_a_worker_outlives_errors_of_the_storage_between_runs(
    call, error, tmp_path, monkeypatch, make_record, let_runs_end
):
    let_runs_end(make_record(TINY, "plain", 0, [0.5]))
    queue = queue_of([tiny_run()], tmp_path)
    real, calls = getattr(queue, call), []

    def failing(*arguments):
        calls.append(call)
        if len(calls) <= 2:
            raise error
        return real(*arguments)

    monkeypatch.setattr(queue, call, failing)
    work(queue, tmp_path, heartbeat=0.02)
    assert len(calls) > 2
    monkeypatch.undo()
    assert queue.states()[0].state == "complete"
    queue.close()


def test_a_storage_that_stays_away_ends_the_worker_in_the_end(tmp_path, monkeypatch, caplog):
    queue = queue_of([tiny_run()], tmp_path)

    def gone():
        raise OSError("stale file handle")

    monkeypatch.setattr(queue, "claim", gone)
    monkeypatch.setattr(workers, "_PATIENCE", 0.1)
    with pytest.raises(StorageLostError, match="got stale file handle for an hour; mend it, and start the same"):
        work(queue, tmp_path, heartbeat=0.02)
    assert logged(caplog) == ["the storage of the study does not answer, trying again for an hour: stale file handle"]
    queue.close()


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_a_heart_beats_on_after_errors_of_the_storage(error):
    beats = [error, error, None, LostRunError("a")]

    class Disturbed:
        def beat(self, claim):
            if (answer := beats.pop(0)) is not None:
                raise answer

    claim = SimpleNamespace(run=SimpleNamespace(folder="a"))
    with workers._Heart(Disturbed(), claim, 0.01) as heart:
        heart._thread.join(60)
        with pytest.raises(LostRunError):
            heart.check()
    assert beats == []


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "study"


@pytest.fixture(params=["sqlite", "journal"])
def queue(request, folder):
    """A queue with two runs in a file of the folder."""
    address = str(folder) if request.param == "sqlite" else f"journal:{folder / 'runs.log'}"
    with closing(Queue.create(address, "s", folder=folder, runtime=Runtime())) as queue:
        queue.fill([tiny_run(seed=seed) for seed in (0, 1)])
        yield queue


def test_a_folder_that_has_moved_ends_the_worker_at_once(queue, folder, make_record, monkeypatch, caplog):
    def execute(*arguments, **options):
        folder.rename(folder.with_name("moved"))
        return make_record(TINY, "plain", 0, [0.5])

    monkeypatch.setattr(workers, "execute", execute)
    with pytest.raises(StorageLostError) as lost:
        work(queue, folder)
    assert str(lost.value) == (
        f"expected the study's storage at {queue.file}, found none; give the folder that it has been moved to, and "
        "start the same command again to resume"
    )
    assert logged(caplog) == []
    assert not folder.exists()


def test_a_file_that_was_removed_is_not_made_again(queue, folder, caplog):
    queue.file.unlink()
    with pytest.raises(StorageLostError, match=r"expected the study's storage at .*, found none"):
        work(queue, folder)
    assert not queue.file.exists()
    assert logged(caplog) == []


def test_a_full_disk_under_sqlite_ends_the_worker_at_once(folder, let_runs_end, caplog):
    let_runs_end(InputError("x" * 100_000))
    with closing(queue_of([tiny_run()], folder)) as queue:

        @sqlalchemy.event.listens_for(queue._storage.engine, "checkout")
        def fill_disk(connection, record, proxy):
            connection.execute("pragma max_page_count = 1")  # raised to the number that there are

        with pytest.raises(
            StorageLostError, match=f"expected room in {folder} for .* got a full disk .*; free some, and"
        ):
            work(queue, folder)
    assert logged(caplog) == []


def test_a_full_disk_under_a_journal_ends_the_worker_at_once(tmp_path, monkeypatch, caplog):
    def append_logs(logs):
        raise OSError(errno.ENOSPC, "No space left on device")

    address = f"journal:{tmp_path / 'runs.log'}"
    with closing(Queue.create(address, "s", folder=tmp_path, runtime=Runtime())) as queue:
        queue.fill([tiny_run()])
        monkeypatch.setattr(queue._storage._backend, "append_logs", append_logs)
        with pytest.raises(
            StorageLostError, match=r"got a full disk \(\[Errno 28\] No space left on device\); free some"
        ):
            work(queue, tmp_path)
    assert logged(caplog) == []


def test_a_run_is_not_failed_by_a_storage_that_is_lost(folder, monkeypatch, make_record, let_runs_end):
    let_runs_end(make_record(TINY, "plain", 0, [0.5]))

    def full(*arguments):
        raise OSError(errno.ENOSPC, "full")

    with closing(queue_of([tiny_run()], folder)) as queue:
        monkeypatch.setattr(queue, "finish", full)
        with pytest.raises(StorageLostError, match="full disk"):
            work(queue, folder)
        assert run_states(queue) == ["waiting"]  # put back, and read from its folder by the next worker


def test_which_causes_last(tmp_path):
    file = tmp_path / "study.db"
    file.touch()
    for number in (errno.ESTALE, errno.EIO, errno.EINTR, errno.ENOENT):  # the file itself is there
        assert lasting_cause(OSError(number, "x"), file) is None
    assert lasting_cause(sqlite3.OperationalError("database is locked"), file) is None
    assert lasting_cause(OSError(errno.EROFS, "Read-only file system"), file) == (
        f"expected to write to the study's storage at {file}, got [Errno 30] Read-only file system; make it writable"
    )
    file.write_bytes(b"no database" * 100)
    with closing(sqlite3.connect(file)) as connection, pytest.raises(sqlite3.DatabaseError) as damaged:
        connection.execute("select * from studies")
    assert lasting_cause(damaged.value, file) == (
        f"expected the database of a study at {file}, got file is not a database; remove it (the records of complete "
        "runs are in their folders)"
    )
    full = StorageInternalError("An exception is raised during the commit")
    full.__cause__ = type("DiskFull", (Exception,), {"sqlstate": "53100"})("could not extend file")
    assert lasting_cause(full, None) == (
        "expected room on the database server for the study's storage, got a full disk (could not "
        "extend file); free some"
    )


def test_the_log_names_what_failed_first(tmp_path, monkeypatch, caplog, let_runs_end, make_record):
    let_runs_end(make_record(TINY, "plain", 0, [0.5]))
    error = StorageInternalError("An exception is raised during the commit")
    error.__cause__ = sqlite3.OperationalError("database is locked")
    with closing(queue_of([tiny_run()], tmp_path)) as queue:
        disturb(queue, monkeypatch, error, TrialState.COMPLETE)
        work(queue, tmp_path, heartbeat=0.02)
    assert logged(caplog) == ["the storage of the study does not answer, trying again for an hour: database is locked"]
