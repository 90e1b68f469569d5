"""A paper's table as data: its rows, the runs that reproduce them, and the numbers that the paper prints."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from backpass.training.methods import check_method
from backpass.training.recipe import AgcSettings, DyRepSettings, PgtSettings, Recipe, Run, SgsSettings

__all__ = ["Row", "Table"]


@dataclass(frozen=True)
class Row:
    """One line of a table: one recipe with a method and with the baseline that the method is held against.

    Attributes:
        table: name of the table.
        label: what the line is called; unique within the table.
        recipe: everything else that decides the result.
        method: of the line, as :func:`backpass.training.methods.check_method` knows it.
        paper_accuracy: published top-1 accuracy of ``method`` in %; ``None``: not at hand.
        paper_baseline: published top-1 accuracy of ``baseline`` in %; ``None``: not at hand.
        source: where settings and numbers come from, and which of them are ours.
        baseline: the method without its gain.
        peers: further methods that the paper holds against the row's own, with their accuracies there, in %.
    """

    table: str
    label: str
    recipe: Recipe
    method: str
    paper_accuracy: float | None
    paper_baseline: float | None
    source: str
    baseline: str = "plain"
    peers: tuple[tuple[str, float], ...] = ()

    @property
    def model(self) -> str:
        """The recipe's model."""
        return self.recipe.model

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods to run: the baseline, the row's own, and its peers."""
        return (self.baseline, self.method, *(peer for peer, _ in self.peers))

    def published(self, method: str) -> float | None:
        """Return the paper's accuracy of ``method`` in %, or ``None`` where it is not at hand."""
        known = {self.baseline: self.paper_baseline, self.method: self.paper_accuracy, **dict(self.peers)}
        return known.get(method)

    def run(self, method: str, seed: int) -> Run:
        """Return the run of ``method`` with ``seed``.

        Settings of methods that take no part in it are the defaults, so that rows which differ in those alone, such as
        those of a search, share one run of their baseline.
        """
        parts, recipe = check_method(method), self.recipe
        recipe = replace(
            recipe,
            sgs=recipe.sgs if "sgs" in parts else SgsSettings(),
            pgt=recipe.pgt if "pgt" in parts else PgtSettings(),
            agc=recipe.agc if "agc" in parts else AgcSettings(),
            dyrep=recipe.dyrep if "dyrep" in parts else DyRepSettings(),
        )
        return Run(recipe, method, seed)


@dataclass(frozen=True)
class Table:
    """A table of a paper.

    Attributes:
        name: by which :func:`backpass.experiments.recipes.get_table` knows it.
        title: what it shows.
        rows: its lines.
        seeds: what the paper says of seeds and repetitions.
    """

    name: str
    title: str
    rows: tuple[Row, ...]
    seeds: str

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of all rows, each once, baselines first."""
        baselines = [row.baseline for row in self.rows]
        return tuple(dict.fromkeys([*baselines, *(method for row in self.rows for method in row.methods)]))

    def runs(self, seeds: Sequence[int]) -> list[Run]:
        """Return the runs of all rows with all seeds, each once; seeds are outermost, so that a table fills evenly."""
        runs = (row.run(method, seed) for seed in seeds for row in self.rows for method in row.methods)
        return list(dict.fromkeys(runs))
