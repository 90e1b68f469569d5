"""Which convolutions SGS scales, and what each of them sees while a model runs on measuring batches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.overrides import TorchFunctionMode

from backpass.eager import eagerly
from backpass.errors import InputError, StateError
from backpass.modes import eval_mode
from backpass.selection import Include, select

__all__ = [
    "ConvLayer",
    "FeatureMap",
    "FeatureMapVisitor",
    "capture_feature_maps",
    "evaluating",
    "scalable_convs",
    "unwrap",
]

_CONVOLUTIONS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
_WRAPPER_SEGMENTS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}


@dataclass(frozen=True)
class ConvLayer:
    """One convolution kernel that SGS scales.

    Attributes:
        name: qualified name of the kernel parameter, without the prefixes of wrappers.
        modules: the modules that convolve with this kernel; more than one where it is shared.
        kernel_size: taps on each spatial axis.
        owner: the module that holds the parameter (a parametrisation's list for parametrised kernels).
        key: its name in the owner.
    """

    name: str
    modules: tuple[_ConvNd, ...]
    kernel_size: tuple[int, ...]
    owner: nn.Module
    key: str

    @property
    def parameter(self) -> nn.Parameter:
        """The kernel parameter as it is now; wrappers such as FSDP2 replace the object."""
        parameter: nn.Parameter = getattr(self.owner, self.key)
        return parameter

    @property
    def channels(self) -> int:
        """Channels of the feature map that the kernel sees.

        Raises:
            StateError: a lazy convolution has not been told yet, by a first batch.
        """
        channels = int(self.modules[0].in_channels)
        if channels == 0:
            raise StateError(
                f"{self.name} belongs to a lazy convolution that has seen no batch; run one batch through the model "
                "before measuring"
            )
        return channels


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel, DataParallel and ``torch.compile``."""
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def scalable_convs(model: nn.Module, include: Include | None = None) -> dict[str, ConvLayer]:
    """Return the convolutions that SGS applies to, keyed by qualified parameter name, in module order.

    ``Conv1d``, ``Conv2d``, ``Conv3d`` and their subclasses with some kernel axis longer than 1. A kernel shared by
    several modules appears once. For a parametrised kernel (weight norm, spectral norm) the entry is the underlying
    parameter that has the kernel's shape.

    Args:
        model: any module; wrappers are looked through.
        include: keep only these: glob patterns on module names such as ``["layer1.*"]``, or a function
            ``(module name, module) -> bool``.

    Raises:
        InputError: a model under flat-parameter FSDP1, a pattern that matches no convolution, no convolution left to
            scale, modules that share a kernel and see different numbers of channels, or a kernel made from a
            parameter without its taps.
    """
    _refuse_flat_parameters(model)
    convs: dict[str, _ConvNd] = {}
    for path, module in unwrap(model).named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and max(module.kernel_size) > 1:
            convs[".".join(part for part in path.split(".") if part not in _WRAPPER_SEGMENTS)] = module
    wanted = select(include, convs)
    layers: dict[int, ConvLayer] = {}
    for prefix, module in convs.items():
        if prefix not in wanted:
            continue
        owner, key, suffix = _kernel_parameter(module)
        parameter = getattr(owner, key)
        if id(parameter) in layers:
            first = layers[id(parameter)]
            channels = first.modules[0].in_channels
            if module.in_channels != channels:
                raise InputError(
                    f"{prefix} shares {first.name} but sees {module.in_channels} channels, not {channels}; "
                    "leave one of them out with include=..."
                )
            layers[id(parameter)] = replace(first, modules=(*first.modules, module))
            continue
        name = f"{prefix}.{suffix}" if prefix else suffix
        kernel_size = tuple(module.kernel_size)
        if not nn.parameter.is_lazy(parameter) and tuple(parameter.shape[2:]) != kernel_size:
            raise InputError(
                f"{name} has shape {tuple(parameter.shape)}, but the kernel made from it has the taps {kernel_size}, "
                f"so nothing can be scaled tap by tap; leave {prefix or 'this layer'} out with include=..."
            )
        layers[id(parameter)] = ConvLayer(name, (module,), kernel_size, owner, key)
    if not layers:
        raise InputError(
            f"found no convolution to scale in {type(unwrap(model)).__name__}: expected at least one Conv1d, Conv2d "
            f"or Conv3d with a kernel axis longer than 1" + (f" that include={include!r} selects" if include else "")
        )
    return {layer.name: layer for layer in layers.values()}


def _refuse_flat_parameters(model: nn.Module) -> None:
    # By name, since importing FSDP1 for the check would cost every user its import.
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
        raise InputError(
            "FullyShardedDataParallel (FSDP1) flattens kernels, so their taps cannot be told apart; use FSDP2, "
            "torch.distributed.fsdp.fully_shard"
        )


def _kernel_parameter(conv: nn.Module) -> tuple[nn.Module, str, str]:
    """Return owner, key and qualified suffix of the parameter that has the kernel's shape."""
    parametrizations = getattr(conv, "parametrizations", None)
    if parametrizations is not None and "weight" in parametrizations:
        originals = parametrizations["weight"]
        key = "original" if hasattr(originals, "original") else "original1"
        return originals, key, f"parametrizations.weight.{key}"
    older_forms = ("weight_v", "weight_orig")  # torch.nn.utils: weight_norm; spectral_norm and prune
    key = next((key for key in older_forms if key in conv._parameters), "weight")
    return conv, key, key


@dataclass(frozen=True)
class FeatureMap:
    """What one convolution sees in one run.

    Attributes:
        layer: the kernel that convolves.
        values: the input of the call, float32 ``(N, C, *spatial)``; the model may overwrite it later.
        zeros: how many zeros the call adds before and after each spatial axis.
        dilation: pixels between taps, for each spatial axis.
    """

    layer: ConvLayer
    values: Tensor
    zeros: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    def copy(self) -> "FeatureMap":
        """Return the map with values of its own."""
        return replace(self, values=self.values.clone())


FeatureMapVisitor = Callable[[FeatureMap], None]


class _ConvolutionInputs(TorchFunctionMode):
    """Hands the input of each convolution call inside a watched module to a visitor, before the call is made.

    The call ``F.convNd(input, ...)`` is the one place where the map, the zeros around it and the dilation are what
    the convolution truly uses, also for subclasses that pad by themselves and for non-zero padding modes.
    """

    def __init__(self, visit: FeatureMapVisitor) -> None:
        super().__init__()
        self.visit = visit
        self.running: list[ConvLayer] = []

    def leave(self, layer: ConvLayer) -> None:
        """Forget a layer that has run; one that failed before it was entered was never noted."""
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
    """Return what the call sees, or None where it is another kernel's or will fail on its input."""
    axes = len(layer.kernel_size)
    values, kernel = call["input"].detach().float(), call["weight"]
    if tuple(kernel.shape[2:]) != layer.kernel_size or values.ndim not in (axes + 1, axes + 2):
        return None
    if values.ndim == axes + 1:
        values = values.unsqueeze(0)
    if values.shape[1] != kernel.shape[1] * call.get("groups", 1):
        return None
    dilation = _per_axis(call.get("dilation", 1), axes)
    padding = call.get("padding", 0)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, layer.kernel_size, strict=True)]
        zeros = tuple((total // 2, total - total // 2) for total in totals)
    elif padding == "valid":
        zeros = ((0, 0),) * axes
    else:
        zeros = tuple((p, p) for p in _per_axis(padding, axes))
    return FeatureMap(layer, values, zeros, dilation)


@contextmanager
def capture_feature_maps(layers: Sequence[ConvLayer], visit: FeatureMapVisitor) -> Iterator[None]:
    """Call ``visit`` with the :class:`FeatureMap` of each convolution that is about to run inside this context.

    Nothing is kept here. Hooks leave with the context, also after an exception.
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
    """Run the model eagerly, in eval mode and without gradients, and bring it back exactly as it was.

    Modes of all modules, buffers and torch's random state are restored, also after an exception. Buffers keep their
    identity; those that the model adds meanwhile are taken out again. The context gives a function that says whether
    buffers and random state are still untouched.
    """
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    values = [
        (buffer, buffer.detach().clone()) for _, held in buffers for buffer in held.values() if buffer is not None
    ]
    devices = list({p.device for p in model.parameters() if p.device.type == "cuda"})
    random_state = _random_state(devices)

    def untouched() -> bool:
        return (
            all(map(torch.equal, random_state, _random_state(devices)))
            and all(_same_objects(module._buffers, held) for module, held in buffers)
            and all(torch.equal(buffer, value) for buffer, value in values)
        )

    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad(), eval_mode(model), eagerly():
            yield untouched
    finally:
        for buffer, value in values:
            if not torch.equal(buffer, value):  # an untouched buffer keeps its version for autograd
                buffer.data.copy_(value)
        for module, held in buffers:
            module._buffers.clear()
            module._buffers.update(held)


def _same_objects(buffers: Mapping[str, Tensor | None], held: Mapping[str, Tensor | None]) -> bool:
    return buffers.keys() == held.keys() and all(buffers[name] is held[name] for name in held)


def _random_state(devices: Sequence[torch.device]) -> list[Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]
