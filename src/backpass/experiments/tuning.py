"""Tuning: what the first stage of a study tries for each of its entries, and which point of it wins."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from backpass._internal.settings import COUNT, Range, check_settings
from backpass.errors import InputError
from backpass.experiments.near_equal import nearly_equal, ranked

__all__ = ["VALIDATION", "Choice", "Point", "Space", "Trial", "Tuning", "best_point", "edges", "parse_space"]

VALIDATION = 0.2
"""Fraction of the training images to judge on (SGS paper, sections 4.1, 4.3 and A.2)."""

Space = tuple[tuple[str, tuple[str, ...]], ...]
"""The values to try, as texts, by the dotted name of a setting, or by several names joined by commas."""

Point = tuple[tuple[str, str], ...]
"""One value for each setting of a space."""

_SHORT = {
    "lr": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "momentum": "optimizer.momentum",
    "k": "sgs.k",
    "alpha": "pgt.alpha",
}


@dataclass(frozen=True)
class Tuning:
    """The first stage of a study: each entry with a search space tries points of it on held-out training images.

    Attributes:
        seeds: seeds of each point, none of them a seed of the study, whose seeds judge what was chosen.
        validation: fraction of the training images that is held out and evaluated.
        trials: points of each entry; ``None``: the whole grid.
        sampler: ``grid``: the grid, or points of it drawn at random, the same for each entry with the same space;
            ``tpe``: Optuna's tree-structured Parzen estimator, which needs ``trials``.
        halving: prune: only the better half of the points runs with the next seed.
        unequal: let entries try different numbers of points, as papers do. The one that tries most has an advantage.

    Raises:
        InputError: no seed or one given twice, a setting that is out of range, ``tpe`` without ``trials``, or halving
            with one seed.
    """

    seeds: tuple[int, ...] = (1000, 1001)
    validation: Annotated[float, Range(above=0, below=1)] = VALIDATION
    trials: Annotated[int, COUNT] | None = None
    sampler: Literal["grid", "tpe"] = "grid"
    halving: bool = False
    unequal: bool = False

    def __post_init__(self) -> None:
        """Check the range of every setting, and refuse what tries nothing."""
        check_settings(self, "tuning")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(
                f"expected at least one seed to tune with, each once, got {list(self.seeds)}; give other seeds"
            )
        if self.sampler == "tpe" and self.trials is None:
            raise InputError("expected a number of trials with sampler 'tpe', got none; give it")
        if self.halving and len(self.seeds) < 2:
            raise InputError(f"expected at least two seeds with halving, got {list(self.seeds)}; give more")


@dataclass(frozen=True)
class Trial:
    """A point that was tried.

    Attributes:
        point: its settings.
        scores: headline metric on the held-out images, as a fraction, by seed; a run that diverged has none, nor has a
            seed that the point did not go on to.
        diverged: seeds of runs that diverged.
    """

    point: Point
    scores: tuple[tuple[int, float], ...]
    diverged: tuple[int, ...] = ()

    @property
    def score(self) -> float | None:
        """Mean score; ``None`` where a run diverged."""
        return None if self.diverged else statistics.fmean(score for _, score in self.scores)


@dataclass(frozen=True)
class Choice:
    """What tuning has found for one entry.

    Attributes:
        entry: key of the entry.
        best: index of the point with the highest score; the first of those that are equal up to rounding.
        trials: all points, in the order in which they were tried.
        at_edge: names of the settings whose chosen value is at the edge of those of the space (:func:`edges`).
        space: that was searched; ``None``: an older file does not tell.
    """

    entry: str
    best: int
    trials: tuple[Trial, ...]
    at_edge: tuple[str, ...] = ()
    space: Space | None = None

    @property
    def settings(self) -> Point:
        """The best point."""
        return self.trials[self.best].point

    @property
    def tied(self) -> tuple[Point, ...]:
        """The other points that have the score of the best one, up to rounding, over the same number of seeds."""
        scores = _scores(self.trials)
        return tuple(
            self.trials[number].point
            for number, score in scores.items()
            if number != self.best and nearly_equal(score, scores[self.best])
        )


def parse_space(texts: Sequence[str]) -> Space:
    """Return the search space that texts such as ``lr=0.025,0.05,0.1`` describe.

    Args:
        texts: the dotted name of a setting, or lr, weight_decay, momentum, k or alpha for short, then its values.

    Raises:
        InputError: a text of another form, a setting given twice, or a value given twice.

    >>> parse_space(["lr=0.05,0.1", "sgs.k=3,5"])
    (('optimizer.lr', ('0.05', '0.1')), ('sgs.k', ('3', '5')))
    """
    space: dict[str, tuple[str, ...]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        parts = tuple(part.strip() for part in values.split(","))
        key = _SHORT.get(name.strip(), name.strip())
        if not equals or not key or not all(parts) or key in space or len(set(parts)) < len(parts):
            raise InputError(
                f"expected settings to tune such as lr=0.05,0.1,0.2, each setting and each value once, got {text!r}; "
                "correct the setting"
            )
        space[key] = parts
    return tuple(space.items())


def best_point(entry: str, space: Space, trials: Sequence[Trial]) -> Choice:
    """Return the choice of the point with the highest mean score, of those that ran with most seeds.

    Of scores that are equal up to rounding, the first wins.

    Raises:
        InputError: every point diverged.
    """
    scores = _scores(trials)
    if not scores:
        raise InputError(
            f"expected a point of entry {entry!r} that trains, but all {len(trials)} diverged; try lower learning rates"
        )
    best = ranked(scores)[0]
    return Choice(entry, best, tuple(trials), edges(space, trials[best].point), space)


def _scores(trials: Sequence[Trial]) -> dict[int, float]:
    """Return the score by index of the points that ran with most seeds, without those that diverged."""
    most = max((len(trial.scores) for trial in trials if not trial.diverged), default=0)
    scores = {number: trial.score for number, trial in enumerate(trials) if len(trial.scores) == most}
    return {number: score for number, score in scores.items() if score is not None}


def edges(space: Space, point: Point) -> tuple[str, ...]:
    """Return the settings whose value is the smallest or largest of several numbers: a better one may lie beyond.

    >>> edges(parse_space(["lr=0.05,0.1,0.2", "k=3,5"]), (("optimizer.lr", "0.1"), ("sgs.k", "5")))
    ('sgs.k',)
    """
    values = dict(space)
    return tuple(name for name, value in point if _is_edge(value, values.get(name, ())))


def _is_edge(value: str, values: Sequence[str]) -> bool:
    try:
        numbers = sorted(map(float, values))
    except ValueError:
        return False  # names and pairs have no edge
    return len(numbers) > 1 and float(value) in (numbers[0], numbers[-1])
