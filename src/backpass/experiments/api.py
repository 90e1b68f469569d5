"""The command line as functions: train, compare, search and reproduce from a script."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backpass._internal.paths import AnyPath
from backpass.experiments.comparison import compare_study
from backpass.experiments.progress import Progress
from backpass.experiments.record import Record
from backpass.experiments.reproduction import Reduction, table_study
from backpass.experiments.run import execute, load_data
from backpass.experiments.running import StudyResult, run_study
from backpass.experiments.search import search_study
from backpass.experiments.tables import get_table
from backpass.experiments.tuning import VALIDATION, Tuning, parse_space
from backpass.training.recipe import Recipe, Run, Runtime

__all__ = ["compare", "reproduce", "search", "train"]


def train(
    recipe: Recipe,
    folder: AnyPath,
    *,
    method: str = "plain",
    seed: int = 0,
    runtime: Runtime | None = None,
    progress: Progress | None = None,
) -> Record:
    """Train one model with one method and one seed; resume it when its folder is given again.

    Args:
        recipe: all settings but method and seed.
        folder: of the run.
        method: a name of :func:`backpass.training.methods.check_method`.
        seed: of initialisation, order and augmentation.
        runtime: how it is computed.
        progress: receives steps, epochs and the end.

    Returns:
        The record, which the folder holds too.

    Raises:
        InputError: an unknown method, data that cannot be read, or a folder that belongs to another run.
    """
    run = Run(recipe, method, seed)
    return execute(run, load_data(recipe.data), Path(folder), runtime=runtime or Runtime(), progress=progress)


def compare(
    recipe: Recipe,
    folder: AnyPath,
    *,
    methods: Sequence[str] = ("plain", "sgs", "pgt", "sgs+pgt"),
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    tune: Sequence[str] = (),
    tuning: Tuning | None = None,
    **options: Any,
) -> StudyResult:
    """Train one model with several methods over several seeds, with settings tuned for each of them where asked for.

    Args:
        recipe: all settings but method and seed.
        folder: of the runs.
        methods: to compare; differences are relative to ``plain``.
        seeds: one run of each method for each seed.
        tune: settings and the values to try for every method that has them, such as ``["lr=0.05,0.1,0.2"]``, judged on
            held-out training images (:func:`backpass.experiments.tuning.parse_space`).
        tuning: seeds of the tuning, fraction of the images held out, number of trials.
        options: of :func:`backpass.experiments.run_study`.
    """
    study = compare_study(recipe, methods, seeds, space=parse_space(tune), tuning=tuning)
    return run_study(study, folder, **options)


def search(
    key: str,
    recipe: Recipe,
    folder: AnyPath,
    *,
    values: Sequence[Any] = (),
    method: str | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    validation: float = VALIDATION,
    **options: Any,
) -> StudyResult:
    """Try several values of one setting, judged on images held out of the training set.

    Args:
        key: dotted name of a setting, such as ``sgs.k``, or several joined by commas.
        recipe: all other settings.
        folder: of the runs.
        values: to try; default: the setting's own grid, where it has one.
        method: default: the method that has the settings, or ``plain``.
        seeds: one run of each value for each seed.
        validation: fraction of the training images to judge on.
        options: of :func:`backpass.experiments.run_study`.
    """
    study = search_study(key, recipe, seeds, values=values, method=method, validation=validation)
    return run_study(study, folder, **options)


def reproduce(
    table: str,
    folder: AnyPath,
    *,
    seeds: Sequence[int] | None = None,
    entries: Sequence[str] = (),
    reduction: Reduction | None = None,
    **options: Any,
) -> StudyResult:
    """Run a published table, or a shorter version of it.

    Args:
        table: a name of :func:`backpass.experiments.list_tables`.
        folder: of the runs.
        seeds: of each entry; default: the number of runs in the paper, counted from 0.
        entries: labels of the entries to run, or patterns such as ``VGG*``; default: all.
        reduction: what differs from the paper.
        options: of :func:`backpass.experiments.run_study`.
    """
    return run_study(table_study(get_table(table), seeds, reduction=reduction, entries=entries), folder, **options)
