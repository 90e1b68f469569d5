"""Tuning: what the first stage of a study tries for each of its entries, and which point of it wins."""

import itertools
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backpass.errors import InputError

__all__ = ["VALIDATION", "Choice", "Point", "Space", "Trial", "Tuning", "best_point", "parse_space", "points"]

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
        seeds: of each point; they share none with the study, whose seeds then judge what was chosen.
        validation: fraction of the training images that is held out and evaluated.
        trials: points of each entry, drawn at random from its space with a fixed seed; ``None``: all of them.
        unequal: let entries try different numbers of points, as papers do. The one that tries most has an advantage.

    Raises:
        InputError: no seed or one given twice, no trial, or a fraction that is not between 0 and 1.
    """

    seeds: tuple[int, ...] = (1000, 1001)
    validation: float = VALIDATION
    trials: int | None = None
    unequal: bool = False

    def __post_init__(self) -> None:
        """Refuse what tries nothing."""
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"expected at least one seed to tune with, each once, got {list(self.seeds)}")
        if not 0 < self.validation < 1:
            raise InputError(
                f"expected a fraction of the training images between 0 and 1 to judge on, got {self.validation}"
            )
        if self.trials is not None and self.trials < 1:
            raise InputError(f"expected at least one trial of each entry, got {self.trials}; leave it out to try all")


@dataclass(frozen=True)
class Trial:
    """A point that was tried.

    Attributes:
        point: its settings.
        accuracies: on the held-out images, as fractions, by seed; a run that diverged has none.
        diverged: seeds of runs that diverged.
    """

    point: Point
    accuracies: tuple[tuple[int, float], ...]
    diverged: tuple[int, ...] = ()

    @property
    def accuracy(self) -> float | None:
        """Mean accuracy; ``None`` where a run diverged."""
        return None if self.diverged else statistics.fmean(accuracy for _, accuracy in self.accuracies)


@dataclass(frozen=True)
class Choice:
    """What tuning has found for one entry.

    Attributes:
        entry: key of the entry.
        best: index of the point with the highest accuracy; the first of equals.
        trials: all points, in the order in which they were tried.
        at_edge: names of the settings whose chosen value is the smallest or largest of at least three numbers, so that
            a better one may lie beyond.
    """

    entry: str
    best: int
    trials: tuple[Trial, ...]
    at_edge: tuple[str, ...] = ()

    @property
    def settings(self) -> Point:
        """The best point."""
        return self.trials[self.best].point

    @property
    def points(self) -> tuple[Point, ...]:
        """All points."""
        return tuple(trial.point for trial in self.trials)


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
                f"expected settings to tune such as lr=0.05,0.1,0.2, each setting and each value once, got {text!r}"
            )
        space[key] = parts
    return tuple(space.items())


def points(entry: str, space: Space, trials: int | None = None) -> list[Point]:
    """Return the points that an entry tries: its whole grid, or ``trials`` points of it.

    They are drawn without replacement, with a generator that is seeded by the entry's key, and keep their order.

    >>> points("plain", (("optimizer.lr", ("0.1", "0.2")),))
    [(('optimizer.lr', '0.1'),), (('optimizer.lr', '0.2'),)]
    """
    names = [name for name, _ in space]
    grid = [tuple(zip(names, values, strict=True)) for values in itertools.product(*(values for _, values in space))]
    if trials is None or trials >= len(grid):
        return grid
    return [grid[number] for number in sorted(random.Random(entry).sample(range(len(grid)), trials))]


def best_point(entry: str, space: Space, trials: Sequence[Trial]) -> Choice:
    """Return the choice of the point with the highest mean accuracy.

    Raises:
        InputError: every point diverged.
    """
    accuracies = {number: trial.accuracy for number, trial in enumerate(trials)}
    known: Mapping[int, float] = {number: value for number, value in accuracies.items() if value is not None}
    if not known:
        raise InputError(
            f"expected a point of entry {entry!r} that trains, but all {len(trials)} diverged; try lower learning rates"
        )
    best = max(known, key=lambda number: known[number])
    edges = tuple(
        name for (name, values), (_, value) in zip(space, trials[best].point, strict=True) if _is_edge(value, values)
    )
    return Choice(entry, best, tuple(trials), edges)


def _is_edge(value: str, values: Sequence[str]) -> bool:
    try:
        numbers = sorted(map(float, values))
    except ValueError:
        return False  # names and pairs have no edge
    return len(numbers) > 2 and float(value) in (numbers[0], numbers[-1])
