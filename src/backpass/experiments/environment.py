"""Where a run was computed: commit, package versions and hardware."""

import os
import platform
import subprocess
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from backpass.training.recipe import Runtime

__all__ = ["Environment", "environment"]

_PACKAGES = ("backpass", "torch", "torchvision", "accelerate", "numpy", "scikit-learn", "scipy", "timm", "optuna")


@dataclass(frozen=True)
class Environment:
    """Commit, package versions and hardware of a process.

    Attributes:
        commit: of the source tree, with ``+`` where it was altered; ``None`` for an installed package.
        python: version.
        versions: of the packages that decide results, by name.
        platform: operating system and machine.
        cpu: name of the processor.
        cpu_count: number of logical processors.
        threads: that torch uses.
        accelerator: name of the GPU; ``None`` where the computation is on the CPU.
        runtime: settings of the computation.
        earlier: hardware of epochs before these, of a run that was resumed on another machine.
        earlier_software: commit, versions and number of threads of epochs before these, where they were others.
    """

    commit: str | None
    python: str
    versions: dict[str, str]
    platform: str
    cpu: str
    cpu_count: int | None
    threads: int
    accelerator: str | None
    runtime: Runtime
    earlier: tuple[str, ...] = ()
    earlier_software: tuple[str, ...] = ()

    @property
    def hardware(self) -> str:
        """Names of the CPU and the GPU, and of those before."""
        here = self._hardware
        return f"{here}, earlier {', '.join(self.earlier)}" if self.earlier else here

    def after(self, before: "Environment") -> "Environment":
        """Return this environment of a run that was resumed from another."""
        hardware = {*before.earlier, before._hardware} - {self._hardware}
        software = {*before.earlier_software, *before._software} - self._software
        return replace(self, earlier=tuple(sorted(hardware)), earlier_software=tuple(sorted(software)))

    @property
    def _hardware(self) -> str:
        return self.cpu if self.accelerator is None else f"{self.cpu} and {self.accelerator}"

    @property
    def _software(self) -> set[str]:
        named = {"commit": self.commit, "python": self.python, "threads": self.threads, **self.versions}
        return {f"{name} {value}" for name, value in named.items() if value is not None}


def environment(runtime: Runtime, device: torch.device | None = None) -> Environment:
    """Return commit, package versions and hardware of this process.

    Args:
        runtime: settings of the computation.
        device: that it is on; default: as the settings say, a GPU if there is one.
    """
    on_gpu = torch.cuda.is_available() and runtime.device != "cpu" if device is None else device.type == "cuda"
    return Environment(
        commit=_commit(),
        python=platform.python_version(),
        versions={name: found for name in _PACKAGES if (found := _version(name))},
        platform=f"{platform.system()} {platform.machine()}",
        cpu=_cpu_name(),
        cpu_count=os.cpu_count(),
        threads=torch.get_num_threads(),
        accelerator=torch.cuda.get_device_name(device) if on_gpu else None,
        runtime=runtime,
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit of the source tree, with ``+`` where it was altered; ``None`` for an installed package."""
    file = Path(__file__)
    git = ["git", "-C", str(file.parent)]
    try:
        # An installed package may lie in a repository of the user's own, such as below its .venv.
        subprocess.run([*git, "ls-files", "--error-unmatch", file.name], capture_output=True, check=True)
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
