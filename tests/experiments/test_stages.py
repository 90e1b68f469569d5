import shutil
from contextlib import closing
from dataclasses import replace

import pytest

from backpass.errors import InputError, StateError
from backpass.experiments import RECIPES, Entry, Study, compare_study, run_study, running
from backpass.experiments.choices import choose, write_choices
from backpass.experiments.sampling import points, wanted
from backpass.experiments.scheduling import worker as workers
from backpass.experiments.stages import count_runs, last_stage, next_runs, tuned_study, tuning_runs, tuning_study
from backpass.experiments.study import write_study
from backpass.experiments.tuning import Tuning, parse_space
from backpass.training.recipe import SgsSettings

RECIPE = replace(
    RECIPES["digits"],
    epochs=1,
    data=replace(RECIPES["digits"].data, limit_train=100, limit_test=50),
    sgs=SgsSettings(warmup=0),
)
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


@pytest.mark.parametrize(
    "search", [replace(TUNING, trials=3), Tuning((7,), trials=4, sampler="tpe")], ids=["grid", "tpe"]
)
def test_methods_with_the_same_space_try_the_same_points(search):
    found = study("lr=0.01,0.02,0.05,0.1,0.2,0.4", methods=("plain", "sgs", "pgt", "sgs+pgt"), tuning=search)
    rates = {}
    for run in tuning_runs(found, {}):
        rates.setdefault(run.run.method, []).append(run.run.recipe.optimizer.lr)
    assert rates["plain"] == rates["sgs"] == rates["pgt"] == rates["sgs+pgt"]


def test_a_choice_among_points_that_another_version_has_drawn_stays(tmp_path):
    found = study("lr=0.01,0.02,0.05,0.1", methods=("plain", "sgs"), tuning=replace(TUNING, trials=2))
    drawn = {run.run.recipe.optimizer.lr for run in tuning_runs(found, {})}
    others = [point for point in points(found.entries[0].space, TUNING, {}) if float(point[0][1]) not in drawn]
    known = {(point, seed): float(point[0][1]) for point in others for seed in (7, 8)}
    part = replace(found, entries=found.entries[:1])
    write_choices(tmp_path, choose(part, {"plain": known}))
    runs = [(run.run.method, run.run.recipe.optimizer.lr) for run in next_runs(found, tmp_path)]
    kept = {float(point[0][1]) for point in others}
    assert {lr for method, lr in runs if method == "plain"} == kept
    assert {lr for method, lr in runs if method == "sgs"} == drawn


def test_a_choice_in_a_space_that_was_smaller_is_refused(tmp_path):
    tuning = replace(TUNING, trials=2)
    found = study("lr=0.01,0.02", methods=("plain",), tuning=tuning)
    write_choices(tmp_path, choose(found, results(found, lambda key, lr, seed: lr)))
    larger = study("lr=0.01,0.02,0.05,0.1", methods=("plain", "sgs"), tuning=tuning)
    with pytest.raises(InputError, match=r"to hold the points of this study for plain, got those of another search"):
        next_runs(larger, tmp_path)


def test_points_that_are_tied_are_named():
    found = study("lr=0.05,0.1,0.2", methods=("plain",))
    for equal, ties in (((0.1, 0.2), "optimizer.lr = 0.2"), ((0.05,), "")):
        known = results(found, lambda key, lr, seed, equal=equal: 0.9 if lr in equal else 0.5)
        (note,) = tuned_study(found, choose(found, known)).notes
        assert ("tied" in note) == bool(ties)
        assert f", the best of 3 points{ties and ', tied with '}{ties}" in note
    (note,) = tuned_study(found, choose(found, results(found, lambda key, lr, seed: 0.5))).notes
    assert note == (
        "plain: optimizer.lr = 0.05, the best of 3 points, tied with optimizer.lr = 0.1 and with optimizer.lr = 0.2; "
        "at the edge of its values: optimizer.lr"
    )


def test_seeds_that_tune_judge_nothing():
    with pytest.raises(InputError, match=r"seeds that have no part in tuning, got \[1\] for both"):
        study("lr=0.05,0.1", tuning=Tuning(seeds=(1, 2)))


