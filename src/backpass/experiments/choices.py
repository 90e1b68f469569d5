"""What the first stage of a study chooses for each entry, and the file that keeps it.

What is in the file stays: a study that is started again, or with further entries, takes it from there.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from backpass.errors import InputError
from backpass.experiments.point_runs import describe_point, tuning_of
from backpass.experiments.sampling import Known, wanted
from backpass.experiments.serialization import read_json, to_json
from backpass.experiments.study import Study
from backpass.experiments.tuning import Choice, Point, Trial, best_point
from backpass.training.checkpoint import atomic_write

__all__ = ["CHOICES_FILE", "choose", "read_choices", "results_of", "trials_of", "write_choices"]

CHOICES_FILE = "tuning.json"


@dataclass(frozen=True)
class _Chosen:
    """The content of the file."""

    choices: tuple[Choice, ...]


def choose(study: Study, known: Mapping[str, Known]) -> list[Choice]:
    """Return the best point of every tuned entry, by mean score over the seeds of the tuning.

    Args:
        study: with a tuning stage.
        known: the results of all runs of that stage, by key of the entry.

    Raises:
        InputError: a run is missing, or all points of an entry diverged.
    """
    tuning, choices = tuning_of(study), []
    for entry in study.tuned:
        found = known.get(entry.key, {})
        results: dict[tuple[Point, int], float | None] = {}
        for point, seed in wanted(entry.space, tuning, found):
            if (point, seed) not in found:
                raise InputError(
                    f"expected the records of all points of {entry.name}, got none of {describe_point(point)}, seed "
                    f"{seed}; start the same command again to run it"
                )
            results[point, seed] = found[point, seed]
        choices.append(best_point(entry.key, entry.space, trials_of(results)))
    return choices


def trials_of(results: Known) -> tuple[Trial, ...]:
    """Return the points that results are of, in their order; the inverse of :func:`results_of`."""
    by_point: dict[Point, dict[int, float | None]] = {}
    for (point, seed), score in results.items():
        by_point.setdefault(point, {})[seed] = score
    return tuple(
        Trial(
            point,
            tuple((seed, score) for seed, score in scores.items() if score is not None),
            tuple(seed for seed, score in scores.items() if score is None),
        )
        for point, scores in by_point.items()
    )


def results_of(choice: Choice) -> dict[tuple[Point, int], float | None]:
    """Return the results that an entry's settings were chosen from, by point and seed."""
    found: dict[tuple[Point, int], float | None] = {}
    for trial in choice.trials:
        found |= {(trial.point, seed): score for seed, score in trial.scores}
        found |= {(trial.point, seed): None for seed in trial.diverged}
    return found


def read_choices(folder: Path) -> dict[str, Choice]:
    """Return what first stages of studies in the folder have chosen so far, by key of the entry.

    Raises:
        InputError: the file cannot be read.
    """
    found = read_json(_Chosen, folder / CHOICES_FILE)
    return {} if found is None else {choice.entry: choice for choice in found.choices}


def write_choices(folder: Path, choices: Iterable[Choice]) -> None:
    """Write what was chosen for all entries, atomically."""
    atomic_write(folder / CHOICES_FILE, to_json(_Chosen(tuple(choices))).encode())
