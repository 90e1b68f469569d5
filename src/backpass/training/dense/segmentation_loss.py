"""The training loss of semantic segmentation with an auxiliary head."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from backpass.training.dense.segmentation_files import IGNORED

__all__ = ["segmentation_loss"]


def segmentation_loss(
    output: Tensor | tuple[Tensor, ...],
    target: Tensor,
    *,
    auxiliary_weight: float = 0.4,
    criterion: Callable[..., Tensor] = F.cross_entropy,
) -> Tensor:
    """Return the mean cross-entropy of the labelled pixels, plus a fraction of that of the auxiliary head.

        loss = CE(logits, target) + auxiliary_weight * CE(auxiliary, target)

    Each mean is over the pixels that are labelled; a batch without one has loss 0, where ``F.cross_entropy`` alone
    would give nan.

    Args:
        output: logits ``(N, C, H, W)``, or a tuple of them and those of the auxiliary head, of the same shape.
        target: class indices, or 255 for pixels that do not count, int64, shape ``(N, H, W)``.
        auxiliary_weight: factor on the auxiliary head's loss; default 0.4 (Zhao et al., CVPR 2017, and SGS Table 7's
            source, hszhao/semseg).
        criterion: cross-entropy with the arguments ``ignore_index`` and ``reduction`` of ``F.cross_entropy``, such as
            :func:`~backpass.pgt.power_grad_cross_entropy` with a fixed ``alpha``, which then acts on both heads.

    Returns:
        A scalar, in nats.
    """
    heads = output if isinstance(output, tuple) else (output,)
    count = (target != IGNORED).sum().clamp(min=1)
    losses = [criterion(logits, target, ignore_index=IGNORED, reduction="sum") / count for logits in heads]
    return torch.stack([losses[0], *(auxiliary_weight * loss for loss in losses[1:])]).sum()
