import os
import shlex
import signal
import subprocess
import sys

import pytest

from backpass import cli
from backpass.__main__ import main
from backpass.experiments import api
from backpass.experiments.scheduling import worker as workers

SMALL = ["--epochs", "1", "--data.limit-train", "64", "--data.limit-test", "20", "--runtime.device", "cpu"]
SMALL += ["--sgs.warmup", "0"]


@pytest.fixture
def end_with(monkeypatch):
    """Lets every run end with a signal to this process."""

    def end_with(number):
        def execute(*arguments, **options):
            signal.raise_signal(number)

        monkeypatch.setattr(api, "execute", execute)
        monkeypatch.setattr(workers, "execute", execute)

    return end_with


ONE = ["--seeds", "0", "--json"]
COMMANDS = [["train"], ["compare", "--methods", "plain", *ONE], ["search", "sgs.k", "--values", "2", *ONE]]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_an_interrupt_ends_with_130_and_one_line_that_resumes(command, end_with, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    end_with(signal.SIGINT)
    words = [*command, *SMALL]
    assert main(words) == 130
    printed = capsys.readouterr()
    hint = "backpass: interrupted; to resume, give the same command with "
    (line,) = [line for line in printed.err.splitlines() if line.startswith("backpass")]
    assert line.startswith(hint)
    assert "Traceback" not in printed.err
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main([*words, *shlex.split(line.removeprefix(hint))]) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 1  # it was resumed, not begun again in another folder


def test_a_worker_that_is_interrupted_says_so(end_with, tmp_path, capsys):
    end_with(signal.SIGINT)
    assert main(["compare", *SMALL, "--out", str(tmp_path), "--json"]) == 130
    capsys.readouterr()
    assert main(["worker", "--study", str(tmp_path), "--json"]) == 130
    line = "backpass: interrupted; its runs wait again; start the same command again to resume\n"
    assert capsys.readouterr().err == line


def test_sigterm_ends_with_143_and_one_line_that_resumes(end_with, tmp_path, capsys):
    end_with(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        main(["compare", *SMALL, "--out", str(tmp_path), "--json"])
    assert ended.value.code == 143
    line = f"backpass: terminated; to resume, give the same command with --out {tmp_path}\n"
    assert capsys.readouterr().err == line


def test_an_interrupt_before_a_command_has_begun(monkeypatch, capsys):
    def run(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", run)
    assert main([]) == 130
    assert capsys.readouterr().err == "backpass: interrupted\n"


@pytest.mark.parametrize("command", [["--version"], ["list"], ["train", *SMALL]], ids=lambda c: c[0])
def test_a_closed_pipe_ends_with_141(command, tmp_path):
    """Of ``list``, Rich writes the output; of ``train``, the standard error stream, too, leads into the pipe."""
    reader, writer = os.pipe()
    os.close(reader)
    errors = subprocess.STDOUT if command[0] == "train" else subprocess.PIPE
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    arguments = [sys.executable, "-m", "backpass", *command]
    ended = subprocess.run(arguments, stdout=writer, stderr=errors, cwd=tmp_path, env=environment, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr or b"") == (141, b"")


def test_a_process_without_an_output_ends_as_others(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["--version"]) == 0
    assert main(["train", "--model", "nope"]) == 2
    assert "unknown model 'nope'" in capsys.readouterr().err


def test_a_closed_pipe_needs_no_signal_that_windows_lacks(monkeypatch, tmp_path):
    def run(arguments):
        raise BrokenPipeError

    monkeypatch.setattr(cli, "run", run)
    monkeypatch.delattr(signal, "SIGPIPE", raising=False)
    with (tmp_path / "o").open("w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        monkeypatch.setattr(sys, "stderr", output)
        assert main([]) == 141
