"""What a run leaves on disk: one schema, checked on reading."""

import json
import math
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from backpass.errors import InputError
from backpass.training.checkpoint import atomic_write

__all__ = ["SCHEMA", "RunResult", "check_result", "environment", "read_result", "read_results", "write_result"]

SCHEMA = 2
_PACKAGES = ("backpass", "torch", "torchvision", "accelerate", "numpy", "scikit-learn", "scipy", "timm", "optuna")

_Check = tuple[type, ...]
_TEXT, _COUNT, _NUMBER = (str,), (int,), (int, float)
_KEYS: dict[str, dict[str, _Check]] = {
    "run": {"recipe": (dict,), "method": _TEXT, "seed": _COUNT},
    "data": {"label": _TEXT, "train": _COUNT, "evaluated": _COUNT, "split": _TEXT},
    "model": {
        "name": _TEXT,
        "parameters": _COUNT,
        "macs": _COUNT,
        "deployed_parameters": _COUNT,
        "deployed_macs": _COUNT,
    },
    "cost": {
        "train_seconds": _NUMBER,
        "measure_seconds": _NUMBER,
        "evaluate_seconds": _NUMBER,
        "gpu_hours": (*_NUMBER, type(None)),
        "peak_memory": (int, type(None)),
    },
    "environment": {
        "commit": (str, type(None)),
        "python": _TEXT,
        "versions": (dict,),
        "platform": _TEXT,
        "cpu": _TEXT,
        "cpu_count": (int, type(None)),
        "threads": _COUNT,
        "accelerator": (str, type(None)),
        "runtime": (dict,),
    },
}


@dataclass(frozen=True)
class RunResult:
    """The content of a run folder's ``result.json``.

    Attributes:
        run: recipe, method and seed (:meth:`backpass.training.recipe.Run.as_dict`).
        data: ``label``; images to ``train`` on and ``evaluated``; the ``split`` that was evaluated, ``test`` or
            ``validation``.
        model: ``name``; ``parameters`` and ``macs``, the multiply-adds of one image, of the form that is trained, as it
            ends; ``deployed_parameters`` and ``deployed_macs`` of the plain network that is left.
        history: one record per epoch (:class:`backpass.training.trainer.Outcome`): the raw values.
        cost: ``train_seconds``, ``measure_seconds``, ``evaluate_seconds``; ``gpu_hours``, all of these on all GPUs, and
            ``peak_memory`` in bytes, both null on a CPU.
        scalings: the last SGS scalings by parameter name, as nested lists.
        environment: ``commit``, ``python``, ``versions``, ``platform``, ``cpu``, ``cpu_count``, ``threads``,
            ``accelerator``, ``runtime``.
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
    def accuracies(self) -> list[float]:
        """Accuracy on the evaluated split after each epoch, as fractions."""
        return [record[f"{self.data['split']}_accuracy"] for record in self.history]

    @property
    def accuracy(self) -> float:
        """Accuracy after the last epoch, as a fraction."""
        return self.accuracies[-1]

    @property
    def best_accuracy(self) -> float:
        """The best accuracy of any epoch, as a fraction; optimistic, since the evaluated images chose the epoch."""
        return max(self.accuracies)

    @property
    def seconds(self) -> float:
        """Seconds of training and measuring, without evaluation."""
        return sum(record["train_seconds"] + record["measure_seconds"] for record in self.history)

    @property
    def hardware(self) -> tuple[Any, Any]:
        """Names of the CPU and the accelerator."""
        return self.environment["cpu"], self.environment["accelerator"]


def write_result(path: Path, result: RunResult) -> None:
    """Write a result as JSON, atomically."""
    atomic_write(path, json.dumps(asdict(result), indent=1).encode())


def read_result(path: Path) -> RunResult:
    """Return the result at ``path``.

    Raises:
        InputError: not JSON, another schema, a field missing, unknown or of the wrong type, or no finite accuracy.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable result ({error})") from error
    return check_result(content, str(path))


def check_result(content: Any, source: str) -> RunResult:
    """Return the result that ``content``, from JSON, holds.

    Raises:
        InputError: see :func:`read_result`; the message starts with ``source``.
    """
    names = {f.name for f in fields(RunResult)}
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or set(content) != names:
        found = sorted(content) if isinstance(content, dict) else type(content).__name__
        raise InputError(f"{source}: expected a result of schema {SCHEMA} with the fields {sorted(names)}, got {found}")
    for section, keys in _KEYS.items():
        for key, types in keys.items():
            value = content[section].get(key, ...) if isinstance(content[section], dict) else ...
            if not isinstance(value, types) or isinstance(value, bool):
                wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in types)
                got = "nothing" if value is ... else repr(value)
                raise InputError(f"{source}: expected {section}.{key} to be {wanted}, got {got}")
    _check_history(content["history"], f"{content['data']['split']}_accuracy", source)
    return RunResult(**content)


def _check_history(history: Any, accuracy: str, source: str) -> None:
    if not isinstance(history, list) or not history:
        raise InputError(f"{source}: expected history to be a list with a record for each epoch, got {history!r}")
    for epoch, record in enumerate(history):
        for key in ("epoch", accuracy, "train_seconds", "measure_seconds", "evaluate_seconds"):
            value = record.get(key) if isinstance(record, dict) else None
            if not isinstance(value, int | float) or not math.isfinite(value):
                raise InputError(f"{source}: expected {key} of epoch {epoch} to be a finite number, got {value!r}")


def read_results(folder: Path) -> list[RunResult]:
    """Return all results below ``folder``, ordered by path.

    Raises:
        InputError: there are none, or one cannot be read.
    """
    results = [read_result(path) for path in sorted(folder.rglob("result.json"))]
    if not results:
        raise InputError(f"expected run folders with a result.json below {folder}, found none")
    return results


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
