"""The data sets of segmentation and key points by name.

- ``cityscapes:PATH``: 2,975 finely annotated images for training and 500 of ``val`` for testing, 19 classes
  (:func:`~backpass.training.dense.segmentation_files.cityscapes`). Its argument ``ids`` is ``raw`` or ``train``.
- ``camvid:PATH``: 367 images for training and 233 for testing, 11 classes
  (:func:`~backpass.training.dense.segmentation_files.camvid`). Its argument ``test`` is the split to test on, ``test``
  or ``val``, which has 101 images.
- ``mpii:PATH``: 22,246 persons for training and 2,958 of ``valid`` for testing, 16 joints
  (:func:`~backpass.training.dense.mpii.mpii`).
- ``lsp:PATH``: 9,000 persons for training and the last 1,000 for testing, 14 joints
  (:func:`~backpass.training.dense.lsp.lsp`). Its argument ``held_out`` is the number for testing.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from backpass._internal.imports import check_call
from backpass.errors import InputError
from backpass.training.dense.lsp import LSP_JOINTS, LSP_PAIRS, lsp
from backpass.training.dense.mpii import MPII_JOINTS, mpii
from backpass.training.dense.person_crops import PersonData
from backpass.training.dense.segmentation_files import SegmentationFiles, camvid, cityscapes
from backpass.training.items import ItemData

__all__ = ["DENSE_KINDS", "DENSE_NAMES", "load_dense"]


def _cityscapes(root: Path, ids: Literal["raw", "train"] = "raw") -> ItemData:
    return _segmentation("Cityscapes", cityscapes(root, "train", ids), cityscapes(root, "val", ids), (1024, 2048))


def _camvid(root: Path, test: Literal["test", "val"] = "test") -> ItemData:
    if test not in ("test", "val"):
        raise InputError(f"expected test to be 'test' or 'val', the splits of CamVid, got {test!r}; choose one")
    return _segmentation("CamVid", camvid(root, "train"), camvid(root, test), (360, 480))


def _segmentation(label: str, train: SegmentationFiles, test: SegmentationFiles, size: tuple[int, int]) -> ItemData:
    return ItemData(label, train, test, num_classes=len(train.class_names), input_size=(3, *size))


def _mpii(root: Path) -> PersonData:
    train, valid = mpii(root, "train"), mpii(root, "valid")
    if valid.truth is None:
        raise InputError(
            f"expected {root / 'annot' / 'gt_valid.mat'}, the ground truth of PCKh, got none; add the file of "
            "Microsoft's release"
        )
    return PersonData("MPII", train, valid, num_classes=len(MPII_JOINTS), input_size=(3, 256, 256))


def _lsp(root: Path, held_out: int = 1000) -> PersonData:
    train, test = lsp(root, "train", held_out), lsp(root, "test", held_out)
    size, joints = (3, 256, 256), len(LSP_JOINTS)
    return PersonData("LSP extended", train, test, joints, size, pairs=LSP_PAIRS, not_scored=(), metric="pck")


DENSE_KINDS: dict[str, Callable[..., ItemData]] = {
    "cityscapes": _cityscapes,
    "camvid": _camvid,
    "mpii": _mpii,
    "lsp": _lsp,
}

DENSE_NAMES = tuple(f"{kind}:PATH" for kind in DENSE_KINDS)


def load_dense(kind: str, root: Path, arguments: Mapping[str, Any]) -> ItemData:
    """Return a data set of segmentation or key points.

    Args:
        kind: a key of :data:`DENSE_KINDS`.
        root: its folder.
        arguments: further ones, by name.

    Raises:
        InputError: a file is missing, damaged or does not fit, or an argument is unknown.
    """
    check_call(DENSE_KINDS[kind], kind, {"root": root, **arguments})
    return DENSE_KINDS[kind](root, **arguments)
