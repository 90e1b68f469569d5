"""Augmentation of persons' crops, as in the sources of SGS Table 8 and of its model."""

from typing import NamedTuple

import torch

__all__ = ["PersonDraws", "draw_person"]


class PersonDraws(NamedTuple):
    """Random draws for the crop of one person.

    Attributes:
        scale: factor on the side of the region.
        angle: rotation in degrees; 0: none.
        mirrored: whether the crop is mirrored, with left and right joints swapped.
    """

    scale: float = 1.0
    angle: float = 0.0
    mirrored: bool = False


def draw_person(scale: float, rotation: float, rotation_probability: float, flip_probability: float) -> PersonDraws:
    """Draw the numbers for one person from the global generator of torch; each step takes its draws even if it is off.

    The side of the region is multiplied by N(1, ``scale``**2), clipped to ``1 - scale`` and ``1 + scale``. With
    probability ``rotation_probability`` the angle is drawn from N(0, ``rotation``**2) and clipped to twice that. With
    probability ``flip_probability`` the crop is mirrored.

    Args:
        scale: standard deviation and largest change of the factor on the side.
        rotation: standard deviation of the angle in degrees.
        rotation_probability: probability of a rotation.
        flip_probability: probability of a mirrored crop.
    """
    size, turn = torch.randn(2).tolist()
    rotated, mirrored = torch.rand(2).tolist()
    angle = min(max(rotation * turn, -2 * rotation), 2 * rotation)
    return PersonDraws(
        scale=min(max(1 + scale * size, 1 - scale), 1 + scale),
        angle=angle if rotated < rotation_probability else 0.0,
        mirrored=mirrored < flip_probability,
    )
