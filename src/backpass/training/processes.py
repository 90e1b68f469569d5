"""The processes that train one model together: one alone, or the ranks of ``torchrun`` or ``accelerate launch``."""

import os
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate import Accelerator, PartialState
from accelerate.state import is_initialized
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list, reduce
from torch import Tensor

from backpass.errors import InputError, StateError
from backpass.training.recipe import SEEDS, Runtime

__all__ = [
    "build_accelerator",
    "epoch_seed",
    "is_main",
    "join",
    "on_main",
    "process_count",
    "reset_peak_memory",
    "total",
]

_LAUNCHES = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_HPU")

# Odd and large: the seeds of a process are far from those of the others, over any number of epochs.
_PROCESS_STEP = 2_654_435_761

_T = TypeVar("_T")


def join(runtime: Runtime) -> torch.device:
    """Join the other processes, if there are any, and return the device of this one."""
    device: torch.device = PartialState(cpu=_on_cpu(runtime)).device
    return device


def _on_cpu(runtime: Runtime) -> bool:
    # Accelerate would choose MPS on a Mac, which has no float64.
    return runtime.device == "cpu" or torch.backends.mps.is_available()


def build_accelerator(runtime: Runtime) -> Accelerator:
    """Return the accelerator that a runtime describes.

    Raises:
        InputError: the precision does not fit the device, device or precision differ from those of an earlier run in
            this process, or the launcher requires more than data parallel training.
    """
    device = join(runtime)
    on_cpu = device.type == "cpu"
    is_other = not on_cpu if _on_cpu(runtime) else on_cpu and torch.cuda.is_available()
    if is_other and "ACCELERATE_TORCH_DEVICE" not in os.environ:
        raise InputError(  # Accelerate keeps the first device of a process, without a word.
            f"expected one device and one precision in a process, got device={runtime.device!r} after a run on "
            f"{device.type}; use a new process"
        )
    if on_cpu and runtime.precision == "fp16":
        raise InputError("expected precision no or bf16 on a CPU, got fp16; choose another precision")
    earlier = is_initialized()
    try:
        accelerator = Accelerator(
            cpu=_on_cpu(runtime),
            mixed_precision=runtime.precision,
            step_scheduler_with_optimizer=False,
            # Without it an environment variable would divide the loss by a number of micro-batches that are not there.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
    except ValueError as error:
        if not earlier:
            raise InputError(
                f"expected a device that computes with precision={runtime.precision!r}, got one that does not "
                f"({error}); choose another precision"
            ) from error
        raise InputError(  # Accelerate keeps the first settings of a process, and names the one that differs.
            f"expected one device and one precision in a process, got precision={runtime.precision!r} after another "
            f"({error}); use a new process"
        ) from error
    launch = accelerator.distributed_type.value
    if launch not in _LAUNCHES:
        raise InputError(
            f"expected one process or data parallel training, got {launch}; start with torchrun, or with accelerate "
            "launch --multi_gpu"
        )
    return accelerator


def epoch_seed(seed: int, epoch: int, process: int) -> int:
    """Return the seed of what chance decides inside the model in an epoch, such as dropout, in one process.

    >>> epoch_seed(0, 0, 1) == epoch_seed(0, 1, 0)
    False
    """
    return (seed * 1_000_003 + epoch + process * _PROCESS_STEP) % SEEDS


def process_count() -> int:
    """Return the number of processes."""
    return int(PartialState().num_processes)


def is_main() -> bool:
    """Return whether this process is the one that reads and writes the run folder."""
    return bool(PartialState().is_main_process)


def reset_peak_memory(device: torch.device) -> None:
    """Let the peak of :func:`gpu_use` count from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def gpu_use(device: torch.device) -> dict[str, float]:
    """Return the number of ``gpus`` and their ``peak_memory`` in this process; nothing on a CPU.

    The memory is the largest number of bytes allocated since :func:`reset_peak_memory`.
    """
    if device.type != "cuda":
        return {}
    return {"gpus": process_count(), "peak_memory": torch.cuda.max_memory_allocated(device)}


def total(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes, the same on each of them."""
    summed: Tensor = reduce(tensor, "sum")
    return summed


def on_main(call: Callable[[], _T]) -> _T:
    """Call a function in the main process and return its result in every process; all must call this together.

    The result has to survive pickling where there are several processes.

    Raises:
        Exception: what ``call`` raised, in every process, so that none waits for another that has failed.
    """
    if process_count() == 1:
        return call()
    answer: list[Any] = [None, None]
    failure: Exception | None = None
    if is_main():
        try:
            answer[0] = call()
        except Exception as error:
            failure = error
            answer[1] = _sendable(error)
    broadcast_object_list(answer)
    if failure is not None:
        raise failure
    if answer[1] is not None:
        raise answer[1]
    result: _T = answer[0]
    return result


def _sendable(error: Exception) -> Exception:
    """Return an error that other processes can rebuild: itself or, where it cannot be pickled, its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return StateError(f"the main process failed: {type(error).__name__}: {error}")
    return error
