"""Normalisation and augmentation of whole batches of images, on any device, from explicit generators.

Each augmentation comes in two sizes: a pure function of the images and of what was drawn (`crop`, `flip`,
`cut`), and the same function drawing for itself from a generator (`random_crop`, `random_flip`, `cutout`).
A loader uses the first, with the draws of a whole epoch made at once, so that an image gets the same
augmentation however the epoch is cut into batches and shared over processes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from backpass.errors import InputError

__all__ = [
    "Augmentation",
    "AugmentationDraws",
    "crop",
    "cut",
    "cutout",
    "flip",
    "normalize",
    "random_crop",
    "random_flip",
]


def normalize(
    images: Tensor,
    mean: Sequence[float] | Tensor,
    std: Sequence[float] | Tensor,
    dtype: torch.dtype = torch.float32,
    max_value: float = 255.0,
) -> Tensor:
    """Return ``(images / max_value - mean) / std``, channel by channel.

    Args:
        images: shape ``(N, C, H, W)``, any dtype; for the data sets here uint8.
        mean: C values on the scale 0 to 1.
        std: C values on the same scale, all positive.
        dtype: of the result; half precisions are computed in float32 and rounded once.
        max_value: the pixel value that stands for 1.

    Returns:
        A new tensor of the images' shape, device and memory format.

    Raises:
        InputError: ``mean`` or ``std`` does not hold one value a channel.

    >>> normalize(torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1), [0.2], [0.4]).flatten()
    tensor([-0.5000,  0.0000,  2.0000])
    """
    _check_images(images)
    compute = torch.promote_types(dtype, torch.float32)
    centre = torch.as_tensor(mean, dtype=compute, device=images.device)
    spread = torch.as_tensor(std, dtype=compute, device=images.device)
    channels = images.shape[1]
    if centre.shape != (channels,) or spread.shape != (channels,):
        raise InputError(
            f"mean and std must hold one value for each of the {channels} channels, "
            f"got shapes {tuple(centre.shape)} and {tuple(spread.shape)}."
        )
    scaled = images.to(compute, copy=True).sub_(centre.view(-1, 1, 1) * max_value)
    return scaled.div_(spread.view(-1, 1, 1) * max_value).to(dtype)


def crop(images: Tensor, offsets: Tensor, padding: int) -> Tensor:
    """Return the window of each zero-padded image that starts at its offset, as large as the image.

    With ``P`` the images padded by ``padding`` zeros on all four sides and ``(y, x)`` the offsets of image
    ``n``, the result is ``out[n, c, i, j] = P[n, c, i + y, j + x]``. The recipes crop before they normalise,
    so the zeros are black pixels and not the mean colour.

    Args:
        images: shape ``(N, C, H, W)``, any dtype.
        offsets: shape ``(N, 2)``, int64, rows then columns, each from 0 to ``2 * padding``; ``padding`` itself
            leaves the image where it is.
        padding: pixels of zeros on each side.

    Returns:
        A new tensor of the images' shape, dtype, device and memory format.
    """
    _check_images(images)
    _check_draws("offsets", offsets, (len(images), 2))
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    rows, columns = offsets.to(images.device).unbind(1)
    return windows[torch.arange(len(images), device=images.device), :, rows, columns]


def flip(images: Tensor, flipped: Tensor) -> Tensor:
    """Return the images, those marked in ``flipped`` (shape ``(N,)``, bool) mirrored left to right.

    Shape ``(N, C, H, W)``, dtype, device and memory format are those of ``images``.
    """
    _check_images(images)
    _check_draws("flipped", flipped, (len(images),))
    return torch.where(flipped.to(images.device).view(-1, 1, 1, 1), images.flip(-1), images)


def cut(images: Tensor, centers: Tensor, size: int) -> Tensor:
    """Return the images with one ``size`` x ``size`` square of zeros in each, clipped at the borders.

    The square of image ``n`` with centre ``(y, x)`` covers rows ``y - size // 2`` to
    ``y - size // 2 + size - 1`` and columns likewise. The recipes cut after they normalise, so the zeros are
    the mean colour.

    Args:
        images: shape ``(N, C, H, W)``, any dtype.
        centers: shape ``(N, 2)``, int64, row and column of a pixel of the image.
        size: side of the square in pixels; 0 cuts nothing.

    Returns:
        A new tensor of the images' shape, dtype, device and memory format.
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
    # Filled in place, since masked_fill does not keep the memory format.
    return images.clone().masked_fill_(inside, 0)


