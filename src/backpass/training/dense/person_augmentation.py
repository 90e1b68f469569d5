"""Augmentation of persons' crops, as in the sources of SGS Table 8 and of its model."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

__all__ = ["PersonAugmentation", "PersonDraws"]


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


@dataclass(frozen=True)
class PersonAugmentation:
    """Random scale, rotation and flip of a person's crop; defaults: both published sources of MSRA ResNet.

    The side of the region is multiplied by N(1, ``scale``**2), clipped to ``1 - scale`` and ``1 + scale``. With
    probability ``rotation_probability`` the angle is drawn from N(0, ``rotation``**2) and clipped to twice that. With
    probability ``flip_probability`` the crop is mirrored.

    Attributes:
        scale: standard deviation and largest change of the factor on the side.
        rotation: standard deviation of the angle in degrees.
        rotation_probability: probability of a rotation.
        flip_probability: probability of a mirrored crop.
    """

    scale: float = 0.25
    rotation: float = 30.0
    rotation_probability: float = 0.6
    flip_probability: float = 0.5

    def draw(self, generator: torch.Generator) -> PersonDraws:
        """Draw the numbers for one person; each step takes its draws whether it acts or not."""
        size, turn = torch.randn(2, generator=generator).tolist()
        rotated, mirrored = torch.rand(2, generator=generator).tolist()
        angle = min(max(self.rotation * turn, -2 * self.rotation), 2 * self.rotation)
        return PersonDraws(
            scale=min(max(1 + self.scale * size, 1 - self.scale), 1 + self.scale),
            angle=angle if rotated < self.rotation_probability else 0.0,
            mirrored=mirrored < self.flip_probability,
        )
