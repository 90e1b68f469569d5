"""Which points of its space an entry tries, and with which seeds, as far as the runs so far tell."""

import itertools
import math
import random
import statistics
import zlib
from collections.abc import Mapping, Sequence

from backpass.experiments.near_equal import ranked
from backpass.experiments.tuning import Point, Space, Tuning

__all__ = ["Known", "planned_points", "points", "wanted"]

Known = Mapping[tuple[Point, int], float | None]
"""Accuracy on the held-out images by point and seed; ``None`` where the run diverged."""

_ROUND = 4  # points that TPE proposes at a time, so that several workers have something to do
_RANDOM = 8  # points before it learns from results
_REPEATS = 20  # proposals in a row that were tried already, before a point is drawn at random


def wanted(space: Space, tuning: Tuning, known: Known) -> list[tuple[Point, int]]:
    """Return points and seeds to run, those that are known included; more follow once these are known.

    Without ``tuning.halving``, every point runs with every seed. With it, all points run with the first seed, the
    better half of them with the next, and so on. Of points with equal scores, the first go on; those
    that diverged do not.

    Args:
        space: of the entry. It alone decides what is drawn at random: entries with the same space draw the same.
        tuning: how it is searched.
        known: what is known so far.
    """
    tried = points(space, tuning, known)
    if not tuning.halving:
        return [(point, seed) for seed in tuning.seeds for point in tried]
    runs: list[tuple[Point, int]] = []
    for number, seed in enumerate(tuning.seeds, 1):
        runs += [(point, seed) for point in tried]
        scores = {point: _score(point, tuning.seeds[:number], known) for point in tried}
        if any((point, seed) not in known for point in tried):
            break
        better = ranked(scores)[: max(1, (len(tried) + 1) // 2)]
        tried = [point for point in tried if point in better and scores[point] > -math.inf]
    return runs


def points(space: Space, tuning: Tuning, known: Known) -> list[Point]:
    """Return the points that an entry tries, as far as ``known`` tells.

    ``grid``: its whole grid, or ``tuning.trials`` points of it, drawn without replacement, in the order of the grid.
    ``tpe``: proposals of Optuna's tree-structured Parzen estimator, four at a time, each with the results of those
    before, until ``tuning.trials`` different points, or all there are, have been proposed. A point that is proposed
    again does not run again, the estimator is told its result; where it proposes nothing else, as among points that
    diverge, an untried one is drawn at random with a fixed seed. A search that has ended keeps its points.

    >>> points((("optimizer.lr", ("0.1", "0.2")),), Tuning(), {})
    [(('optimizer.lr', '0.1'),), (('optimizer.lr', '0.2'),)]
    """
    done = list(dict.fromkeys(point for point, _ in known))
    # Another version of this module, or of Optuna, may draw other points.
    ended = len(done) == planned_points(space, tuning) and all(_lies_in(space, point) for point in done)
    if tuning.sampler == "tpe":
        return done if ended else _proposals(space, tuning, known)
    grid = _grid(space)
    tried = set(done if ended else random.Random(repr(space)).sample(grid, planned_points(space, tuning)))
    return [point for point in grid if point in tried]


def planned_points(space: Space, tuning: Tuning) -> int:
    """Return the number of points that an entry tries in the end: all of its grid, or ``tuning.trials`` if fewer."""
    size = math.prod(len(values) for _, values in space)
    return size if tuning.trials is None else min(tuning.trials, size)


def _grid(space: Space) -> list[Point]:
    names = [name for name, _ in space]
    return [tuple(zip(names, values, strict=True)) for values in itertools.product(*(values for _, values in space))]


def _lies_in(space: Space, point: Point) -> bool:
    return [name for name, _ in point] == [name for name, _ in space] and all(
        value in values for (_, value), (_, values) in zip(point, space, strict=True)
    )


def _proposals(space: Space, tuning: Tuning, known: Known) -> list[Point]:
    import optuna  # Here, since it takes seconds to load, which a grid need not wait for.
    from optuna.distributions import BaseDistribution, CategoricalDistribution
    from optuna.trial import TrialState

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else it announces each of these searches
    sampler = optuna.samplers.TPESampler(n_startup_trials=_RANDOM, seed=zlib.crc32(repr(space).encode()))
    search = optuna.create_study(direction="maximize", sampler=sampler)
    optuna.logging.set_verbosity(verbosity)
    distributions: dict[str, BaseDistribution] = {name: CategoricalDistribution(values) for name, values in space}
    judging = tuning.seeds[:1] if tuning.halving else tuning.seeds
    found: list[Point] = []
    repeats, number = 0, planned_points(space, tuning)
    while len(found) < number:
        if repeats >= _REPEATS:
            untried = sorted(set(_grid(space)) - set(found))
            search.enqueue_trial(dict(random.Random(f"{space} {len(found)}").choice(untried)))
        trials = [search.ask(distributions) for _ in range(min(_ROUND, number - len(found)))]
        proposals: list[Point] = [tuple((name, str(trial.params[name])) for name, _ in space) for trial in trials]
        repeats = 0 if set(proposals) - set(found) else repeats + len(trials)
        found = list(dict.fromkeys([*found, *proposals]))
        if any((point, seed) not in known for point in proposals for seed in judging):
            break
        for trial, point in zip(trials, proposals, strict=True):
            score = _score(point, judging, known)
            failed = score == -math.inf
            search.tell(trial, None if failed else score, TrialState.FAIL if failed else None)
    return found


def _score(point: Point, seeds: Sequence[int], known: Known) -> float:
    """Return the mean accuracy over the seeds; minus infinity where a run diverged or is missing."""
    accuracies = [known.get((point, seed)) for seed in seeds]
    given = [accuracy for accuracy in accuracies if accuracy is not None]
    return statistics.fmean(given) if len(given) == len(accuracies) else -math.inf
