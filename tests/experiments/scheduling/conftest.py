from types import SimpleNamespace

import pytest

from backpass.experiments.scheduling import silence
from backpass.experiments.scheduling import worker as workers
from backpass.experiments.scheduling.queue import Queue
from backpass.training.recipe import Runtime
from reference.study_workers import THREE_RUNS


@pytest.fixture(params=["sqlite", "journal"])
def address(request, tmp_path):
    return str(tmp_path / "study") if request.param == "sqlite" else f"journal:{tmp_path / 'runs.log'}"


@pytest.fixture
def opened(address, tmp_path):
    """Opens the queue of three runs as often as there are workers."""
    queues = []

    def open_again():
        queues.append(Queue.open(address) if queues else Queue.create(address, "s", folder=tmp_path, runtime=Runtime()))
        return queues[-1]

    open_again().fill(THREE_RUNS)
    yield open_again
    for queue in queues:
        queue.close()


@pytest.fixture
def clock(monkeypatch):
    """The clock of those who watch runs, which stands still unless it is set."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(silence, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


@pytest.fixture
def let_runs_end(monkeypatch):
    """Lets every run end at once, with this record or with this error."""

    def let_end(ending):
        def execute(*arguments, **options):
            if isinstance(ending, BaseException):
                raise ending
            return ending

        monkeypatch.setattr(workers, "execute", execute)

    return let_end
