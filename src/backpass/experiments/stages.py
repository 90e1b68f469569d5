"""The stages of a study: tuning each entry on held-out images, then training with what was chosen.

Which runs a study has next follows from its file and from the records in its folder, so every worker comes to the same
answer, and a study that was stopped between its stages resumes like any other.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from backpass.errors import InputError
from backpass.experiments.choices import CHOICES_FILE, choose, read_choices, results_of, write_choices
from backpass.experiments.entry import Entry
from backpass.experiments.point_runs import describe_point, point_entry, point_run, tuning_of
from backpass.experiments.record import RECORD_FILE, read_record
from backpass.experiments.sampling import Known, planned_points, points, wanted
from backpass.experiments.settings import replace_settings
from backpass.experiments.study import Study, StudyRun
from backpass.experiments.tuning import Choice, Point, Tuning, edges
from backpass.training.recipe import Run

__all__ = [
    "check_second_stage",
    "count_runs",
    "count_tuning_runs",
    "known_results",
    "last_stage",
    "next_runs",
    "tuned_study",
    "tuning_runs",
    "tuning_study",
]


def tuning_runs(study: Study, known: Mapping[str, Known]) -> list[StudyRun]:
    """Return the runs of the first stage as far as they can be known, entries in turn within a seed.

    Args:
        study: with a tuning stage.
        known: what is known so far, by key of the entry.

    Raises:
        InputError: the study has no tuning, or its entries would try different numbers of points.
    """
    tuning = tuning_of(study)
    counts = {entry.name: planned_points(entry.space, tuning) for entry in study.tuned}
    if not counts or (len(set(counts.values())) > 1 and not tuning.unequal):
        listed = ", ".join(f"{name}: {count}" for name, count in counts.items()) or "no entry with a search space"
        raise InputError(
            f"expected every entry to try the same number of points, got {listed}; give the smallest of these numbers "
            "as the number of trials, which are drawn at random, or allow unequal ones"
        )
    runs = [
        point_run(entry, point, seed, tuning)
        for entry in study.tuned
        for point, seed in wanted(entry.space, tuning, known.get(entry.key, {}))
    ]
    return sorted(runs, key=lambda run: tuning.seeds.index(run.run.seed))


def tuning_study(study: Study) -> Study:
    """Return a grid search as a study of its own: an entry for each point of each entry, judged on held-out images.

    Raises:
        InputError: as :func:`tuning_runs`.
    """
    tuning = tuning_of(study)
    tuning_runs(study, {})
    entries = tuple(
        point_entry(entry, point, tuning) for entry in study.tuned for point in points(entry.space, tuning, {})
    )
    notes = (f"judged on {100 * tuning.validation:g} % of the training images, held out",)
    return Study(f"{study.title}: tuning", entries, tuning.seeds, notes)


def last_stage(study: Study, folder: Path) -> tuple[Study, list[Choice]]:
    """Return the study whose records a report shows, and what tuning has chosen for it.

    Without tuning, that is the study itself. With it, its second stage: the chosen settings, on all training images,
    with the study's seeds. Before there is a choice for each entry, the study itself, whose runs are then not known
    yet.

    Raises:
        InputError: the file of the choices cannot be read.
    """
    if study.tuning is None:
        return study, []
    stored = read_choices(folder)
    choices = [
        # Its edges are found again: another version may have written the file.
        replace(choice, at_edge=edges(entry.space, choice.settings))
        for entry in study.tuned
        if (choice := stored.get(entry.key)) is not None
    ]
    return (tuned_study(study, choices), choices) if _is_chosen(study, stored) else (study, [])


def tuned_study(study: Study, choices: Sequence[Choice]) -> Study:
    """Return the second stage of a study: the chosen settings, on all training images, with the study's seeds."""
    by_entry = {choice.entry: choice for choice in choices}
    entries, notes = [], list(study.notes)
    for entry in study.entries:
        choice = by_entry.get(entry.key) if entry.tuned else None  # an earlier study may have tuned it
        if choice is None or entry.recipe is None:
            entries.append(entry)
            continue
        entries.append(replace(entry, recipe=replace_settings(entry.recipe, choice.settings), space=()))
        note = f"{entry.name}: {describe_point(choice.settings)}, the best of {len(choice.trials)} points"
        if choice.tied:
            note += f", tied with {' and with '.join(map(describe_point, choice.tied))}"
        if choice.at_edge:
            note += f"; at the edge of its values: {', '.join(choice.at_edge)}"
        notes.append(note)
    if untuned := [e.name for e in study.entries if e.recipe is not None and e.runs_of is None and not e.tuned]:
        notes.append(f"not tuned: {', '.join(untuned)}")
    return replace(study, entries=tuple(entries), notes=tuple(notes), tuning=None)


