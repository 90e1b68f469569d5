"""MPII Human Pose in the published format: annotation as JSON, ground truth of the evaluation as a MATLAB file."""

import json
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from backpass.errors import InputError
from backpass.training.dense.pose_metrics import head_sizes
from backpass.training.image_folder import import_lab

__all__ = ["MPII_JOINTS", "MPII_PAIRS", "Person", "PersonFiles", "PoseTruth", "mpii"]

MPII_JOINTS = (
    *("right ankle", "right knee", "right hip", "left hip", "left knee", "left ankle"),
    *("pelvis", "thorax", "upper neck", "head top"),
    *("right wrist", "right elbow", "right shoulder", "left shoulder", "left elbow", "left wrist"),
)
"""Joints of MPII in their order."""

MPII_PAIRS = ((0, 5), (1, 4), (2, 3), (10, 15), (11, 14), (12, 13))
"""Right and left joints that change places when an image is mirrored."""

_MATLAB_JOINTS = (
    *("rank", "rkne", "rhip", "lhip", "lkne", "lank", "pelv", "thor", "neck", "head"),
    *("rwri", "relb", "rsho", "lsho", "lelb", "lwri"),
)
_PIXELS_PER_SCALE = 200
_MARGIN = 1.25
_DOWNWARDS = 15


class Person(NamedTuple):
    """A person in an image; coordinates count from 0 at the centre of the first pixel.

    Attributes:
        image: path of the image.
        center: x and y of the middle of the region that shows the person.
        side: width and height of this region in pixels.
        joints: x and y of each joint, float32, shape ``(16, 2)``.
        visible: joints that are annotated, bool, shape ``(16,)``.
    """

    image: str
    center: tuple[float, float]
    side: float
    joints: Tensor
    visible: Tensor


class PoseTruth(NamedTuple):
    """Ground truth of an evaluation, for N persons in the order of the annotation.

    Attributes:
        joints: x and y of each joint, counted from 0, float64, shape ``(N, 16, 2)``.
        visible: joints that count, bool, shape ``(N, 16)``.
        sizes: unit of PCKh (:func:`~backpass.training.dense.pose_metrics.head_sizes`), float64, shape ``(N,)``.
    """

    joints: Tensor
    visible: Tensor
    sizes: Tensor


class PersonFiles(NamedTuple):
    """The persons of a split, and the ground truth that PCKh needs, if there is one."""

    label: str
    persons: tuple[Person, ...]
    truth: PoseTruth | None


def mpii(root: str | os.PathLike[str], split: Literal["train", "valid"] | str) -> PersonFiles:
    """Read the annotation of MPII in the form of microsoft/human-pose-estimation.pytorch.

    ``annot/SPLIT.json`` is a list of persons, each with ``image``, ``center``, ``scale``, ``joints`` (16 x 2) and
    ``joints_vis`` (16); the images are in ``images/``. ``annot/gt_SPLIT.mat``, which the evaluation of ``valid`` needs,
    holds ``dataset_joints``, ``jnt_missing`` (16 x N), ``pos_gt_src`` (16 x 2 x N) and ``headboxes_src`` (2 x 2 x N) of
    the same persons. There are 22,246 persons for training and 2,958 for validation.

    The files count pixels from 1; here they count from 0. A person's region has its centre 15 * ``scale`` pixels below
    the annotated one and a side of 1.25 * 200 * ``scale`` pixels, as in both published sources.

    Args:
        root: folder that holds ``annot`` and ``images``.
        split: name of the annotation file without its ending.

    Raises:
        InputError: a file is missing, cannot be read, or holds something else; a person has no centre, another number
            of joints, or no image. The message names the file, and the person by number.
        MissingExtraError: SciPy is not installed.
    """
    folder = Path(root)
    annotation, truth = folder / "annot" / f"{split}.json", folder / "annot" / f"gt_{split}.mat"
    if not annotation.is_file():
        raise InputError(f"expected the annotation {annotation}, got none; correct the path or the name of the split")
    try:
        records = json.loads(annotation.read_bytes())
    except ValueError as error:
        raise InputError(f"expected {annotation} to be JSON, got {error}; replace the file") from error
    if not isinstance(records, list) or not records:
        raise InputError(f"expected {annotation} to be a list of persons, got {_short(records)}; replace the file")
    persons = tuple(_person(record, f"person {n} of {annotation}", folder) for n, record in enumerate(records))
    missing = sorted({person.image for person in persons if not os.path.isfile(person.image)})
    if missing:
        raise InputError(
            f"expected the images of {annotation} in {folder / 'images'}, got none at {missing[0]} and "
            f"{len(missing) - 1} others; unpack the archive of images there"
        )
    return PersonFiles(f"MPII ({split})", persons, _truth(truth, len(persons)) if truth.is_file() else None)


