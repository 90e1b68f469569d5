"""An entry: what one line of a study's table stands for."""

from dataclasses import dataclass

from backpass.errors import InputError
from backpass.experiments.tuning import Space
from backpass.training.methods import check_method
from backpass.training.recipe import Recipe

__all__ = ["Entry", "Published", "check_entries", "entry_name"]


@dataclass(frozen=True)
class Published:
    """What a paper prints of one entry, in the paper's own units.

    Attributes:
        value: the headline metric in %, such as top-1 accuracy.
        std: the spread printed after it, in points; ``None``: the paper prints none.
        cost: of one run, in the unit that the table names.
        flops: multiply-adds of one image in the unit that the table names.
        params: parameters in millions.
        further: further metrics by name, in %.
        copied: whether the paper marks the number as taken from another paper.
    """

    value: float
    std: float | None = None
    cost: float | None = None
    flops: float | None = None
    params: float | None = None
    further: tuple[tuple[str, float], ...] = ()
    copied: bool = False

    def __str__(self) -> str:
        """Return the numbers as a table shows them.

        >>> str(Published(95.2, 0.05)), str(Published(72.8, further=(("mAcc", 80.0),), copied=True))
        ('95.2 ± 0.05', '72.8 / 80 *')
        """
        values = " / ".join(f"{value:g}" for value in (self.value, *(value for _, value in self.further)))
        std = "" if self.std is None else f" ± {self.std:g}"
        return f"{values}{std}{' *' if self.copied else ''}"


@dataclass(frozen=True)
class Entry:
    """One entry of a study; with the seeds of the study it gives its runs.

    Attributes:
        key: identifies the entry within its study and names the folders of its runs.
        label: its name in tables.
        method: a name of :func:`backpass.training.methods.check_method`.
        recipe: all other settings; ``None``: the entry is shown and not run.
        baseline: key of the entry that this one is compared with; ``None``: none.
        runs_of: key of the entry whose runs this one shares, being the same training; ``None``: it has its own.
        published: what the paper prints; ``None``: nothing.
        note: where settings come from, and which of them are ours.
        space: what a study with tuning tries for this entry, as :func:`backpass.experiments.tuning.parse_space` gives
            it; empty: the entry keeps its settings.
        starts_from: key of the entry whose trained weights this one's runs start from, seed by seed: fine-tuning after
            pretraining. ``recipe.weights.module`` is the part of the model that takes them. ``None``: none.
    """

    key: str
    label: str
    method: str
    recipe: Recipe | None
    baseline: str | None = None
    runs_of: str | None = None
    published: Published | None = None
    note: str = ""
    space: Space = ()
    starts_from: str | None = None

    @property
    def name(self) -> str:
        """The label, with the method where entries of several methods may share it (:func:`entry_name`)."""
        return entry_name(self.label, self.method)

    @property
    def tuned(self) -> bool:
        """Whether a study with tuning searches settings for this entry."""
        return bool(self.space) and self.recipe is not None and self.runs_of is None

    @property
    def run_key(self) -> str:
        """The key that this entry's runs carry."""
        return self.runs_of or self.key


def entry_name(label: str, method: str) -> str:
    """Return what an entry is called where its method is not shown next to it.

    >>> entry_name("VGG-11, SGD", "sgs"), entry_name("sgs", "sgs")
    ('VGG-11, SGD (sgs)', 'sgs')
    """
    return label if label == method else f"{label} ({method})"


def check_entries(entries: tuple[Entry, ...]) -> None:
    """Check that entries fit together.

    Raises:
        InputError: an unknown method, a key or a name used twice, a key that names no other entry, entries that start
            from each other, or an entry that is tuned and starts from another.
    """
    keys, names = [entry.key for entry in entries], [entry.name for entry in entries]
    for entry in entries:
        check_method(entry.method)
        if keys.count(entry.key) > 1:
            raise InputError(f"expected every entry to have a key of its own, got {entry.key!r} twice; rename one")
        if names.count(entry.name) > 1:
            raise InputError(
                "expected every entry to have a label or a method of its own, by which results name it, got "
                f"{entry.name!r} twice; give one another label"
            )
        if entry.starts_from is not None and entry.space:
            raise InputError(
                f"expected entry {entry.key!r} to be tuned or to start from another entry, got both; tune the settings "
                "in a study of their own"
            )
        links = {"baseline": entry.baseline, "runs_of": entry.runs_of, "starts_from": entry.starts_from}
        for name, other in links.items():
            if other is not None and (other not in keys or other == entry.key):
                raise InputError(
                    f"expected {name} of entry {entry.key!r} to be the key of another entry, got {other!r}; "
                    f"expected one of {', '.join(map(repr, keys))}"
                )
    starts = {entry.key: entry.starts_from for entry in entries}
    for key in keys:
        chain = [key]
        while (before := starts[chain[-1]]) is not None:
            if before in chain:
                raise InputError(
                    f"expected entries that start from earlier ones, got {' from '.join(map(repr, [*chain, before]))}; "
                    "let one of them start afresh"
                )
            chain.append(before)
