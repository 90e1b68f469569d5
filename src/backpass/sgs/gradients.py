"""Scaling gradients: one multiplication for each kernel, once for each step."""

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from backpass.errors import BackpassWarning, StateError
from backpass.sgs.distributed import local_part
from backpass.sgs.layers import ConvLayer
from backpass.sgs.scaling import laid_out

__all__ = ["scale_gradients"]

_NEW, _SCALED, _ADDED_TO = "new", "scaled", "added to"
_MARK = "_backpass_scaled"  # an attribute of the gradient itself, so that every controller sees it and it dies with it


@torch.no_grad()
def scale_gradients(
    layers: Mapping[str, ConvLayer], scalings: Mapping[str, Tensor], stepping: Optimizer | None = None
) -> int:
    """Multiply the gradient of each layer that has one by its scaling, in place; return the number of gradients.

    A gradient keeps a mark when it is scaled: its own version and its kernel's, which torch counts up with every write,
    and the optimizer that was about to step.

    - The version is the same: it is scaled already, and left alone.
    - One write, and no step of the optimizer on the kernel: another backward pass added to it, or it was clipped.
      Where no gradient of the step is new, this is refused; where some are, it may be right (two optimizers in turn, of
      which each clears its own gradients), and is warned of.
    - Otherwise it is new. ``zero_grad`` makes a new tensor, or two writes with the next backward pass.

    On an accelerator fused steps and ``zero_grad(set_to_none=False)`` count no write, nor do fused steps on the CPU. A
    hook on all optimizers notes in the mark that there was a step: on an accelerator, and where ``stepping`` is given.

    It does not see two or more writes without a step, such as unscaling and clipping between two calls. A loop that
    clears gradients through ``.data`` and steps through ``.data`` or with a fused optimizer shows neither, and is
    refused although it is right: use ``optimizer.zero_grad()`` there.

    Args:
        layers: whose gradients are scaled.
        scalings: by the layers' names.
        stepping: the optimizer whose hook calls this. Hooks run again where its ``step`` calls that of a base class:
            gradients and kernels that it has left unchanged since are then right.

    Raises:
        StateError: there are gradients, and none of them is new.

    Warns:
        BackpassWarning: some gradients are new, and others were scaled before and added to, and are scaled twice.
    """
    gradients = {
        name: local_part(grad, name)
        for name, layer in layers.items()
        if (grad := layer.parameter.grad) is not None and layer.parameter.requires_grad  # a frozen kernel's is old
    }
    kernels = {name: local_part(layers[name].parameter, name)._version for name in gradients}
    step = None if stepping is None else id(stepping)
    if step and all(_mark(grad) == (grad._version, kernels[name], step) for name, grad in gradients.items()):
        return len(gradients)
    states = {name: _state(grad, kernels[name]) for name, grad in gradients.items()}
    added_to = ", ".join(sorted(name for name, state in states.items() if state == _ADDED_TO))
    if states and _NEW not in states.values():
        raise StateError(
            "expected gradients that are not scaled yet, got those that were scaled before the last backward() or "
            f"clipping, and would be scaled twice ({added_to}); with gradient accumulation, "
            "call scale_gradients() once per step, after the last backward() (Accelerate: `if "
            "accelerator.sync_gradients:`), before clipping, and from one controller"
            if added_to
            else "expected gradients of a new backward pass, got those that are scaled already; call scale_gradients() "
            "once per step, after backward(), clear the gradients with optimizer.zero_grad() after each step, and "
            "remove() a controller that another one replaces"
        )
    if added_to:
        warnings.warn(
            f"{added_to}: these gradients were scaled before the last backward() and are scaled twice now, while "
            "others are new; where optimizers step in turn, call scale_gradients(optimizer), and with gradient "
            "accumulation once per step",
            BackpassWarning,
            stacklevel=4,
        )
    fresh = {name: grad for name, grad in gradients.items() if states[name] != _SCALED}
    for name, grad in fresh.items():
        grad.mul_(laid_out(scalings[name], grad))
    if step or any(grad.device.type != "cpu" for grad in gradients.values()):
        _note_steps()
    for name, grad in fresh.items():  # only now: gradients that are views of one buffer count their writes together
        setattr(grad, _MARK, (grad._version, kernels[name], step))
    return len(gradients)


def _mark(grad: Tensor) -> tuple[int | None, int | None, int | None]:
    return getattr(grad, _MARK, (None, None, None))


def _state(grad: Tensor, kernel_version: int) -> str:
    version, kernel, _ = _mark(grad)
    if version == grad._version:
        return _SCALED
    return _ADDED_TO if version == grad._version - 1 and kernel == kernel_version else _NEW


@cache
def _note_steps() -> None:
    """Let every optimizer note its steps in the marks of its gradients, from now on."""
    register_optimizer_step_post_hook(_note_step)


def _note_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            grad = getattr(parameter.grad, "_local_tensor", parameter.grad)  # of a DTensor
            if (mark := getattr(grad, _MARK, None)) is not None:
                setattr(grad, _MARK, (mark[0], None, None))  # no version of a kernel
