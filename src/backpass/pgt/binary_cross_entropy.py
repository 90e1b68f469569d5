"""Binary cross-entropy with the PowerGrad Transform in its backward pass."""

from functools import partial

from torch import Tensor
from torch.nn import functional as F

from backpass.pgt.arguments import check_alpha, check_binary_cross_entropy
from backpass.pgt.power_gradient import float32_under_autocast, with_power_gradient

__all__ = ["power_grad_binary_cross_entropy_with_logits"]


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
    ``w * ((1 - t) * p' - c * t * (1 - p'))`` with ``p' = p**alpha / (p**alpha + (1-p)**alpha) = sigmoid(alpha * z)``
    instead of p. It is the two-class case of :func:`~backpass.power_grad_cross_entropy`, and the gradient of
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
        InputError: an option is out of its range, logits or target are not floating point, or a shape does not fit.

    >>> import torch
    >>> z, target = torch.tensor([3.0, -1.0], requires_grad=True), torch.tensor([1.0, 0.0])
    >>> power_grad_binary_cross_entropy_with_logits(z, target, reduction="sum", alpha=0.5).backward()
    >>> torch.allclose(z.grad, torch.sigmoid(0.5 * z) - target)
    True
    """
    alpha = check_alpha(alpha)
    check_binary_cross_entropy(input, target, weight, reduction, pos_weight)
    # Not a function defined here: torch 2.6 cannot compile annotations with `|`.
    binary_cross_entropy = partial(F.binary_cross_entropy_with_logits, reduction=reduction, pos_weight=pos_weight)
    return with_power_gradient(binary_cross_entropy, float32_under_autocast(input), target, weight, alpha)
