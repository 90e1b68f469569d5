"""The parameters that adaptive gradient clipping clips: all but the weights of the head."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from backpass._internal.wrappers import refuse_fsdp1, unwrap, unwrapped_name
from backpass.errors import InputError

__all__ = ["ClippedParameter", "Parameters", "clipped_parameters"]

Parameters = Iterable[Tensor] | Iterable[tuple[str, Tensor]]
"""Parameters, or (name, parameter) pairs as of ``named_parameters()``."""


@dataclass(frozen=True)
class ClippedParameter:
    """A parameter, and what its units depend on.

    Attributes:
        name: qualified name without the parts that wrappers add, or its position where parameters came without names.
        tensor: the parameter.
        transposed_groups: the groups of the transposed convolution that it belongs to; ``None``: to no such layer.
    """

    name: str
    tensor: Tensor
    transposed_groups: int | None = None


def clipped_parameters(model_or_params: nn.Module | Parameters, head: str | None) -> list[ClippedParameter]:
    """Return every parameter but the weights of the head, those with more than one axis, each once, in order.

    Raises:
        InputError: ``head`` is no module of the model, or is given with bare parameters; what is given is none; or the
            model is under FSDP1.
    """
    if isinstance(model_or_params, nn.Module):
        refuse_fsdp1(model_or_params, "parameters, so the norms of their units are unknown")
        model = unwrap(model_or_params)
        excluded = _head_weights(model, head)
        groups = _transposed_groups(model)
        return [
            ClippedParameter(unwrapped_name(name), tensor, groups.get(id(tensor)))
            for name, tensor in model.named_parameters()
            if id(tensor) not in excluded
        ]
    if head is not None:
        raise InputError(
            f"expected a module, in which head={head!r} is looked up, got {type(model_or_params).__name__}; pass the "
            "model, or head=None to clip every parameter given"
        )
    items: Iterable[Tensor | tuple[str, Tensor]] = model_or_params
    if isinstance(model_or_params, Tensor):
        items = [model_or_params]
    found: dict[int, ClippedParameter] = {}  # by the tensor, since tied ones come from several modules
    for position, item in enumerate(items):
        name, tensor = (str(position), item) if isinstance(item, Tensor) else _pair(item)
        found.setdefault(id(tensor), ClippedParameter(name, tensor))
    return list(found.values())


def _pair(item: object) -> tuple[str, Tensor]:
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Tensor):
        return str(item[0]), item[1]
    raise InputError(
        f"expected parameters, or pairs of a name and a parameter, got {type(item).__name__}; pass the model, "
        "model.parameters() or model.named_parameters()"
    )


def _head_weights(model: nn.Module, head: str | None) -> set[int]:
    if head is None:
        return set()
    modules = {unwrapped_name(name): module for name, module in model.named_modules()}
    linears = [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    if head == "auto":
        if not linears:
            return set()
        head = linears[-1]
    if head not in modules:
        raise InputError(
            f"expected head to be a module of {type(model).__name__}, whose linear layers are "
            f"{', '.join(map(repr, linears)) or 'none'}, got {head!r}; name a module as named_modules() of the model "
            "without wrappers does, or pass None"
        )
    return {id(tensor) for tensor in modules[head].parameters() if tensor.ndim > 1}


def _transposed_groups(model: nn.Module) -> dict[int, int]:
    return {
        id(tensor): module.groups
        for module in model.modules()
        if isinstance(module, _ConvTransposeNd)
        for tensor in module.parameters()
        if tensor.ndim > 1
    }
