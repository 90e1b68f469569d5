"""What each method does to a gradient, by its definition: slow, in plain loops, apart from the library's own."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from reference.power_grad import binary_cross_entropy_gradient, cross_entropy_gradient


def power_grad(plain: Callable[[Tensor, Tensor], Tensor], alpha: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the criterion with the value of ``plain`` and the gradient that powers of probabilities give."""
    by_powers = cross_entropy_gradient if plain is F.cross_entropy else binary_one_hot_gradient

    def criterion(output: Tensor, target: Tensor) -> Tensor:
        gradient = by_powers(output.detach().double().cpu(), target.cpu(), alpha).to(output.device)
        carrier = ((output - output.detach()).double() * gradient).sum()  # zero, and its gradient is the wanted one
        return plain(output.detach(), target) + carrier

    return criterion


def binary_one_hot_gradient(logits: Tensor, target: Tensor, alpha: float) -> Tensor:
    return binary_cross_entropy_gradient(logits, F.one_hot(target, logits.shape[1]).double(), alpha)


def scale(model: nn.Module, scalings: Mapping[str, Tensor]) -> None:
    """Multiply each tap of each kernel's gradient by its number."""
    for name, scaling in scalings.items():
        gradient = model.get_parameter(name).grad
        if gradient is None:
            continue
        for tap in product(*(range(size) for size in scaling.shape)):
            gradient[(..., *tap)] *= scaling[tap].item()


@contextmanager
def scaled_update(model: nn.Module, scalings: Mapping[str, Tensor], optimizer: Optimizer) -> Iterator[None]:
    """Let the kernels go G times the way that the step inside takes, but for decoupled decay.

    That of AdamW, and of optimizers that say ``weight_decouple``, but for two whose decay is not ``lr * weight_decay``.
    """
    old = {name: model.get_parameter(name).detach().clone() for name in scalings}
    yield
    kinds = {kind.__name__ for kind in type(getattr(optimizer, "optimizer", optimizer)).__mro__}
    says_so = optimizer.param_groups[0].get("weight_decouple") and not kinds & {"AdamS", "SPlus"}
    if says_so or any("AdamW" in name for name in kinds):
        (group,) = optimizer.param_groups
        old = {name: (1 - group["lr"] * group["weight_decay"]) * kernel for name, kernel in old.items()}
    with torch.no_grad():
        for name, scaling in scalings.items():
            kernel = model.get_parameter(name)
            step = kernel.double() - old[name].double()
            kernel.copy_(old[name].double() + scaling.double() * step)


def clip_units(model: nn.Module, clip_factor: float, eps: float) -> list[bool]:
    """Clip each unit but those of the last linear layer's weights; return which units were too long."""
    heads = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    transposed = [module.weight for module in model.modules() if isinstance(module, nn.ConvTranspose2d)]
    clipped = []
    for parameter in model.parameters():
        if (heads and parameter is heads[-1]) or parameter.grad is None:
            continue
        one_unit = sum(size > 1 for size in parameter.shape) <= 1
        # The outputs of a transposed convolution are along the second axis.
        unit_axis = 1 if any(parameter is weight for weight in transposed) else 0
        weights = [parameter.detach()] if one_unit else list(parameter.detach().movedim(unit_axis, 0))
        gradients = [parameter.grad] if one_unit else list(parameter.grad.movedim(unit_axis, 0))
        for weight, gradient in zip(weights, gradients, strict=True):
            limit = clip_factor * max(weight.double().norm().item(), eps)
            length = gradient.double().norm().item()
            clipped.append(length > limit)
            if clipped[-1]:
                gradient *= limit / length
    return clipped
