from dataclasses import replace

import pytest

from backpass.errors import InputError
from backpass.experiments import sampling
from backpass.experiments.sampling import planned_points, points, wanted
from backpass.experiments.tuning import Trial, Tuning, best_point, parse_space

SPACE = parse_space(["lr=0.1,0.2,0.4", "weight_decay=1e-4,5e-4"])

OTHERS = [parse_space([f"lr=0.1,0.2,{n}", "weight_decay=1e-4,5e-4"]) for n in (0.5, 0.6, 0.7)]


def grid(space=SPACE, trials=None):
    return points(space, Tuning(trials=trials), {})


def test_a_grid_in_the_order_of_its_settings():
    assert grid()[:3] == [
        (("optimizer.lr", "0.1"), ("optimizer.weight_decay", "1e-4")),
        (("optimizer.lr", "0.1"), ("optimizer.weight_decay", "5e-4")),
        (("optimizer.lr", "0.2"), ("optimizer.weight_decay", "1e-4")),
    ]
    assert len(grid()) == 6


def test_trials_are_drawn_from_the_grid_without_replacement_and_the_same_each_time():
    drawn = grid(trials=4)
    assert drawn == grid(trials=4)
    assert len(set(drawn)) == 4
    assert set(drawn) < set(grid())
    assert grid(trials=6) == grid(trials=99) == grid()
    # Another space draws other numbers of its points.
    drawn_from = [[grid(space).index(point) for point in grid(space, trials=2)] for space in (SPACE, *OTHERS)]
    assert any(numbers != drawn_from[0] for numbers in drawn_from)


def test_a_drawn_grid_that_has_ended_stays_as_it_was():
    others = [point for point in grid() if point not in grid(trials=3)]
    known = {(point, seed): 0.5 for seed in (1000, 1001) for point in reversed(others)}
    assert points(SPACE, Tuning(trials=3), known) == others
    # One that goes on, and one of other values, draw their points.
    assert points(SPACE, Tuning(trials=2), known) == grid(trials=2)
    other_space = parse_space(["lr=0.3,0.6", "weight_decay=1e-4,5e-4"])
    assert points(other_space, Tuning(trials=3), known) == grid(other_space, trials=3)


@pytest.mark.parametrize("texts", [["lr"], ["lr="], ["=1"], ["lr=1,,2"], ["lr=1", "optimizer.lr=2"], ["lr=1,1"]])
def test_spaces_of_another_form_are_refused(texts):
    with pytest.raises(InputError, match=r"expected settings to tune such as lr=0.05,0.1,0.2, each setting and each"):
        parse_space(texts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": ()}, "expected at least one seed to tune with"),
        ({"seeds": (1, 1)}, "each once"),
        ({"validation": 0.0}, r"tuning\.validation to be a finite number > 0 and < 1, got 0\.0"),
        ({"validation": float("nan")}, r"tuning\.validation .* got nan"),
        ({"trials": 0}, r"tuning\.trials to be an integer >= 1"),
        ({"sampler": "tpe"}, "a number of trials with sampler 'tpe'"),
        ({"seeds": (1,), "halving": True}, "at least two seeds with halving"),
    ],
)
def test_tuning_that_tries_nothing_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Tuning(**settings)


def trials(*accuracies):
    tried = grid(space=SPACE[:1])
    return [
        Trial(point, () if a is None else ((7, a - 0.01), (8, a + 0.01)), (7, 8) if a is None else ())
        for point, a in zip(tried, accuracies, strict=True)
    ]


def test_the_best_mean_wins_and_the_first_of_equals():
    assert best_point("plain", SPACE[:1], trials(0.5, 0.7, 0.6)).settings == (("optimizer.lr", "0.2"),)
    assert best_point("plain", SPACE[:1], trials(0.5, 0.75, 0.75)).best == 1


def of_images(correct, images=288):
    """Return a point's scores with the seeds from 7 on; equal sums have means that differ in their last digit."""
    return tuple((seed, number / images) for seed, number in enumerate(correct, 7))


def test_scores_that_are_equal_but_for_rounding_are_tied():
    (first, second, third), scores = grid(SPACE[:1]), (of_images((270, 270, 282)), of_images((270, 275, 277)))
    found = [Trial(first, of_images((288,))), Trial(second, scores[0]), Trial(third, scores[1])]
    assert found[1].score < found[2].score
    choice = best_point("plain", SPACE[:1], found)
    assert (choice.settings, choice.tied) == (second, (third,))
    assert best_point("plain", SPACE[:1], trials(0.5, 0.7, None)).tied == ()
    one_image_more = [Trial(second, scores[0]), Trial(third, of_images((270, 275, 278)))]
    assert (best_point("plain", SPACE[:1], one_image_more).best, choice.trials) == (1, tuple(found))


def test_an_edge_is_one_of_at_least_two_numbers():
    assert best_point("plain", SPACE[:1], trials(0.5, 0.7, 0.6)).at_edge == ()
    assert best_point("plain", SPACE[:1], trials(0.7, 0.6, 0.5)).at_edge == ("optimizer.lr",)
    assert best_point("plain", SPACE[:1], trials(0.1, 0.2, 0.3)).at_edge == ("optimizer.lr",)
    one, two = (("optimizer.lr", ("0.1",)),), (("optimizer.lr", ("0.1", "0.2")),)
    assert best_point("plain", one, trials(0.5, 0.7, 0.6)[:1]).at_edge == ()
    assert best_point("plain", two, trials(0.5, 0.7, 0.6)[:2]).at_edge == ("optimizer.lr",)
    names = (("optimizer.name", ("sgd", "adam", "adamw")),)
    found = [Trial((("optimizer.name", name),), ((7, 0.5),)) for name in names[0][1]]
    assert best_point("plain", names, found).at_edge == ()