def test_images_that_choose_judge_nothing():
    held_out = replace(RECIPE, data=replace(RECIPE.data, validation=0.1))
    with pytest.raises(InputError, match=r"data\.validation = 0 for plain, which is tuned, got 0\.1, .*; leave it"):
        compare_study(held_out, ("plain", "sgs"), (0, 1), space=parse_space(["lr=0.05,0.1"]), tuning=TUNING)
    assert compare_study(held_out, ("plain", "sgs"), (0, 1)).runs()


def results(found, accuracy):
    """Return what all runs of the first stage tell, by entry, point and seed."""
    return {
        entry.key: {
            (point, seed): accuracy(entry.key, float(point[0][1]), seed)
            for point, seed in wanted(entry.space, found.tuning, {})
        }
        for entry in found.entries
    }


def test_each_entry_gets_its_own_best_point():
    found = study("lr=0.05,0.1,0.2")
    best = {"plain": 0.1, "sgs": 0.2}
    choices = choose(found, results(found, lambda key, lr, seed: 0.9 - abs(best[key] - lr) + 0.01 * seed))
    assert [choice.settings for choice in choices] == [(("optimizer.lr", "0.1"),), (("optimizer.lr", "0.2"),)]
    assert choices[0].trials[0].scores == ((7, pytest.approx(0.92)), (8, pytest.approx(0.93)))
    second = tuned_study(found, choices)
    assert [entry.recipe.optimizer.lr for entry in second.entries] == [0.1, 0.2]
    assert {entry.recipe.data.validation for entry in second.entries} == {0.0}
    assert (second.seeds, second.tuning, [e.baseline for e in second.entries]) == ((0, 1), None, [None, "plain"])
    assert second.notes == (
        "plain: optimizer.lr = 0.1, the best of 3 points",
        "sgs: optimizer.lr = 0.2, the best of 3 points; at the edge of its values: optimizer.lr",
    )


def test_entries_that_share_a_label_are_told_apart_by_their_methods():
    space, fewer = parse_space(["lr=0.05,0.1"]), parse_space(["lr=0.05"])
    entries = (Entry("a", "A", "plain", RECIPE, space=space), Entry("b", "A", "sgs", RECIPE, "a", space=space))
    found = Study("both", entries, (0,), tuning=TUNING)
    notes = tuned_study(found, choose(found, results(found, lambda key, lr, seed: lr))).notes
    assert [note.partition(":")[0] for note in notes] == ["A (plain)", "A (sgs)"]
    with pytest.raises(InputError, match=r"got A \(plain\): 1, A \(sgs\): 2; give"):
        tuning_study(replace(found, entries=(replace(entries[0], space=fewer), entries[1])))


def test_a_missing_record_is_named_and_a_run_that_diverged_is_not_missing():
    found = study("lr=0.05,0.1")
    known = results(found, lambda key, lr, seed: lr)
    last = list(known["sgs"])[-1]
    accuracy = known["sgs"].pop(last)
    assert accuracy == 0.1
    with pytest.raises(InputError, match=r"records of all points of sgs, got none of optimizer.lr = 0.1, seed 8"):
        choose(found, known)
    known["sgs"][last] = None
    assert [choice.settings[0][1] for choice in choose(found, known)] == ["0.1", "0.05"]


def test_what_is_not_tuned_is_named():
    mixed = Study(
        "mixed",
        (Entry("a", "a", "plain", RECIPE, space=parse_space(["lr=0.05,0.1"])), Entry("b", "b", "plain", RECIPE)),
        (0,),
        tuning=TUNING,
    )
    assert tuned_study(mixed, []).notes == ("not tuned: b (plain)",)
    with pytest.raises(InputError, match="got no entry with a search space"):
        tuning_study(replace(mixed, entries=mixed.entries[1:]))


def test_edges_follow_from_the_space_and_not_from_the_file(tmp_path):
    found = study("lr=0.05,0.1")
    choices = choose(found, results(found, lambda key, lr, seed: lr))
    assert [choice.at_edge for choice in choices] == [("optimizer.lr",)] * 2
    write_choices(tmp_path, [replace(choice, at_edge=()) for choice in choices])
    second, stored = last_stage(found, tmp_path)
    assert stored == choices
    assert second.notes[0] == "plain: optimizer.lr = 0.1, the best of 2 points; at the edge of its values: optimizer.lr"


