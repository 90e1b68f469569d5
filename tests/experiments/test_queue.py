import threading
from types import SimpleNamespace

import pytest
from backpass.experiments.cells import Cell
from backpass.experiments.queue import LostCellError, Queue

from backpass.errors import InputError
from backpass.experiments import queue as queues
from backpass.training.recipe import Recipe, Run, Runtime

CELLS = [Cell(Run(Recipe(epochs=1), "plain", seed), f"plain-seed{seed}") for seed in range(3)]
NAMES = [cell.folder for cell in CELLS]


def states(queue):
    return [state.state for state in queue.states()]


@pytest.fixture(params=["sqlite", "journal"])
def address(request, tmp_path):
    return str(tmp_path / "study") if request.param == "sqlite" else f"journal:{tmp_path / 'cells.log'}"


@pytest.fixture
def opened(address, tmp_path):
    """Opens the queue of three cells as often as there are workers."""
    queues = []

    def open_again():
        queues.append(Queue.open(address) if queues else Queue.create(address, "s", folder=tmp_path, runtime=Runtime()))
        return queues[-1]

    open_again().fill(CELLS)
    yield open_again
    for queue in queues:
        queue.close()


@pytest.fixture
def clock(monkeypatch):
    """The queue's clock, which stands still unless it is set."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(queues, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_cells_are_claimed_in_order_and_once(opened):
    first, second = opened(), opened()
    claims = [first.claim(), second.claim(), first.claim()]
    assert [claim.cell for claim in claims] == CELLS
    assert first.claim() is None
    assert second.claim() is None
    assert states(second) == ["running"] * 3


def test_filling_again_adds_nothing_that_waits_runs_or_is_complete(opened):
    queue = opened()
    queue.finish(queue.claim(), 0.5, {"a": 1})
    queue.claim()
    queue.fill(CELLS)
    assert states(queue) == ["complete", "running", "waiting"]
    assert queue.states()[0].result == {"a": 1}
    assert queue.claim().cell == CELLS[2]
    assert queue.claim() is None


def test_a_failed_cell_is_tried_again_by_filling_alone(opened):
    queue = opened()
    queue.fail(queue.claim(), "no such model")
    queue.take_over(grace=0)
    assert (queue.states()[0].state, queue.states()[0].error) == ("failed", "no such model")
    assert [queue.claim().cell.folder for _ in range(2)] == NAMES[1:]
    assert queue.claim() is None
    queue.fill(CELLS)
    assert queue.claim().cell == CELLS[0]


def test_a_released_cell_waits_again(opened):
    queue = opened()
    queue.release(queue.claim())
    assert states(queue) == ["waiting"] * 3


def test_a_silent_worker_loses_its_cell_and_finds_out(opened, clock):
    dead, alive = opened(), opened()
    lost, kept = dead.claim(), alive.claim()
    dead.beat(lost)
    alive.take_over(grace=60)  # the watch begins
    for _ in range(3):
        clock.now += 20
        alive.beat(kept)
        alive.take_over(grace=60)
    assert states(alive) == ["running", "running", "waiting"]
    clock.now += 1
    alive.take_over(grace=60)
    assert states(alive) == ["waiting", "running", "waiting"]
    with pytest.raises(LostCellError, match="plain-seed0"):
        dead.beat(lost)
    with pytest.raises(LostCellError, match="plain-seed0"):
        dead.finish(lost, 0.5, {})
    assert [alive.claim().cell.folder, alive.claim().cell.folder] == [NAMES[2], NAMES[0]]


def test_a_worker_that_died_before_its_first_beat_is_noticed(opened, clock):
    dead, alive = opened(), opened()
    dead.claim()
    for _ in range(4):
        alive.take_over(grace=60)
        clock.now += 25
    assert states(alive) == ["waiting"] * 3


def test_time_in_which_nobody_watched_counts_for_nothing(opened, clock):
    other, alive = opened(), opened()
    claim = other.claim()
    other.beat(claim)
    alive.take_over(grace=60)
    clock.now += 3600  # the watching worker runs a cell of its own; the other's clock, or machine, stood still as well
    for _ in range(3):
        alive.take_over(grace=60)
        assert states(alive)[0] == "running"
        clock.now += 25
    alive.take_over(grace=60)
    assert states(alive)[0] == "waiting"


def test_the_time_that_a_look_takes_is_not_counted(opened, clock):
    other, alive = opened(), opened()
    other.claim()
    look = alive._study.get_trials

    def slow(**options):
        clock.now += 61
        return look(**options)

    alive._study.get_trials = slow
    alive.take_over(grace=60)
    alive._study.get_trials = look
    clock.now += 25
    alive.take_over(grace=60)
    assert states(alive)[0] == "running"


def test_two_workers_that_put_the_same_cell_back_run_it_once(opened):
    dead, one, two = opened(), opened(), opened()
    dead.claim()
    for queue in (one, two):
        queue.take_over(grace=-1)
    # Both see the cell silent before either has put it back.
    one._put_back = two._put_back = lambda: None
    one.take_over(grace=-1)
    del one._put_back, two._put_back
    plain = one._study.get_trials()[0].user_attrs["cell"]
    one._add(plain)
    two._add(plain)
    assert [one.claim().cell.folder for _ in range(3)] == [NAMES[1], NAMES[2], NAMES[0]]
    assert two.claim() is None
    assert states(two) == ["running"] * 3


def test_a_cell_whose_putting_back_was_cut_short_waits_and_is_put_back_by_the_next(opened):
    dying, alive = opened(), opened()
    dying._put_back = lambda: None
    dying.release(dying.claim())
    assert states(alive) == ["waiting"] * 3  # a worker that saw it failed would go home and leave it
    assert [alive.claim().cell.folder for _ in range(2)] == NAMES[1:]
    assert alive.claim() is None
    alive.take_over(grace=60)
    assert alive.claim().cell.folder == NAMES[0]


def test_a_cell_that_kills_its_workers_fails_in_the_end(opened):
    queue = opened()
    for _ in range(12):
        queue.take_over(grace=-1)
        queue.take_over(grace=-1)
        while queue.claim() is not None:
            pass
    assert {(state.state, state.error) for state in queue.states()} == {("failed", "its workers died, 10 times in all")}


@pytest.fixture
def exhausted(opened):
    """A queue whose cells have lost ten workers each, filled again."""
    queue = opened()
    for _ in range(11):
        while queue.claim() is not None:
            pass
        queue.take_over(grace=-1)
        queue.take_over(grace=-1)
    assert states(queue) == ["failed"] * 3
    queue.fill(CELLS)
    return queue


def test_filling_starts_a_new_count_of_lost_workers(exhausted):
    for _ in range(9):
        assert len([exhausted.claim() for _ in CELLS]) == 3
        exhausted.take_over(grace=-1)
        exhausted.take_over(grace=-1)
        assert states(exhausted) == ["waiting"] * 3
    while exhausted.claim() is not None:
        pass
    exhausted.take_over(grace=-1)
    exhausted.take_over(grace=-1)
    assert states(exhausted) == ["failed"] * 3


def test_a_released_cell_is_put_back_however_many_workers_it_has_lost(exhausted):
    exhausted.release(exhausted.claim())
    assert states(exhausted) == ["waiting"] * 3
    assert [exhausted.claim().cell for _ in CELLS] == [*CELLS[1:], CELLS[0]]


def test_one_folder_belongs_to_one_run(opened):
    queue = opened()
    other = Cell(Run(Recipe(epochs=2), "plain", 0), "plain-seed0")
    with pytest.raises(InputError, match="plain-seed0 belongs to another run of study 's'; choose another folder"):
        queue.fill([other])
    with pytest.raises(InputError, match="x belongs to another run of study 's'"):
        queue.fill([Cell(CELLS[0].run, "x"), Cell(CELLS[1].run, "x")])


def test_the_study_is_found_by_name(opened, address, tmp_path):
    assert opened().folder == tmp_path.resolve()
    assert opened().runtime == Runtime()
    with pytest.raises(InputError, match=r"expected a study called 't' in .*, found 's'"):
        Queue.open(address, "t")
    Queue.create(address, "t", folder=tmp_path, runtime=Runtime()).close()
    with pytest.raises(InputError, match=r"expected one study, or its name in .*, found 's', 't'"):
        Queue.open(address)


def test_workers_that_claim_at_the_same_moment_share_no_cell(address, tmp_path):
    cells = [Cell(CELLS[0].run, f"cell{number}") for number in range(24)]
    queue = Queue.create(address, "s", folder=tmp_path, runtime=Runtime())
    queue.fill(cells)
    barrier = threading.Barrier(4)
    claimed = []

    def claim_all():
        own = Queue.open(address)
        for _ in range(len(cells) // 4):
            barrier.wait(60)
            claimed.append(own.claim().cell.folder)
        own.close()

    workers = [threading.Thread(target=claim_all) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(claimed) == sorted(cell.folder for cell in cells)
    queue.close()
