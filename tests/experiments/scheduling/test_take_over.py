import pytest
from optuna.trial import TrialState

from backpass.experiments.scheduling.queue import LostRunError
from backpass.experiments.serialization import to_json
from reference.study_workers import THREE_RUNS, run_states

NAMES = [run.folder for run in THREE_RUNS]


def test_a_silent_worker_loses_its_run_and_finds_out(opened, clock):
    dead, alive = opened(), opened()
    lost, kept = dead.claim(), alive.claim()
    dead.beat(lost)
    alive.take_over(grace=60)  # the watch begins
    for _ in range(3):
        clock.now += 20
        alive.beat(kept)
        alive.take_over(grace=60)
    assert run_states(alive) == ["running", "running", "waiting"]
    clock.now += 1
    alive.take_over(grace=60)
    assert run_states(alive) == ["waiting", "running", "waiting"]
    with pytest.raises(LostRunError, match="plain-seed0"):
        dead.beat(lost)
    with pytest.raises(LostRunError, match="plain-seed0"):
        dead.finish(lost, 0.5)
    assert [alive.claim().run.folder, alive.claim().run.folder] == [NAMES[2], NAMES[0]]


def test_a_run_that_its_worker_completed_is_not_lost(opened):
    alive = opened()
    claim = alive.claim()
    alive.finish(claim, 0.5)
    alive.beat(claim)
    alive.finish(claim, 0.5)
    assert run_states(alive) == ["complete", "waiting", "waiting"]


def test_a_worker_that_died_before_its_first_beat_is_noticed(opened, clock):
    dead, alive = opened(), opened()
    dead.claim()
    for _ in range(4):
        alive.take_over(grace=60)
        clock.now += 25
    assert run_states(alive) == ["waiting"] * 3


def test_time_in_which_nobody_watched_counts_for_nothing(opened, clock):
    other, alive = opened(), opened()
    claim = other.claim()
    other.beat(claim)
    alive.take_over(grace=60)
    clock.now += 3600  # the watching worker runs a run of its own; the other's clock, or machine, stood still as well
    for _ in range(3):
        alive.take_over(grace=60)
        assert run_states(alive)[0] == "running"
        clock.now += 25
    alive.take_over(grace=60)
    assert run_states(alive)[0] == "waiting"


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
    assert run_states(alive)[0] == "running"


def test_two_workers_that_put_the_same_run_back_run_it_once(opened):
    dead, one, two = opened(), opened(), opened()
    dead.claim()
    for queue in (one, two):
        queue.take_over(grace=-1)
    # Both see the run silent before either has put it back.
    one._put_back = two._put_back = lambda trials: None
    one.take_over(grace=-1)
    del one._put_back, two._put_back
    for queue in (one, two):
        queue._add(NAMES[0], to_json(THREE_RUNS[0]))
    assert [one.claim().run.folder for _ in range(3)] == [NAMES[1], NAMES[2], NAMES[0]]
    assert two.claim() is None
    assert run_states(two) == ["running"] * 3


def test_workers_that_are_stopped_together_each_put_back_their_own_run(opened):
    one, two = opened(), opened()
    first, second = one.claim(), two.claim()
    look = one._by_folder

    def look_before_the_other_is_stopped():
        seen = look()
        two.release(second)
        return seen

    one._by_folder = look_before_the_other_is_stopped
    one.release(first)
    waiting = [trial.user_attrs["folder"] for trial in two._study.get_trials(states=(TrialState.WAITING,))]
    assert waiting == [NAMES[2], NAMES[1], NAMES[0]]


def test_a_run_whose_putting_back_was_cut_short_waits_and_is_put_back_by_the_next(opened):
    dying, alive = opened(), opened()
    dying._put_back = lambda trials: None
    dying.release(dying.claim())
    assert run_states(alive) == ["waiting"] * 3  # a worker that saw it failed would go home and leave it
    assert [alive.claim().run.folder for _ in range(2)] == NAMES[1:]
    assert alive.claim() is None
    alive.take_over(grace=60)
    assert alive.claim().run.folder == NAMES[0]


def test_a_run_that_is_dropped_is_not_put_back_when_its_worker_dies(opened):
    dead, alive = opened(), opened()
    dead.claim()
    alive.drop_others(THREE_RUNS[1:])
    for _ in range(2):
        alive.take_over(grace=-1)
    assert [state.run for state in alive.states()] == THREE_RUNS[1:]
    alive.fill(THREE_RUNS)
    assert run_states(alive) == ["waiting"] * 3


def test_a_run_that_kills_its_workers_fails_in_the_end(opened):
    queue = opened()
    for _ in range(12):
        queue.take_over(grace=-1)
        queue.take_over(grace=-1)
        while queue.claim() is not None:
            pass
    assert {(state.state, state.error) for state in queue.states()} == {("failed", "its workers died, 10 times in all")}


@pytest.fixture
def exhausted(opened):
    """A queue whose runs have lost ten workers each, filled again."""
    queue = opened()
    for _ in range(11):
        while queue.claim() is not None:
            pass
        queue.take_over(grace=-1)
        queue.take_over(grace=-1)
    assert run_states(queue) == ["failed"] * 3
    queue.fill(THREE_RUNS)
    return queue


def test_filling_starts_a_new_count_of_lost_workers(exhausted):
    for _ in range(9):
        assert len([exhausted.claim() for _ in THREE_RUNS]) == 3
        exhausted.take_over(grace=-1)
        exhausted.take_over(grace=-1)
        assert run_states(exhausted) == ["waiting"] * 3
    while exhausted.claim() is not None:
        pass
    exhausted.take_over(grace=-1)
    exhausted.take_over(grace=-1)
    assert run_states(exhausted) == ["failed"] * 3


def test_a_released_run_is_put_back_however_many_workers_it_has_lost(exhausted):
    exhausted.release(exhausted.claim())
    assert run_states(exhausted) == ["waiting"] * 3
    assert [exhausted.claim().run for _ in THREE_RUNS] == [*THREE_RUNS[1:], THREE_RUNS[0]]
