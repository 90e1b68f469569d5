"""The command line: ``train``, ``compare``, ``search``, ``reproduce``, ``worker``, ``report``, ``figure``, and others.

Each command is a dataclass whose fields are its options. Where a command takes a recipe, the fields of the recipe are
options too (``--epochs``, ``--optimizer.lr``), on top of the defaults that ``--recipe NAME`` chooses.
"""

import io
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from typing import Any

import optuna
import tyro

from backpass._internal.settings import check_text
from backpass.cli.commands import List, Power, Report, Train, Worker
from backpass.cli.pictures import Figure, Inspect
from backpass.cli.studies import Compare, Reproduce, Search
from backpass.errors import InputError
from backpass.experiments import get_recipe

__all__ = ["run"]

Command = Train | Compare | Search | Reproduce | Worker | Report | Figure | Inspect | Power | List


@dataclass(frozen=True)
class _RecipeName:
    """The option that decides the defaults of all others."""

    recipe: str = "digits"


def run(arguments: Sequence[str]) -> None:
    """Parse the arguments and run the command they name; without any, print the help.

    Raises:
        InputError: an argument of the command is invalid, such as a setting that is out of range.
        StateError: a run failed.
        SystemExit: after ``--help``, or with status 2 for options that do not parse.
    """
    for argument in arguments:
        check_text("every argument", argument)
    chosen, _ = tyro.cli(_RecipeName, args=list(arguments), prog="backpass", add_help=False, return_unknown_args=True)
    recipe, settings = chosen.recipe, get_recipe(chosen.recipe)
    missing: Any = tyro.MISSING
    commands: dict[str, Command] = {
        "train": replace(Train(), recipe=recipe, settings=settings),
        "compare": replace(Compare(), recipe=recipe, settings=settings),
        "search": Search(key=missing, recipe=recipe, settings=settings),
        "reproduce": Reproduce(table=missing),
        "worker": Worker(missing),
        "report": Report(missing),
        "figure": Figure(missing),
        "inspect": Inspect(missing),
        "power": Power(missing),
        "list": List(),
    }
    summaries = {name: (type(command).__doc__ or "").partition("\n\n")[0] for name, command in commands.items()}
    union: Any = tyro.extras.subcommand_type_from_defaults(commands, summaries, prefix_names=False)
    with _own_errors():
        command = tyro.cli(
            union,
            args=list(arguments) or ["--help"],
            prog="backpass",
            description="Train convnets by altering the backward pass. `backpass --version` prints the version.",
        )
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    command()


@contextmanager
def _own_errors() -> Iterator[None]:
    """Raise the InputError of a group of settings that tyro has turned into a text and an exit."""
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            yield
    except SystemExit as ending:
        cause: BaseException | None = ending
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__context__
        if cause is not None:
            raise cause from None
        sys.stderr.write(printed.getvalue())
        raise
