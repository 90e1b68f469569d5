"""Cross-entropy losses with the PowerGrad Transform in their backward pass (Das et al., arXiv 2111.12495)."""

import math
import numbers
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from backpass.errors import InputError

__all__ = [
    "PowerGradBCEWithLogitsLoss",
    "PowerGradCrossEntropyLoss",
    "power_grad_binary_cross_entropy_with_logits",
    "power_grad_cross_entropy",
]

_REDUCTIONS = ("none", "mean", "sum")


def power_grad_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    alpha: float,
) -> Tensor:
    """Return the value of ``F.cross_entropy``, with the probabilities raised to ``alpha`` in the backward pass.

    With p = softmax(z) and t the target mass of a sample (smoothed and weighted), T its sum over the classes, the
    gradient of the sample's loss is ``T * p**alpha / sum(p**alpha) - t`` instead of ``T * p - t``. It equals the
    gradient of ``cross_entropy(alpha * z) / alpha``, since ``p**alpha / sum(p**alpha) = softmax(alpha * z)``. The
    reduction then acts as it does on any loss: no batch size, loss scale or world size enters. A target that
    requires a gradient gets the plain one, ``-log p``.

    Args:
        input: logits z, in nats; shape (C,), (N, C) or (N, C, d1, ..., dK), floating point. Under autocast they are
            read in float32, like those of ``F.cross_entropy``.
        target: class indices, int64, of the shape of ``input`` without its axis C; or class probabilities,
            floating point, of the shape of ``input``.
        weight: one factor for each class, shape (C,); default none.
        ignore_index: samples with this class index count neither in the loss nor in its mean; default -100.
        reduction: "none" (one loss for each sample), "sum", or "mean" (default; over the samples that count,
            weighted for class indices).
        label_smoothing: share of the target mass spread evenly over all classes, in [0, 1]; default 0.
        alpha: the exponent, above 0. Published: 0.25 for ResNet-18, SE-ResNet-18 and ResNet-18 without
            normalisation; 0.3 for ResNet-50, ResNet-101 and SE-ResNet-50. 1 is plain cross-entropy.

    Returns:
        A scalar, or one loss for each sample with ``reduction="none"``; in nats.

    Raises:
        InputError: an option is out of its range, the logits are not floating point, a shape does not fit, or a label
            on the CPU is no class (labels on a GPU are left to its own check, which does not wait for them).

    Source: Das et al., arXiv 2111.12495, by its formula. Its published code rebuilds p from the gradient that it
    receives, which is right only where the loss scale is the squared batch size; here p comes from the logits.

    >>> z = torch.tensor([[2.0, 0.0, -1.0]], requires_grad=True)
    >>> target = torch.tensor([0])
    >>> loss = power_grad_cross_entropy(z, target, alpha=0.25)
    >>> torch.equal(loss, F.cross_entropy(z, target))
    True
    >>> loss.backward()
    >>> torch.allclose(z.grad, torch.softmax(0.25 * z, 1) - torch.tensor([1.0, 0.0, 0.0]))
    True
    """
    alpha = _check_alpha(alpha)

    def cross_entropy(input: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        return F.cross_entropy(input, target, weight, None, ignore_index, None, reduction, label_smoothing)

    logits = _float32_under_autocast(input)
    try:
        if torch.compiler.is_compiling() and target.ndim < input.ndim:
            value = cross_entropy(logits.detach(), target, weight)
            surrogate = _label_surrogate(logits, target, weight, ignore_index, reduction, label_smoothing, alpha)
            return _ValueWithGradientOf.apply(value, surrogate.to(value.dtype))  # type: ignore[no-any-return]
        return _value_with_scaled_gradient(cross_entropy, logits, target, weight, alpha)
    except (RuntimeError, ValueError, IndexError):
        # PyTorch has looked at everything already; good input is not checked twice.
        _check_cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)
        raise


