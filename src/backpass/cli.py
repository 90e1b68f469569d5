"""The commands: ``train``, ``compare``, ``search``, ``reproduce``, ``worker``, ``report``, ``list``.

Each command is a dataclass whose fields are its options. Where a command takes a recipe, the fields of the recipe are
options too (``--epochs``, ``--optimizer.lr``), on top of the defaults that ``--recipe NAME`` chooses.
"""

import json
import shlex
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import optuna
import tyro
from rich.console import Console

from backpass.errors import StateError
from backpass.experiments import (
    RECIPES,
    Record,
    Reduction,
    Study,
    api,
    compare_study,
    get_recipe,
    get_table,
    list_tables,
    read_records,
    read_study,
    run_study,
    search_study,
    table_study,
)
from backpass.experiments.progress import progress_bars
from backpass.experiments.reporting.planned import planned_runs, planned_table
from backpass.experiments.reporting.report import study_of, write_report
from backpass.experiments.running import describe_failures
from backpass.experiments.scheduling.processes import default_processes, work_in_processes
from backpass.experiments.scheduling.queue import Queue
from backpass.experiments.scheduling.termination import resumable, when_terminated
from backpass.experiments.scheduling.worker import GRACE, HEARTBEAT, work
from backpass.experiments.search import VALIDATION
from backpass.experiments.tables import TABLES
from backpass.models import list_models
from backpass.training.datasets import list_datasets
from backpass.training.methods import check_method, list_methods
from backpass.training.recipe import Recipe, Runtime

__all__ = ["Compare", "List", "Report", "Reproduce", "Search", "Train", "Worker", "run"]

_WORKER_HINT = "its runs wait again; start the same command again to resume"
_Settings = Annotated[Recipe, tyro.conf.arg(name="")]


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
    settings: _Settings = RECIPES["digits"]
    runtime: Runtime = field(default_factory=Runtime)

    def __call__(self) -> None:
        """Run the command."""
        check_method(self.method)
        folder = self.out or Path("runs") / _new_name(f"train-{self.settings.model}-{self.method}")
        with resumable(_hint(folder)), progress_bars(quiet=self.json) as progress:
            progress.start_study(1)
            record = api.train(
                self.settings, folder, method=self.method, seed=self.seed, runtime=self.runtime, progress=progress
            )
        study, records = study_of([record])
        _show(study, records, folder, as_json=self.json)


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
    processes: int | None = None
    dry_run: bool = False
    json: bool = False
    runtime: Runtime = field(default_factory=Runtime)

    def run(self, study: Study, name: str, **units: str) -> None:
        """Run a study in the folder, or in a new one of that name, and show its results, also if a run failed."""
        if self.dry_run:
            if self.json:
                _print_json({"title": study.title, "seeds": study.seeds, "entries": planned_runs(study)})
            else:
                Console().print(planned_table(study, **units))
            return
        folder = self.out or Path("runs") / name
        with when_terminated(), resumable(_hint(folder)), progress_bars(quiet=self.json) as progress:
            result = run_study(
                study,
                folder,
                runtime=self.runtime,
                storage=self.storage,
                processes=self.processes or default_processes(self.runtime),
                progress=progress,
            )
        if result.records:
            _show(study, result.records, folder, as_json=self.json)
        result.check()


@dataclass(frozen=True, kw_only=True)
class Compare(_Study):
    """Train one model with several methods over several seeds, and show the results in one table.

    With no option: scikit-learn's digits, plain, sgs, pgt and sgs+pgt, five seeds, in a minute or two on a CPU.

    Attributes:
        recipe: name of the recipe whose settings are the defaults of the options below.
        methods: methods to compare; differences and times are relative to plain.
        seeds: seeds; each method is run once with each.
        settings: settings of the recipe.
    """

    recipe: str = "digits"
    methods: tuple[str, ...] = ("plain", "sgs", "pgt", "sgs+pgt")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    settings: _Settings = RECIPES["digits"]

    def __call__(self) -> None:
        """Run the command."""
        study = compare_study(self.settings, self.methods, self.seeds)
        self.run(study, _new_name(f"compare-{self.settings.model}"))


