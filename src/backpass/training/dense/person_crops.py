"""The data set of persons, and their crops with what the evaluation needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy
import torch
from torch import Tensor

from backpass.errors import InputError
from backpass.training.augment import normalize
from backpass.training.dense.crop_geometry import crop_matrix, invert_matrix, swap_joints, transform_points, warp
from backpass.training.dense.mpii import MPII_PAIRS
from backpass.training.dense.person_augmentation import PersonDraws
from backpass.training.dense.persons import PersonItem, PoseTruth
from backpass.training.dense.pose_metrics import MPII_NOT_SCORED, PoseMetric
from backpass.training.image_folder import IMAGENET_MEAN, IMAGENET_STD, decode_image
from backpass.training.items import ItemData

__all__ = ["PersonData", "PoseTarget", "crop_person"]


class PoseTarget(NamedTuple):
    """The target of one person or, with a leading axis, of a batch.

    Attributes:
        joints: x and y in pixels of the crop, float32, shape ``(J, 2)``.
        visible: joints that are annotated, bool, shape ``(J,)``.
        to_image: affine map from pixels of the crop to pixels of the image, float64, shape ``(2, 3)``.
        truth: x and y in pixels of the image, float64, shape ``(J, 2)``, for the evaluation.
        scored: joints that are scored, bool, shape ``(J,)``; none where there is no ground truth.
        size: unit of PCKh or PCK in pixels, float64, a scalar; 1 where there is no ground truth.
    """

    joints: Tensor
    visible: Tensor
    to_image: Tensor
    truth: Tensor
    scored: Tensor
    size: Tensor


@dataclass(frozen=True, eq=False)
class PersonData(ItemData):
    """A data set of persons; items are those of :class:`~backpass.training.dense.persons.Persons`.

    Attributes:
        pairs: right and left joints that change places when an image is mirrored.
        not_scored: joints left out of the means.
        metric: of what its ground truth has the unit.
    """

    pairs: tuple[tuple[int, int], ...] = MPII_PAIRS
    not_scored: tuple[int, ...] = MPII_NOT_SCORED
    metric: PoseMetric = "pckh"

    def reduced(self, validation: float, limit_train: int | None, limit_test: int | None, seed: int) -> Self:
        """Return the data set with persons held out, and then with fewer (:meth:`ItemData.reduced`).

        Raises:
            InputError: persons are to be held out that have no ground truth, or see there.
        """
        if validation and self.train[0].truth is None:
            raise InputError(
                f"expected annot/gt_train.mat, a ground truth of the training persons of {self.label}, for held-out "
                "persons, got none; add the file, or evaluate on the test persons"
            )
        return super().reduced(validation, limit_train, limit_test, seed)


def crop_person(
    item: PersonItem,
    draws: PersonDraws,
    *,
    size: tuple[int, int],
    max_value: float,
    bgr: bool,
    cap_side: bool,
    pairs: Sequence[tuple[int, int]],
) -> tuple[Tensor, PoseTarget]:
    """Return the crop of a person, float32, ``(3, *size)``, and its target.

    Args:
        item: of :class:`~backpass.training.dense.persons.Persons`.
        draws: random draws (:func:`~backpass.training.dense.person_augmentation.draw_person`); ``PersonDraws()``: no
            augmentation.
        size: height and width of the crop in pixels.
        max_value: pixel value that corresponds to 1; 256 in the source of SGS Table 8.
        bgr: blue, green, red, which both published sources feed to weights trained on RGB. Mean and standard deviation
            are ImageNet's, in the order of the channels that the model sees.
        cap_side: cap the region's side, after random scaling, at the longer side of the image, as in the source of SGS
            Table 8.
        pairs: right and left joints that change places when a crop is mirrored.

    Raises:
        InputError: the image cannot be decoded. The message names the file.
    """
    person = item.person
    pixels = torch.from_numpy(numpy.array(decode_image(person.image))).permute(2, 0, 1)
    side = draws.scale * person.side
    side = min(side, max(pixels.shape[1:])) if cap_side else side
    matrix = crop_matrix(person.center, side, size, draws.angle, draws.mirrored)
    crop = warp(pixels, matrix, size)
    image = normalize((crop.flip(0) if bgr else crop)[None], IMAGENET_MEAN, IMAGENET_STD, max_value=max_value)[0]
    joints, visible = transform_points(person.joints, matrix), person.visible
    if draws.mirrored:
        joints, visible = swap_joints(joints, pairs), swap_joints(visible, pairs)
    truth = item.truth
    if truth is None:
        truth = PoseTruth(person.joints.double(), torch.zeros_like(visible), torch.ones((), dtype=torch.float64))
    return image, PoseTarget(joints, visible, invert_matrix(matrix), *truth)