def power_grad_binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    *,
    alpha: float,
) -> Tensor:
    """Return the value of ``F.binary_cross_entropy_with_logits``, with PowerGrad in the backward pass.

    With p = sigmoid(z), target t, weight w and positive weight c, an element's loss is
    ``-w * (c * t * log p + (1 - t) * log(1 - p))`` and its gradient is
    ``w * ((1 - t) * p' - c * t * (1 - p'))`` where ``p' = p**alpha / (p**alpha + (1-p)**alpha) = sigmoid(alpha * z)``
    stands in the place of p. It is the two-class case of :func:`power_grad_cross_entropy`, and the gradient of
    ``binary_cross_entropy_with_logits(alpha * z) / alpha``.

    Args:
        input: logits z, in nats; any shape, floating point. Under autocast they are read in float32.
        target: probabilities of the positive class, floating point, of the shape of ``input``.
        weight: factor of each element; broadcasts against ``input``; default none.
        reduction: "none", "sum", or "mean" (default; over all elements).
        pos_weight: factor of the positive part; broadcasts against ``input``, so shape (C,) for (N, C); default none.
        alpha: the exponent, above 0; 1 is the plain loss.

    Returns:
        A scalar, or one loss for each element with ``reduction="none"``; in nats.

    Raises:
        InputError: an option is out of its range, the logits are not floating point, or a shape does not fit.

    >>> z, target = torch.tensor([3.0, -1.0], requires_grad=True), torch.tensor([1.0, 0.0])
    >>> power_grad_binary_cross_entropy_with_logits(z, target, reduction="sum", alpha=0.5).backward()
    >>> torch.allclose(z.grad, torch.sigmoid(0.5 * z) - target)
    True
    """
    alpha = _check_alpha(alpha)
    _check_reduction(reduction)
    _check_logits(input)
    if target.shape != input.shape:
        raise InputError(
            f"target must have the shape of input, {tuple(input.shape)}, got {tuple(target.shape)}; "
            "unsqueeze or one-hot encode the target so that each logit has its own."
        )
    for name, factor in (("weight", weight), ("pos_weight", pos_weight)):
        if factor is not None and not _broadcasts_to(factor.shape, input.shape):
            raise InputError(
                f"{name} must broadcast to the shape of input, {tuple(input.shape)}, got {tuple(factor.shape)}."
            )

    def binary_cross_entropy(input: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        return F.binary_cross_entropy_with_logits(input, target, weight, None, None, reduction, pos_weight)

    return _value_with_scaled_gradient(binary_cross_entropy, _float32_under_autocast(input), target, weight, alpha)


class PowerGradCrossEntropyLoss(nn.CrossEntropyLoss):
    """:func:`power_grad_cross_entropy` as a module, in the place of ``nn.CrossEntropyLoss``.

    Args:
        alpha: the exponent, above 0; see :func:`power_grad_cross_entropy` for the published values.
        weight: one factor for each class, shape (C,); a buffer, so ``.to(device)`` moves it.
        ignore_index: as in the function.
        reduction: as in the function.
        label_smoothing: as in the function.

    Raises:
        InputError: an option is out of its range.

    >>> PowerGradCrossEntropyLoss(alpha=0.3)
    PowerGradCrossEntropyLoss(alpha=0.3)
    """

    def __init__(
        self,
        alpha: float,
        weight: Tensor | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        _check_reduction(reduction)
        _check_label_smoothing(label_smoothing)
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)
        self.alpha = _check_alpha(alpha)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of ``input`` (logits) and ``target``."""
        return power_grad_cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            alpha=self.alpha,
        )

    def extra_repr(self) -> str:
        """Return the exponent, as the call has it."""
        return f"alpha={self.alpha}"


class PowerGradBCEWithLogitsLoss(nn.BCEWithLogitsLoss):
    """:func:`power_grad_binary_cross_entropy_with_logits` as a module, in the place of ``nn.BCEWithLogitsLoss``.

    Args:
        alpha: the exponent, above 0.
        weight: as in the function; a buffer.
        reduction: as in the function.
        pos_weight: as in the function; a buffer.

    Raises:
        InputError: an option is out of its range.

    >>> PowerGradBCEWithLogitsLoss(alpha=0.3)
    PowerGradBCEWithLogitsLoss(alpha=0.3)
    """

    def __init__(
        self,
        alpha: float,
        weight: Tensor | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
    ) -> None:
        _check_reduction(reduction)
        super().__init__(weight=weight, reduction=reduction, pos_weight=pos_weight)
        self.alpha = _check_alpha(alpha)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of ``input`` (logits) and ``target``."""
        return power_grad_binary_cross_entropy_with_logits(
            input,
            target,
            weight=self.weight,
            reduction=self.reduction,
            pos_weight=self.pos_weight,
            alpha=self.alpha,
        )

    def extra_repr(self) -> str:
        """Return the exponent, as the call has it."""
        return f"alpha={self.alpha}"


def _value_with_scaled_gradient(
    loss: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    alpha: float,
) -> Tensor:
    """Return ``loss(input, target, weight)``, with the gradient of ``loss(alpha * input, ...) / alpha`` in the logits.

    Targets and weights that require a gradient get that of the plain loss.
    """
    value = loss(input.detach(), target, weight)
    if torch.compiler.is_compiling() or value.requires_grad:
        surrogate = loss(input * alpha, target.detach(), None if weight is None else weight.detach()) * (1 / alpha)
        return _ValueWithGradientOf.apply(value, surrogate)  # type: ignore[no-any-return]
    # In eager mode a Function of Python costs more than all else here; overwriting a number that no derivative needs
    # costs next to nothing.
    result = loss(input * alpha, target, weight) * (1 / alpha)
    result.detach().copy_(value)
    return result


def _label_surrogate(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    alpha: float,
) -> Tensor:
    """Return a loss of class indices with the gradient of ``cross_entropy(alpha * input) / alpha``, for the compiler.

    A sample's loss is ``T * logsumexp(alpha * z) / alpha - sum(t * z)``. Written like this, T is not summed over the
    classes once more in the backward pass, and the maximum is that of the plain loss; Inductor sees neither by itself.
    """
    class_dim = 0 if input.ndim == 1 else 1
    centred = (input - input.detach().amax(class_dim, keepdim=True)).to(torch.promote_types(input.dtype, torch.float32))
    log_sum = (centred * alpha).exp().sum(class_dim).log() * (1 / alpha)
    kept = target != ignore_index
    factors = centred.new_ones(input.shape[class_dim]) if weight is None else weight.to(centred.dtype)
    label_mass = factors.take(target.where(kept, 0)) * kept
    mass, linear = label_mass, F.nll_loss(centred, target, factors, ignore_index=ignore_index, reduction="none")
    if label_smoothing:
        # Not a product of matrices: autocast would take it in half precision.
        each = (factors * (label_smoothing / len(factors))).view(-1, *[1] * (centred.ndim - 1 - class_dim))
        mass = (1 - label_smoothing) * mass + each.sum()
        linear = (1 - label_smoothing) * linear - (centred * each).sum(class_dim)
    # An ignored sample's gradient is zero also where nothing is left to take the mean of.
    losses = torch.where(kept, mass * log_sum + linear, 0)
    if reduction == "none":
        return losses
    return losses.sum() / label_mass.sum() if reduction == "mean" else losses.sum()


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


def _check_alpha(alpha: object) -> float:
    if type(alpha) is float and 0 < alpha < math.inf:  # without the search through the number classes below
        return alpha
    if isinstance(alpha, bool) or not isinstance(alpha, numbers.Real) or not 0 < float(alpha) < math.inf:
        raise InputError(
            f"alpha must be a finite number above 0, got {alpha!r}; the published values are 0.25 and 0.3, "
            "and alpha=1.0 is plain cross-entropy."
        )
    return float(alpha)


def _check_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> None:
    _check_reduction(reduction)
    _check_label_smoothing(label_smoothing)
    _check_logits(input)
    if input.ndim == 0:
        raise InputError("input must have shape (C,), (N, C) or (N, C, d1, ...), got a scalar; add the class axis.")
    class_dim = 0 if input.ndim == 1 else 1
    classes = input.shape[class_dim]
    if weight is not None and weight.shape != (classes,):
        raise InputError(
            f"weight must hold one value for each class, shape ({classes},), got {tuple(weight.shape)} "
            f"for input of shape {tuple(input.shape)}."
        )
    if target.shape == input.shape:
        _check_probabilities(target, ignore_index)
    else:
        _check_labels(input, target, class_dim, ignore_index)


def _check_probabilities(target: Tensor, ignore_index: int) -> None:
    if not target.is_floating_point():
        raise InputError(
            f"a target of the shape of input, {tuple(target.shape)}, holds class probabilities and must be "
            f"floating point, got {target.dtype}; call .float() on one-hot rows, or drop the class axis of indices."
        )
    if ignore_index >= 0:
        raise InputError(
            f"ignore_index={ignore_index} needs class indices, got class probabilities of shape "
            f"{tuple(target.shape)}; give ignored samples a target of zeros instead."
        )


def _check_labels(input: Tensor, target: Tensor, class_dim: int, ignore_index: int) -> None:
    label_shape = input.shape[:class_dim] + input.shape[class_dim + 1 :]
    if target.shape != label_shape:
        raise InputError(
            f"for input of shape {tuple(input.shape)}, target must hold class indices of shape {tuple(label_shape)} or "
            f"class probabilities of shape {tuple(input.shape)}, got shape {tuple(target.shape)}."
        )
    if target.dtype not in (torch.int64, torch.uint8):
        raise InputError(f"class indices must be torch.int64, got {target.dtype}; call target.long().")
    classes = input.shape[class_dim]
    outside = target[(target != ignore_index) & ((target < 0) | (target >= classes))]
    if outside.numel():
        raise InputError(
            f"target must hold class indices from 0 to {classes - 1} (the logits have {classes} classes) or "
            f"ignore_index={ignore_index}, got {sorted(set(outside.tolist()))}; "
            "check the number of outputs of the last layer and the numbering of the labels."
        )


def _check_logits(input: Tensor) -> None:
    if not input.is_floating_point():
        raise InputError(
            f"input must hold floating-point logits, got {input.dtype} of shape {tuple(input.shape)}; "
            "pass the unnormalised scores of the model, not predicted classes."
        )


def _check_reduction(reduction: str) -> None:
    if reduction not in _REDUCTIONS:
        raise InputError(f"reduction must be one of {', '.join(map(repr, _REDUCTIONS))}, got {reduction!r}.")


def _check_label_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing <= 1:
        raise InputError(f"label_smoothing must lie between 0 and 1, got {label_smoothing}; 0 switches it off.")


def _broadcasts_to(shape: torch.Size, wanted: torch.Size) -> bool:
    sizes = zip(reversed(shape), reversed(wanted), strict=False)
    return len(shape) <= len(wanted) and all(size in (1, want) for size, want in sizes)


def _float32_under_autocast(input: Tensor) -> Tensor:
    low = input.dtype in (torch.float16, torch.bfloat16)
    return input.float() if low and torch.is_autocast_enabled(input.device.type) else input
