"""The commands that run a study: ``compare``, ``search``, ``reproduce``."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from backpass._internal.settings import check_settings
from backpass.cli.output import Processes, new_name, print_json, print_table, resume_hint, show
from backpass.experiments import (
    RECIPES,
    Reduction,
    Study,
    compare_study,
    get_table,
    run_study,
    search_study,
    table_study,
)
from backpass.experiments.progress_bars import progress_bars
from backpass.experiments.reporting.planned import planned_runs, planned_table
from backpass.experiments.scheduling.processes import default_processes
from backpass.experiments.scheduling.termination import resumable, when_terminated
from backpass.experiments.tuning import VALIDATION, Tuning, parse_space
from backpass.training.recipe import Recipe, Runtime

__all__ = ["Compare", "Reproduce", "Search"]

_Settings = Annotated[Recipe, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class _Study:
    """The options of every command that runs a study.

    Attributes:
        out: folder of the runs and the report; resumes the study when given again. Default: one below runs/.
        storage: database URL or journal:PATH of the runs' states; default: a SQLite file in the folder.
        processes: number of workers on this machine; default: one for each GPU.
        dry_run: print what would run, and run nothing.
        json: print the results as JSON and nothing else.
        runtime: settings of the computation.
    """

    out: Path | None = None
    storage: str | None = None
    processes: Processes | None = None
    dry_run: bool = False
    json: bool = False
    runtime: Runtime = field(default_factory=Runtime)

    def run(self, study: Study, name: str, **units: str) -> None:
        """Run a study in the folder, or in a new one of that name, and show its results, also if a run failed."""
        check_settings(self)
        if self.dry_run:
            if self.json:
                print_json({"title": study.title, "seeds": study.seeds, "entries": planned_runs(study)})
            else:
                print_table(planned_table(study, **units))
            return
        folder = self.out or Path("runs") / name
        with when_terminated(), resumable(resume_hint(folder)), progress_bars(quiet=self.json) as progress:
            result = run_study(
                study,
                folder,
                runtime=self.runtime,
                storage=self.storage,
                processes=self.processes or default_processes(self.runtime),
                progress=progress,
            )
        if result.records:
            show(result.study, result.records, folder, choices=result.choices, as_json=self.json)
        result.check()


@dataclass(frozen=True, kw_only=True)
class Compare(_Study):
    """Train one model with several methods over several seeds, and show the results in one table.

    With no option: scikit-learn's digits, plain, sgs, pgt and sgs+pgt, five seeds, in a minute or two on a CPU.

    Attributes:
        recipe: name of the recipe whose settings are the defaults of the options below.
        methods: methods to compare; differences and times are relative to plain.
        seeds: seeds; each method is run once with each.
        tune: a setting and the values to try for each method that has it, such as lr=0.05,0.1,0.2, on training images
            that are held out; the best are then trained on all. lr, weight_decay, momentum, k and alpha are short
            for optimizer.lr and so on. May be given several times.
        tuning: settings of the tuning.
        settings: settings of the recipe.
    """

    recipe: str = "digits"
    methods: tuple[str, ...] = ("plain", "sgs", "pgt", "sgs+pgt")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    tune: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    tuning: Tuning = field(default_factory=Tuning)
    settings: _Settings = RECIPES["digits"]

    def __call__(self) -> None:
        """Run the command."""
        space = parse_space(self.tune)
        study = compare_study(self.settings, self.methods, self.seeds, space=space, tuning=self.tuning)
        self.run(study, new_name(f"compare-{self.settings.model}"))


@dataclass(frozen=True, kw_only=True)
class Search(_Study):
    """Try several values of one setting, judged on images held out of the training set.

    Attributes:
        key: dotted name of the setting, such as sgs.k or pgt.alpha, or several joined by commas, such as
            sgs.alpha,sgs.beta. These three have default values.
        values: values to try; of several settings at once, such as 5,10.
        recipe: name of the recipe whose settings are the defaults of the options below.
        method: method to train with; default: the one that has the settings, compared with plain.
        seeds: seeds; each value is run once with each.
        validation: fraction of the training images to judge on.
        settings: settings of the recipe.
    """

    key: tyro.conf.Positional[str]
    values: tuple[str, ...] = ()
    recipe: str = "digits"
    method: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    validation: float = VALIDATION
    settings: _Settings = RECIPES["digits"]

    def __call__(self) -> None:
        """Run the command."""
        study = search_study(
            self.key, self.settings, self.seeds, values=self.values, method=self.method, validation=self.validation
        )
        self.run(study, new_name(f"search-{self.key}-{self.settings.model}"))


@dataclass(frozen=True, kw_only=True)
class Reproduce(_Study):
    """Run a published table, or a shorter version of it, and show the paper's numbers next to the results.

    The same command given again resumes.

    Attributes:
        table: name of the table; backpass list shows all.
        seeds: number of runs of each entry, with the seeds 0, 1, and so on; default: as in the paper.
        entries: labels of the entries to run, or patterns such as 'VGG*'; default: all.
        instead: settings that differ from the paper.
    """

    table: tyro.conf.Positional[str]
    seeds: int | None = None
    entries: tuple[str, ...] = ()
    instead: Annotated[Reduction, tyro.conf.arg(name="")] = field(default_factory=Reduction)

    def __call__(self) -> None:
        """Run the command."""
        table = get_table(self.table)
        seeds = None if self.seeds is None else range(self.seeds)
        study = table_study(table, seeds, reduction=self.instead, entries=self.entries)
        self.run(study, self.table, cost_unit=table.cost_unit, flops_unit=table.flops_unit)
