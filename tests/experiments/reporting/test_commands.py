import shlex
from dataclasses import replace

import pytest

from backpass.__main__ import main
from backpass.cli import commands
from backpass.experiments import RECIPES
from backpass.experiments.reporting.commands import train_command
from backpass.experiments.tables import TABLES
from backpass.training.recipe import Run, Runtime

DIGITS = RECIPES["digits"]
OTHER = replace(
    DIGITS,
    model_args=(("gain", 0.5), ("zero_init_last", False)),
    data=replace(DIGITS.data, limit_train=None, label="it's a; label"),
    optimizer=replace(DIGITS.optimizer, nesterov=True),
    augmentation=replace(DIGITS.augmentation, flip=True),
    clip_norm=1.0,
    sgs=replace(DIGITS.sgs, branches=("3x3", "1x3")),
)


@pytest.mark.parametrize(
    "run",
    [
        Run(DIGITS, "plain", 4),
        Run(OTHER, "sgs+pgt", 0),
        *(Run(recipe, "sgs", 1) for name, recipe in RECIPES.items() if name != "digits"),
        *(Run(table.entries[-1].recipe or DIGITS, "dbb", 2) for table in TABLES.values()),
    ],
    ids=lambda run: run.recipe.model,
)
def test_the_command_trains_the_same_run(run, monkeypatch):
    found = []

    def keep(command):
        found.append(command)

    monkeypatch.setattr(commands.Train, "__call__", keep)
    runtime = Runtime(device="cpu", channels_last=True)
    words = shlex.split(train_command(run, runtime))
    assert words[:2] == ["backpass", "train"]
    assert main(words[1:]) == 0
    (command,) = found
    assert (Run(command.settings, command.method, command.seed), command.runtime) == (run, runtime)