def next_runs(
    study: Study, folder: Path, diverged: Collection[StudyRun] = (), *, ended: bool = False
) -> list[StudyRun]:
    """Return the runs of a study that can be known by now.

    Without tuning, these are all. With it, the first stage's as far as they follow from the records in the folder, and
    also the second's once settings are chosen. That happens in the first call that is told that the runs have ended and
    finds the first stage complete; the choices are written to ``tuning.json`` of the folder and stay. A study with
    further entries chooses for these alone, and one with fewer leaves the choices of the others in the file.

    Args:
        study: with or without a tuning stage.
        folder: of the study.
        diverged: the runs that diverged so far.
        ended: whether every run so far has ended.

    Raises:
        InputError: the file holds choices of another search, or all points of an entry diverged.
    """
    tuning = study.tuning
    if tuning is None:
        return study.runs()
    stored = read_choices(folder)
    tried = {entry.key: results_of(stored[entry.key]) for entry in study.tuned if entry.key in stored}
    for entry in study.tuned:
        if entry.key not in tried:
            continue
        found, searched = tried[entry.key], stored[entry.key].space
        if searched not in (None, entry.space) or set(found) != set(wanted(entry.space, tuning, found)):
            raise InputError(
                f"expected {folder / CHOICES_FILE} to hold the points of this study for {entry.name}, got those of "
                "another search; choose another folder"
            )
    if _is_chosen(study, stored):
        return tuning_runs(study, tried) + tuned_study(study, list(stored.values())).runs()
    if not ended and tuning.sampler == "grid" and not tuning.halving:
        return tuning_runs(study, tried)

    def read(run: StudyRun) -> float | None:
        path = folder / run.folder / RECORD_FILE
        record = read_record(path) if path.is_file() else None
        return record.score if record is not None and record.run == run.run else None

    known = known_results(study, read, lambda run: run in diverged) | tried
    first = tuning_runs(study, known)
    if not ended or any(set(wanted(e.space, tuning, known[e.key])) - set(known[e.key]) for e in study.tuned):
        return first
    stored = {choice.entry: choice for choice in choose(study, known)} | stored
    write_choices(folder, stored.values())
    return first + tuned_study(study, list(stored.values())).runs()


def check_second_stage(study: Study, folder: Path, queued: Mapping[str, Run]) -> None:
    """Check, before settings are tuned, that the runs of the second stage will have their folders for themselves.

    Args:
        study: with or without a tuning stage.
        folder: of the study.
        queued: the runs of its queue, by the name of their folder.

    Raises:
        InputError: a folder of that stage holds another run, or holds one before settings are chosen for its entry.
    """
    if study.tuning is None:
        return
    second = tuned_study(study, list(read_choices(folder).values()))
    undecided = {entry.key for entry in second.tuned}
    for run in second.runs():
        path = folder / run.folder / RECORD_FILE
        found = read_record(path).run if path.is_file() else queued.get(run.folder)
        if found is not None and (run.entry in undecided or found != run.run):
            raise InputError(
                f"expected {folder / run.folder} to be free for a run with tuned settings, got a run of another study; "
                "choose another folder"
            )


def _is_chosen(study: Study, stored: Mapping[str, Choice]) -> bool:
    """Return whether there is a choice for each entry that is tuned."""
    tuned = {entry.key for entry in study.tuned}
    return bool(tuned) and tuned <= stored.keys()


def known_results(
    study: Study, read: Callable[[StudyRun], float | None], has_diverged: Callable[[StudyRun], bool]
) -> dict[str, dict[tuple[Point, int], float | None]]:
    """Return what is known of the first stage; found round by round, since later points follow from earlier.

    Args:
        study: with a tuning stage.
        read: returns the score of a run; ``None``: it has no record.
        has_diverged: whether a run diverged.
    """
    tuning = tuning_of(study)
    known: dict[str, dict[tuple[Point, int], float | None]] = {}
    for entry in study.tuned:
        found, more = known.setdefault(entry.key, {}), True
        while more:
            more = False
            for point, seed in wanted(entry.space, tuning, found):
                if (point, seed) in found:
                    continue
                run = point_run(entry, point, seed, tuning)
                diverged = has_diverged(run)
                score = None if diverged else read(run)
                if diverged or score is not None:
                    found[point, seed] = score
                    more = True
    return known


def count_runs(study: Study) -> int:
    """Return the number of runs of all stages."""
    tuning = study.tuning
    if tuning is None:
        return len(study.runs())
    return len(study.runs()) + sum(count_tuning_runs(entry, tuning) for entry in study.tuned)


def count_tuning_runs(entry: Entry, tuning: Tuning) -> int:
    """Return the number of runs that tuning an entry takes."""
    number, runs = planned_points(entry.space, tuning), 0
    for _ in tuning.seeds:
        runs += number
        number = (number + 1) // 2 if tuning.halving else number
    return runs
