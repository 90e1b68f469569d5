"""The commands: ``train``, ``compare``, ``search``, ``reproduce``, ``worker``, ``report``, ``list``.

Each command is a dataclass whose fields are its options. Where a command takes a recipe, the fields of the recipe are
options too (``--epochs``, ``--optimizer.lr``), on top of the defaults that ``--recipe NAME`` chooses.
"""

import json
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
from backpass.experiments import plan as plans
from backpass.experiments.bars import progress_bars
from backpass.experiments.overrides import Reduction
from backpass.experiments.queue import Queue
from backpass.experiments.recipes import RECIPES, get_recipe, get_table, list_tables
from backpass.experiments.report import plan_of, write_report
from backpass.experiments.results import RunResult, read_results
from backpass.experiments.runs import execute, load_data
from backpass.experiments.study import describe_failures, run_study
from backpass.experiments.worker import GRACE, HEARTBEAT, default_processes, when_terminated, work, work_in_processes
from backpass.models import list_models
from backpass.training.datasets import list_datasets
from backpass.training.methods import check_method, list_methods
from backpass.training.processes import is_main
from backpass.training.recipe import Recipe, Run, Runtime

__all__ = ["Compare", "List", "Report", "Reproduce", "Search", "Train", "Worker", "run"]

_Settings = Annotated[Recipe, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class Train:
    """Train one model with one method and one seed; an interrupted run goes on when its folder is given again.

    Attributes:
        recipe: name of the recipe whose settings are the defaults of the options below.
        method: plain, sgs, pgt, agc, or several joined by +, such as sgs+pgt.
        seed: of initialisation, order and augmentation.
        out: folder of the run; default: a new one below runs/.
        json: print the result as JSON and nothing else.
        settings: the recipe's settings.
        runtime: where and how it is computed.
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
        data = load_data(self.settings.data)
        with progress_bars(quiet=self.json) as progress:
            progress.start_study(1)
            task = Run(self.settings, self.method, self.seed)
            result = execute(task, data, folder, runtime=self.runtime, progress=progress)
        if is_main():
            _show(plan_of([result]), [result], folder, as_json=self.json)


@dataclass(frozen=True, kw_only=True)
class _Study:
    """What every command that runs a study takes.

    Attributes:
        out: folder of the runs and the report; given again, the study goes on where it was. Default: one below runs/.
        storage: database URL or journal:PATH of the cells; default: a SQLite file in the folder.
        processes: workers on this machine; default: one for each GPU.
        json: print the results as JSON and nothing else.
        runtime: where and how it is computed.
    """

    out: Path | None = None
    storage: str | None = None
    processes: int | None = None
    json: bool = False
    runtime: Runtime = field(default_factory=Runtime)

    def run(self, plan: plans.Plan, name: str) -> None:
        """Run a plan in the folder, or in a new one of that name, and show what came of it, also if a cell failed."""
        folder = self.out or Path("runs") / name
        with when_terminated(), progress_bars(quiet=self.json) as progress:
            outcome = run_study(
                plan,
                folder,
                runtime=self.runtime,
                storage=self.storage,
                processes=self.processes or default_processes(self.runtime),
                progress=progress,
            )
        if outcome.results:
            _show(plan, outcome.results, folder, as_json=self.json)
        outcome.check()


@dataclass(frozen=True, kw_only=True)
class Compare(_Study):
    """Train one model with several methods over several seeds, and set the results side by side.

    With no option: scikit-learn's digits, plain, sgs, pgt and sgs+pgt, five seeds, in a minute or two on a CPU. An
    interrupted comparison goes on when its folder is given again.

    Attributes:
        recipe: name of the recipe whose settings are the defaults of the options below.
        methods: what to compare; differences and times are relative to plain.
        seeds: one run of each method for each seed.
        settings: the recipe's settings.
    """

    recipe: str = "digits"
    methods: tuple[str, ...] = ("plain", "sgs", "pgt", "sgs+pgt")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    settings: _Settings = RECIPES["digits"]

    def __call__(self) -> None:
        """Run the command."""
        plan = plans.compare_plan(self.settings, self.methods, self.seeds)
        self.run(plan, _new_name(f"compare-{self.settings.model}"))


@dataclass(frozen=True, kw_only=True)
class Search(_Study):
    """Try several values of one setting, judged on images held out of the training set.

    Attributes:
        key: dotted name of the setting, such as sgs.k or pgt.alpha, or several joined by commas, such as
            sgs.alpha,sgs.beta. These three have grids of their own.
        values: what to try; of several settings at once, such as 0.5,0.25.
        recipe: name of the recipe whose settings are the defaults of the options below.
        method: default: the method that the key belongs to; plain is run beside it.
        seeds: one run of each value for each seed.
        validation: share of the training images to judge on.
        settings: the recipe's settings.
    """

    key: tyro.conf.Positional[str]
    values: tuple[str, ...] = ()
    recipe: str = "digits"
    method: str | None = None
    seeds: tuple[int, ...] = (0, 1, 2)
    validation: float = 0.2
    settings: _Settings = RECIPES["digits"]

    def __call__(self) -> None:
        """Run the command."""
        plan = plans.search_plan(
            self.key, self.settings, self.seeds, values=self.values, method=self.method, validation=self.validation
        )
        self.run(plan, _new_name(f"search-{self.key}-{self.settings.model}"))


@dataclass(frozen=True, kw_only=True)
class Reproduce(_Study):
    """Run a paper's table, or a shorter version of it, and set the paper's numbers beside the results.

    The same command given again goes on where it was.

    Attributes:
        table: a name of backpass list.
        seeds: number of runs of each row; their seeds are 0, 1, and so on.
        rows: labels of the rows to run, or patterns such as 'VGG*'; default: all.
        instead: what is not as in the paper.
    """

    table: tyro.conf.Positional[str]
    seeds: int = 3
    rows: tuple[str, ...] = ()
    instead: Annotated[Reduction, tyro.conf.arg(name="")] = field(default_factory=Reduction)

    def __call__(self) -> None:
        """Run the command."""
        plan = plans.table_plan(get_table(self.table), range(self.seeds), reduction=self.instead, rows=self.rows)
        self.run(plan, self.table)


@dataclass(frozen=True)
class Worker:
    """Take the next waiting cell of a study, and the next, until every cell has ended.

    Start as many as there are GPUs, on any machine that reaches the study, or several on one GPU. The cell of a worker
    that dies is taken over.

    Attributes:
        study: folder of the study, journal:PATH, or database URL.
        name: of the study, where the database holds several.
        out: folder of the runs; default: the study's.
        processes: workers on this machine; default: one for each GPU.
        heartbeat: seconds between signs of life.
        grace: seconds without one until another worker's cell is taken over.
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
        with when_terminated(), closing(Queue.open(self.study, self.name)) as queue:
            folder = self.out or (Path(self.study) if is_folder else queue.folder)
            processes = self.processes or default_processes(queue.runtime)
            if processes > 1:
                where = ["--study", self.study, "--name", queue.name, "--out", str(folder)]
                times = ["--heartbeat", str(self.heartbeat), "--grace", str(self.grace)]
                work_in_processes(queue, [*where, *times], processes)
            else:
                with progress_bars(quiet=self.json) as progress:
                    progress.start_study(len(queue.states()))
                    work(queue, folder, progress=progress, heartbeat=self.heartbeat, grace=self.grace)
            states = queue.states()
        failures = {state.cell.folder: state.error for state in states if state.error is not None}
        if self.json:
            _print_json({"folder": str(folder), "cells": len(states), "failures": failures})
        else:
            Console().print(f"{len(states)} cells have ended, {len(failures)} failed\nruns   {folder}", highlight=False)
        if failures:
            raise StateError(describe_failures(failures, len(states)))


@dataclass(frozen=True)
class Report:
    """Make report and tables of a study again, from its result files.

    Attributes:
        folder: of the study, or of any runs.
        json: print the results as JSON and nothing else.
    """

    folder: tyro.conf.Positional[Path]
    json: bool = False

    def __call__(self) -> None:
        """Run the command."""
        results = read_results(self.folder)
        _show(plans.read_plan(self.folder) or plan_of(results), results, self.folder, as_json=self.json)


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
            console.print(f"[bold]{kind}[/bold]: {', '.join(entries)}", highlight=False)


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


def _new_name(name: str) -> str:
    safe = "".join(c if c.isalnum() or c in "+-_." else "-" for c in name)
    return f"{safe}-{time.strftime('%Y%m%d-%H%M%S')}"


def _show(plan: plans.Plan, results: list[RunResult], folder: Path, *, as_json: bool) -> None:
    """Write report and tables, and print the table, or the same as JSON."""
    table = write_report(plan, results, folder)
    report = folder / "report.html"
    if as_json:
        _print_json({"folder": str(folder), "report": str(report), **table.as_dict()})
        return
    console = Console()
    console.print(table.rich())
    console.print(f"runs   {folder}\nreport {report}", highlight=False, soft_wrap=True)


def _print_json(content: object) -> None:
    print(json.dumps(content, indent=1))  # noqa: T201
