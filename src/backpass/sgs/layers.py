"""Which convolutions SGS scales."""

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from backpass._internal.selection import Include, select
from backpass._internal.wrappers import refuse_fsdp1, unwrap, unwrapped_name
from backpass.errors import InputError, StateError

__all__ = ["ConvLayer", "scalable_convs"]


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
        """The kernel parameter as it is now; wrappers such as FSDP2 replace the object.

        Raises:
            StateError: the layer computes its kernel from another parameter now.
        """
        parameter = self.owner._parameters.get(self.key)
        if parameter is None:
            raise StateError(
                f"expected {self.name} to be a parameter, as it was when its layer was found, but the layer was "
                "parametrised since; call set_model(model) of its controller after such a change"
            )
        return parameter

    @property
    def channels(self) -> int:
        """Channels of the feature map that the kernel sees.

        Raises:
            StateError: a lazy convolution that has seen no batch.
        """
        channels = int(self.modules[0].in_channels)
        if channels == 0:
            raise StateError(
                f"{self.name} belongs to a lazy convolution that has seen no batch; run one batch through the model "
                "before measuring"
            )
        return channels


def scalable_convs(model: nn.Module, include: Include | None = None) -> dict[str, ConvLayer]:
    """Return the convolutions that SGS scales, by qualified parameter name, in module order.

    ``Conv1d``, ``Conv2d``, ``Conv3d`` and their subclasses with some kernel axis longer than 1. A kernel shared by
    several modules appears once. A parametrised kernel (weight norm, spectral norm) is represented by the underlying
    parameter that has the kernel's shape. A convolution whose kernel is no parameter, or complex, is left out.

    Args:
        model: any module; wrappers are looked through.
        include: scale only these: glob patterns on module names such as ``["layer1.*"]``, or a function
            ``(module name, module) -> bool``. Default: all but even kernels whose stride equals their size (patch
            embedding, ConvNeXt's downsampling), whose patches do not overlap and have no centre.

    Raises:
        InputError: no module, a scripted or traced model, a model under flat-parameter FSDP1, a pattern that matches no
            convolution, no convolution left to scale, modules that share a kernel and see different numbers of
            channels, or a kernel made from a parameter without its taps.
    """
    _refuse_unreadable(model)
    found: dict[str, ConvLayer] = {}
    for path, module in unwrap(model).named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and max(module.kernel_size) > 1:
            layer = _layer_of(unwrapped_name(path), module)
            kernel = layer.owner._parameters.get(layer.key)
            if kernel is not None and not kernel.is_complex():  # none: made by other code, such as another network
                found[unwrapped_name(path)] = layer
    convs = {prefix: layer.modules[0] for prefix, layer in found.items()}
    wanted = select(include, convs) if include is not None else {n for n, c in convs.items() if not _is_patchify(c)}
    layers: dict[int, ConvLayer] = {}
    for prefix, layer in found.items():
        if prefix not in wanted:
            continue
        kernel = layer.parameter
        first = layers.get(id(kernel))
        if first is not None:
            channels, others = first.modules[0].in_channels, layer.modules[0].in_channels
            if others != channels:
                raise InputError(
                    f"{prefix} shares {first.name} but sees {others} channels, not {channels}; "
                    "leave one of them out with include=..."
                )
            layers[id(kernel)] = replace(first, modules=(*first.modules, *layer.modules))
            continue
        if not nn.parameter.is_lazy(kernel) and tuple(kernel.shape[2:]) != layer.kernel_size:
            raise InputError(
                f"{layer.name} has shape {tuple(kernel.shape)}, but the kernel made from it has the taps "
                f"{layer.kernel_size}, so nothing can be scaled tap by tap; leave {prefix or 'this layer'} out with "
                "include=..."
            )
        layers[id(kernel)] = layer
    patches = include is None and bool(convs)
    if not layers:
        selected = "" if include is None else f" that include={include!r} selects"
        cut = f"{', '.join(convs)} cut their input into patches, include=['*'] selects them"
        raise InputError(
            f"expected at least one Conv1d, Conv2d or Conv3d with a kernel axis longer than 1{selected}, found no "
            f"convolution to scale in {type(unwrap(model)).__name__}; "
            f"{cut if patches else 'give another model, or other patterns'}"
        )
    return {layer.name: layer for layer in layers.values()}


def _refuse_unreadable(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"expected a torch.nn.Module, got {type(model).__name__}; pass the model itself")
    if isinstance(unwrap(model), torch.jit.ScriptModule):
        raise InputError(
            f"expected a model of Python modules, got a {type(unwrap(model)).__name__}, whose convolutions are "
            "compiled and cannot be found; construct this from the model before torch.jit.script or torch.jit.trace"
        )
    refuse_fsdp1(model, "kernels, so their taps cannot be told apart")


def _is_patchify(conv: _ConvNd) -> bool:
    return tuple(conv.stride) == tuple(conv.kernel_size) and all(k == 1 or k % 2 == 0 for k in conv.kernel_size)


def _layer_of(prefix: str, conv: _ConvNd) -> ConvLayer:
    """Return the layer of one convolution, with the parameter that has the kernel's shape."""
    owner: nn.Module = conv
    # torch.nn.utils: weight_norm; spectral_norm and prune
    key = path = next((key for key in ("weight_v", "weight_orig") if key in conv._parameters), "weight")
    parametrizations = getattr(conv, "parametrizations", None)
    if parametrizations is not None and "weight" in parametrizations:
        owner = parametrizations["weight"]
        key = "original" if hasattr(owner, "original") else "original1"
        path = f"parametrizations.weight.{key}"
    return ConvLayer(f"{prefix}.{path}" if prefix else path, (conv,), tuple(conv.kernel_size), owner, key)
