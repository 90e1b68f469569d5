import pytest

from backpass.errors import InputError
from backpass.experiments.tuning import Trial, Tuning, best_point, parse_space, points

SPACE = parse_space(["lr=0.1,0.2,0.4", "weight_decay=1e-4,5e-4"])


def test_a_grid_in_the_order_of_its_settings():
    assert points("plain", SPACE)[:3] == [
        (("optimizer.lr", "0.1"), ("optimizer.weight_decay", "1e-4")),
        (("optimizer.lr", "0.1"), ("optimizer.weight_decay", "5e-4")),
        (("optimizer.lr", "0.2"), ("optimizer.weight_decay", "1e-4")),
    ]
    assert len(points("plain", SPACE)) == 6


def test_trials_are_drawn_from_the_grid_without_replacement_and_the_same_each_time():
    drawn = points("plain", SPACE, 4)
    assert drawn == points("plain", SPACE, 4)
    assert len(set(drawn)) == 4
    assert set(drawn) < set(points("plain", SPACE))
    assert points("plain", SPACE, 6) == points("plain", SPACE, 99) == points("plain", SPACE)
    assert any(points(name, SPACE, 2) != points("plain", SPACE, 2) for name in ("sgs", "pgt", "sgs+pgt"))


@pytest.mark.parametrize("texts", [["lr"], ["lr="], ["=1"], ["lr=1,,2"], ["lr=1", "optimizer.lr=2"], ["lr=1,1"]])
def test_spaces_of_another_form_are_refused(texts):
    with pytest.raises(InputError, match=r"expected settings to tune such as lr=0.05,0.1,0.2, each setting and each"):
        parse_space(texts)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": ()}, "expected at least one seed to tune with"),
        ({"seeds": (1, 1)}, "each once"),
        ({"validation": 0.0}, "between 0 and 1"),
        ({"validation": float("nan")}, "between 0 and 1"),
        ({"trials": 0}, "expected at least one trial"),
    ],
)
def test_tuning_that_tries_nothing_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Tuning(**settings)


def trials(*accuracies):
    grid = points("plain", SPACE[:1])
    return [
        Trial(point, () if a is None else ((7, a - 0.01), (8, a + 0.01)), (7, 8) if a is None else ())
        for point, a in zip(grid, accuracies, strict=True)
    ]


def test_the_best_mean_wins_and_the_first_of_equals():
    assert best_point("plain", SPACE[:1], trials(0.5, 0.7, 0.6)).settings == (("optimizer.lr", "0.2"),)
    assert best_point("plain", SPACE[:1], trials(0.5, 0.75, 0.75)).best == 1


def test_an_edge_is_one_of_at_least_three_numbers():
    assert best_point("plain", SPACE[:1], trials(0.5, 0.7, 0.6)).at_edge == ()
    assert best_point("plain", SPACE[:1], trials(0.7, 0.6, 0.5)).at_edge == ("optimizer.lr",)
    assert best_point("plain", SPACE[:1], trials(0.1, 0.2, 0.3)).at_edge == ("optimizer.lr",)
    two = (("optimizer.lr", ("0.1", "0.2")),)
    assert best_point("plain", two, trials(0.5, 0.7, 0.6)[:2]).at_edge == ()
    names = (("optimizer.name", ("sgd", "adam", "adamw")),)
    found = [Trial((("optimizer.name", name),), ((7, 0.5),)) for name in names[0][1]]
    assert best_point("plain", names, found).at_edge == ()


def test_a_point_that_diverged_is_out():
    found = best_point("plain", SPACE[:1], trials(0.5, None, 0.4))
    assert (found.best, found.trials[1].accuracy) == (0, None)
    with pytest.raises(InputError, match="expected a point of entry 'plain' that trains, but all 3 diverged"):
        best_point("plain", SPACE[:1], trials(None, None, None))
