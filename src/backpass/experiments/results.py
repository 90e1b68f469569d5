"""What a run leaves on disk, and what a set of runs amounts to: one schema, checked on reading."""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from backpass.errors import InputError
from backpass.training.checkpoint import atomic_write

__all__ = ["RunResult", "Summary", "environment", "read_results", "summarize", "write_result"]

SCHEMA = 1
_PACKAGES = ("backpass", "torch", "torchvision", "accelerate", "numpy", "scikit-learn", "timm")


@dataclass(frozen=True)
class RunResult:
    """The content of a run folder's ``result.json``.

    Attributes:
        run: recipe, method and seed (:meth:`backpass.training.recipe.Run.as_dict`).
        data: label and number of images of each split.
        model: name, parameters and multiply-adds of one image.
        history: one record per epoch (:class:`backpass.training.trainer.Outcome`).
        cost: seconds of training, measuring and evaluating, and peak accelerator memory in bytes or null.
        scalings: the last SGS scalings by parameter name, as nested lists.
        environment: commit, versions, hardware, runtime settings.
        schema: version of this schema.
    """

    run: dict[str, Any]
    data: dict[str, Any]
    model: dict[str, Any]
    history: list[dict[str, float]]
    cost: dict[str, float | None]
    scalings: dict[str, Any]
    environment: dict[str, Any]
    schema: int = SCHEMA

    @property
    def method(self) -> str:
        """The method's name."""
        return str(self.run["method"])

    @property
    def seed(self) -> int:
        """The run's seed."""
        return int(self.run["seed"])

    @property
    def accuracy(self) -> float:
        """Test accuracy after the last epoch, as a fraction."""
        return self.history[-1]["test_accuracy"]

    @property
    def best_accuracy(self) -> float:
        """The best test accuracy of any epoch, as a fraction; optimistic, since the test images chose the epoch."""
        return max(record["test_accuracy"] for record in self.history)

    @property
    def seconds(self) -> float:
        """Seconds of training and measuring, without evaluation."""
        return sum(record["train_seconds"] + record["measure_seconds"] for record in self.history)


@dataclass(frozen=True)
class Summary:
    """One method's row of a comparison.

    Attributes:
        method: the method.
        n: number of runs.
        mean: mean test accuracy after the last epoch, as a fraction.
        std: its sample standard deviation; ``None`` for a single run.
        values: accuracy by seed.
        difference: mean difference to ``plain`` over common seeds; ``None`` for plain or without one.
        time_ratio: training plus measuring time relative to ``plain``, median over common seeds; ``None`` likewise.
        seconds: mean seconds of training plus measuring.
    """

    method: str
    n: int
    mean: float
    std: float | None
    values: dict[int, float]
    difference: float | None
    time_ratio: float | None
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the row as plain values."""
        return asdict(self)


def write_result(path: Path, result: RunResult) -> None:
    """Write a result as JSON, atomically."""
    atomic_write(path, json.dumps(asdict(result), indent=1).encode())


def read_result(path: Path) -> RunResult:
    """Return the result at ``path``.

    Raises:
        InputError: not JSON, another schema, or a field missing or unknown.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable result ({error})") from error
    names = {f.name for f in fields(RunResult)}
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or set(content) != names:
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{path}: expected a result of schema {SCHEMA} with the fields {sorted(names)}, got {found}")
    return RunResult(**content)


def read_results(folder: Path) -> list[RunResult]:
    """Return all results below ``folder``, ordered by path.

    Raises:
        InputError: there are none, or one cannot be read.
    """
    results = [read_result(path) for path in sorted(folder.rglob("result.json"))]
    if not results:
        raise InputError(f"expected run folders with a result.json below {folder}, found none")
    return results


def summarize(results: Sequence[RunResult]) -> list[Summary]:
    """Return one row per method, in order of first appearance, each beside ``plain`` where that was run."""
    by_method: dict[str, dict[int, RunResult]] = {}
    for result in results:
        by_method.setdefault(result.method, {})[result.seed] = result
    plain = by_method.get("plain", {})
    rows = []
    for method, runs in by_method.items():
        values = {seed: run.accuracy for seed, run in sorted(runs.items())}
        common = [] if method == "plain" else [seed for seed in values if seed in plain]
        differences = [values[seed] - plain[seed].accuracy for seed in common]
        ratios = [runs[seed].seconds / plain[seed].seconds for seed in common]
        rows.append(
            Summary(
                method=method,
                n=len(values),
                mean=statistics.fmean(values.values()),
                std=statistics.stdev(values.values()) if len(values) > 1 else None,
                values=values,
                difference=statistics.fmean(differences) if differences else None,
                time_ratio=statistics.median(ratios) if ratios else None,
                seconds=statistics.fmean(run.seconds for run in runs.values()),
            )
        )
    return rows


def environment() -> dict[str, Any]:
    """Return commit, package versions and hardware of this process."""
    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the source tree, with ``+`` where it was altered; ``None`` for an installed package."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if status.stdout.strip() else "")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
