"""Runs on one GPU, within a limit of time, everything that this project requires of one; resumes when called again.

In order of value, each stage writing its file to the folder of results as soon as it ends, however it ends:

- ``tests``: the tests that need a CUDA device.
- ``sgs``, ``pgt``: the cost of measuring, scaling and the loss (``sgs.py``, ``pgt.py``).
- ``cost``: step, run and memory of every method relative to plain training, VGG-16 and ResNet-18 (``cost.py``).
- ``throughput``: the trainer and a bare loop (``throughput.py``).

A stage whose file is complete is skipped. One that fails or that the limit cuts short leaves what it has, marked as not
complete, and is run again from its beginning by the next call; the stages after it run all the same.

    python benchmarks/gpu.py                                          # 25 minutes at most -> benchmarks/results/
    python benchmarks/gpu.py --device cpu --smoke --results FOLDER    # the same in small, to test this script
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from tools import environment_of, write_json

HERE = Path(__file__).resolve().parent
SCRIPTS = ("sgs", "pgt", "cost", "throughput")
MOST = {"tests": 480, "sgs": 180, "pgt": 180, "cost": 420, "throughput": 300}  # the seconds that a stage may take
_TESTS_ENDED = (0, 1)  # pytest's status when all tests ran, well or not
PATIENCE = 30  # seconds that an interrupted stage gets to put its work away


@dataclass(frozen=True)
class Stage:
    """A stage: its name, the seconds it needs to begin and those it may take, and what writes its file within them."""

    name: str
    least: float
    most: float
    run: Callable[[float], None]


class Session:
    """One call of this script: its options, its clock, its folders."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.results: Path = options.results.resolve()
        self.work: Path = options.work.resolve()
        self.end: float = time.monotonic() + 60 * options.minutes
        self.results.mkdir(parents=True, exist_ok=True)
        self.work.mkdir(parents=True, exist_ok=True)

    def stages(self) -> list[Stage]:
        """Return the stages in their order."""
        scripts = [partial(self.run_script, name, self.arguments(name)) for name in self.scripts()]
        return [
            Stage("tests", 60, MOST["tests"], self.run_tests),
            *(Stage(name, 60, MOST[name], script) for name, script in zip(self.scripts(), scripts, strict=True)),
        ]

    def scripts(self) -> tuple[str, ...]:
        """Return the benchmarks to run; the first two have no small size."""
        return SCRIPTS[2:] if self.options.smoke else SCRIPTS

    def arguments(self, name: str) -> list[str]:
        """Return the arguments of a benchmark."""
        small = {
            "cost": [
                *("--models", "shufflenet", "--methods", "plain", "sgs"),
                *("--batch", "4", "--steps", "1", "--rounds", "2"),
            ],
            "throughput": ["--models", "shufflenet", "--batches", "4", "--images", "8", "--epochs", "2"],
        }
        return small.get(name, []) if self.options.smoke else []

    def file(self, name: str) -> Path:
        """Return the file of a stage."""
        return self.results / f"{name}-{self.options.device}.json"

    def left(self) -> float:
        """Return the seconds until the end."""
        return self.end - time.monotonic()

    def run(self) -> None:
        """Run the stages that are not complete, as far as the time goes."""
        for stage in self.stages():
            if self.is_complete(stage.name):
                say(f"{stage.name}: done already")
            elif self.left() < stage.least + PATIENCE:
                say(f"{stage.name}: not begun, with {max(0, self.left()):.0f} s left; call again to resume")
            else:
                start = time.monotonic()
                try:
                    stage.run(min(stage.most, self.left() - PATIENCE))
                except Exception:  # such as on a report that a killed process has not finished
                    traceback.print_exc()
                state = "done" if self.is_complete(stage.name) else "not complete"
                say(f"{stage.name}: {state} after {time.monotonic() - start:.0f} s")

    def is_complete(self, name: str) -> bool:
        """Return whether the file of a stage is there and not marked as cut short."""
        return self.file(name).is_file() and json.loads(self.file(name).read_text()).get("complete", True)

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write the file of a stage."""
        write_json(self.file(name), content)

    def run_tests(self, limit: float) -> None:
        """Run the tests that need the device, and write what became of each."""
        report = self.work / "tests.xml"
        report.unlink(missing_ok=True)
        chosen = ["tests/training/test_loaders.py"] if self.options.smoke else ["tests"]
        command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", f"--junitxml={report}", *chosen]
        status = call(command, limit)
        if not report.is_file():
            return
        cases = list(ElementTree.parse(report).iter("testcase"))
        outcomes = {
            kind: [_name(c) for c in cases if c.find(kind) is not None] for kind in ("failure", "error", "skipped")
        }
        passed = len(cases) - sum(map(len, outcomes.values()))
        self.write(
            "tests",
            {"environment": environment_of(), "tests": len(cases), "passed": passed, **outcomes}
            | ({} if status in _TESTS_ENDED else {"complete": False}),
        )

    def run_script(self, name: str, arguments: list[str], limit: float) -> None:
        """Run a benchmark; a file that it leaves when the limit stops it is marked as not complete."""
        output = self.work / f"{name}.json"
        output.unlink(missing_ok=True)
        script = str(HERE / f"{name}.py")
        command = [sys.executable, script, "--device", self.options.device, "--output", str(output), *arguments]
        status = call(command, limit)
        if output.is_file():
            self.write(name, json.loads(output.read_text()) | ({} if status == 0 else {"complete": False}))


def call(command: list[str], limit: float) -> int | None:
    """Run a command, interrupted at the limit; return its status if it ended by itself."""
    process = subprocess.Popen(command, cwd=HERE.parent, start_new_session=True)
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        end(process)
        return None
    except BaseException:  # a session of its own hears no Ctrl-C, and would keep the device
        end(process)
        raise


def end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a process and all that it has started, and kill what does not end."""
    for number, patience in ((signal.SIGINT, PATIENCE), (signal.SIGKILL, None)):
        try:
            os.killpg(process.pid, number)
            process.wait(patience)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue


def say(text: str) -> None:
    print(f"== {text}", flush=True)


def _name(case: ElementTree.Element) -> str:
    return f"{case.get('classname')}.{case.get('name')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--minutes", type=float, default=25.0, help="limit of this call")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="default: results/ next to this script")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu"), help="what the stages write meanwhile")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes")
    Session(parser.parse_args()).run()


if __name__ == "__main__":
    main()
