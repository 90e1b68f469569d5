import threading
from contextlib import closing

import optuna
import pytest
from optuna.trial import TrialState

from backpass.errors import InputError
from backpass.experiments.scheduling.queue import Queue
from backpass.experiments.scheduling.storage import open_storage
from backpass.experiments.serialization import to_json
from backpass.experiments.study import StudyRun
from backpass.training.recipe import Recipe, Run, Runtime
from reference.study_workers import THREE_RUNS, run_states

NAMES = [run.folder for run in THREE_RUNS]


def test_runs_are_claimed_in_order_and_once(opened):
    first, second = opened(), opened()
    claims = [first.claim(), second.claim(), first.claim()]
    assert [claim.run for claim in claims] == THREE_RUNS
    assert first.claim() is None
    assert second.claim() is None
    assert run_states(second) == ["running"] * 3


def test_filling_again_adds_nothing_that_waits_runs_or_is_complete(opened):
    queue = opened()
    queue.finish(queue.claim(), 0.5)
    queue.claim()
    queue.fill(THREE_RUNS)
    assert run_states(queue) == ["complete", "running", "waiting"]
    assert queue.claim().run == THREE_RUNS[2]
    assert queue.claim() is None


def test_a_failed_run_is_tried_again_by_filling_alone(opened):
    queue = opened()
    queue.fail(queue.claim(), "no such model")
    queue.take_over(grace=0)
    assert (queue.states()[0].state, queue.states()[0].error) == ("failed", "no such model")
    assert [queue.claim().run.folder for _ in range(2)] == NAMES[1:]
    assert queue.claim() is None
    queue.fill(THREE_RUNS)
    assert queue.claim().run == THREE_RUNS[0]


def test_a_released_run_waits_again(opened):
    queue = opened()
    queue.release(queue.claim())
    assert run_states(queue) == ["waiting"] * 3


def test_runs_that_are_dropped_wait_no_more_until_they_are_asked_for_again(opened):
    queue, other = opened(), opened()
    running = queue.claim()
    other.drop_others(THREE_RUNS[2:])
    assert [state.run for state in queue.states()] == [THREE_RUNS[0], THREE_RUNS[2]]  # the first runs on
    assert queue.claim().run == THREE_RUNS[2]
    assert queue.claim() is None
    queue.release(running)
    assert [state.run for state in other.states()] == THREE_RUNS[2:]
    assert queue.claim() is None
    other.fill(THREE_RUNS)
    assert run_states(queue) == ["waiting", "waiting", "running"]
    assert {queue.claim().run for _ in range(2)} == set(THREE_RUNS[:2])
    assert queue.claim() is None


def test_a_run_that_is_dropped_and_asked_for_while_it_runs_is_put_back(opened):
    queue = opened()
    running = queue.claim()
    queue.drop_others([])
    queue.fill(THREE_RUNS)
    queue.release(running)
    assert run_states(queue) == ["waiting"] * 3


def test_a_study_belongs_to_one_folder(address, tmp_path):
    first, second = tmp_path / "me" / "a", tmp_path / "you" / "a"
    Queue.create(address, "a", folder=first, runtime=Runtime()).close()
    Queue.create(address, "a", folder=first / ".." / "a", runtime=Runtime()).close()
    refusal = f"to be that of the folder {second}, got the one of {first}; choose a folder that is"
    with pytest.raises(InputError, match=refusal):
        Queue.create(address, "a", folder=second, runtime=Runtime())
    with closing(Queue.open(address, "a")) as queue:
        assert queue.folder == first


def test_one_folder_belongs_to_one_run(opened):
    queue = opened()
    other = StudyRun("plain", Run(Recipe(epochs=2), "plain", 0))
    refusal = "expected {} to belong to one run of study 's', got another with other settings; choose another folder"
    with pytest.raises(InputError, match=refusal.format("plain-seed0")):
        queue.fill([other])
    with pytest.raises(InputError, match=refusal.format("x-seed0")):
        queue.fill([StudyRun("x", THREE_RUNS[0].run), StudyRun("x", other.run)])


def test_the_study_is_found_by_name(opened, address, tmp_path):
    assert opened().folder == tmp_path.resolve()
    assert opened().runtime == Runtime()
    with pytest.raises(InputError, match=r"expected a study called 't' in .*, found 's'"):
        Queue.open(address, "t")
    Queue.create(address, "t", folder=tmp_path, runtime=Runtime()).close()
    with pytest.raises(InputError, match=r"expected one study, or its name in .*, found 's', 't'"):
        Queue.open(address)


def test_workers_that_claim_at_the_same_moment_share_no_run(address, tmp_path):
    runs = [StudyRun(f"entry{number}", THREE_RUNS[0].run) for number in range(24)]
    queue = Queue.create(address, "s", folder=tmp_path, runtime=Runtime())
    queue.fill(runs)
    barrier = threading.Barrier(4)
    claimed = []

    def claim_all():
        own = Queue.open(address)
        for _ in range(len(runs) // 4):
            barrier.wait(60)
            claimed.append(own.claim().run.folder)
        own.close()

    workers = [threading.Thread(target=claim_all) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(claimed) == sorted(run.folder for run in runs)
    queue.close()


def poisoned(queue, entry):
    """Add a run to a queue with this key of its entry."""
    text = to_json(THREE_RUNS[0]).replace('"entry": "plain"', f'"entry": "{entry}"')
    queue._add("plain-seed0", text)


@pytest.mark.parametrize("entry", ["../../X", "a/b", "..", "", "/x"])
def test_a_key_that_leads_out_of_the_folder_is_refused(entry, address, tmp_path):
    with closing(Queue.create(address, "s", folder=tmp_path, runtime=Runtime())) as queue:
        poisoned(queue, entry)
        for call in (queue.claim, queue.states, lambda: queue.fill(THREE_RUNS)):
            with pytest.raises(InputError, match=rf"run 'plain-seed0' of the study's storage: .*got '{entry}'"):
                call()
        assert [trial.state for trial in queue._study.get_trials()] == [TrialState.WAITING]  # and not claimed


def test_a_study_that_is_not_yet_made_is_named(address, tmp_path):
    storage = open_storage(address, create=True)
    optuna.create_study(study_name="s", storage=storage)
    with closing(Queue(storage, "s")) as queue:
        for name in ("folder", "runtime"):
            with pytest.raises(InputError, match=f"expected study 's' to have a {name}, got one that is not yet made"):
                getattr(queue, name)


@pytest.mark.parametrize("kind", ["sqlite", "journal", "postgresql"])
def test_makers_of_a_new_study_at_the_same_moment_all_get_it(kind, tmp_path, request):
    def make(address):
        barrier.wait(60)
        queue = Queue.create(address, "s", folder=tmp_path, runtime=Runtime())
        queue.fill(THREE_RUNS)
        made.append(run_states(queue))
        queue.close()

    if kind == "postgresql":
        addresses = [request.getfixturevalue("postgresql")]
    else:
        addresses = [str(tmp_path / str(n)) if kind == "sqlite" else f"journal:{tmp_path / str(n)}" for n in range(5)]
    made, barrier = [], threading.Barrier(4)
    for address in addresses:
        makers = [threading.Thread(target=make, args=(address,)) for _ in range(4)]
        for maker in makers:
            maker.start()
        for maker in makers:
            maker.join()
    assert len(made) == 4 * len(addresses)
