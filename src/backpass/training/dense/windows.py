"""Evaluation of images that are larger than what the model was trained on, in overlapping windows."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from backpass.errors import InputError

__all__ = ["window_logits", "window_starts"]


def window_starts(length: int, window: int, step: int) -> list[int]:
    """Return where the windows along one axis start: every ``step`` pixels, the last one moved inside.

    >>> window_starts(2048, 713, 476)
    [0, 476, 952, 1335]
    >>> window_starts(713, 713, 476)
    [0]
    """
    count = math.ceil(max(length - window, 0) / step) + 1
    return [min(number * step, max(length - window, 0)) for number in range(count)]


def window_logits(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    window: tuple[int, int] | None,
    *,
    stride_fraction: float = 2 / 3,
    flip: bool = True,
) -> Tensor:
    """Return the logarithms of class probabilities, averaged over overlapping windows and mirrored copies.

    A window's probabilities are the softmax of the model's logits or, with ``flip``, the mean of that and of the
    softmax of its mirrored copy, mirrored back. A pixel's probabilities are the mean over the windows that contain it.
    The result is their logarithm, so that its softmax is the mean and its cross-entropy the mean's. Images smaller than
    the window are padded on all sides with 0, the mean colour of normalised images, and the result is cut back.

    With ``window=(713, 713)`` and the defaults this is the single-scale evaluation of hszhao/semseg, the source of SGS
    Table 7: 2 x 4 windows for an image of Cityscapes.

    Args:
        model: returns logits ``(N, C, H, W)`` for images of the window's size; in eval mode.
        images: normalised, shape ``(N, channels, H, W)``.
        window: height and width of the windows; ``None``: the whole image.
        stride_fraction: step from window to window over its side, rounded up to whole pixels; default 2/3.
        flip: average with the mirrored copy; default True, as in the source.

    Returns:
        Float32 or the dtype of the logits if that is larger, shape ``(N, C, H, W)``.

    Raises:
        InputError: the window has no pixels, the fraction is not in (0, 1], or the model's output has another size.
    """
    height, width = images.shape[-2:]
    size = (height, width) if window is None else window
    if min(size) < 1 or not 0 < stride_fraction <= 1:
        raise InputError(
            f"expected a window of at least 1x1 pixels and 0 < stride_fraction <= 1, got {size} and {stride_fraction}; "
            "give the crop size of training and 2/3"
        )
    missing = [max(side - length, 0) for side, length in zip(size, (height, width), strict=True)]
    top, left = (pixels // 2 for pixels in missing)
    padded = F.pad(images, (left, missing[1] - left, top, missing[0] - top))
    rows, columns = (
        window_starts(length, side, math.ceil(side * stride_fraction))
        for length, side in zip(padded.shape[-2:], size, strict=True)
    )
    places = [(..., slice(y, y + size[0]), slice(x, x + size[1])) for y in rows for x in columns]
    first = _probabilities(model, padded[places[0]], flip)
    total = first.new_zeros(*first.shape[:2], *padded.shape[-2:])
    counts = torch.zeros(padded.shape[-2:], device=images.device)
    for number, place in enumerate(places):
        total[place] += first if number == 0 else _probabilities(model, padded[place], flip)
        counts[place] += 1
    mean = (total / counts)[..., top : top + height, left : left + width]
    return mean.clamp(min=torch.finfo(mean.dtype).tiny).log()


def _probabilities(model: Callable[[Tensor], Tensor], images: Tensor, flip: bool) -> Tensor:
    logits = model(torch.cat([images, images.flip(-1)]) if flip else images)
    if logits.shape[-2:] != images.shape[-2:]:
        raise InputError(
            f"expected logits of the size of the images, {tuple(images.shape[-2:])}, got {tuple(logits.shape[-2:])}; "
            "upsample them in the model"
        )
    probabilities = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)
    if not flip:
        return probabilities
    straight, mirrored = probabilities.chunk(2)
    return (straight + mirrored.flip(-1)) / 2
