"""Random command lines end in a result or in one line of explanation: no traceback, no hang."""

import random

import pytest

from backpass.cli import commands
from backpass.errors import StateError
from backpass.experiments import running
from backpass.training.trainer import Trainer
from fuzz.command_lines import command_line
from fuzz.ending import problem
from training.folders import write_folder


@pytest.mark.parametrize("count", [80, pytest.param(3000, marks=pytest.mark.slow)])
def test_no_command_line_ends_in_a_traceback(count, tmp_path, monkeypatch, capsys):
    def fit(trainer):
        raise StateError("the test trains nothing")

    def work_in_processes(*arguments, **options):
        raise StateError("the test starts no processes")

    monkeypatch.setattr(Trainer, "fit", fit)
    monkeypatch.setattr(running, "work_in_processes", work_in_processes)
    monkeypatch.setattr(commands, "work_in_processes", work_in_processes)
    images, file, inside = tmp_path / "images", tmp_path / "file", tmp_path / "a" / "b" / "c"
    write_folder(images, {"train": {"cat": 20, "eagle": 20}, "test": {"cat": 5, "eagle": 5}})
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    generator = random.Random(17)
    problems = []
    for number in range(count):
        file.write_text("a file")
        arguments = command_line(generator, images, file, tmp_path / "new" / str(number))
        if found := problem(arguments, capsys):
            problems.append(f"{arguments}: {found}")
    assert problems == []
