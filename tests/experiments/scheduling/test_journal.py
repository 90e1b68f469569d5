import threading
from contextlib import closing

import pytest

from backpass.errors import InputError
from backpass.experiments.scheduling.queue import Queue
from backpass.training.recipe import Runtime
from reference.study_workers import THREE_RUNS, run_states


@pytest.fixture
def journal(tmp_path):
    """The journal file of a study with three runs."""
    path = tmp_path / "runs.log"
    with closing(Queue.create(f"journal:{path}", "s", folder=tmp_path, runtime=Runtime())) as queue:
        queue.fill(THREE_RUNS)
    return path


def tear(path):
    """Append a line without its end, as a full disk leaves it; return the whole lines before it."""
    whole = path.read_bytes()
    path.write_bytes(whole + whole.splitlines()[-1][:40])
    return whole


def test_a_torn_last_line_is_removed_before_the_next_is_written(journal, caplog):
    queue = Queue.open(f"journal:{journal}")
    whole = tear(journal)
    assert run_states(queue) == ["waiting"] * 3
    claim = queue.claim()
    assert claim.run == THREE_RUNS[0]
    assert journal.read_bytes().startswith(whole + b"{")
    assert f"{journal}: removed its last line, 40 bytes that were not written to their end" in caplog.text
    assert run_states(queue) == run_states(Queue.open(f"journal:{journal}")) == ["running", "waiting", "waiting"]


def test_a_study_is_opened_again_after_its_last_line_was_torn(journal):
    tear(journal)
    queue = Queue.open(f"journal:{journal}")
    assert [queue.claim().run for _ in THREE_RUNS] == THREE_RUNS
    assert run_states(Queue.open(f"journal:{journal}")) == ["running"] * 3


def test_a_line_that_another_worker_is_writing_is_not_torn(journal):
    queue, other = Queue.open(f"journal:{journal}"), Queue.open(f"journal:{journal}")
    lock, whole = other._storage._backend._lock, journal.read_bytes()
    claimed = []
    assert lock.acquire()
    tear(journal)
    claiming = threading.Thread(target=lambda: claimed.append(queue.claim()))
    claiming.start()
    with journal.open("ab") as file:
        file.write(whole.splitlines(keepends=True)[-1][40:])
    lock.release()
    claiming.join(60)
    assert claimed[0].run == THREE_RUNS[0]
    # The line is there twice now: it adds the last run once more.
    assert journal.read_bytes().startswith(whole + whole.splitlines(keepends=True)[-1])


def test_a_line_in_the_middle_that_cannot_be_read_is_named(journal):
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([lines[0], b"not JSON\n", *lines[1:]]))
    with pytest.raises(InputError, match=rf"journal of a study at {journal}, got a line that Optuna did not write"):
        Queue.open(f"journal:{journal}")


def test_a_journal_that_is_gone_is_not_begun_again(journal):
    queue = Queue.open(f"journal:{journal}")
    journal.unlink()
    with pytest.raises(FileNotFoundError):
        queue.claim()
    assert not journal.exists()
    assert not journal.with_name("runs.log.lock").exists()
