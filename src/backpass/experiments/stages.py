"""The stages of a study: tuning each entry on held-out images, then training with what was chosen.

Which runs a study has next follows from its file and from the records in its folder, so every worker comes to the same
answer, and a study that was stopped between its stages resumes like any other.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from backpass.errors import InputError
from backpass.experiments.entry import Entry
from backpass.experiments.record import RECORD_FILE, Record, read_record
from backpass.experiments.serialization import from_json, to_json
from backpass.experiments.settings import replace_settings
from backpass.experiments.study import Study, StudyRun, make_key
from backpass.experiments.tuning import Choice, Point, Trial, Tuning, best_point, points
from backpass.training.checkpoint import atomic_write

__all__ = ["CHOICES_FILE", "choose", "count_runs", "next_runs", "read_choices", "tuned_study", "tuning_study"]

CHOICES_FILE = "tuning.json"


@dataclass(frozen=True)
class _Chosen:
    """The content of the file."""

    choices: tuple[Choice, ...]


def tuning_study(study: Study) -> Study:
    """Return the first stage of a study: an entry for each point of each entry, judged on held-out images.

    Raises:
        InputError: the study has no tuning, or its entries would try different numbers of points.
    """
    tuning = _tuning(study)
    tuned = [entry for entry in study.entries if entry.tuned]
    counts = {entry.label: len(points(entry.key, entry.space, tuning.trials)) for entry in tuned}
    if not tuned or (len(set(counts.values())) > 1 and not tuning.unequal):
        listed = ", ".join(f"{label}: {count}" for label, count in counts.items()) or "no entry with a search space"
        raise InputError(
            f"expected every entry to try the same number of points, got {listed}; give the smallest of these numbers "
            "as the number of trials, which are drawn at random, or allow unequal ones"
        )
    entries = tuple(
        _point_entry(entry, point, tuning) for entry in tuned for point in points(entry.key, entry.space, tuning.trials)
    )
    notes = (f"accuracy on {100 * tuning.validation:g} % of the training images, held out",)
    return Study(f"{study.title}: tuning", entries, tuning.seeds, notes)


def choose(study: Study, records: Sequence[Record], diverged: Collection[str] = ()) -> list[Choice]:
    """Return the best point of every tuned entry, by mean accuracy over the seeds of the tuning.

    Args:
        study: with a tuning stage.
        records: of its first stage.
        diverged: folders of the runs of that stage whose loss did not stay finite.

    Raises:
        InputError: a run is missing, or all points of an entry diverged.
    """
    tuning = _tuning(study)
    by_folder = {StudyRun(record.entry, record.run).folder: record for record in records}
    choices = []
    for entry in study.entries:
        if not entry.tuned:
            continue
        trials = []
        for point in points(entry.key, entry.space, tuning.trials):
            folders = {seed: f"{_point_key(entry, point)}-seed{seed}" for seed in tuning.seeds}
            if missing := [name for name in folders.values() if name not in by_folder and name not in diverged]:
                raise InputError(
                    f"expected the records of all points of {entry.label}, got none of {', '.join(missing)}; start the "
                    "same command again to run them"
                )
            known = {seed: by_folder[name].accuracy for seed, name in folders.items() if name in by_folder}
            trials.append(Trial(point, tuple(known.items()), tuple(seed for seed in tuning.seeds if seed not in known)))
        choices.append(best_point(entry.key, entry.space, trials))
    return choices


def tuned_study(study: Study, choices: Sequence[Choice]) -> Study:
    """Return the second stage of a study: the chosen settings, on all training images, with the study's seeds."""
    by_entry = {choice.entry: choice for choice in choices}
    entries, notes = [], list(study.notes)
    for entry in study.entries:
        choice = by_entry.get(entry.key)
        if choice is None or entry.recipe is None:
            entries.append(entry)
            continue
        entries.append(replace(entry, recipe=replace_settings(entry.recipe, choice.settings), space=()))
        edge = f"; at the edge of its values: {', '.join(choice.at_edge)}" if choice.at_edge else ""
        notes.append(f"{entry.label}: {_text(choice.settings)}, the best of {len(choice.trials)} points{edge}")
    if untuned := [e.label for e in study.entries if e.recipe is not None and e.runs_of is None and not e.tuned]:
        notes.append(f"not tuned: {', '.join(untuned)}")
    return replace(study, entries=tuple(entries), notes=tuple(notes), tuning=None)


def next_runs(study: Study, folder: Path, diverged: Collection[str] | None = None) -> list[StudyRun]:
    """Return the runs of a study that can be known by now.

    Without tuning, these are all. With it, the first stage's, and also the second's once settings are chosen. That
    happens in the first call that knows that the first stage has ended; the choice is written to ``tuning.json`` of the
    folder and stays.

    Args:
        study: with or without a tuning stage.
        folder: of the study.
        diverged: folders of the runs that diverged, where every run of the first stage has ended; ``None``: it has not.
    """
    if study.tuning is None:
        return study.runs()
    first = tuning_study(study)
    choices = read_choices(folder)
    if choices is not None and [choice.points for choice in choices] != [
        tuple(points(entry.key, entry.space, study.tuning.trials)) for entry in study.entries if entry.tuned
    ]:
        raise InputError(
            f"expected {folder / CHOICES_FILE} to hold the points of this study, got those of another search; choose "
            "another folder"
        )
    if choices is None and diverged is not None:
        paths = [folder / run.folder / RECORD_FILE for run in first.runs()]
        choices = choose(study, [read_record(path) for path in paths if path.is_file()], diverged)
        atomic_write(folder / CHOICES_FILE, to_json(_Chosen(tuple(choices))).encode())
    return first.runs() + ([] if choices is None else tuned_study(study, choices).runs())


def count_runs(study: Study) -> int:
    """Return the number of runs of all stages."""
    return len(study.runs()) + (0 if study.tuning is None else len(tuning_study(study).runs()))


def read_choices(folder: Path) -> list[Choice] | None:
    """Return what the first stage of the study in the folder has chosen; ``None`` before that.

    Raises:
        InputError: its file cannot be read.
    """
    path = folder / CHOICES_FILE
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"expected a readable file at {path}, got {error}; check its permissions") from error
    return list(from_json(_Chosen, text, str(path)).choices)


def _tuning(study: Study) -> Tuning:
    if study.tuning is None:
        raise InputError("expected a study with a tuning stage, got one without; give it tuning=Tuning()")
    return study.tuning


def _point_entry(entry: Entry, point: Point, tuning: Tuning) -> Entry:
    if entry.recipe is None:
        raise InputError(f"expected entry {entry.label!r} to have a recipe to tune, got none; leave out its space")
    recipe = replace_settings(entry.recipe, point)
    held_out = replace(recipe, data=replace(recipe.data, validation=tuning.validation))
    return Entry(_point_key(entry, point), f"{entry.label}, {_text(point)}", entry.method, held_out)


def _point_key(entry: Entry, point: Point) -> str:
    return make_key("tuning", entry.key, *(f"{name}={value}" for name, value in point))


def _text(point: Point) -> str:
    return ", ".join(f"{name} = {value}" for name, value in point)
