"""Normalisation and augmentation of batches of images on any device, with explicit generators.

Each augmentation is a pure function of the images and the random draws (:func:`crop`, :func:`flip`, :func:`cut`). The
loader draws for a whole epoch (:meth:`Augmentation.draw`), so that the augmentation of an image depends on neither the
batch size nor the number of processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from backpass._internal.settings import Range, check_settings
from backpass.errors import InputError

__all__ = [
    "Augmentation",
    "AugmentationDraws",
    "crop",
    "cut",
    "flip",
    "normalize",
]


def normalize(
    images: Tensor,
    mean: Sequence[float] | Tensor,
    std: Sequence[float] | Tensor,
    max_value: float = 255.0,
) -> Tensor:
    """Return ``(images / max_value - mean) / std`` for each channel.

    Args:
        images: shape ``(N, C, H, W)``, any dtype; uint8 in the data sets of this package.
        mean: C values on the scale from 0 to 1.
        std: C positive values on the same scale.
        max_value: pixel value that corresponds to 1.

    Returns:
        A new float32 tensor with the shape, device and memory format of ``images``.

    Raises:
        InputError: ``mean`` or ``std`` does not hold one value per channel.

    >>> normalize(torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1), [0.2], [0.4]).flatten()
    tensor([-0.5000,  0.0000,  2.0000])
    """
    _check_images(images)
    centre = torch.as_tensor(mean, dtype=torch.float32, device=images.device)
    spread = torch.as_tensor(std, dtype=torch.float32, device=images.device)
    channels = images.shape[1]
    if centre.shape != (channels,) or spread.shape != (channels,):
        raise InputError(
            f"expected mean and std of shape ({channels},), one value per channel, got {tuple(centre.shape)} and "
            f"{tuple(spread.shape)}; give {channels} values each"
        )
    scaled = images.to(torch.float32, copy=True).sub_(centre.view(-1, 1, 1) * max_value)
    return scaled.div_(spread.view(-1, 1, 1) * max_value)


def crop(images: Tensor, offsets: Tensor, padding: int) -> Tensor:
    """Pad each image with zeros and crop it to its original size at the given offset.

    With ``P`` the images padded by ``padding`` zeros on all four sides and ``(y, x)`` the offset of image ``n``, the
    result is ``out[n, c, i, j] = P[n, c, i + y, j + x]``. The recipes crop before they normalise, so the zeros are
    black pixels, not the mean colour.

    Args:
        images: shape ``(N, C, H, W)``, any dtype.
        offsets: shape ``(N, 2)``, int64, row and column, each from 0 to ``2 * padding``; at ``padding`` the image is
            unchanged.
        padding: number of zero pixels on each side.

    Returns:
        A new tensor with the shape, dtype, device and memory format of ``images``.
    """
    _check_images(images)
    _check_draws("offsets", offsets, (len(images), 2))
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    rows, columns = offsets.to(images.device).unbind(1)
    return windows[torch.arange(len(images), device=images.device), :, rows, columns]


def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Mirror the selected images left to right.

    Args:
        images: shape ``(N, C, H, W)``, any dtype.
        flipped: shape ``(N,)``, bool, True for the images to mirror.

    Returns:
        A new tensor with the shape, dtype, device and memory format of ``images``.
    """
    _check_images(images)
    _check_draws("flipped", flipped, (len(images),))
    return torch.where(flipped.to(images.device).view(-1, 1, 1, 1), images.flip(-1), images)


def cut(images: Tensor, centers: Tensor, size: int) -> Tensor:
    """Set one ``size`` x ``size`` square of each image to zero, clipped at the borders.

    The square with centre ``(y, x)`` covers the rows from ``y - size // 2`` to ``y - size // 2 + size - 1`` and the
    columns from ``x - size // 2`` to ``x - size // 2 + size - 1``. The recipes cut after they normalise, so the zeros
    are the mean colour.

    Args:
        images: shape ``(N, C, H, W)``, any dtype.
        centers: shape ``(N, 2)``, int64, row and column of a pixel in the image.
        size: side of the square in pixels; at 0 the images are unchanged.

    Returns:
        A new tensor with the shape, dtype, device and memory format of ``images``.
    """
    _check_images(images)
    _check_draws("centers", centers, (len(images), 2))
    height, width = images.shape[-2:]
    start = centers.to(images.device) - size // 2
    rows = torch.arange(height, device=images.device) - start[:, :1]
    columns = torch.arange(width, device=images.device) - start[:, 1:]
    inside_rows = (rows >= 0) & (rows < size)
    inside_columns = (columns >= 0) & (columns < size)
    inside = inside_rows[:, None, :, None] & inside_columns[:, None, None, :]
    # In place, since masked_fill does not preserve the memory format.
    return images.clone().masked_fill_(inside, 0)


