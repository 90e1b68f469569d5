"""The commands that run no study of their own: ``train``, ``worker``, ``report``, ``power``, ``list``."""

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from backpass._internal.settings import Range, check_settings
from backpass.cli.output import Processes, new_name, print_json, resume_hint, show
from backpass.errors import InputError, StateError
from backpass.experiments import FIGURES, RECIPES, list_tables, read_records, read_study
from backpass.experiments import train as train_run
from backpass.experiments.power import LEVEL, POWER, seeds_needed, smallest_difference, spread_of_differences
from backpass.experiments.progress_bars import progress_bars
from backpass.experiments.reporting.report import study_of
from backpass.experiments.reproduction import table_study
from backpass.experiments.running import describe_failures, failures_of, own_states
from backpass.experiments.scheduling.processes import default_processes, work_in_processes
from backpass.experiments.scheduling.queue import Queue
from backpass.experiments.scheduling.termination import resumable, when_terminated
from backpass.experiments.scheduling.worker import GRACE, HEARTBEAT, work
from backpass.experiments.stages import count_runs, last_stage
from backpass.experiments.study import study_records
from backpass.experiments.tables import TABLES
from backpass.experiments.tuning import Choice
from backpass.models import list_models
from backpass.training.datasets import list_datasets
from backpass.training.methods import check_method, list_methods
from backpass.training.processes import is_main, join, on_main
from backpass.training.recipe import Recipe, Run, Runtime
from backpass.training.tasks import list_tasks

__all__ = ["List", "Power", "Report", "Train", "Worker"]

_LONGEST = 86400.0
_POINTS = Range(at_least=1e-6, at_most=100)
_WORKER_HINT = "its runs wait again; start the same command again to resume"
_RETRY_HINT = "start the command that began the study again: it tries them again, a worker does not"


@dataclass(frozen=True)
class Train:
    """Train one model with one method and one seed; resume an interrupted run when its folder is given again.

    Attributes:
        recipe: name of the recipe whose settings are the defaults of the options below.
        method: plain, sgs, pgt, agc, or several joined by +, such as sgs+pgt.
        seed: seed of initialisation, order and augmentation.
        out: folder of the run; default: a new one below runs/.
        json: print the record as JSON and nothing else.
        settings: settings of the recipe.
        runtime: settings of the computation.
    """

    recipe: str = "digits"
    method: str = "plain"
    seed: int = 0
    out: Path | None = None
    json: bool = False
    settings: Annotated[Recipe, tyro.conf.arg(name="")] = RECIPES["digits"]
    runtime: Runtime = field(default_factory=Runtime)

    def __call__(self) -> None:
        """Run the command."""
        check_method(self.method)
        Run(self.settings, self.method, self.seed)  # Refused before anything is shown.
        folder = self.out or self._new_folder()
        with resumable(resume_hint(folder)), progress_bars(quiet=self.json) as progress:
            progress.start_study(1)
            record = train_run(
                self.settings, folder, method=self.method, seed=self.seed, runtime=self.runtime, progress=progress
            )
        if is_main():
            study, records = study_of([record])
            show(study, records, folder, as_json=self.json)

    def _new_folder(self) -> Path:
        join(self.runtime)
        return Path("runs") / on_main(lambda: new_name(f"train-{self.settings.model}-{self.method}"))


@dataclass(frozen=True)
class Worker:
    """Take the next waiting run of a study, and the next, until every run has ended.

    Start one for each GPU, on any machine that reaches the study and its folder, or several on one GPU. The
    run of a worker that dies is taken over.

    Attributes:
        study: folder of the study, journal:PATH, or database URL.
        name: name of the study, where the database holds several.
        out: folder of the runs, shared by all workers; default: the study's.
        processes: number of workers on this machine; default: one for each GPU.
        heartbeat: seconds between signs of life.
        grace: seconds without one until another worker's run is taken over, at least two heartbeats.
        json: print the state of the study as JSON and nothing else.
    """

    study: str
    name: str | None = None
    out: Path | None = None
    processes: Processes | None = None
    heartbeat: Annotated[float, Range(above=0, at_most=_LONGEST)] = HEARTBEAT
    grace: Annotated[float, Range(above=0, at_most=_LONGEST)] = GRACE
    json: bool = False

    def __call__(self) -> None:
        """Run the command."""
        check_settings(self)
        is_folder = "://" not in self.study and not self.study.startswith("journal:")
        with when_terminated(), resumable(_WORKER_HINT), closing(Queue.open(self.study, self.name)) as queue:
            folder = self.out or (Path(self.study) if is_folder else queue.folder)
            processes = self.processes or default_processes(queue.runtime)
            if processes > 1:
                work_in_processes(
                    self.study,
                    queue.name,
                    folder,
                    processes=processes,
                    heartbeat=self.heartbeat,
                    grace=self.grace,
                )
            else:
                with progress_bars(quiet=self.json) as progress:
                    work(queue, folder, progress=progress, heartbeat=self.heartbeat, grace=self.grace)
            every = queue.states()
        study = read_study(folder)
        states = own_states(study, folder, every)
        failures = failures_of(study, folder, states)
        if self.json:
            print_json({"folder": str(folder), "runs": len(states), "failures": failures})
        else:
            ended = f"{len(states)} runs have ended, {len(failures)} failed\nruns   {folder}"
            Console().print(ended, highlight=False, markup=False, soft_wrap=True)
        if failures:
            raise StateError(describe_failures(failures, len(states), _RETRY_HINT))


