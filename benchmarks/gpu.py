"""Runs on one GPU, within a limit of time, everything that this project asks of one; called again, it goes on.

In order of value, each stage writing its file to the folder of results as soon as it ends:

- ``tests``: the tests that need a CUDA device.
- ``sgs``, ``pgt``: what measuring, scaling and the loss cost (``sgs.py``, ``pgt.py``).
- ``cost``: step, run and memory of every method beside plain training, VGG-16 and ResNet-18 (``cost.py``).
- ``throughput``: the trainer beside a bare loop (``throughput.py``).
- ``epochs``: how many epochs the time that is left allows the studies, from two epochs of VGG-16 in all processes.
- the studies, several runs at once: plain, SGS, PGT and both over five seeds, VGG-16 and VGG-11 on CIFAR-10; SGS with
  autocorrelation, and with the fixed scaling that ACB amounts to; the search for k on held-out images.

A stage whose file is complete is skipped. One that the limit cuts short leaves what it has, marked as not complete, and
is taken up again by the next call: a study with its run folders where it stopped, anything else from its beginning.

    python benchmarks/gpu.py --images folder:PATH --label "CIFAR-10 (JPEG)"    # 25 minutes -> benchmarks/results/
    python benchmarks/gpu.py --device cpu --smoke --results FOLDER             # the same in small, to test this script
"""

import argparse
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from backpass.experiments import read_records
from keep import kept
from tools import environment_of

HERE = Path(__file__).resolve().parent
SEEDS = ("0", "1", "2", "3", "4")
METHODS = ("plain", "sgs", "pgt", "sgs+pgt")
# So short a schedule as is left here starts at half the recipes' rate: at 0.1 the first epochs are lost.
RATE = ("--optimizer.lr", "0.05")
VGG_16 = ("--recipe", "cifar-600", "--model", "vgg16_small", *RATE)
VGG_11 = ("--recipe", "cifar-200", "--model", "vgg11_small", *RATE)
DIGITS = ("--recipe", "digits")
MOST = {"tests": 300, "sgs": 180, "pgt": 180, "cost": 420, "throughput": 300}  # seconds; studies take what is left
_TESTS_ENDED = (0, 1)  # pytest's status when all tests ran, well or not
PATIENCE = 30  # seconds that an interrupted stage gets to put its work away


@dataclass(frozen=True)
class Study:
    """A study: its name, command, recipe, and what else it is told; ``runs`` is how many it makes."""

    name: str
    command: tuple[str, ...]
    recipe: tuple[str, ...]
    options: tuple[str, ...]
    runs: int


@dataclass(frozen=True)
class Stage:
    """A stage: its file, the seconds it needs to begin and those it may take, and what writes the file within them."""

    name: str
    file: str
    least: float
    most: float
    run: Callable[[float], None]


def studies(smoke: bool) -> list[Study]:
    """Return the studies, the most telling first."""
    vgg_16, vgg_11 = (DIGITS, DIGITS) if smoke else (VGG_16, VGG_11)
    seeds, values = (SEEDS[:2], ("2", "5")) if smoke else (SEEDS, ("2", "3", "5", "7"))
    searched = seeds[:3]
    every, sgs = ("--methods", *METHODS, "--seeds", *seeds), ("--methods", "sgs", "--seeds", *seeds)
    search = ("--values", *values, "--seeds", *searched)
    autocorrelation = (*sgs, "--sgs.measure", "autocorrelation")
    branches = (*sgs, "--sgs.branches", "3x3", "1x3", "3x1")
    return [
        Study("accuracy-vgg16", ("compare",), vgg_16, every, len(METHODS) * len(seeds)),
        Study("accuracy-vgg11", ("compare",), vgg_11, every, len(METHODS) * len(seeds)),
        Study("accuracy-vgg11-autocorrelation", ("compare",), vgg_11, autocorrelation, len(seeds)),
        Study("accuracy-vgg11-branches", ("compare",), vgg_11, branches, len(seeds)),
        Study("search-k-vgg11", ("search", "sgs.k"), vgg_11, search, (len(values) + 1) * len(searched)),
    ]


