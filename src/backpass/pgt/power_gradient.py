"""The PowerGrad Transform: the value of a loss with the gradient of the loss at scaled logits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

__all__ = ["float32_under_autocast", "value_with_gradient_of", "with_power_gradient"]


def with_power_gradient(
    loss: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    alpha: float,
) -> Tensor:
    """Return ``loss(input, target, weight)`` with the gradient of ``loss(alpha * input, target, weight) / alpha``.

    For a cross-entropy this is the PowerGrad Transform. With p = softmax(z), ``p**alpha / sum(p**alpha)`` is
    ``softmax(alpha * z)``; with t the target mass of a sample and T its sum, the gradient of ``CE(alpha * z) / alpha``
    in z is ``T * softmax(alpha * z) - t``, the plain gradient ``T * p - t`` with p transformed. Targets and weights
    that require a gradient get that of the plain loss.

    Args:
        loss: the plain loss of logits, target and weight.
        input: the logits z.
        target: as ``loss`` takes it.
        weight: as ``loss`` takes it.
        alpha: the exponent.
    """
    value = loss(input.detach(), target, weight)
    if torch.compiler.is_compiling() or value.requires_grad:
        surrogate = loss(input * alpha, target.detach(), None if weight is None else weight.detach()) * (1 / alpha)
        return value_with_gradient_of(value, surrogate)
    # In eager mode a Function of Python costs more than all else here; overwriting a number that no derivative needs
    # costs next to nothing.
    result = loss(input * alpha, target, weight) * (1 / alpha)
    result.detach().copy_(value)
    return result


def value_with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    """Return ``value``, whose gradient goes to both tensors."""
    return _ValueWithGradientOf.apply(value, surrogate)  # type: ignore[no-any-return]


class _ValueWithGradientOf(Function):
    """Forward: the first tensor. Backward: the gradient goes to both."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, surrogate: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor]:
        return grad_output, grad_output


def float32_under_autocast(input: Tensor) -> Tensor:
    """Return half-precision logits in float32 under autocast, as the losses of PyTorch take them; others unchanged."""
    low = input.dtype in (torch.float16, torch.bfloat16) and not input.is_meta  # which has no autocast
    return input.float() if low and torch.is_autocast_enabled(input.device.type) else input
