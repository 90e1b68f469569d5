"""Random command lines end in a result or in one line of explanation: no traceback, no hang."""

import random
import signal
import warnings
from contextlib import contextmanager

import pytest
from accelerate.state import AcceleratorState

from backpass.__main__ import main
from backpass.cli import commands
from backpass.errors import StateError
from backpass.experiments import running
from backpass.training.trainer import Trainer
from fuzz.command_lines import command_line
from training.folders import write_folder

LIMIT = 60  # seconds, many times what the slowest takes


class HangError(BaseException):
    """A command has not come back."""


@contextmanager
def limited(seconds):
    def stop(number, frame):
        raise HangError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def problem(arguments, capsys):
    """Return what is wrong with the ending of a command; ``None`` if it is as it should be."""
    try:
        with limited(LIMIT), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            status = main(arguments)
    except SystemExit as ending:
        printed = capsys.readouterr()
        return None if ending.code in (0, 2) and "Traceback" not in printed.err else f"exit {ending.code}"
    except BaseException as error:
        capsys.readouterr()
        return f"{type(error).__name__}: {error}"
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("backpass: ")]
    if "Traceback" in printed.err:
        return "a traceback on the terminal"
    if status == 0:
        return None if not lines else f"status 0 after {lines}"
    if len(lines) != 1 or status != 2 or not printed.err.endswith(f"{lines[0]}\n"):
        return f"status {status} after {printed.err[-500:]!r}"
    if any(kind in lines[0] for kind in UNEXPLAINED):
        return f"an error of a run that nothing explains: {lines[0]}"
    return None


# How a failed run of a study is described whose error is none of ours.
UNEXPLAINED = [
    f"{kind.__name__}: " for kind in (TypeError, ValueError, RuntimeError, KeyError, IndexError, AttributeError)
]


@pytest.mark.parametrize("count", [150, pytest.param(3000, marks=pytest.mark.slow)])
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
        AcceleratorState._reset_state(reset_partial_state=True)  # as in a new process
        arguments = command_line(generator, images, file, tmp_path / "new" / str(number))
        if found := problem(arguments, capsys):
            problems.append(f"{arguments}: {found}")
    assert problems == []
