import shlex
from dataclasses import replace

import pytest

from backpass.__main__ import main
from backpass.cli import commands
from backpass.experiments import RECIPES, finetuning_study, read_record
from backpass.experiments.reporting.commands import train_command, train_commands
from backpass.experiments.reporting.report import study_of
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


@pytest.mark.parametrize("of_study", [True, False])
def test_commands_of_runs_that_start_from_others_can_be_given_in_turn(of_study, make_record, tmp_path, monkeypatch):
    short = replace(DIGITS, epochs=1, data=replace(DIGITS.data, limit_train=40, limit_test=20))
    study = finetuning_study("x", short, short, [0])
    records = [make_record(run.run.recipe, run.run.method, 0, [0.5], entry=run.entry) for run in study.runs()]
    names = ("x-pretraining-plain-seed0", "x-plain-then-plain-seed0")
    if not of_study:  # Then the entries have other keys.
        records = study_of(records)[1]
        names = ("recipe-1-digits_net-plain-seed0", "recipe-2-digits_net-plain-seed0")
    pretraining, _, fine, *_ = train_commands(records)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(commands, "show", lambda *_, **__: None)
    for command, name in zip((pretraining, fine), names, strict=True):
        assert main(shlex.split(command)[1:]) == 0
        assert read_record(tmp_path / "runs" / name / "result.json").run in [record.run for record in records]


def test_runs_that_start_from_none_name_no_folder(make_record):
    records = [make_record(DIGITS, "plain", seed, [0.5], entry="plain") for seed in (0, 1)]
    assert train_commands(records) == [train_command(record.run, Runtime(device="cpu")) for record in records]
    assert "--out" not in "".join(train_commands(records))