def test_a_choice_of_an_earlier_study_leaves_an_entry_that_is_not_tuned():
    found = study("lr=0.05,0.1")
    choices = choose(found, results(found, lambda key, lr, seed: lr))
    first, second = found.entries
    fewer = replace(found, entries=(replace(first, space=()), second))
    rates = [entry.recipe.optimizer.lr for entry in tuned_study(fewer, choices).entries]
    assert rates == [first.recipe.optimizer.lr, 0.1]


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
    assert last_stage(found, tmp_path) == (result.study, result.choices)
    with pytest.raises(InputError, match=r"expected .*tuning\.json to hold the points of this study"):
        run_study(study("lr=0.01,0.1"), tmp_path)


def tuned(*texts, recipe=RECIPE):
    return compare_study(recipe, ("plain",), (0,), space=parse_space(texts), tuning=Tuning(seeds=(7,)))


def with_rate(lr):
    return compare_study(replace(RECIPE, optimizer=replace(RECIPE.optimizer, lr=lr)), ("plain",), (0,))


@pytest.mark.parametrize("lost", ["nothing", "study.db", "plain-seed0"])
def test_a_folder_with_runs_where_the_tuned_ones_belong_is_refused_before_it_tunes(lost, tmp_path):
    run_study(with_rate(0.1), tmp_path)
    (tmp_path / lost).unlink() if lost == "study.db" else shutil.rmtree(tmp_path / lost, ignore_errors=True)
    with pytest.raises(
        InputError, match=r"expected .*plain-seed0 to be free for a run with tuned .*; choose another f"
    ):
        run_study(tuned("lr=0.05,0.1"), tmp_path)
    assert not list(tmp_path.glob("tuning*"))


def test_records_of_other_settings_choose_nothing(tmp_path):
    run_study(tuned("lr=0.001,0.1"), tmp_path)
    for name in ("study.db", "tuning.json"):
        (tmp_path / name).unlink()
    shutil.rmtree(tmp_path / "plain-seed0")
    result = run_study(tuned("lr=0.001,0.1", recipe=replace(RECIPE, epochs=2)), tmp_path)
    assert (len(result.failures), result.records, result.choices) == (2, [], [])
    assert all(
        "to belong to this run" in error or "choose another folder" in error for error in result.failures.values()
    )


def test_a_run_that_takes_the_folder_of_a_tuned_one_meanwhile_is_not_taken_for_it(tmp_path, monkeypatch):
    def disturb(storage, name, folder, **options):
        with closing(running.Queue.open(storage, name)) as queue:
            queue.fill(with_rate(0.2).runs())
            with pytest.raises(
                InputError, match=r"expected plain-seed0 to belong to one run .*; choose another folder"
            ):
                running.work(queue, folder)

    monkeypatch.setattr(running, "work_in_processes", disturb)
    with pytest.raises(
        StateError, match=r"the 3 runs of the study to have ended, got 1 .*, such as plain-seed0, since"
    ):
        run_study(tuned("lr=0.001,0.1"), tmp_path, processes=2)


def test_some_entries_first_and_then_all_choose_once_each(tmp_path):
    whole = study("lr=0.001,0.1", tuning=Tuning(seeds=(7,)))
    part = replace(whole, entries=whole.entries[:1])
    first = run_study(part, tmp_path)
    assert ([choice.entry for choice in first.choices], len(first.records)) == (["plain"], 2)
    assert last_stage(whole, tmp_path) == (whole, [])
    second = run_study(whole, tmp_path)
    assert [choice.entry for choice in second.choices] == ["plain", "sgs"]
    assert (second.choices[:1], second.records[::2], len(second.records)) == (first.choices, first.records, 4)
    assert last_stage(part, tmp_path) == (first.study, first.choices)  # the other choice stays, for the whole
    assert run_study(part, tmp_path).records == first.records
    assert last_stage(whole, tmp_path) == (second.study, second.choices)


def test_a_study_stopped_between_its_stages_has_the_second_one_next(tmp_path):
    found = study("lr=0.001,0.1")
    first = tuning_study(found)
    run_study(first, tmp_path)
    write_study(found, tmp_path)
    assert [run.folder for run in next_runs(found, tmp_path)] == [run.folder for run in first.runs()]
    assert last_stage(found, tmp_path) == (found, [])
    result = run_study(found, tmp_path)
    assert (len(result.records), result.runs) == (4, 12)


