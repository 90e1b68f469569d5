"""MPII Human Pose in the published format: annotation as JSON, ground truth of the evaluation as a MATLAB file."""

import json
import os
from pathlib import Path
from typing import Any, Literal

import torch

from backpass.errors import InputError
from backpass.training.dense.persons import REGION_MARGIN, Person, Persons, PoseTruth, check_images, read_matlab
from backpass.training.dense.pose_metrics import head_sizes

__all__ = ["MPII_JOINTS", "MPII_PAIRS", "mpii"]

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
_TRUTH = ("dataset_joints", "jnt_missing", "pos_gt_src", "headboxes_src")
_PIXELS_PER_SCALE = 200
_DOWNWARDS = 15


def mpii(root: str | os.PathLike[str], split: Literal["train", "valid"] | str) -> Persons:
    """Read the annotation of MPII in the form of microsoft/human-pose-estimation.pytorch.

    ``annot/SPLIT.json`` is a list of persons, each with ``image``, ``center``, ``scale``, ``joints`` (16 x 2) and
    ``joints_vis`` (16); the images are in ``images/``. ``annot/gt_SPLIT.mat``, which the evaluation of ``valid`` needs,
    holds ``dataset_joints``, ``jnt_missing`` (16 x N), ``pos_gt_src`` (16 x 2 x N) and ``headboxes_src`` (2 x 2 x N) of
    the same persons. There are 22,246 persons for training and 2,958 for validation.

    The files count pixels from 1; here they count from 0. A person's region has its centre 15 * ``scale`` pixels below
    the annotated one and a side of 1.25 * 200 * ``scale`` pixels, as in both published sources. The joints are shifted
    with the centre; that of SGS Table 8 shifts the centre alone.

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
    check_images(persons, annotation)
    return Persons(persons, _truth(truth, len(persons)) if truth.is_file() else None)


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
    center, side = (x - 1, y + _DOWNWARDS * scale - 1), REGION_MARGIN * _PIXELS_PER_SCALE * scale
    return Person(str(folder / "images" / image), center, side, joints - 1, visible)


def _truth(file: Path, count: int) -> PoseTruth:
    stored = read_matlab(file, _TRUTH)
    try:
        names = tuple(str(name.item()) for name in stored["dataset_joints"].ravel())
        arrays = {name: torch.from_numpy(stored[name].astype("float64")).movedim(-1, 0) for name in _TRUTH[1:]}
    except (TypeError, ValueError) as error:
        raise InputError(
            f"expected {file} to hold the names {_TRUTH[0]} and the numbers {', '.join(_TRUTH[1:])}, got "
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