@dataclass(frozen=True)
class Report:
    """Make report and tables of a study again, from its records.

    Attributes:
        folder: folder of the study, or of any runs.
        json: print the results as JSON and nothing else.
    """

    folder: tyro.conf.Positional[Path]
    json: bool = False

    def __call__(self) -> None:
        """Run the command."""
        study = read_study(self.folder)
        choices: list[Choice] = []
        if study is None:
            study, records = study_of(read_records(self.folder))
        else:
            records = study_records(self.folder)
            if not records:
                raise InputError(
                    f"expected run folders of the study with a result.json in {self.folder}, found none; run the study"
                )
            study, choices = last_stage(study, self.folder)
        show(study, records, self.folder, choices=choices, as_json=self.json)


@dataclass(frozen=True)
class Power:
    """Compute the number of seeds that detects a difference, or the difference that a number of seeds detects.

    Attributes:
        spread: standard deviation of one method's accuracy over seeds, in points.
        difference: smallest difference to detect, in points, by a paired t-test.
        seeds: number of seeds of each method, instead of a difference.
        level: largest p-value that counts; with m comparisons, divide it by m.
        power: probability of detecting the difference.
        correlation: correlation of two methods' accuracies over common seeds.
        json: print JSON.
    """

    spread: Annotated[float, _POINTS]
    difference: Annotated[float, _POINTS] | None = None
    seeds: Annotated[int, Range(at_least=2, at_most=1_000_000)] | None = None
    level: Annotated[float, Range(at_least=1e-9, below=1)] = LEVEL
    power: Annotated[float, Range(above=0, at_most=0.999)] = POWER
    correlation: Annotated[float, Range(at_least=-1, at_most=0.999)] = 0.0
    json: bool = False

    def __call__(self) -> None:
        """Run the command."""
        check_settings(self)
        std = spread_of_differences(self.spread, self.correlation)
        seeds, difference = self.seeds, self.difference
        if seeds is None and difference is not None:
            seeds = seeds_needed(difference, std, self.level, self.power)
        elif difference is None and seeds is not None:
            difference = smallest_difference(std, seeds, self.level, self.power)
        else:
            raise InputError("expected either --difference or --seeds, got both or none; give one of them")
        if self.json:
            print_json({"seeds": seeds, "difference": difference, "level": self.level, "power": self.power})
            return
        Console().print(
            f"{seeds} seeds of each method detect a difference of {difference:.3g} points at p < {self.level:g} with "
            f"power {self.power:g}, where paired differences have a standard deviation of {std:.3g} points",
            highlight=False,
            soft_wrap=True,
        )


@dataclass(frozen=True)
class List:
    """List the models, data sets, methods, tasks, recipes, figures and tables.

    Attributes:
        json: print JSON.
    """

    json: bool = False

    def __call__(self) -> None:
        """Run the command."""
        names = {
            "models": [*list_models(), "timm/NAME"],
            "data sets": list(list_datasets()),
            "methods": list_methods(),
            "tasks": list_tasks(),
            "recipes": list(RECIPES),
            "figures": list(FIGURES),
            "tables": list_tables(),
        }
        if self.json:
            print_json(names)
            return
        console = Console()
        for kind, entries in names.items():
            if kind != "tables":
                console.print(f"[bold]{kind}[/bold]: {', '.join(entries)}", highlight=False)
        console.print("[bold]tables[/bold]:", highlight=False)
        for name, table in TABLES.items():
            runs = count_runs(table_study(table))
            numbers = sum(entry.published is not None for entry in table.entries)
            sizes = f"{len(table.entries)} entries, {runs} runs, {numbers} published"
            console.print(f"  {name:<22}{table.title} ({sizes})", highlight=False, markup=False, soft_wrap=True)
