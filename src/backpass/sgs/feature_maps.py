"""What each convolution sees while a model runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from backpass._internal.eager import eagerly
from backpass._internal.modes import eval_mode
from backpass._internal.module_state import keeping_buffers
from backpass._internal.padding import same_padding
from backpass._internal.random_state import keeping_global_states
from backpass.sgs.distributed import computing_device
from backpass.sgs.layers import ConvLayer

__all__ = ["FeatureMap", "FeatureMapVisitor", "capture_feature_maps", "evaluating"]

_CONVOLUTIONS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}


@dataclass(frozen=True)
class FeatureMap:
    """What one convolution sees in one run.

    Attributes:
        layer: the kernel that convolves.
        values: the input of the call, float32 ``(N, C, *spatial)``; the model may overwrite it afterwards.
        zeros: number of zeros that the call adds before and after each spatial axis.
        dilation: pixels between taps, for each spatial axis.
    """

    layer: ConvLayer
    values: Tensor
    zeros: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    def copy(self) -> "FeatureMap":
        """Return the map with a copy of its values."""
        return replace(self, values=self.values.clone())


FeatureMapVisitor = Callable[[FeatureMap], None]


class _ConvolutionInputs(TorchFunctionMode):
    """Passes the input of each convolution call inside a watched module to a visitor, before the call runs.

    The arguments of ``F.convNd(input, ...)`` are the map, zeros and dilation that the convolution uses, also in
    subclasses that pad their input and for padding modes other than zeros.
    """

    def __init__(self, visit: FeatureMapVisitor) -> None:
        super().__init__()
        self.visit = visit
        self.running: list[ConvLayer] = []

    def leave(self, layer: ConvLayer) -> None:
        """Remove a layer that has run, unless a hook before ours failed, so that it was never added."""
        if self.running and self.running[-1] is layer:
            self.running.pop()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if self.running and func in _CONVOLUTIONS:
            call = dict(zip(("input", "weight", "bias", "stride", "padding", "dilation", "groups"), args, strict=False))
            feature_map = _feature_map(self.running[-1], call | dict(kwargs or {}))
            if feature_map is not None:
                self.visit(feature_map)
        return func(*args, **(kwargs or {}))


def _per_axis(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


def _feature_map(layer: ConvLayer, call: Mapping[str, Any]) -> FeatureMap | None:
    """Return what the call sees; None if it belongs to another kernel, holds nothing, or will fail on its input.

    An empty map is that of a detection head to which no region is proposed. One with other channels than the layer's is
    that of a slimmed layer, which uses a part of its kernel: channels that are seen more often than others would need
    ranges and numbers of pairs of their own.
    """
    axes = len(layer.kernel_size)
    values, kernel = call["input"].detach().float(), call["weight"]
    if tuple(kernel.shape[2:]) != layer.kernel_size or values.ndim not in (axes + 1, axes + 2) or not values.numel():
        return None
    if values.ndim == axes + 1:
        values = values.unsqueeze(0)
    if not values.shape[1] == kernel.shape[1] * call.get("groups", 1) == layer.channels:
        return None
    dilation = _per_axis(call.get("dilation", 1), axes)
    padding = call.get("padding", 0)
    if padding == "same":
        zeros = same_padding(layer.kernel_size, dilation)
    elif padding == "valid":
        zeros = ((0, 0),) * axes
    else:
        zeros = tuple((p, p) for p in _per_axis(padding, axes))
    return FeatureMap(layer, values, zeros, dilation)


@contextmanager
def capture_feature_maps(layers: Sequence[ConvLayer], visit: FeatureMapVisitor) -> Iterator[None]:
    """Call ``visit`` with the :class:`FeatureMap` of each convolution call of ``layers`` inside this context.

    The hooks are removed at the end, also after an exception.
    """
    mode = _ConvolutionInputs(visit)
    with ExitStack() as stack:
        for layer in layers:
            for module in layer.modules:
                enter = module.register_forward_pre_hook(lambda *_, layer=layer: mode.running.append(layer))
                leave = module.register_forward_hook(lambda *_, layer=layer: mode.leave(layer), always_call=True)
                stack.callback(enter.remove)
                stack.callback(leave.remove)
        with mode:
            yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[Callable[[], bool]]:
    """Run the model eagerly, in eval mode and without gradients, and restore it.

    Modes of all modules, buffers and the random states of torch, Python and NumPy are restored, also after an
    exception. Buffers keep their identity; those that the model adds are removed. The context returns a function that
    returns whether buffers and random states are unchanged so far.
    """
    devices = [device for device in {computing_device(p) for p in model.parameters()} if device.type == "cuda"]
    with (
        keeping_buffers(model) as same_buffers,
        keeping_global_states(devices) as same_random_states,
        torch.no_grad(),
        eval_mode(model),
        eagerly(),
    ):
        yield lambda: same_random_states() and same_buffers()
