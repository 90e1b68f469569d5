"""What the benchmarks share: images and models, timing and memory, statistics, raw files, where it was measured."""

import dataclasses
import json
import math
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import t as student_t
from torch import Tensor, nn

from backpass.models import create_model
from backpass.training.checkpoint import atomic_write
from backpass.training.recipe import Runtime

__all__ = ["BATCH", "Meter", "environment_of", "mean_interval", "smooth_images", "spread", "warmed_up", "write_json"]

BATCH = 128


def environment_of(runtime: Runtime | None = None) -> dict[str, Any]:
    """Return commit, versions and hardware of this process as plain values."""
    # Here, so that what is timed runs on other versions of the source as well (sgs_old_new.py).
    from backpass.experiments.environment import environment

    return dataclasses.asdict(environment(runtime or Runtime()))


def write_json(path: Path, content: Any) -> None:
    """Write plain values to a file, whole or not at all, so that a process that is killed leaves the values before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, (json.dumps(content, indent=1) + "\n").encode())


def spread(values: Sequence[float], unit: float = 1.0, digits: int = 2) -> str:
    """Return the median with the quartiles in brackets, in multiples of ``unit``.

    >>> spread([1.0, 2.0, 3.0, 4.0, 5.0])
    '3.00 (2.00-4.00)'
    """
    scaled = [value / unit for value in values]
    if len(scaled) == 1:
        return f"{scaled[0]:.{digits}f}"
    low, middle, high = statistics.quantiles(scaled, n=4, method="inclusive")
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def mean_interval(values: Sequence[float]) -> tuple[float, float, float] | None:
    """Return the mean of the values and the ends of its 95 % confidence interval (Student's t); ``None`` for one value.

    >>> mean, low, high = mean_interval([1.0, 2.0, 3.0])
    >>> round(mean, 3), round(low, 3), round(high, 3)
    (2.0, -0.484, 4.484)
    """
    if len(values) < 2:
        return None
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    half = float(student_t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
    return mean, mean - half, mean + half


def smooth_images(count: int, seed: int) -> Tensor:
    """Return random ``(count, 3, 32, 32)`` images whose neighbouring pixels resemble each other."""
    coarse = torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=32, mode="bilinear")


def warmed_up(name: str, device: str) -> nn.Module:
    """Return a model with running statistics of the images, so that eval-mode maps have their usual spread."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=10).to(device).train()
    with torch.no_grad():
        for _ in range(20):
            model(smooth_images(32, seed=0).to(device))
    return model


class Meter:
    """Measures time and memory of calls on one device by one clock."""

    def __init__(self, device: str, clock: str) -> None:
        self.device = device
        self.now = time.process_time if clock == "cpu" else time.perf_counter
        self.synchronize: Callable[[], object] = torch.cuda.synchronize if device == "cuda" else lambda: None

    def seconds(self, call: Callable[[], object]) -> float:
        """Return how long ``call`` takes, the device's work included."""
        self.synchronize()
        start = self.now()
        call()
        self.synchronize()
        return self.now() - start

    def added_memory(self, call: Callable[[], object]) -> float:
        """Return the most MB that ``call`` holds at once beyond what was held before."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            return (torch.cuda.max_memory_allocated() - before) / 1e6
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to the present
        before = _status("VmRSS")
        call()
        return (_status("VmHWM") - before) / 1e3


def _status(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise RuntimeError(f"expected {field} in /proc/self/status; memory is measured on Linux alone")
    return int(found[1])
