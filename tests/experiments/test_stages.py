from dataclasses import replace

import pytest

from backpass.errors import InputError
from backpass.experiments import RECIPES, Entry, Study, compare_study, run_study
from backpass.experiments.stages import choose, count_runs, next_runs, read_choices, tuned_study, tuning_study
from backpass.experiments.study import StudyRun, write_study
from backpass.experiments.tuning import Tuning, parse_space

RECIPE = replace(RECIPES["digits"], epochs=1, data=replace(RECIPES["digits"].data, limit_train=100, limit_test=50))
TUNING = Tuning(seeds=(7, 8), validation=0.3)


def study(*texts, methods=("plain", "sgs"), tuning=TUNING):
    return compare_study(RECIPE, methods, (0, 1), space=parse_space(texts), tuning=tuning)


def test_the_first_stage_tries_every_point_on_held_out_images_with_its_own_seeds():
    first = tuning_study(study("lr=0.05,0.1"))
    assert [(e.method, e.recipe.optimizer.lr) for e in first.entries] == [
        ("plain", 0.05),
        ("plain", 0.1),
        ("sgs", 0.05),
        ("sgs", 0.1),
    ]
    assert {e.recipe.data.validation for e in first.entries} == {0.3}
    assert first.seeds == (7, 8)
    assert count_runs(study("lr=0.05,0.1")) == 8 + 4


def test_a_method_tunes_the_settings_that_it_has():
    found = study("lr=0.05,0.1", "k=3,5", methods=("plain", "pgt", "sgs+pgt"), tuning=replace(TUNING, trials=2))
    assert [[name for name, _ in entry.space] for entry in found.entries] == [
        ["optimizer.lr"],
        ["optimizer.lr"],
        ["optimizer.lr", "sgs.k"],
    ]


def test_unequal_numbers_of_points_are_refused():
    with pytest.raises(InputError, match=r"the same number of points, got plain: 2, sgs: 4; give the smallest"):
        study("lr=0.05,0.1", "k=3,5")
    found = study("lr=0.05,0.1", "k=3,5", tuning=replace(TUNING, trials=2))
    assert len(tuning_study(found).entries) == 4


def test_seeds_that_tune_judge_nothing():
    with pytest.raises(InputError, match=r"seeds that have no part in tuning, got \[1\] for both"):
        study("lr=0.05,0.1", tuning=Tuning(seeds=(1, 2)))


def records_of(found, make_record, accuracy):
    """Return the records of the first stage, with accuracies by method and learning rate."""
    return [
        make_record(run.run.recipe, run.run.method, run.run.seed, [accuracy(run)], entry=run.entry)
        for run in tuning_study(found).runs()
    ]


def test_each_entry_gets_its_own_best_point(make_record):
    found = study("lr=0.05,0.1,0.2")
    best = {"plain": 0.1, "sgs": 0.2}
    records = records_of(
        found, make_record, lambda r: 0.9 - abs(best[r.run.method] - r.run.recipe.optimizer.lr) + 0.01 * r.run.seed
    )
    choices = choose(found, records)
    assert [choice.settings for choice in choices] == [(("optimizer.lr", "0.1"),), (("optimizer.lr", "0.2"),)]
    assert choices[0].trials[0].accuracies == ((7, pytest.approx(0.92)), (8, pytest.approx(0.93)))
    second = tuned_study(found, choices)
    assert [entry.recipe.optimizer.lr for entry in second.entries] == [0.1, 0.2]
    assert {entry.recipe.data.validation for entry in second.entries} == {0.0}
    assert (second.seeds, second.tuning, [e.baseline for e in second.entries]) == ((0, 1), None, [None, "plain"])
    assert second.notes == (
        "plain: optimizer.lr = 0.1, the best of 3 points",
        "sgs: optimizer.lr = 0.2, the best of 3 points; at the edge of its values: optimizer.lr",
    )


def test_a_missing_record_is_named_and_a_run_that_diverged_is_not_missing(make_record):
    found = study("lr=0.05,0.1")
    records = records_of(found, make_record, lambda r: r.run.recipe.optimizer.lr)
    lost = StudyRun(records[-1].entry, records[-1].run).folder
    with pytest.raises(InputError, match=rf"records of all points of sgs, got none of {lost}"):
        choose(found, records[:-1])
    choices = choose(found, records[:-1], diverged={lost})
    assert [choice.settings[0][1] for choice in choices] == ["0.1", "0.05"]


def test_what_is_not_tuned_is_named():
    mixed = Study(
        "mixed",
        (Entry("a", "a", "plain", RECIPE, space=parse_space(["lr=0.05,0.1"])), Entry("b", "b", "plain", RECIPE)),
        (0,),
        tuning=TUNING,
    )
    assert tuned_study(mixed, []).notes == ("not tuned: b",)
    with pytest.raises(InputError, match="got no entry with a search space"):
        tuning_study(replace(mixed, entries=mixed.entries[1:]))


def test_both_stages_in_one_study_and_the_choice_stays(tmp_path):
    found = study("lr=0.001,0.1")
    result = run_study(found, tmp_path)
    result.check()
    assert [choice.settings for choice in result.choices] == [(("optimizer.lr", "0.1"),)] * 2
    assert [(r.entry, r.seed, r.data.split) for r in result.records] == [
        ("plain", 0, "test"),
        ("sgs", 0, "test"),
        ("plain", 1, "test"),
        ("sgs", 1, "test"),
    ]
    assert {record.run.recipe.optimizer.lr for record in result.records} == {0.1}
    assert result.runs == 12
    again = run_study(found, tmp_path)
    assert (again.records, again.choices) == (result.records, result.choices)
    with pytest.raises(InputError, match=r"expected .*tuning\.json to hold the points of this study"):
        run_study(study("lr=0.01,0.1"), tmp_path)


def test_a_study_stopped_between_its_stages_has_the_second_one_next(tmp_path):
    found = study("lr=0.001,0.1")
    first = tuning_study(found)
    run_study(first, tmp_path)
    write_study(found, tmp_path)
    assert [run.folder for run in next_runs(found, tmp_path)] == [run.folder for run in first.runs()]
    assert read_choices(tmp_path) is None
    result = run_study(found, tmp_path)
    assert (len(result.records), result.runs) == (4, 12)


def test_a_point_that_diverges_is_out_and_another_failure_ends_the_study_before_its_second_stage(tmp_path):
    result = run_study(study("lr=1e30,0.1", methods=("plain",)), tmp_path / "diverged")
    result.check()
    assert [trial.diverged for trial in result.choices[0].trials] == [(7, 8), ()]
    assert [record.run.recipe.optimizer.lr for record in result.records] == [0.1, 0.1]

    def broken(settings):
        raise OSError("no such disk")

    failed = run_study(study("lr=0.05,0.1", methods=("plain",)), tmp_path / "failed", load=broken)
    assert (len(failed.failures), failed.records, failed.choices) == (4, [], [])
