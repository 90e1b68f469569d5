"""The script for the GPU runs from end to end in small on the CPU, skips what is done, and resumes where it was cut."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(folder: Path, *options: str) -> list[str]:
    """Return the script's own lines."""
    script = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--smoke"]
    where = ["--results", str(folder / "results"), "--work", str(folder / "work")]
    done = subprocess.run([*script, *where, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("== ")]


@pytest.mark.slow
def test_every_stage_leaves_its_file_and_is_skipped_the_second_time(tmp_path):
    lines = run(tmp_path)
    assert [line for line in lines if " done after " not in line] == []
    files = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "results").iterdir()}
    assert files.keys() == {f"{name}-cpu" for name in ("tests", "cost", "throughput")}
    assert files["tests-cpu"]["tests"] == files["tests-cpu"]["passed"] + len(files["tests-cpu"]["skipped"]) > 0
    ratios = files["cost-cpu"]["results"][0]["methods"]["sgs"]
    assert len(ratios["step_ratios"]) == len(ratios["run_ratios"]) == 2
    assert len(files["throughput-cpu"]["results"][0]["ratios"]) == 2

    cut_short = tmp_path / "results" / "throughput-cpu.json"
    cut_short.write_text(json.dumps(files["throughput-cpu"] | {"complete": False}))
    lines = run(tmp_path)
    assert [line for line in lines if "done already" not in line] == [lines[-1]]
    assert lines[-1].startswith("== throughput: done after")
    assert "complete" not in json.loads(cut_short.read_text())


@pytest.mark.parametrize("smoke", [True, False])
def test_benchmarks_take_the_arguments_of_the_script(smoke, benchmark_module, monkeypatch, tmp_path):
    gpu = benchmark_module("gpu")
    session = gpu.Session(argparse.Namespace(results=tmp_path, work=tmp_path, minutes=1, smoke=smoke, device="cpu"))
    for name in session.scripts():
        monkeypatch.setattr(sys, "argv", [name, *session.arguments(name), "--help"])
        with pytest.raises(SystemExit, match=r"^0$"):
            benchmark_module(name).main()


@pytest.mark.parametrize(("status", "complete"), [(0, True), (1, True), (2, False), (None, False)])
def test_tests_that_were_cut_short_are_run_again(status, complete, benchmark_module, monkeypatch, tmp_path):
    gpu = benchmark_module("gpu")
    options = argparse.Namespace(results=tmp_path, work=tmp_path, minutes=1, smoke=True, device="cpu")
    session = gpu.Session(options)

    def call(command, limit):
        (tmp_path / "tests.xml").write_text('<testsuite><testcase classname="a" name="b"/></testsuite>')
        return status

    monkeypatch.setattr(gpu, "call", call)
    session.run_tests(60)
    assert json.loads((tmp_path / "tests-cpu.json").read_text())["passed"] == 1
    assert session.is_complete("tests") is complete


def test_a_stage_that_fails_costs_no_other(benchmark_module, monkeypatch, tmp_path, capsys):
    """A killed process may leave a report that cannot be read."""
    gpu = benchmark_module("gpu")
    session = gpu.Session(argparse.Namespace(results=tmp_path, work=tmp_path, minutes=9, smoke=True, device="cpu"))

    def call(command, limit):
        if "pytest" in command:
            (tmp_path / "tests.xml").write_text("<testsuite><testcase")
        else:
            Path(command[command.index("--output") + 1]).write_text('{"results": []}')
        return 0

    monkeypatch.setattr(gpu, "call", call)
    session.run()
    assert {path.name for path in tmp_path.glob("*-cpu.json")} == {"cost-cpu.json", "throughput-cpu.json"}
    assert not session.is_complete("tests")
    assert "== tests: not complete after" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "measured", "kept"),
    [
        ("throughput", "measure", {"results": 1}),
        ("cost", "measure", {"results": 1}),
        ("pgt", "measure", {"results": 1}),
        ("sgs", "in_fresh_process", {"update": 1, "step": 0}),
    ],
)
def test_a_benchmark_that_is_interrupted_leaves_what_it_has(
    name, measured, kept, benchmark_module, monkeypatch, tmp_path
):
    script, calls = benchmark_module(name), []
    # The first row of sgs takes two measurements.
    row = {"shape": [1], "compiled": False, "memory_mb": [1.0], "seconds": {"plain": [1.0], "power_grad": [1.0]}}

    def measure(*arguments, **named):
        calls.append(arguments)
        if len(calls) > (2 if name == "sgs" else 1):
            raise KeyboardInterrupt
        return dict(row)

    output = tmp_path / "folder" / "raw.json"
    monkeypatch.setattr(script, measured, measure)
    monkeypatch.setattr(script, name if name == "cost" else "print", lambda *_, **__: "", raising=False)
    more = ["--models", "vgg16_small", "resnet18"] if name == "cost" else []
    monkeypatch.setattr(sys, "argv", [name, "--output", str(output), *more])
    with pytest.raises(KeyboardInterrupt):
        script.main()
    content = json.loads(output.read_text())
    assert {key: len(content[key]) for key in kept} == kept
    assert [path.name for path in output.parent.iterdir()] == ["raw.json"]


def test_an_interrupted_call_leaves_no_process(benchmark_module, monkeypatch):
    gpu = benchmark_module("gpu")
    started = []

    def interrupted(self, timeout=None):
        if not started:
            started.append(self)
            raise KeyboardInterrupt
        return wait(self, timeout)

    wait = subprocess.Popen.wait
    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        gpu.call([sys.executable, "-c", "import time; time.sleep(60)"], 60)
    assert started[0].poll() is not None


@pytest.mark.slow
def test_nothing_begins_without_time(tmp_path):
    lines = run(tmp_path, "--minutes", "0")
    assert len(lines) == 3
    assert all("not begun" in line for line in lines)
    assert not list((tmp_path / "results").iterdir())


STUBBORN = (
    "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
)


@pytest.mark.parametrize(
    ("code", "limit", "status"),
    [
        ("pass", 60, 0),
        ("raise SystemExit(3)", 60, 3),
        ("import time; time.sleep(600)", 1, None),
        (STUBBORN, 1, None),
    ],
)
def test_a_command_ends_by_itself_or_is_ended(benchmark_module, monkeypatch, code, limit, status):
    gpu = benchmark_module("gpu")
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(gpu, "PATIENCE", 1)
    monkeypatch.setattr(gpu.subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1])
    assert gpu.call([sys.executable, "-c", code], limit) == status
    assert started[0].returncode is not None