def test_a_point_that_diverges_is_out_and_another_failure_ends_the_study_before_its_second_stage(tmp_path, monkeypatch):
    result = run_study(study("lr=1e30,0.1", methods=("plain",)), tmp_path / "diverged")
    result.check()
    assert [trial.diverged for trial in result.choices[0].trials] == [(7, 8), ()]
    assert [record.run.recipe.optimizer.lr for record in result.records] == [0.1, 0.1]

    def broken(settings):
        raise OSError("no such disk")

    monkeypatch.setattr(workers, "load_data", broken)
    failed = run_study(study("lr=0.05,0.1", methods=("plain",)), tmp_path / "failed")
    assert (len(failed.failures), failed.records, failed.choices) == (4, [], [])


def test_a_failed_run_of_a_method_that_the_study_has_no_longer_does_not_end_it(tmp_path):
    settings = {"space": parse_space(["lr=0.05,0.1"]), "tuning": Tuning(seeds=(7,))}
    recipe = replace(RECIPE, agc=replace(RECIPE.agc, head="nope"))
    first = run_study(compare_study(recipe, ("plain", "agc"), (0,), **settings), tmp_path)
    assert (first.records, len(first.failures)) == ([], 2)
    second = run_study(compare_study(recipe, ("plain",), (0,), **settings), tmp_path)
    assert (len(second.records), second.failures, second.runs) == (1, {}, 3)


def test_a_first_stage_that_ends_without_a_choice_is_an_error(tmp_path, monkeypatch):
    def diverge(storage, name, folder, **options):
        with closing(running.Queue.open(storage, name)) as queue:
            while (claim := queue.claim()) is not None:
                queue.fail(claim, "not finite", diverged=True)

    monkeypatch.setattr(running, "work_in_processes", diverge)
    with pytest.raises(StateError, match=r"expected the first stage of the study to end with a choice .*, got no"):
        run_study(study("lr=0.05,0.1"), tmp_path, processes=2)


def test_a_failure_after_a_round_that_diverged_is_named(tmp_path, monkeypatch):
    def fail(queue, folder, **options):
        for diverged in (True, False):
            while (claim := queue.claim()) is not None:
                queue.fail(claim, "no such disk", diverged=diverged)
            queue.fill(workers._next_stage(folder, queue.states()))

    monkeypatch.setattr(running, "work", fail)
    rates = ",".join(f"{number / 100:g}" for number in range(1, 21))
    found = study(f"lr={rates}", methods=("plain",), tuning=Tuning((7,), trials=8, sampler="tpe"))
    result = run_study(found, tmp_path)
    assert len(result.failures) == result.runs - 4 > 0  # the first round has four points


@pytest.mark.parametrize(
    ("search", "runs"),
    [(Tuning((7, 8), halving=True), 4 + 2), (Tuning((7,), trials=6, sampler="tpe"), None)],
    ids=["halving", "tpe"],
)
def test_a_search_that_learns_runs_in_rounds_and_resumes_at_its_end(search, runs, tmp_path):
    found = study("lr=0.001,0.01,0.05,0.1", methods=("plain",), tuning=search)
    result = run_study(found, tmp_path)
    result.check()
    assert result.choices[0].settings[0][1] in ("0.05", "0.1")
    assert runs is None or result.runs == runs + 2
    again = run_study(found, tmp_path)
    assert (again.records, again.choices, again.runs) == (result.records, result.choices, result.runs)


def test_a_point_that_diverged_gets_no_further_seeds():
    halving = replace(TUNING, halving=True, seeds=(1, 2))
    space = parse_space(["lr=1,2,3,4"])
    known = {(((("optimizer.lr", rate),)), 1): 0.5 if rate == "2" else None for rate in "1234"}
    assert [entry for entry in wanted(space, halving, known) if entry[1] == 2] == [((("optimizer.lr", "2"),), 2)]


def test_names_of_run_folders_that_are_too_long_are_refused():
    many = [f"{name}=0.1,0.2" for name in ("lr", "weight_decay", "momentum", "sgs.k", "pgt.alpha", "label_smoothing")]
    values = tuple((key, ("0.1234567890123456789012345", "0.2")) for key, _ in parse_space(many))
    with pytest.raises(InputError, match=r"name of at most 255 characters, got \d+: tuning-.*; choose a shorter key"):
        compare_study(RECIPE, ["sgs+pgt"], [0], space=values)
