"""Cross-entropy with the PowerGrad Transform in its backward pass (Das et al., arXiv 2111.12495)."""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from backpass.pgt.arguments import CrossEntropyOptions, check_alpha, check_cross_entropy
from backpass.pgt.compiled import label_surrogate
from backpass.pgt.power_gradient import float32_under_autocast, value_with_gradient_of, with_power_gradient

__all__ = ["power_grad_cross_entropy"]


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
        label_smoothing: fraction of the target mass spread evenly over all classes, in [0, 1]; default 0.
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
    alpha = check_alpha(alpha)
    options = CrossEntropyOptions(ignore_index, reduction, label_smoothing)
    # Not a function defined here: torch 2.6 cannot compile annotations with `|`.
    cross_entropy = partial(
        F.cross_entropy, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing
    )
    logits = float32_under_autocast(input)
    try:
        if torch.compiler.is_compiling() and target.ndim < input.ndim:
            value = cross_entropy(logits.detach(), target, weight)
            surrogate = label_surrogate(logits, target, weight, options, alpha)
            return value_with_gradient_of(value, surrogate.to(value.dtype))
        return with_power_gradient(cross_entropy, logits, target, weight, alpha)
    except (RuntimeError, ValueError, IndexError):
        # PyTorch has checked everything already; good input is not checked twice.
        check_cross_entropy(input, target, weight, options)
        raise
