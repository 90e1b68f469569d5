"""A study: entries times seeds, as plain data, and its file."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from backpass._internal.paths import AnyPath
from backpass._internal.settings import plain
from backpass.errors import InputError
from backpass.experiments.entry import Entry, check_entries
from backpass.experiments.record import RECORD_FILE, Record, read_record
from backpass.experiments.serialization import read_json, to_json
from backpass.experiments.tuning import Tuning
from backpass.training.checkpoint import atomic_write
from backpass.training.recipe import STUDY, Recipe, Run

__all__ = [
    "Study",
    "StudyRun",
    "check_starts",
    "make_key",
    "own_records",
    "read_study",
    "run_folder",
    "shared_recipe",
    "study_records",
    "write_study",
]

_FILE = "study.json"
_FOLDER = re.compile(r"[A-Za-z0-9.+_=-]+")
_LONGEST = 255  # of a name on common file systems, in bytes


@dataclass(frozen=True)
class StudyRun:
    """One run of a study: what a worker does at a time.

    Attributes:
        entry: key of its entry.
        run: recipe, method and seed.

    Raises:
        InputError: the key is no name of a folder, such as ``../x``, or longer than file systems take.
    """

    entry: str
    run: Run

    def __post_init__(self) -> None:
        """Refuse keys that lead out of the study's folder."""
        if not _FOLDER.fullmatch(self.entry) or set(self.entry) == {"."}:
            raise InputError(
                f"expected an entry's key of letters, digits and . + _ = - that can name a folder, got {self.entry!r}; "
                "choose another key"
            )
        if len(self.folder) > _LONGEST:
            raise InputError(
                f"expected a run folder's name of at most {_LONGEST} characters, got {len(self.folder)}: {self.folder}"
                "; choose a shorter key, or tune fewer settings at a time"
            )

    @property
    def folder(self) -> str:
        """Name of the run's folder below the study's; it identifies the run within its study."""
        return run_folder(self.entry, self.run.seed)

    @property
    def needs(self) -> str | None:
        """Name of the folder of the run whose trained weights this one starts from; ``None``: it needs no other."""
        return self.run.recipe.weights.study_run


@dataclass(frozen=True)
class Study:
    """A set of runs that answer one question: every entry with every seed.

    Attributes:
        title: of its table.
        entries: the lines of its table.
        seeds: of each entry.
        notes: what a reader of the table must know, such as what is not as in the paper.
        tuning: a first stage that chooses settings for the entries with a search space; ``None``: none.
        planned: whether every entry was to run with every seed; ``False``: the study was made from the runs there are.

    Raises:
        InputError: entries that do not fit together (:func:`check_entries`), a seed given twice, or one that tunes too,
            or an entry that is tuned and whose recipe holds out validation images.
    """

    title: str
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    notes: tuple[str, ...] = ()
    tuning: Tuning | None = None
    planned: bool = True

    def __post_init__(self) -> None:
        """Refuse what makes no study."""
        object.__setattr__(self, "entries", tuple(self.entries))
        check_entries(self.entries)
        object.__setattr__(self, "seeds", plain(tuple(self.seeds)))
        if len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"expected every seed once, got {list(self.seeds)}; leave repeated ones out")
        if self.tuning is not None and (shared := set(self.seeds) & set(self.tuning.seeds)):
            raise InputError(
                f"expected seeds that have no part in tuning, got {sorted(shared)} for both; choose others, so that "
                "what was chosen is judged by fresh ones"
            )
        for entry in self.tuned if self.tuning is not None and self.seeds else []:
            if entry.recipe is not None and (held_out := entry.recipe.data.validation):
                raise InputError(
                    f"expected data.validation = 0 for {entry.name}, which is tuned, got {held_out:g}, which would "
                    "judge what was chosen on images that chose it; leave it out: tuning holds out images of its own, "
                    "tuning.validation of them, and the test images judge"
                )

    @property
    def tuned(self) -> list[Entry]:
        """The entries for which a tuning stage searches settings."""
        return [entry for entry in self.entries if entry.tuned]

    def runs(self) -> list[StudyRun]:
        """Return the runs, entries in turn within a seed, so that drift is shared and a table fills evenly.

        Those of a tuning stage are not among them (:mod:`backpass.experiments.stages`).
        """
        return [
            StudyRun(entry.key, Run(self._recipe(entry, entry.recipe, seed), entry.method, seed))
            for seed in self.seeds
            for entry in self.entries
            if entry.recipe is not None and entry.runs_of is None
        ]

    def _recipe(self, entry: Entry, recipe: Recipe, seed: int) -> Recipe:
        """Return the recipe, with the weights of the run of this seed that the entry starts from."""
        if entry.starts_from is None:
            return recipe
        (first,) = (other.run_key for other in self.entries if other.key == entry.starts_from)
        return replace(recipe, weights=replace(recipe.weights, source=STUDY + run_folder(first, seed)))


