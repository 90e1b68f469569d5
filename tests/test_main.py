import shlex
import signal

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
