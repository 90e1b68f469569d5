"""Leeds Sports Pose Extended in its published format: images, and the joints of all persons in one MATLAB file."""

import os
from pathlib import Path
from typing import Literal

import numpy
import torch
from torch import Tensor

from backpass.errors import InputError
from backpass.training.dense.persons import REGION_MARGIN, Person, Persons, PoseTruth, check_images, read_matlab
from backpass.training.dense.pose_metrics import torso_sizes

__all__ = ["LSP_JOINTS", "LSP_PAIRS", "LSP_TORSO", "lsp"]

LSP_JOINTS = (
    *("right ankle", "right knee", "right hip", "left hip", "left knee", "left ankle"),
    *("right wrist", "right elbow", "right shoulder", "left shoulder", "left elbow", "left wrist"),
    *("neck", "head top"),
)
"""Joints of LSP in their order."""

LSP_PAIRS = ((0, 5), (1, 4), (2, 3), (6, 11), (7, 10), (8, 9))
"""Right and left joints that change places when an image is mirrored."""

LSP_TORSO = (2, 9)
"""Right hip and left shoulder, whose distance is the unit of PCK, as bearpaw/eval_pose has it for this data set."""


def lsp(root: str | os.PathLike[str], split: Literal["train", "test"], held_out: int = 1000) -> Persons:
    """Read Leeds Sports Pose Extended (Johnson and Everingham, CVPR 2011), 10,000 persons with 14 joints.

    ``joints.mat`` holds ``joints`` (14 x 3 x N): x, y, and 1 where the joint is annotated. Person ``n``, counted from
    1, is in ``images/im{n:05d}.jpg``. The data set has no test split; here it is the last persons of the file.

    The coordinates are taken as they are, counted from 0: the files do not state where they count from. A person's
    region is ours too, since the file has no boxes: its centre is that of the box around the annotated joints, its side
    1.25 times the longer side of this box.

    The unit of the evaluation is the length of the torso (:data:`LSP_TORSO`). A person without both of its ends, about
    a quarter of all, is trained on and not scored.

    Args:
        root: folder that holds ``joints.mat`` and ``images``.
        split: ``"train"``, all persons but the last, or ``"test"``, the last.
        held_out: number of persons in ``"test"``; default 1,000, which is ours.

    Raises:
        InputError: an argument is out of range; a file is missing, cannot be read, or holds something else; a person
            has no region. The message names the file, and the person by its number in it.
        MissingExtraError: SciPy is not installed.
    """
    file, images = Path(root) / "joints.mat", Path(root) / "images"
    stored = _joints(file)
    if split not in ("train", "test") or not 1 <= held_out < len(stored):
        raise InputError(
            f"expected split 'train' or 'test' and held_out from 1 to {len(stored) - 1}, one less than the number of "
            f"persons in {file}, got {split!r} and {held_out}; choose other values"
        )
    first = len(stored) - held_out
    numbers = range(first) if split == "train" else range(first, len(stored))
    chosen = stored[numbers.start : numbers.stop]
    joints, visible = chosen[..., :2], chosen[..., 2] > 0
    persons = tuple(
        _person(images / f"im{number + 1:05d}.jpg", joints[n], visible[n], f"person {number + 1} of {file}")
        for n, number in enumerate(numbers)
    )
    check_images(persons, file)
    sizes = torso_sizes(joints, visible, LSP_TORSO)
    truth = PoseTruth(joints, visible & (sizes > 0).unsqueeze(1), torch.where(sizes > 0, sizes, 1.0))
    return Persons(persons, truth)


def _joints(file: Path) -> Tensor:
    """Return x, y and visibility of the joints of all persons, float64, ``(N, 14, 3)``."""
    stored = numpy.asarray(read_matlab(file, ["joints"])["joints"])
    count = len(LSP_JOINTS)
    if stored.shape[:2] != (count, 3) or stored.ndim != 3 or stored.dtype.kind not in "fiu":
        raise InputError(
            f"expected joints of {file} to be numbers of shape ({count}, 3, N), got {stored.dtype} of shape "
            f"{stored.shape}; take the file of LSP extended, since that of LSP has its axes in another order"
        )
    joints = torch.from_numpy(stored.astype("float64")).movedim(-1, 0)
    if not bool(joints.isfinite().all()) or not bool(((joints[..., 2] == 0) | (joints[..., 2] == 1)).all()):
        raise InputError(
            f"expected joints of {file} to be finite, with 0 or 1 in the third row, got other values; replace the file"
        )
    return joints


def _person(image: Path, joints: Tensor, visible: Tensor, name: str) -> Person:
    annotated = joints[visible]
    if not len(annotated) or not bool((annotated != annotated[0]).any()):
        raise InputError(
            f"expected two annotated joints at different places in {name}, got {annotated.tolist()}; leave the person "
            "out"
        )
    low, high = annotated.amin(0), annotated.amax(0)
    x, y = ((low + high) / 2).tolist()
    return Person(str(image), (x, y), REGION_MARGIN * float((high - low).max()), joints.float(), visible)
