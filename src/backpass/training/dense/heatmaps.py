"""Heat maps of key points: the training target and loss, flip averaging, and decoding."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from backpass.errors import InputError
from backpass.training.dense.crop_geometry import swap_joints

__all__ = ["average_with_flipped", "decode_heatmaps", "draw_heatmaps", "heatmap_loss", "mirror_heatmaps"]


def draw_heatmaps(
    joints: Tensor,
    visible: Tensor,
    size: tuple[int, int],
    sigma: float = 2.0,
    rounding: Literal["down", "nearest"] = "down",
) -> Tensor:
    """Draw a Gaussian around each joint.

    With ``(u, v)`` the joint's pixel, ``out[n, j, y, x] = exp(-((x - u)**2 + (y - v)**2) / (2 sigma**2))`` where
    ``|x - u|`` and ``|y - v|`` are at most ``3 sigma``, and 0 elsewhere. The map of a joint that is not visible, or
    further than that outside the map, is 0 everywhere.

    Args:
        joints: x and y in pixels of the heat map, floating point, shape ``(N, J, 2)``.
        visible: bool, shape ``(N, J)``.
        size: height and width of the maps.
        sigma: standard deviation in pixels; default 2, for maps of 64 x 64.
        rounding: how ``(u, v)`` follows from the coordinates: ``"down"``, as in the source of SGS Table 8
            (xingyizhou/pytorch-pose-hg-3d), or ``"nearest"`` (halves up), as in that of the model
            (microsoft/human-pose-estimation.pytorch). Both truncate towards 0, so joints left of or above the map move
            up to one pixel towards it.

    Returns:
        Shape ``(N, J, H, W)``, dtype and device of ``joints``.

    >>> draw_heatmaps(torch.tensor([[[1.9, 0.0]]]), torch.tensor([[True]]), size=(1, 4), sigma=1.0)
    tensor([[[[0.6065, 1.0000, 0.6065, 0.1353]]]])
    """
    pixels = (joints + 0.5 if rounding == "nearest" else joints).trunc()
    factors = []
    for axis, length in ((1, size[0]), (0, size[1])):
        distance = torch.arange(length, device=joints.device, dtype=joints.dtype) - pixels[..., axis, None]
        factors.append(torch.exp(-distance.square() / (2 * sigma**2)) * (distance.abs() <= 3 * sigma))
    rows, columns = factors
    shown = visible.to(joints.dtype)[..., None, None]
    return rows.unsqueeze(-1) * columns.unsqueeze(-2) * shown


def heatmap_loss(output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean squared error over all values of the heat maps.

    Without ``weight`` the empty maps of joints that are not visible count like all others (SGS Table 8). With
    ``weight=target.amax((2, 3)) > 0`` the errors of empty maps are 0, while the mean still runs over all values; half
    of that is the loss of microsoft/human-pose-estimation.pytorch (where the empty map of a Gaussian that ends one
    pixel left of or above the map counts).

    Args:
        output: shape ``(N, J, H, W)``.
        target: same shape.
        weight: factor on the squared errors of each map, shape ``(N, J)``; default none.

    Raises:
        InputError: a shape is different.
    """
    if output.shape != target.shape or (weight is not None and weight.shape != output.shape[:2]):
        received = None if weight is None else tuple(weight.shape)
        raise InputError(
            f"expected output and target of one shape (N, J, H, W) and a weight of shape (N, J) or none, got "
            f"{tuple(output.shape)}, {tuple(target.shape)} and {received}; draw the target at the size of the output"
        )
    errors = (output - target).square()
    if weight is not None:
        errors = errors * weight[..., None, None]
    return errors.mean()


def mirror_heatmaps(heatmaps: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Mirror heat maps left to right and swap the maps of left and right joints.

    Args:
        heatmaps: shape ``(N, J, H, W)``.
        pairs: indices of the joints that change places.
    """
    return swap_joints(heatmaps.transpose(0, 1), pairs).transpose(0, 1).flip(-1)


def average_with_flipped(
    heatmaps: Tensor, of_mirrored: Tensor, pairs: Sequence[tuple[int, int]], *, shift: bool = False
) -> Tensor:
    """Average the heat maps of images with those of their mirrored copies.

    Args:
        heatmaps: heat maps of the images, shape ``(N, J, H, W)``.
        of_mirrored: heat maps of the mirrored images, same shape.
        pairs: indices of left and right joints.
        shift: move the mirrored maps one pixel to the right first (the first column stays), which corrects for strided
            layers; False in the source of SGS Table 8, True in microsoft/human-pose-estimation.pytorch.
    """
    mirrored = mirror_heatmaps(of_mirrored, pairs)
    if shift:
        mirrored = torch.cat([mirrored[..., :1], mirrored[..., :-1]], dim=-1)
    return (heatmaps + mirrored) / 2


def decode_heatmaps(heatmaps: Tensor, *, quarter_pixel: bool = False) -> Tensor:
    """Return the coordinates of the largest value of each heat map.

    The first of equal values counts. A map without a positive value gives ``(0, 0)``.

    Args:
        heatmaps: shape ``(N, J, H, W)``.
        quarter_pixel: move the coordinates by 0.25 towards the larger neighbour in x and in y, not at all between equal
            neighbours. Maxima in the first two or the last row or column stay. False in the source of SGS Table 8, True
            in microsoft/human-pose-estimation.pytorch.

    Returns:
        x and y in pixels of the heat map, float32, shape ``(N, J, 2)``.

    >>> decode_heatmaps(torch.tensor([[[[0.0, 0.1, 0.9]]]]))
    tensor([[[2., 0.]]])
    """
    height, width = heatmaps.shape[-2:]
    values, places = heatmaps.flatten(2).max(-1)
    places = torch.where(values > 0, places, 0)
    x, y = places % width, places // width
    coordinates = torch.stack([x, y], -1).float()
    if quarter_pixel and min(height, width) > 3:
        inside = (x > 1) & (x < width - 1) & (y > 1) & (y < height - 1)
        flat, centre = heatmaps.flatten(2), torch.where(inside, places, width + 1)
        slopes = [
            (flat.gather(2, (centre + step).unsqueeze(-1)) - flat.gather(2, (centre - step).unsqueeze(-1))).squeeze(-1)
            for step in (1, width)
        ]
        coordinates += 0.25 * torch.stack(slopes, -1).sign() * inside.unsqueeze(-1)
    return coordinates