def random_crop(images: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Return a random window of each zero-padded image (see `crop`); all ``(2 * padding + 1)**2`` are alike."""
    return crop(images, _draw_offsets(len(images), padding, generator), padding)


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return the images, each mirrored left to right with probability 1/2 (see `flip`)."""
    return flip(images, _draw_flips(len(images), generator))


def cutout(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Return the images with one zero square each, its centre uniform over the pixels (see `cut`).

    DeVries & Taylor, 2017 (arXiv 1708.04552).
    """
    return cut(images, _draw_centers(len(images), images.shape[-2], images.shape[-1], generator), size)


@dataclass(frozen=True, eq=False)
class AugmentationDraws:
    """What chance decided for N images: crop offsets ``(N, 2)``, flips ``(N,)``, cutout centres ``(N, 2)``."""

    offsets: Tensor
    flipped: Tensor
    centers: Tensor

    def __getitem__(self, rows: slice) -> "AugmentationDraws":
        """Return the draws of a range of the images."""
        return AugmentationDraws(self.offsets[rows], self.flipped[rows], self.centers[rows])

    def to(self, device: torch.device) -> "AugmentationDraws":
        """Return the draws on ``device``."""
        return AugmentationDraws(self.offsets.to(device), self.flipped.to(device), self.centers.to(device))


@dataclass(frozen=True)
class Augmentation:
    """Random crop, flip and cutout of images that are held in one tensor; the defaults are the CIFAR recipe's.

    The order is crop, flip, normalise, cutout (SGS paper, CIFAR settings; also DyRep's).

    Args:
        crop_padding: zeros on each side before the crop; 0 switches the crop off.
        flip: mirror half of the images left to right.
        cutout: side of the zero square; 0 switches it off.

    Raises:
        InputError: a number is negative.
    """

    crop_padding: int = 4
    flip: bool = True
    cutout: int = 16

    def __post_init__(self) -> None:
        if self.crop_padding < 0 or self.cutout < 0:
            raise InputError(
                f"crop_padding and cutout must be >= 0 pixels, got crop_padding={self.crop_padding} and "
                f"cutout={self.cutout}; use 0 to switch one off."
            )

    def check(self, height: int, width: int) -> None:
        """Raise InputError where images of this size could be cropped or cut away altogether."""
        side = min(height, width)
        for name, pixels in (("crop_padding", self.crop_padding), ("cutout", self.cutout)):
            if pixels >= side:
                raise InputError(
                    f"{name}={pixels} is not smaller than the images ({height}x{width} pixels) and could leave "
                    f"nothing of them; choose {name} < {side}, or 0 to switch it off."
                )

    def draw(self, count: int, height: int, width: int, generator: torch.Generator) -> AugmentationDraws:
        """Return the draws for ``count`` images.

        Flips and centres are drawn also where they are switched off, so that changing one augmentation leaves
        the draws of the others as they were.
        """
        return AugmentationDraws(
            offsets=_draw_offsets(count, self.crop_padding, generator),
            flipped=_draw_flips(count, generator),
            centers=_draw_centers(count, height, width, generator),
        )

    def before_normalize(self, images: Tensor, draws: AugmentationDraws) -> Tensor:
        """Return the images cropped and flipped."""
        if self.crop_padding:
            images = crop(images, draws.offsets, self.crop_padding)
        return flip(images, draws.flipped) if self.flip else images

    def after_normalize(self, images: Tensor, draws: AugmentationDraws) -> Tensor:
        """Return the normalised images with their squares cut out."""
        return cut(images, draws.centers, self.cutout) if self.cutout else images


def _draw_offsets(count: int, padding: int, generator: torch.Generator) -> Tensor:
    return torch.randint(2 * padding + 1, (count, 2), generator=generator, device=generator.device)


def _draw_flips(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(2, (count,), generator=generator, device=generator.device).bool()


def _draw_centers(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    rows = torch.randint(height, (count,), generator=generator, device=generator.device)
    columns = torch.randint(width, (count,), generator=generator, device=generator.device)
    return torch.stack([rows, columns], dim=1)


def _check_images(images: Tensor) -> None:
    if images.ndim != 4:
        raise InputError(f"images must have shape (N, C, H, W), got {tuple(images.shape)}.")


def _check_draws(name: str, draws: Tensor, expected: tuple[int, ...]) -> None:
    if draws.shape != expected:
        raise InputError(f"{name} must have shape {expected} for these images, got {tuple(draws.shape)}.")