class Session:
    """One call of this script: its options, its clock, its folders."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.results, self.work = options.results.resolve(), options.work.resolve()
        self.end = time.monotonic() + 60 * options.minutes
        self.studies = studies(options.smoke)
        self.results.mkdir(parents=True, exist_ok=True)
        self.work.mkdir(parents=True, exist_ok=True)

    def stages(self) -> list[Stage]:
        """Return the stages in their order."""
        device, smoke = self.options.device, self.options.smoke
        cost = ["--models", "shufflenet", "--methods", "plain", "sgs", "--batch", "4", "--steps", "1", "--rounds", "2"]
        throughput = ["--models", "shufflenet", "--batches", "4", "--images", "8", "--epochs", "2"]
        scripts = {"sgs": [], "pgt": [], "cost": cost if smoke else [], "throughput": throughput if smoke else []}
        if smoke:  # These two have no small size.
            del scripts["sgs"], scripts["pgt"]
        stages = [Stage("tests", f"tests-{device}.json", 60, MOST["tests"], self.run_tests)]
        for name, arguments in scripts.items():
            file = f"{name}-{device}.json"
            script = partial(self.run_script, name, arguments)
            stages.append(Stage(name, file, 60, MOST[name], script))
        stages.append(Stage("epochs", f"epochs-{device}.json", 10 if smoke else 240, math.inf, self.choose_epochs))
        for study in self.studies:
            file = f"{study.name}-{device}.json"
            stages.append(Stage(study.name, file, 30, math.inf, partial(self.run_study, study)))
        return stages

    def left(self) -> float:
        """Return the seconds until the end."""
        return self.end - time.monotonic()

    def run(self) -> None:
        """Run the stages that are not complete, as far as the time goes."""
        for stage in self.stages():
            if self.is_complete(stage.file):
                say(f"{stage.name}: done already")
            elif self.left() < stage.least + PATIENCE:
                say(f"{stage.name}: not begun, with {max(0, self.left()):.0f} s left; call again to go on")
            else:
                start = time.monotonic()
                stage.run(min(stage.most, self.left() - PATIENCE))
                state = "done" if self.is_complete(stage.file) else "not complete"
                say(f"{stage.name}: {state} after {time.monotonic() - start:.0f} s")

    def is_complete(self, file: str) -> bool:
        """Return whether the file is there and not marked as cut short."""
        path = self.results / file
        return path.is_file() and json.loads(path.read_text()).get("complete", True)

    def write(self, file: str, content: dict[str, Any]) -> None:
        """Write a file of results."""
        (self.results / file).write_text(json.dumps(content, indent=1) + "\n")

    def run_tests(self, limit: float) -> None:
        """Run the tests that need the device, and write what became of each."""
        report = self.work / "tests.xml"
        report.unlink(missing_ok=True)
        chosen = ["tests/training/test_data.py"] if self.options.smoke else ["tests"]
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
            f"tests-{self.options.device}.json",
            {"environment": environment_of(), "tests": len(cases), "passed": passed, **outcomes}
            | ({} if status in _TESTS_ENDED else {"complete": False}),
        )

    def run_script(self, name: str, arguments: list[str], limit: float) -> None:
        """Run a benchmark; a file that it leaves when the limit stops it is marked as not complete."""
        file = f"{name}-{self.options.device}.json"
        output = self.work / file
        output.unlink(missing_ok=True)
        script = str(HERE / f"{name}.py")
        command = [sys.executable, script, "--device", self.options.device, "--output", str(output), *arguments]
        status = call(command, limit)
        if output.is_file():
            self.write(file, json.loads(output.read_text()) | ({} if status == 0 else {"complete": False}))

    def choose_epochs(self, limit: float) -> None:
        """Time two epochs of plain VGG-16 in every process at once, and share out the time that is left."""
        processes, runs = self.options.processes, sum(study.runs for study in self.studies)
        recipe = DIGITS if self.options.smoke else VGG_16
        seeds = [str(seed) for seed in range(processes)]
        folder, start = self.work / "probe", time.monotonic()
        probe = Study("probe", ("compare",), recipe, ("--methods", "plain", "--seeds", *seeds), processes)
        if call(self.command(probe, folder, epochs=2), limit) != 0:
            return
        seconds = time.monotonic() - start
        last = [result.history[-1] for result in read_records(folder)]
        epoch = statistics.median(sum(v for k, v in record.items() if k.endswith("_seconds")) for record in last)
        around = max(0.0, seconds - 2 * epoch)
        # SGS and the checkpoints take a little more than this plain epoch.
        fitting = processes * (self.left() - len(self.studies) * around) / (1.2 * runs * epoch)
        epochs = 2 if self.options.smoke else max(2, min(200, math.floor(fitting)))
        measured = {"epoch_seconds": epoch, "seconds_around": around, "processes": processes, "runs": runs}
        self.write(f"epochs-{self.options.device}.json", {"epochs": epochs, **measured})

    def command(self, study: Study, folder: Path, epochs: int) -> list[str]:
        """Return the command line of a study in its folder."""
        options = self.options
        data = () if options.smoke else ("--data.name", options.images, "--data.label", options.label)
        device = ("--runtime.device", "cpu" if options.device == "cpu" else "auto")
        fast = ("--runtime.precision", "bf16", "--runtime.channels-last") if options.device == "cuda" else ()
        where = ("--out", str(folder), "--processes", str(options.processes))
        start = [sys.executable, "-m", "backpass", *study.command, *study.recipe, "--epochs", str(epochs)]
        return [*start, *study.options, *data, *device, *fast, "--runtime.checkpoint-every", "5", *where]

    def run_study(self, study: Study, limit: float) -> None:
        """Run a study or go on with it, and write the table and every result that there is."""
        chosen = self.results / f"epochs-{self.options.device}.json"
        if not chosen.is_file():
            say(f"{study.name}: the stage epochs comes first")
            return
        folder = self.work / study.name
        command = self.command(study, folder, json.loads(chosen.read_text())["epochs"])
        call(command, limit)
        content = kept(folder, ["backpass", *command[3 : command.index("--out")]])
        if content is not None:
            self.write(f"{study.name}-{self.options.device}.json", content)


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
    parser.add_argument("--images", default="", help="the CIFAR-10 images: folder:PATH, or cifar10")
    parser.add_argument("--label", default="CIFAR-10", help="what the results call them")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--minutes", type=float, default=25.0, help="limit of this call")
    parser.add_argument("--processes", type=int, default=6, help="runs at once")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="default: results/ beside this script")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu"), help="run folders; keep them to go on later")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, scikit-learn's digits")
    options = parser.parse_args()
    if not options.images and not options.smoke:
        parser.error("expected --images folder:PATH or cifar10")
    Session(options).run()


if __name__ == "__main__":
    main()