def _person(record: Any, name: str, folder: Path) -> Person:
    try:
        x, y = (float(value) for value in record["center"])
        scale, image = float(record["scale"]), str(record["image"])
        joints = torch.tensor(record["joints"], dtype=torch.float32)
        visible = torch.tensor(record["joints_vis"], dtype=torch.float32) > 0
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"expected {name} to have image, center, scale, joints and joints_vis, got {_short(record)} "
            f"({type(error).__name__}: {error}); replace the file"
        ) from error
    count = len(MPII_JOINTS)
    if joints.shape != (count, 2) or visible.shape != (count,):
        raise InputError(
            f"expected {name} to have joints of shape {(count, 2)} and joints_vis of shape {(count,)}, got "
            f"{tuple(joints.shape)} and {tuple(visible.shape)}; replace the file"
        )
    if (x, y) == (-1, -1) or not scale > 0:
        raise InputError(
            f"expected {name} to have a center and a scale above 0, got ({x:g}, {y:g}) and {scale:g}; "
            "leave the person out"
        )
    center = (x - 1, y + _DOWNWARDS * scale - 1)
    return Person(str(folder / "images" / image), center, _MARGIN * _PIXELS_PER_SCALE * scale, joints - 1, visible)


def _truth(file: Path, count: int) -> PoseTruth:
    scipy_io = import_lab("scipy.io", "SciPy", "the ground truth of MPII")
    try:
        stored = scipy_io.loadmat(file)
    except Exception as error:  # A damaged file makes SciPy raise anything, zlib's and struct's errors among them.
        raise InputError(f"expected {file} to be a readable MATLAB file, got {error}; replace the file") from error
    try:
        names = tuple(str(name.item()) for name in stored["dataset_joints"].ravel())
        arrays = {
            name: torch.from_numpy(stored[name].astype("float64")).movedim(-1, 0)
            for name in ("jnt_missing", "pos_gt_src", "headboxes_src")
        }
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"expected {file} to be a MATLAB file with dataset_joints, jnt_missing, pos_gt_src and headboxes_src, got "
            f"{type(error).__name__}: {error}; replace the file"
        ) from error
    joints = len(MPII_JOINTS)
    expected = {"jnt_missing": (count, joints), "pos_gt_src": (count, joints, 2), "headboxes_src": (count, 2, 2)}
    for name, shape in expected.items():
        if arrays[name].shape != shape:
            stored_shape = (*arrays[name].shape[1:], len(arrays[name]))
            raise InputError(
                f"expected {name} of {file} to have shape {(*shape[1:], count)}, for the {count} persons of the "
                f"annotation, got {stored_shape}; take both files from one release"
            )
    if names != _MATLAB_JOINTS:
        raise InputError(f"expected the joints {_MATLAB_JOINTS} in {file}, got {names}; reorder them")
    try:
        sizes = head_sizes(arrays["headboxes_src"])
    except InputError as error:
        raise InputError(f"{error} (in {file})") from error
    return PoseTruth(arrays["pos_gt_src"] - 1, arrays["jnt_missing"] == 0, sizes)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
