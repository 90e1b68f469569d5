"""The model as the loop runs it: compiled, distributed over the processes, under autocast."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from backpass._internal.batches import map_tensors

__all__ = ["WrappedModel"]


class WrappedModel:
    """Runs the forward pass of a model in the precision of the accelerator, and returns its output in float32.

    The model's own ``forward`` is left unchanged, so that it can be wrapped again after its parameters have changed.

    Args:
        model: the plain model, on its device.
        accelerator: has the precision and the number of processes.
        compile: run the model through ``torch.compile``.
    """

    def __init__(self, model: nn.Module, accelerator: Accelerator, *, compile: bool = False) -> None:
        self.model = model
        self._accelerator = accelerator
        self._compile = compile
        self._wrapper: nn.Module | None = None

    def __call__(self, inputs: Any) -> Any:
        """Return the output of a forward pass for training, whose backward pass all processes share."""
        return self._run(self._wrapped(), inputs)

    def evaluate(self, inputs: Any) -> Any:
        """Return the output of a forward pass in this process alone, for evaluation."""
        return self._run(self.model, inputs)

    def in_precision(self, forward: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Return ``forward`` run in this process alone, in the precision of the accelerator, for measuring."""
        return partial(self._run, forward)

    def train(self) -> None:
        """Set the model to training mode."""
        self._wrapped().train()

    def no_sync(self) -> AbstractContextManager[None]:
        """Return a context whose backward passes leave the gradients of each process as they are."""
        wrapper = self._wrapped()
        return wrapper.no_sync() if isinstance(wrapper, DistributedDataParallel) else nullcontext()

    def share_buffers(self) -> None:
        """Copy the running statistics of the first process to all, as distributed training does in its next forward."""
        if self._accelerator.num_processes > 1:
            for buffer in self.model.buffers():
                broadcast(buffer)

    def rewrap(self) -> None:
        """Compile and distribute the model again, before its next forward pass; call after its parameters changed."""
        self._wrapper = None

    def _wrapped(self) -> nn.Module:
        if self._wrapper is None:
            if self._compile:
                self.model.compile()
            self._wrapper = self.model if self._accelerator.num_processes == 1 else self._distributed()
        return self._wrapper

    def _distributed(self) -> nn.Module:
        device = self._accelerator.device
        return DistributedDataParallel(self.model, device_ids=None if device.type == "cpu" else [device])

    def _run(self, forward: Callable[[Any], Any], inputs: Any) -> Any:
        if self._accelerator.mixed_precision == "no":
            return forward(inputs)
        with self._accelerator.autocast():
            output = forward(inputs)
        return map_tensors(_in_float32, output)


def _in_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize < 4 else tensor
