from dataclasses import replace

import pytest
from backpass.experiments.plan import compare_plan, read_plan
from backpass.experiments.runs import Progress

from backpass.errors import InputError, StateError
from backpass.experiments.recipes import RECIPES
from backpass.experiments.study import compare, run_study
from backpass.training.recipe import DataSettings, Runtime

CPU = Runtime(device="cpu")
TINY = replace(RECIPES["digits"], epochs=1, data=DataSettings(limit_train=64, limit_test=20))


class Log(Progress):
    def __init__(self):
        self.events = []

    def start_study(self, runs):
        self.events.append(runs)

    def end_epoch(self, record):
        self.events.append("epoch")

    def end_run(self, result):
        self.events.append((result.method, result.seed))


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    return folder, compare(TINY, ["plain", "sgs"], [0, 1], folder, runtime=CPU)


def test_methods_come_in_turn_within_a_seed(compared):
    folder, results = compared
    assert [(r.method, r.seed) for r in results] == [("plain", 0), ("sgs", 0), ("plain", 1), ("sgs", 1)]
    assert read_plan(folder) == compare_plan(TINY, ["plain", "sgs"], [0, 1])


def test_a_finished_study_is_read_and_not_run_again(compared):
    folder, results = compared
    log = Log()
    assert compare(TINY, ["plain", "sgs"], [0, 1], folder, runtime=CPU, progress=log) == results
    assert log.events == [4, ("plain", 0), ("sgs", 0), ("plain", 1), ("sgs", 1)]


def test_more_seeds_run_what_is_missing_alone(compared):
    folder, results = compared
    log = Log()
    more = compare(TINY, ["plain"], [0, 1, 2], folder, runtime=CPU, progress=log)
    assert log.events == [3, ("plain", 0), ("plain", 1), "epoch", ("plain", 2)]
    assert more[:2] == results[::2]


def test_other_settings_in_the_same_folder_are_refused(compared):
    folder, _ = compared
    with pytest.raises(InputError, match="plain-seed0 belongs to another run of study 'study'; choose another folder"):
        compare(replace(TINY, epochs=3), ["plain"], [0], folder, runtime=CPU)


def test_an_interrupted_study_goes_on_where_it_was(compared, tmp_path):
    _, results = compared

    class Stop(Log):
        def end_epoch(self, record):
            super().end_epoch(record)
            if self.events.count("epoch") == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(TINY, ["plain", "sgs"], [0, 1], tmp_path, runtime=CPU, progress=Stop())
    log = Log()
    again = compare(TINY, ["plain", "sgs"], [0, 1], tmp_path, runtime=CPU, progress=log)
    # The first is read, the second had its only epoch behind it and is last in the queue now.
    assert log.events == [4, ("plain", 0), "epoch", ("plain", 1), "epoch", ("sgs", 1), ("sgs", 0)]
    assert [r.history[0]["train_loss"] for r in again] == [r.history[0]["train_loss"] for r in results]


def test_a_plan_without_cells_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected a plan with at least one cell"):
        run_study(replace(compare_plan(TINY, ["plain"], [0]), seeds=()), tmp_path, runtime=CPU)
    assert list(tmp_path.iterdir()) == []


def test_failures_are_told_after_all_cells_have_ended_and_tried_again(tmp_path):
    plan = compare_plan(replace(TINY, model="nope"), ["plain", "sgs"], [0, 1])
    log = Log()
    outcome = run_study(plan, tmp_path, runtime=CPU, progress=log)
    assert (outcome.results, list(outcome.failures), outcome.cells) == ([], [c.folder for c in plan.cells()], 4)
    with pytest.raises(
        StateError, match=r"^4 of 4 cells failed \(plain-seed0: unknown model 'nope'.*; and 1 more\); er"
    ):
        outcome.check()
    again = run_study(plan, tmp_path, runtime=CPU)
    assert again == outcome