@dataclass(frozen=True, eq=False)
class AugmentationDraws:
    """Random draws for the augmentation of N images.

    Attributes:
        offsets: crop offsets (:func:`crop`), shape ``(N, 2)``, int64.
        flipped: images to mirror (:func:`flip`), shape ``(N,)``, bool.
        centers: centres of the cutout squares (:func:`cut`), shape ``(N, 2)``, int64.
    """

    offsets: Tensor
    flipped: Tensor
    centers: Tensor

    def __getitem__(self, rows: slice) -> "AugmentationDraws":
        """Return the draws for a range of images."""
        return AugmentationDraws(self.offsets[rows], self.flipped[rows], self.centers[rows])

    def to(self, device: torch.device) -> "AugmentationDraws":
        """Return the draws on ``device``."""
        return AugmentationDraws(self.offsets.to(device), self.flipped.to(device), self.centers.to(device))


@dataclass(frozen=True)
class Augmentation:
    """Random crop, flip and cutout (DeVries & Taylor, 2017, arXiv 1708.04552) of images in memory.

    The order is crop, flip, normalise, cutout. Order and defaults are the CIFAR settings of SGS and DyRep.

    Attributes:
        crop_padding: number of zero pixels on each side before the random crop; 0: no crop.
        flip: mirror each image left to right with probability 1/2.
        cutout: side in pixels of the square that cutout sets to zero; 0: no cutout.

    Raises:
        InputError: a setting is out of range.
    """

    crop_padding: Annotated[int, Range(at_least=0)] = 4
    flip: bool = True
    cutout: Annotated[int, Range(at_least=0)] = 16

    def __post_init__(self) -> None:
        check_settings(self, "augmentation")

    def check(self, height: int, width: int) -> None:
        """Raise ``InputError`` if a crop or cutout could remove an image of this size completely."""
        side = min(height, width)
        for name, pixels in (("crop_padding", self.crop_padding), ("cutout", self.cutout)):
            if pixels >= side:
                raise InputError(
                    f"expected {name} < {side} for images of {height}x{width} pixels, got {pixels}; lower it, or use 0 "
                    "to switch it off"
                )

    def draw(self, count: int, height: int, width: int, generator: torch.Generator) -> AugmentationDraws:
        """Draw the random numbers for ``count`` images, each uniformly from its values.

        All are drawn even if an augmentation is switched off, so that a change of one does not affect the draws of
        the others.
        """

        def integers(below: int, *shape: int) -> Tensor:
            return torch.randint(below, shape, generator=generator, device=generator.device)

        return AugmentationDraws(
            offsets=integers(2 * self.crop_padding + 1, count, 2),
            flipped=integers(2, count).bool(),
            centers=torch.stack([integers(height, count), integers(width, count)], dim=1),
        )

    def before_normalize(self, images: Tensor, draws: AugmentationDraws) -> Tensor:
        """Crop and flip the images."""
        if self.crop_padding:
            images = crop(images, draws.offsets, self.crop_padding)
        return flip(images, draws.flipped) if self.flip else images

    def after_normalize(self, images: Tensor, draws: AugmentationDraws) -> Tensor:
        """Apply cutout to the normalised images."""
        return cut(images, draws.centers, self.cutout) if self.cutout else images


def _check_images(images: Tensor) -> None:
    if images.ndim != 4:
        raise InputError(f"expected images of shape (N, C, H, W), got {tuple(images.shape)}; reshape them")


def _check_draws(name: str, draws: Tensor, expected: tuple[int, ...]) -> None:
    if draws.shape != expected:
        raise InputError(
            f"expected {name} of shape {expected}, got {tuple(draws.shape)}; draw them for {expected[0]} images"
        )
