"""The PowerGrad losses as modules."""

from torch import Tensor, nn

from backpass.pgt.arguments import check_alpha, check_label_smoothing, check_reduction
from backpass.pgt.binary_cross_entropy import power_grad_binary_cross_entropy_with_logits
from backpass.pgt.cross_entropy import power_grad_cross_entropy

__all__ = ["PowerGradBCEWithLogitsLoss", "PowerGradCrossEntropyLoss"]


class PowerGradCrossEntropyLoss(nn.CrossEntropyLoss):
    """:func:`power_grad_cross_entropy` as a module, a replacement for ``nn.CrossEntropyLoss``.

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
        check_reduction(reduction)
        check_label_smoothing(label_smoothing)
        super().__init__(weight=weight, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing)
        self.alpha = check_alpha(alpha)

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
        """Return the exponent as the argument that set it."""
        return f"alpha={self.alpha}"


class PowerGradBCEWithLogitsLoss(nn.BCEWithLogitsLoss):
    """:func:`power_grad_binary_cross_entropy_with_logits` as a module, a replacement for ``nn.BCEWithLogitsLoss``.

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
        check_reduction(reduction)
        super().__init__(weight=weight, reduction=reduction, pos_weight=pos_weight)
        self.alpha = check_alpha(alpha)

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
        """Return the exponent as the argument that set it."""
        return f"alpha={self.alpha}"
