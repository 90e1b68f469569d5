"""The commands: ``backpass train``, ``backpass compare``, ``backpass list``.

Each command is a dataclass whose fields are its options; the fields of the recipe are options too (``--epochs``,
``--optimizer.lr``), on top of the defaults that ``--recipe NAME`` chooses.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from backpass.experiments import study
from backpass.experiments.recipes import RECIPES, get_recipe
from backpass.experiments.report import accuracy_table, report_title, write_report
from backpass.experiments.results import RunResult, summarize
from backpass.models import list_models
from backpass.training.datasets import list_datasets
from backpass.training.methods import check_method, list_methods
from backpass.training.recipe import Recipe, Run, Runtime
from backpass.training.trainer import EpochRecord

__all__ = ["Compare", "List", "Train", "run"]

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
        folder = self.out or _new_folder(f"train-{self.settings.model}-{self.method}")
        data = study.load_data(self.settings.data)
        with _progress(quiet=self.json) as progress:
            progress.start_study(1)
            task = Run(self.settings, self.method, self.seed)
            result = study.execute(task, data, folder, runtime=self.runtime, progress=progress)
        _show([result], folder, as_json=self.json)


@dataclass(frozen=True)
class Compare:
    """Train one model with several methods over several seeds, and set the results side by side.

    With no option: scikit-learn's digits, plain, sgs, pgt and sgs+pgt, five seeds, in a minute or two on a CPU. An
    interrupted comparison goes on when its folder is given again.

    Attributes:
        recipe: name of the recipe whose settings are the defaults of the options below.
        methods: what to compare; differences and times are relative to plain.
        seeds: one run of each method for each seed.
        out: folder of the runs and the report; default: a new one below runs/.
        json: print the results as JSON and nothing else.
        settings: the recipe's settings.
        runtime: where and how it is computed.
    """

    recipe: str = "digits"
    methods: tuple[str, ...] = ("plain", "sgs", "pgt", "sgs+pgt")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    out: Path | None = None
    json: bool = False
    settings: _Settings = RECIPES["digits"]
    runtime: Runtime = field(default_factory=Runtime)

    def __call__(self) -> None:
        """Run the command."""
        folder = self.out or _new_folder(f"compare-{self.settings.model}")
        with _progress(quiet=self.json) as progress:
            results = study.compare(
                self.settings, self.methods, self.seeds, folder, runtime=self.runtime, progress=progress
            )
        _show(results, folder, as_json=self.json)


@dataclass(frozen=True)
class List:
    """List the models, data sets, methods and recipes.

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
        }
        if self.json:
            Console(soft_wrap=True).print_json(data=names)
            return
        console = Console()
        for kind, entries in names.items():
            console.print(f"[bold]{kind}[/bold]: {', '.join(entries)}", highlight=False)


Command = Train | Compare | List


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments and run the command they name.

    Raises:
        InputError: what the command cannot work with.
        SystemExit: after ``--help``, or with status 2 for options that do not parse.
    """
    recipe = _chosen_recipe(arguments)
    settings = get_recipe(recipe)
    commands: dict[str, Command] = {
        "train": replace(Train(), recipe=recipe, settings=settings),
        "compare": replace(Compare(), recipe=recipe, settings=settings),
        "list": List(),
    }
    union: Any = tyro.extras.subcommand_type_from_defaults(commands, prefix_names=False)
    tyro.cli(
        union, args=list(arguments), prog="backpass", description="Train convnets by altering the backward pass."
    )()


def _chosen_recipe(arguments: Sequence[str]) -> str:
    """Return the value of ``--recipe``, which decides the defaults of all other options."""
    for option, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if option == "--recipe":
            return value
        if option.startswith("--recipe="):
            return option.partition("=")[2]
    return "digits"


def _new_folder(name: str) -> Path:
    safe = "".join(c if c.isalnum() or c in "+-_" else "-" for c in name)
    return Path("runs") / f"{safe}-{time.strftime('%Y%m%d-%H%M%S')}"


def _show(results: list[RunResult], folder: Path, *, as_json: bool) -> None:
    """Write the report and print the table, or the same as JSON."""
    report = folder / "report.html"
    write_report(results, report)
    rows = summarize(results)
    if as_json:
        content = {"folder": str(folder), "report": str(report), "rows": [row.as_dict() for row in rows]}
        print(json.dumps(content, indent=1))  # noqa: T201
        return
    console = Console()
    console.print(accuracy_table(rows, report_title(results)))
    console.print(f"runs   {folder}\nreport {report}", highlight=False, soft_wrap=True)


class _BarProgress(study.Progress):
    """Two bars: runs of the study, steps of the run."""

    def __init__(self, bars: Bars) -> None:
        self.bars = bars
        self.all_runs = bars.add_task("runs", total=None)
        self.this_run = bars.add_task("", total=None)
        self.epochs = 0

    def start_study(self, runs: int) -> None:
        self.bars.update(self.all_runs, total=runs)

    def start_run(self, run: Run) -> None:
        self.epochs = run.recipe.epochs
        self.bars.reset(self.this_run, description=f"{run.method}, seed {run.seed}")

    def step(self, epoch: int, step: int, steps: int) -> None:
        self.bars.update(self.this_run, completed=epoch * steps + step, total=self.epochs * steps)

    def end_epoch(self, record: EpochRecord) -> None:
        self.bars.update(self.this_run, accuracy=record["test_accuracy"])

    def end_run(self, result: RunResult) -> None:
        self.bars.advance(self.all_runs)
        self.bars.console.print(
            f"{result.method:<10} seed {result.seed}  accuracy {100 * result.accuracy:6.2f} %  {result.seconds:7.1f} s",
            highlight=False,
        )


@contextmanager
def _progress(*, quiet: bool) -> Iterator[study.Progress]:
    """Show bars on the terminal, or nothing."""
    columns = (TextColumn("{task.description:<18}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, disable=quiet, console=Console(stderr=True, quiet=quiet)) as bars:
        yield _BarProgress(bars)