def own_records(study: Study, records: Iterable[Record]) -> list[Record]:
    """Return the records of the study's runs: those with the entry, recipe, method and seed of one.

    A folder may hold others: of a tuning stage, or of an earlier study with other settings or seeds.
    """
    runs = {(run.entry, replace(run.run, recipe=shared_recipe(run.run))) for run in study.runs()}
    return [r for r in records if (r.entry, replace(r.run, recipe=shared_recipe(r.run))) in runs]


def study_records(folder: Path) -> list[Record]:
    """Return the records below a study's folder that lie in the folder of their own run, ordered by path.

    A run folder that was copied, renamed or put aside holds no run of the study.

    Raises:
        InputError: one cannot be read.
    """
    found = {path: read_record(path) for path in sorted(folder.glob(f"*/{RECORD_FILE}"))}
    return [record for path, record in found.items() if path.parent.name == run_folder(record.entry, record.seed)]


def shared_recipe(run: Run) -> Recipe:
    """Return the run's recipe in the form that the runs of all its seeds share, wherever the files of its data lie.

    A run that starts from another run of its own seed names that run's entry instead of its folder.
    """
    recipe, first = run.recipe, run.recipe.weights.study_run
    recipe = replace(recipe, data=replace(recipe.data, root=None, download=False))
    if first is None:
        return recipe
    source = STUDY + first.removesuffix(run_folder("", run.seed))
    return replace(recipe, weights=replace(recipe.weights, source=source))


def check_starts(records: Iterable[Record]) -> None:
    """Check that every run that starts from an entry's weights starts from one training.

    A run names that entry alone, and records of several studies may have entries of one name. Where the files lie does
    not matter; records without an entry, of ``backpass train``, cannot be told apart.

    Raises:
        InputError: the records of an entry that others start from have several recipes or methods.
    """
    trainings: dict[str, set[tuple[Recipe, str]]] = {}
    for record in records:
        trainings.setdefault(STUDY + record.entry, set()).add((shared_recipe(record.run), record.method))
    sources = {recipe.weights.source for found in trainings.values() for recipe, _ in found}
    if several := [name for name, found in trainings.items() if name in sources and len(found) > 1]:
        raise InputError(
            f"expected one recipe and method of {several[0].removeprefix(STUDY)!r}, from whose weights other runs "
            f"start, got {len(trainings[several[0]])}; give the runs of each study by themselves"
        )


def run_folder(entry: str, seed: int) -> str:
    """Return the name of a run's folder below its study's."""
    return f"{entry}-seed{seed}"


def make_key(*parts: str) -> str:
    """Return a key made of these texts.

    >>> make_key("VGG-16, CIFAR-10", "sgs+pgt")
    'VGG-16-CIFAR-10-sgs+pgt'
    """
    slugs = (re.sub(r"[^A-Za-z0-9.+_=]+", "-", part).strip("-.") for part in parts)
    return "-".join(slug for slug in slugs if slug)


def write_study(study: Study, folder: Path) -> None:
    """Write the study as ``study.json`` of its folder, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(folder / _FILE, to_json(study).encode())


def read_study(folder: AnyPath) -> Study | None:
    """Return the study in the folder, or ``None`` where there is none.

    Raises:
        InputError: its file cannot be read as a study.
    """
    return read_json(Study, Path(folder) / _FILE)
