"""The data set of persons cut out of their images, with what the evaluation needs."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy
import torch
from torch import Tensor
from torch.utils.data import Dataset

from backpass.training.augment import normalize
from backpass.training.dense.crop_geometry import crop_matrix, invert_matrix, swap_joints, transform_points, warp
from backpass.training.dense.mpii import MPII_PAIRS, PersonFiles
from backpass.training.dense.person_augmentation import PersonDraws
from backpass.training.image_folder import IMAGENET_MEAN, IMAGENET_STD, decode_image

__all__ = ["PersonCrops", "PersonInput", "PoseTarget"]


class PoseTarget(NamedTuple):
    """The target of one person or, with a leading axis, of a batch.

    Attributes:
        joints: x and y in pixels of the crop, float32, shape ``(J, 2)``.
        visible: joints that are annotated, bool, shape ``(J,)``.
        to_image: affine map from pixels of the crop to pixels of the image, float64, shape ``(2, 3)``.
        truth: x and y in pixels of the image, float64, shape ``(J, 2)``, for PCKh.
        scored: joints that count in PCKh, bool, shape ``(J,)``; none where there is no ground truth.
        size: unit of PCKh in pixels, float64, a scalar; 1 where there is no ground truth.
    """

    joints: Tensor
    visible: Tensor
    to_image: Tensor
    truth: Tensor
    scored: Tensor
    size: Tensor


@dataclass(frozen=True)
class PersonInput:
    """How a person's crop becomes the input of a model.

    Attributes:
        size: height and width of the crop in pixels.
        mean: mean of each channel on the scale from 0 to 1, in the order of the channels that the model sees.
        std: standard deviation of each channel on the same scale.
        max_value: pixel value that corresponds to 1; 256 in the source of SGS Table 8, 255 by default.
        bgr: blue, green, red, which both published sources feed to weights trained on RGB; default False.
        cap_side: cap the region's side at the longer side of the image, as in the source of SGS Table 8.
    """

    size: tuple[int, int] = (256, 256)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    max_value: float = 255.0
    bgr: bool = False
    cap_side: bool = True


class PersonCrops(Dataset[tuple[Tensor, PoseTarget]]):
    """Persons of a split, cut out of their images and decoded on the fly.

    Args:
        files: persons and ground truth (:func:`~backpass.training.dense.mpii.mpii`).
        settings: how a crop becomes the input.

    Raises:
        InputError: on access: an image cannot be decoded. The message names the file.
    """

    def __init__(self, files: PersonFiles, settings: PersonInput | None = None) -> None:
        self.files = files
        self.settings = settings or PersonInput()

    def __len__(self) -> int:
        return len(self.files.persons)

    def __getitem__(self, index: int) -> tuple[Tensor, PoseTarget]:
        """Return the crop of a person without augmentation, as for evaluation."""
        return self.crop(index, PersonDraws())

    def crop(self, index: int, draws: PersonDraws) -> tuple[Tensor, PoseTarget]:
        """Return the crop of a person, float32, ``(3, *size)``, and its target.

        Args:
            index: number of the person.
            draws: random draws of :class:`~backpass.training.dense.person_augmentation.PersonAugmentation`.
        """
        person, settings = self.files.persons[index], self.settings
        pixels = torch.from_numpy(numpy.array(decode_image(person.image))).permute(2, 0, 1)
        height, width = pixels.shape[1:]
        side = min(person.side, max(height, width)) if settings.cap_side else person.side
        matrix = crop_matrix(person.center, draws.scale * side, settings.size, draws.angle, draws.mirrored)
        crop = warp(pixels, matrix, settings.size)
        image = normalize(
            (crop.flip(0) if settings.bgr else crop)[None], settings.mean, settings.std, max_value=settings.max_value
        )[0]
        joints, visible = transform_points(person.joints, matrix), person.visible
        if draws.mirrored:
            joints, visible = swap_joints(joints, MPII_PAIRS), swap_joints(visible, MPII_PAIRS)
        truth = self.files.truth
        if truth is None:
            measured = person.joints.double(), torch.zeros_like(visible), torch.ones((), dtype=torch.float64)
        else:
            measured = truth.joints[index], truth.visible[index], truth.sizes[index]
        return image, PoseTarget(joints, visible, invert_matrix(matrix), *measured)
