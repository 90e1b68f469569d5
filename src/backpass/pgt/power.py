"""Log-softmax and log-sigmoid whose backward pass raises the probabilities to a power."""

import math
import numbers
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from backpass.errors import InputError

__all__ = ["check_alpha", "power_log_sigmoid", "power_log_softmax"]


def check_alpha(alpha: object) -> float:
    """Return ``alpha`` as a float once it is known to be a finite number above zero.

    Raises:
        InputError: ``alpha`` is not a real number, not finite, or not above zero.

    >>> check_alpha(1)
    1.0
    """
    if isinstance(alpha, bool) or not isinstance(alpha, numbers.Real) or not 0 < float(alpha) < math.inf:
        raise InputError(
            f"alpha must be a finite number above 0, got {alpha!r}; the published values are 0.25 and 0.3, "
            "and alpha=1.0 is plain cross-entropy."
        )
    return float(alpha)


def power_log_softmax(input: Tensor, dim: int, *, alpha: float) -> Tensor:
    """Return ``log_softmax(input, dim)``, with the probabilities raised to ``alpha`` in the backward pass.

    With p = softmax(z) and g the incoming gradient, the gradient of the logits z is
    ``g - p**alpha / sum(p**alpha) * sum(g)``, sums over ``dim``, instead of ``g - p * sum(g)``. Because
    ``p**alpha / sum(p**alpha) = softmax(alpha * z)``, it equals the gradient of ``log_softmax(alpha * z) / alpha``.
    The backward pass keeps what log-softmax keeps, its output, and can itself be differentiated.

    Args:
        input: logits z, in nats; any shape, floating point.
        dim: the axis of the classes.
        alpha: the exponent, above 0; 1 is plain log-softmax, below 1 flattens the probabilities.

    Returns:
        Log-probabilities, of the shape, dtype and device of ``input``.

    Raises:
        InputError: ``alpha`` is not a finite number above 0.

    Source: Das et al., arXiv 2111.12495.

    >>> z = torch.tensor([2.0, 0.0], requires_grad=True)
    >>> power_log_softmax(z, 0, alpha=0.5)[1].backward()
    >>> torch.allclose(z.grad, torch.tensor([-1.0, 1.0]) * torch.tensor(1.0).sigmoid())
    True
    """
    alpha = check_alpha(alpha)
    if torch.compiler.is_compiling():
        # As plain operations: a compiler then finds both normalisers in the same reading of the logits, which it
        # cannot do across a forward and a backward pass.
        value = torch.log_softmax(input.detach(), dim)
        surrogate = torch.log_softmax(alpha * input, dim) / alpha
        return _apply(_ValueWithGradientOf, value, surrogate)
    return _apply(_PowerLogSoftmax, input, dim, alpha)


def power_log_sigmoid(input: Tensor, *, alpha: float) -> Tensor:
    """Return ``logsigmoid(input)``, with the two probabilities raised to ``alpha`` in the backward pass.

    With p = sigmoid(z) and g the incoming gradient, the gradient of the logit z is
    ``g * (1-p)**alpha / (p**alpha + (1-p)**alpha) = g * sigmoid(-alpha * z)`` instead of ``g * (1-p)``. It is the
    case of two classes with the logits z and 0 of :func:`power_log_softmax`.

    Args:
        input: logits z, in nats; any shape, floating point.
        alpha: the exponent, above 0; 1 is plain log-sigmoid.

    Returns:
        Log-probabilities, of the shape, dtype and device of ``input``.

    Raises:
        InputError: ``alpha`` is not a finite number above 0.

    >>> z = torch.tensor(2.0, requires_grad=True)
    >>> power_log_sigmoid(z, alpha=0.5).backward()
    >>> torch.equal(z.grad, torch.tensor(-1.0).sigmoid())
    True
    """
    return _apply(_PowerLogSigmoid, input, check_alpha(alpha))


def _apply(function: type[Function], *args: object) -> Tensor:
    output: Tensor = function.apply(*args)
    return output


class _PowerLogSoftmax(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, dim: int, alpha: float) -> Tensor:
        return torch.log_softmax(input, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.dim, ctx.alpha = inputs
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (log_probs,) = ctx.saved_tensors
        # softmax(alpha * log p) = softmax(alpha * z). That the saved output is itself a function of the logits adds
        # nothing to the second derivative: the gradient of a softmax sums to zero over the classes.
        powered = torch.softmax(ctx.alpha * log_probs, ctx.dim)
        # In place on the product, which no derivative needs, and which is batched whenever the gradient is.
        return (powered * -grad_output.sum(ctx.dim, keepdim=True)).add_(grad_output), None, None


class _PowerLogSigmoid(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(input: Tensor, alpha: float) -> Tensor:
        return torch.nn.functional.logsigmoid(input)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, ctx.alpha = inputs
        ctx.save_for_backward(input)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None]:
        (input,) = ctx.saved_tensors
        return grad_output * torch.sigmoid(-ctx.alpha * input), None


class _ValueWithGradientOf(Function):
    """Forward: the first tensor. Backward: the whole gradient goes to the second."""

    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, surrogate: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, Tensor]:
        return None, grad_output