@dataclass(frozen=True, kw_only=True)
class Search(_Study):
    """Try several values of one setting, judged on images held out of the training set.

    Attributes:
        key: dotted name of the setting, such as sgs.k or pgt.alpha, or several joined by commas, such as
            sgs.alpha,sgs.beta. These three have default values.
        values: values to try; of several settings at once, such as 5,10.
        recipe: name of the recipe whose settings are the defaults of the options below.
        method: method to train with; default: the one that the key belongs to, compared with plain.
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
        self.run(study, _new_name(f"search-{self.key}-{self.settings.model}"))


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


@dataclass(frozen=True)
class Worker:
    """Take the next waiting run of a study, and the next, until every run has ended.

    Start as many as there are GPUs, on any machine that reaches the study and its folder, or several on one GPU. The
    run of a worker that dies is taken over.

    Attributes:
        study: folder of the study, journal:PATH, or database URL.
        name: name of the study, where the database holds several.
        out: folder of the runs, shared by all workers; default: the study's.
        processes: number of workers on this machine; default: one for each GPU.
        heartbeat: seconds between signs of life.
        grace: seconds without one until another worker's run is taken over.
        json: print the state of the study as JSON and nothing else.
    """

    study: str
    name: str | None = None
    out: Path | None = None
    processes: int | None = None
    heartbeat: float = HEARTBEAT
    grace: float = GRACE
    json: bool = False

    def __call__(self) -> None:
        """Run the command."""
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
                    progress.start_study(len(queue.states()))
                    work(queue, folder, progress=progress, heartbeat=self.heartbeat, grace=self.grace)
            states = queue.states()
        failures = {state.run.folder: state.error for state in states if state.error is not None}
        if self.json:
            _print_json({"folder": str(folder), "runs": len(states), "failures": failures})
        else:
            Console().print(f"{len(states)} runs have ended, {len(failures)} failed\nruns   {folder}", highlight=False)
        if failures:
            raise StateError(describe_failures(failures, len(states)))


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
        records = read_records(self.folder)
        study = read_study(self.folder)
        if study is None:
            study, records = study_of(records)
        _show(study, records, self.folder, as_json=self.json)


@dataclass(frozen=True)
class List:
    """List the models, data sets, methods, recipes and tables.

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
            "recipes": list(RECIPES),
            "tables": list_tables(),
        }
        if self.json:
            _print_json(names)
            return
        console = Console()
        for kind, entries in names.items():
            if kind != "tables":
                console.print(f"[bold]{kind}[/bold]: {', '.join(entries)}", highlight=False)
        console.print("[bold]tables[/bold]:", highlight=False)
        for name, table in TABLES.items():
            runs = sum(entry.recipe is not None and entry.runs_of is None for entry in table.entries) * table.seeds
            numbers = sum(entry.published is not None for entry in table.entries)
            sizes = f"{len(table.entries)} entries, {runs} runs, {numbers} published"
            console.print(f"  {name:<22}{table.title} ({sizes})", highlight=False, markup=False, soft_wrap=True)


Command = Train | Compare | Search | Reproduce | Worker | Report | List


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments and run the command they name.

    Raises:
        InputError: what the command cannot work with.
        StateError: a run failed.
        SystemExit: after ``--help``, or with status 2 for options that do not parse.
    """
    recipe = _chosen_recipe(arguments)
    settings = get_recipe(recipe)
    missing: Any = tyro.MISSING
    commands: dict[str, Command] = {
        "train": replace(Train(), recipe=recipe, settings=settings),
        "compare": replace(Compare(), recipe=recipe, settings=settings),
        "search": Search(key=missing, recipe=recipe, settings=settings),
        "reproduce": Reproduce(table=missing),
        "worker": Worker(missing),
        "report": Report(missing),
        "list": List(),
    }
    union: Any = tyro.extras.subcommand_type_from_defaults(commands, prefix_names=False)
    command = tyro.cli(
        union, args=list(arguments), prog="backpass", description="Train convnets by altering the backward pass."
    )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    command()


def _chosen_recipe(arguments: Sequence[str]) -> str:
    """Return the value of ``--recipe``, which decides the defaults of all other options."""
    for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if option == "--recipe":
            return value
        if option.startswith("--recipe="):
            return option.partition("=")[2]
    return "digits"


def _hint(folder: Path) -> str:
    return f"to resume, give the same command with --out {shlex.quote(str(folder))}"


def _new_name(name: str) -> str:
    safe = "".join(c if c.isalnum() or c in "+-_." else "-" for c in name)
    return f"{safe}-{time.strftime('%Y%m%d-%H%M%S')}"


def _show(study: Study, records: list[Record], folder: Path, *, as_json: bool) -> None:
    """Write report and tables, and print the table, or the same as JSON."""
    table = write_report(study, records, folder)
    report = folder / "report.html"
    if as_json:
        _print_json({"folder": str(folder), "report": str(report), **table.as_dict()})
        return
    console = Console()
    console.print(table.rich())
    console.print(f"runs   {folder}\nreport {report}", highlight=False, soft_wrap=True)


def _print_json(content: object) -> None:
    print(json.dumps(content, indent=1))  # noqa: T201