def test_a_point_that_diverged_is_out():
    found = best_point("plain", SPACE[:1], trials(0.5, None, 0.4))
    assert (found.best, found.trials[1].score) == (0, None)
    with pytest.raises(InputError, match="expected a point of entry 'plain' that trains, but all 3 diverged"):
        best_point("plain", SPACE[:1], trials(None, None, None))


LARGE = parse_space([f"lr={','.join(f'{n / 100:g}' for n in range(1, 41))}", "weight_decay=1e-4,5e-4"])


def answers(search, accuracy, space=SPACE):
    """Run a search to its end; return what it ran, in rounds."""
    known, rounds = {}, []
    while new := [run for run in wanted(space, search, known) if run not in known]:
        rounds.append(new)
        known |= {(point, seed): accuracy(float(dict(point)["optimizer.lr"]), seed) for point, seed in new}
    return known, rounds


def rates(runs):
    return [float(dict(point)["optimizer.lr"]) for point, _ in runs]


def by_rate(lr, seed):
    return 0.9 - abs(lr - 0.2) + 0.001 * seed


def test_halving_goes_on_with_the_better_half():
    known, rounds = answers(Tuning(seeds=(1, 2, 3), halving=True), by_rate)
    assert [len(new) for new in rounds] == [6, 3, 2]
    assert [{seed for _, seed in new} for new in rounds] == [{1}, {2}, {3}]
    assert set(rates(rounds[2])) == {0.2}
    assert len(known) == 11


def test_halving_drops_points_that_diverge():
    _, rounds = answers(Tuning(seeds=(1, 2), halving=True), lambda lr, _: 0.5 if lr == 0.1 else None)
    assert rates(rounds[1]).count(0.1) == 2


def test_halving_goes_on_with_the_first_of_scores_that_are_equal_but_for_rounding():
    correct = {0.1: (242, 298, 0), 0.2: (240, 300, 0), 0.3: (0, 0, 0), 0.4: (0, 0, 0)}  # of 300, by seed
    assert (242 / 300 + 298 / 300) / 2 < (240 / 300 + 300 / 300) / 2
    search, space = Tuning(seeds=(0, 1, 2), halving=True), parse_space(["lr=0.1,0.2,0.3,0.4"])
    _, rounds = answers(search, lambda lr, seed: correct[lr][seed] / 300, space)
    assert [rates(new) for new in rounds] == [[0.1, 0.2, 0.3, 0.4], [0.1, 0.2], [0.1]]


def test_a_point_that_did_not_go_on_is_not_chosen():
    tried = grid(space=SPACE[:1])
    accuracies = (((1, 0.95),), ((1, 0.9), (2, 0.8)), ((1, 0.7), (2, 0.7)))
    found = [Trial(point, own) for point, own in zip(tried, accuracies, strict=True)]
    assert best_point("plain", SPACE[:1], found).best == 1


def test_tpe_proposes_in_rounds_the_same_for_the_same_results_and_learns_from_them():
    search = Tuning(seeds=(1,), trials=40, sampler="tpe")
    known, rounds = answers(search, by_rate, LARGE)
    assert answers(search, by_rate, LARGE) == (known, rounds)
    assert all(len(new) <= 4 for new in rounds)
    assert planned_points(LARGE, search) == 40
    other = answers(search, lambda lr, seed: -by_rate(lr, seed), LARGE)[1]
    assert other[:2] == rounds[:2]  # drawn at random
    assert other != rounds
    # The one search looks for rates near 0.2, the other for rates far from it.
    near, far = ([abs(lr - 0.2) for new in found[2:] for lr in rates(new)] for found in (rounds, other))
    assert sum(near) / len(near) < sum(far) / len(far)


@pytest.mark.parametrize("space", [SPACE, *OTHERS])
@pytest.mark.parametrize(("trials", "number"), [(4, 4), (5, 5), (6, 6), (99, 6)])
def test_tpe_tries_different_points_until_it_has_its_number_or_all(space, trials, number):
    search = Tuning(seeds=(1,), trials=trials, sampler="tpe")
    assert planned_points(space, search) == number
    for accuracy in (by_rate, lambda lr, _: 0.5 if lr == 0.1 else None):
        known, _ = answers(search, accuracy, space)
        assert len(known) == number
        assert {point for point, _ in known} <= set(grid(space))


def test_tpe_does_not_propose_the_same_point_for_ever_where_others_diverge():
    space = parse_space(["lr=0.1,0.2,0.3,0.4,0.5,0.6", "weight_decay=1e-4,5e-4"])
    search = Tuning(seeds=(1,), trials=12, sampler="tpe")
    known, _ = answers(search, lambda lr, _: None if lr > 0.3 else 0.9 + lr / 10, space)
    assert len(known) == 12


def test_tpe_that_has_ended_stays_as_it_was_where_optuna_proposes_other_points(monkeypatch):
    search = Tuning(seeds=(1,), trials=4, sampler="tpe")
    known, _ = answers(search, by_rate, SPACE)
    others = [point for point in grid() if (point, 1) not in known]
    monkeypatch.setattr(sampling, "_proposals", lambda *_: others)
    assert points(SPACE, search, known) == [point for point, _ in known]
    # One that goes on, and one of other values, ask for points.
    assert points(SPACE, replace(search, trials=5), known) == others
    other_space = parse_space(["lr=0.3,0.6", "weight_decay=1e-4,5e-4"])
    assert points(other_space, search, known) == others


def test_tpe_goes_on_where_points_diverge():
    known, _ = answers(Tuning(seeds=(1,), trials=12, sampler="tpe"), lambda lr, _: None if lr == 0.4 else 0.5)
    assert set(known.values()) == {None, 0.5}
