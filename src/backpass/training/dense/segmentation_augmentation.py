"""Augmentation of images with a class for each pixel, in the order of the source of SGS Table 7."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from backpass._internal.imports import import_lab
from backpass.training.augment import normalize
from backpass.training.dense.segmentation_files import IGNORED
from backpass.training.image_folder import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["SceneDraws", "augment_scene", "draw_scene"]

_BLUR = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)  # what OpenCV takes for 5 pixels where no standard deviation is given


class SceneDraws(NamedTuple):
    """Random draws for the augmentation of one image.

    Attributes:
        scale: factor on height and width.
        angle: counterclockwise rotation in degrees; 0: none.
        blurred: whether the image is blurred.
        flipped: whether image and labels are mirrored left to right.
        row: place of the crop between top (0) and bottom (1, excluded).
        column: place of the crop between left (0) and right (1, excluded).
    """

    scale: float = 1.0
    angle: float = 0.0
    blurred: bool = False
    flipped: bool = False
    row: float = 0.0
    column: float = 0.0


def draw_scene(
    scale: tuple[float, float],
    max_rotation: float,
    rotation_probability: float,
    blur_probability: float,
    flip_probability: float,
) -> SceneDraws:
    """Draw the numbers for one image from the global generator of torch; each step takes its draws even if it is off.

    Args:
        scale: smallest and largest factor on the size.
        max_rotation: largest rotation in degrees, in both directions.
        rotation_probability: probability of a rotation.
        blur_probability: probability of a blur.
        flip_probability: probability of a mirrored image.
    """
    size, rotated, turn, blurred, flipped, row, column = torch.rand(7).tolist()
    low, high = scale
    return SceneDraws(
        scale=low + (high - low) * size,
        angle=max_rotation * (2 * turn - 1) if rotated < rotation_probability else 0.0,
        blurred=blurred < blur_probability,
        flipped=flipped < flip_probability,
        row=row,
        column=column,
    )


def augment_scene(image: Tensor, labels: Tensor, draws: SceneDraws, crop: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Scale, rotate, blur, flip and crop an image and its labels, in this order, then normalise the image.

    1. Resize by a factor, image bilinear without antialiasing, labels nearest.
    2. Rotate about the centre, at the same size, image bilinear and filled with the mean colour, labels nearest and
       filled with 255.
    3. Blur the image with the weights (1, 4, 6, 4, 1) / 16 in both directions, mirrored at the borders.
    4. Mirror left to right.
    5. Pad what is smaller than the crop on all sides, with the mean colour and 255, and crop.
    6. Subtract ImageNet's mean of each channel and divide by its standard deviation.

    The centre is that of the pixel ``(H / 2, W / 2)``, as in the source. But for the blur, the transforms are those of
    ``torchvision.transforms.v2``, in float32. They resize to the rounded size exactly, while OpenCV in the source keeps
    the factor, so that its last row and column may lie up to half a pixel elsewhere.

    Args:
        image: uint8, shape ``(C, H, W)``.
        labels: int64, shape ``(H, W)``.
        draws: random draws (:func:`draw_scene`).
        crop: height and width of the crop.

    Returns:
        float32, shape ``(C, *crop)``, and int64, shape ``crop``.
    """
    functional: Any = import_lab("torchvision.transforms.v2.functional", "torchvision", "segmentation augmentation")
    tv_tensors: Any = import_lab("torchvision.tv_tensors", "torchvision", "segmentation augmentation")
    bilinear = functional.InterpolationMode.BILINEAR
    colour = [255 * value for value in IMAGENET_MEAN]
    pixels, mask = tv_tensors.Image(image.float()), tv_tensors.Mask(labels)
    size = [round(draws.scale * length) for length in labels.shape]
    if size != list(labels.shape):
        pixels = functional.resize(pixels, size, bilinear, antialias=False)
        mask = functional.resize(mask, size)
    if draws.angle != 0:
        # torchvision counts from the corner of the first pixel, the source from its centre.
        centre = [length / 2 + 0.5 for length in reversed(mask.shape)]
        pixels = functional.rotate(pixels, draws.angle, bilinear, center=centre, fill=colour)
        mask = functional.rotate(mask, draws.angle, center=centre, fill=IGNORED)
    if draws.blurred:
        pixels = tv_tensors.Image(_blur(pixels.as_subclass(torch.Tensor)))
    if draws.flipped:
        pixels, mask = functional.horizontal_flip(pixels), functional.horizontal_flip(mask)
    missing = [max(side - length, 0) for side, length in zip(crop, mask.shape, strict=True)]
    if any(missing):
        top, left = (pixels_missing // 2 for pixels_missing in missing)
        border = [left, top, missing[1] - left, missing[0] - top]
        pixels = functional.pad(pixels, border, fill=colour)
        mask = functional.pad(mask, border, fill=IGNORED)
    offsets = [
        int(part * (length - side + 1))
        for part, length, side in zip((draws.row, draws.column), mask.shape, crop, strict=True)
    ]
    pixels, mask = (functional.crop(tensor, *offsets, *crop) for tensor in (pixels, mask))
    normalized = normalize(pixels.as_subclass(torch.Tensor)[None], IMAGENET_MEAN, IMAGENET_STD)[0]
    return normalized, mask.as_subclass(torch.Tensor)


def _blur(image: Tensor) -> Tensor:
    weights = torch.tensor(_BLUR, dtype=image.dtype)
    margin = len(_BLUR) // 2
    padded = F.pad(image.unsqueeze(1), (margin,) * 4, mode="reflect")
    return F.conv2d(padded, (weights[:, None] * weights)[None, None]).squeeze(1)
