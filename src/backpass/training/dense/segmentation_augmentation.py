"""Augmentation of images with a class for each pixel, in the order of the source of SGS Table 7."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from backpass._internal.imports import import_lab
from backpass.errors import InputError
from backpass.training.augment import normalize
from backpass.training.dense.segmentation_files import IGNORED
from backpass.training.image_folder import IMAGENET_MEAN, IMAGENET_STD

__all__ = ["SceneDraws", "SegmentationAugmentation"]

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


@dataclass(frozen=True)
class SegmentationAugmentation:
    """Random scale, rotation, blur, flip and crop, in this order, then normalisation; defaults: hszhao/semseg.

    1. Resize by a uniform factor, image bilinear without antialiasing, labels nearest.
    2. With probability ``rotation_probability`` rotate about the centre, at the same size, image bilinear and filled
       with the mean colour, labels nearest and filled with 255.
    3. With probability ``blur_probability`` blur the image with the weights (1, 4, 6, 4, 1) / 16 in both directions,
       mirrored at the borders.
    4. With probability ``flip_probability`` mirror left to right.
    5. Pad what is smaller than the crop on all sides, with the mean colour and 255, and crop at a uniform place.
    6. Subtract the mean of each channel and divide by its standard deviation.

    The centre is that of the pixel ``(H / 2, W / 2)``, as in the source. But for the blur, the transforms are those of
    ``torchvision.transforms.v2``, in float32. They resize to the rounded size exactly, while OpenCV in the source keeps
    the factor, so that its last row and column may lie up to half a pixel elsewhere.

    Attributes:
        crop: height and width of the crop.
        scale: smallest and largest factor on the size.
        max_rotation: largest rotation in degrees, in both directions.
        rotation_probability: probability of a rotation.
        blur_probability: probability of a blur.
        flip_probability: probability of a mirrored image.
        mean: mean of each channel on the scale from 0 to 1, default that of ImageNet.
        std: standard deviation of each channel on the same scale.

    Raises:
        InputError: a number is out of range.
    """

    crop: tuple[int, int] = (713, 713)
    scale: tuple[float, float] = (0.5, 2.0)
    max_rotation: float = 10.0
    rotation_probability: float = 0.5
    blur_probability: float = 0.5
    flip_probability: float = 0.5
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __post_init__(self) -> None:
        chances = (self.rotation_probability, self.blur_probability, self.flip_probability)
        if min(self.crop) < 1 or not 0 < self.scale[0] <= self.scale[1] or not all(0 <= p <= 1 for p in chances):
            raise InputError(
                f"expected a crop of at least 1x1 pixels, 0 < smallest <= largest scale and probabilities from 0 to 1, "
                f"got {self.crop}, {self.scale} and {chances}; scale=(1, 1) or a probability of 0 switches a step off"
            )

    def draw(self, generator: torch.Generator) -> SceneDraws:
        """Draw the numbers for one image; each step takes its draws whether it acts or not."""
        size, rotated, turn, blurred, flipped, row, column = torch.rand(7, generator=generator).tolist()
        low, high = self.scale
        return SceneDraws(
            scale=low + (high - low) * size,
            angle=self.max_rotation * (2 * turn - 1) if rotated < self.rotation_probability else 0.0,
            blurred=blurred < self.blur_probability,
            flipped=flipped < self.flip_probability,
            row=row,
            column=column,
        )

    def __call__(self, image: Tensor, labels: Tensor, draws: SceneDraws) -> tuple[Tensor, Tensor]:
        """Return an augmented, normalised image and its labels.

        Args:
            image: uint8, shape ``(C, H, W)``.
            labels: int64, shape ``(H, W)``.
            draws: see :meth:`draw`.

        Returns:
            float32, shape ``(C, *crop)``, and int64, shape ``crop``.
        """
        functional: Any = import_lab("torchvision.transforms.v2.functional", "torchvision", "segmentation augmentation")
        tv_tensors: Any = import_lab("torchvision.tv_tensors", "torchvision", "segmentation augmentation")
        bilinear = functional.InterpolationMode.BILINEAR
        colour = [255 * value for value in self.mean]
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
        missing = [max(side - length, 0) for side, length in zip(self.crop, mask.shape, strict=True)]
        if any(missing):
            top, left = (pixels_missing // 2 for pixels_missing in missing)
            border = [left, top, missing[1] - left, missing[0] - top]
            pixels = functional.pad(pixels, border, fill=colour)
            mask = functional.pad(mask, border, fill=IGNORED)
        offsets = [
            int(part * (length - side + 1))
            for part, length, side in zip((draws.row, draws.column), mask.shape, self.crop, strict=True)
        ]
        pixels, mask = (functional.crop(tensor, *offsets, *self.crop) for tensor in (pixels, mask))
        normalized = normalize(pixels.as_subclass(torch.Tensor)[None], self.mean, self.std)[0]
        return normalized, mask.as_subclass(torch.Tensor)


def _blur(image: Tensor) -> Tensor:
    weights = torch.tensor(_BLUR, dtype=image.dtype)
    margin = len(_BLUR) // 2
    padded = F.pad(image.unsqueeze(1), (margin,) * 4, mode="reflect")
    return F.conv2d(padded, (weights[:, None] * weights)[None, None]).squeeze(1)
