"""Geometry of crops: the affine map between image and crop, and what it does to pixels and points."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from backpass.errors import InputError

__all__ = [
    "crop_matrix",
    "invert_matrix",
    "swap_joints",
    "transform_points",
    "warp",
]


def crop_matrix(
    center: Sequence[float], side: float, size: tuple[int, int], angle: float = 0.0, mirrored: bool = False
) -> Tensor:
    """Return the affine map from pixels of an image to pixels of a person's crop.

    With crop ``W`` pixels wide and ``H`` high, ``s = W / side`` and the rotation ``R`` by ``-angle``,

        q = s R (p - center) + (W / 2, H / 2),  and  q_x -> W - 1 - q_x if mirrored

    in coordinates where whole numbers are the centres of pixels. So the centre lies between the middle pixels
    of the crop, as published (microsoft/human-pose-estimation.pytorch, xingyizhou/pytorch-pose-hg-3d).

    Args:
        center: x and y of the person in the image.
        side: width of the region that fills the crop, in pixels of the image.
        size: height and width of the crop.
        angle: clockwise rotation of the region in the image, in degrees, so that the person turns counterclockwise.
        mirrored: mirror the crop left to right.

    Returns:
        float64, shape ``(2, 3)``.

    Raises:
        InputError: the side is not positive.

    >>> crop_matrix((100, 50), side=200, size=(64, 64)) @ torch.tensor([100.0, 50, 1]).double()
    tensor([32., 32.], dtype=torch.float64)
    """
    if not side > 0:
        raise InputError(f"expected a region with a side above 0 pixels, got {side}; check the scale of the person")
    height, width = size
    scale, turn = width / side, math.radians(angle)
    cosine, sine = scale * math.cos(turn), scale * math.sin(turn)
    linear = torch.tensor([[cosine, sine], [-sine, cosine]], dtype=torch.float64)
    middle = torch.tensor([width / 2, height / 2], dtype=torch.float64)
    shift = middle - linear @ torch.tensor([*center], dtype=torch.float64)
    matrix = torch.cat([linear, shift[:, None]], 1)
    if mirrored:
        matrix[0] *= -1
        matrix[0, 2] += width - 1
    return matrix


def invert_matrix(matrix: Tensor) -> Tensor:
    """Return the inverse of an affine map, shape ``(..., 2, 3)``."""
    linear: Tensor = torch.linalg.inv(matrix[..., :2])
    return torch.cat([linear, -linear @ matrix[..., 2:]], -1)


def transform_points(points: Tensor, matrix: Tensor) -> Tensor:
    """Return points mapped by an affine map, in the dtype of the points.

    Args:
        points: x and y, shape ``(..., J, 2)``.
        matrix: shape ``(..., 2, 3)``, with the same leading axes.
    """
    exact = points.to(matrix.dtype)
    return (exact @ matrix[..., :2].mT + matrix[..., 2].unsqueeze(-2)).to(points.dtype)


def warp(image: Tensor, matrix: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the crop of an image, interpolated bilinearly without antialiasing, with black outside the image.

    Args:
        image: uint8, shape ``(C, H, W)``.
        matrix: from pixels of the image to pixels of the crop, shape ``(2, 3)``.
        size: height and width of the crop.

    Returns:
        uint8, shape ``(C, *size)``, rounded.
    """
    height, width = size
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    sources = transform_points(torch.stack([columns, rows], -1).double().view(-1, 2), invert_matrix(matrix))
    # grid_sample counts from -1 at the centre of the first pixel to 1 at that of the last; one pixel has no such scale.
    padded = F.pad(image.float()[None], (0, 1, 0, 1))
    last = torch.tensor([padded.shape[-1] - 1, padded.shape[-2] - 1], dtype=torch.float64)
    grid = (2 * sources / last - 1).view(1, height, width, 2).float()
    return F.grid_sample(padded, grid, align_corners=True)[0].round().to(torch.uint8)


def swap_joints(joints: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Return joints, along the first axis, with left and right ones swapped."""
    order = list(range(len(joints)))
    for left, right in pairs:
        order[left], order[right] = order[right], order[left]
    return joints[order]
