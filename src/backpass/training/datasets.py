"""The data sets by name, as uint8 images in memory or as lists of image files to stream.

``digits`` is bundled with scikit-learn, ``cifar10`` and ``cifar100`` are read by torchvision from their
published files, ``imagenet:PATH`` and ``folder:PATH`` are folders of images, one sub-folder a class.
"""

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from backpass.errors import InputError
from backpass.training.image_folder import hold_folder, import_lab, list_folder
from backpass.training.images import ImageData, ImageSplit, Split, channel_statistics, stratified_subset

__all__ = ["CIFAR_MEAN", "CIFAR_STD", "list_datasets", "load_dataset"]

# Of CIFAR-10's training images; the SGS and DyRep configurations use them for both CIFAR sets.
CIFAR_MEAN = (0.49139968, 0.48215827, 0.44653124)
CIFAR_STD = (0.24703233, 0.24348505, 0.26158768)

_NAMES = ("digits", "cifar10", "cifar100", "imagenet:PATH", "folder:PATH")
_DIGITS_TEST_SHARE = 0.2


def list_datasets() -> tuple[str, ...]:
    """Return the names that `load_dataset` knows.

    >>> list_datasets()
    ('digits', 'cifar10', 'cifar100', 'imagenet:PATH', 'folder:PATH')
    """
    return _NAMES


def load_dataset(
    name: str,
    *,
    root: str | os.PathLike[str] | None = None,
    split_validation: float = 0.0,
    limit_train: int | None = None,
    limit_test: int | None = None,
    seed: int = 0,
    download: bool = False,
    label: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_size: int | None = None,
    memory_limit: float = 4.0,
    cache: str | os.PathLike[str] | None = None,
) -> ImageData:
    """Return a data set by name.

    - ``digits``: 1,797 grey images of 8x8 pixels, values 0 to 16 (``max_value`` 16), ten classes. One fifth,
      the same whatever the seed, is the test split.
    - ``cifar10``, ``cifar100``: the published Python batches below ``root``, read once torchvision has found
      their MD5 sums to be the published ones.
    - ``folder:PATH``: RGB images in ``train/CLASS/`` and in ``test/CLASS/`` or, where there is no ``test/``,
      ``val/CLASS/``. Images of one size that fit in ``memory_limit`` are decoded into memory; others are
      streamed, which takes ``image_size``.
    - ``imagenet:PATH``: the same with ``train/`` and ``val/``, exactly 1,000 classes, always streamed.

    Every subset is stratified (see `stratified_subset`). Validation images are taken from the training images
    before ``limit_train`` applies.

    Args:
        name: one of `list_datasets`, with a path instead of ``PATH``.
        root: where the files are, for a name without a path; ``data`` by default for the CIFAR sets.
        split_validation: fraction of the training images to hold out, from 0 up to but not including 1.
        limit_train: how many training images to keep; all by default.
        limit_test: how many test images to keep; all by default.
        seed: draws the subsets.
        download: fetch a missing CIFAR set with torchvision.
        label: name for reports; by default the set's own, for a folder the folder's name.
        mean: normalisation per channel on the scale 0 to 1. By default the CIFAR-10 values for both CIFAR sets
            (SGS and DyRep configurations), ImageNet's usual ones for streamed images, those of the whole
            training split for ``digits``, and those of the training images that are kept for folders in memory.
        std: likewise.
        image_size: side in pixels to which streamed images are cropped; 224 by default for ImageNet.
        memory_limit: largest size in GiB of a folder's decoded images.
        cache: folder in which to keep a folder's decoded images as tensors, so that the next call reads them
            from there as long as no file has changed. Nothing is kept by default.

    Raises:
        InputError: the name is unknown, files are missing, damaged or of unequal sizes, a class is empty or in
            one split alone, or a limit is not in the range of the set.
        MissingExtraError: torchvision or scikit-learn is not installed.
    """
    kind, _, path = name.partition(":")
    if kind not in {known.partition(":")[0] for known in _NAMES} or (kind == "digits" and path):
        raise InputError(f"unknown data set {name!r}; the known ones are {', '.join(_NAMES)}.")
    if (mean is None) != (std is None):
        raise InputError(f"mean and std go together, got mean={mean} and std={std}.")
    if image_size is not None and (kind not in {"folder", "imagenet"} or image_size < 1):
        raise InputError(f"image_size is for folders and at least 1, got {image_size} with {name!r}; leave it out.")
    place = Path(path or root or "data")
    if kind == "digits":
        data = _load_digits()
    elif kind.startswith("cifar"):
        data = _load_cifar(kind, place, download)
    elif not path and root is None:
        raise InputError(f"{name!r} needs a folder; write {kind}:PATH or give root=PATH.")
    else:
        default_size = 224 if kind == "imagenet" else None
        data = list_folder(place, kind, image_size or default_size)

    train, validation = _split_validation(data.train, split_validation, seed)
    train = _limit(train, limit_train, "limit_train", seed)
    test = _limit(data.test, limit_test, "limit_test", seed)
    data = replace(data, train=train, validation=validation, test=test)
    if kind == "folder":
        data = hold_folder(data, image_size, memory_limit, None if cache is None else Path(cache))
    if mean is not None and std is not None:
        data = replace(data, mean=tuple(mean), std=tuple(std))
    return replace(data, label=label or data.label)


def _load_digits() -> ImageData:
    sklearn_datasets = import_lab("sklearn.datasets", "scikit-learn", "the digits")
    bunch = sklearn_datasets.load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    split = ImageSplit(images, torch.from_numpy(bunch.target).long())
    for_training, for_test = _divide(split.labels, round(_DIGITS_TEST_SHARE * len(split)), seed=0)
    train, test = split.select(for_training), split.select(for_test)
    mean, std = channel_statistics(train.images, max_value=16.0)
    return ImageData(
        label="digits (scikit-learn)",
        train=train,
        test=test,
        class_names=tuple(str(name) for name in bunch.target_names),
        image_size=(8, 8),
        mean=mean,
        std=std,
        max_value=16.0,
    )


def _load_cifar(kind: str, root: Path, download: bool) -> ImageData:
    torchvision_datasets = import_lab("torchvision.datasets", "torchvision", "the CIFAR data sets")
    exceptions = import_lab("numpy.exceptions", "numpy", "the CIFAR data sets")
    reader = {"cifar10": torchvision_datasets.CIFAR10, "cifar100": torchvision_datasets.CIFAR100}[kind]
    folder = root / reader.base_folder
    try:
        with warnings.catch_warnings():
            # NumPy 2.4.0 to 2.4.4 warn of the form in which an old NumPy pickled the batches.
            warnings.simplefilter("ignore", exceptions.VisibleDeprecationWarning)
            stored = [reader(str(root), train=train, download=download) for train in (True, False)]
    except RuntimeError as error:
        found = "a file in it is missing or not as published" if folder.is_dir() else "it does not exist"
        raise InputError(
            f"{kind} was looked for in {folder}, but {found}; set download=True to fetch the set, or set root "
            f"to the folder that holds {reader.base_folder}."
        ) from error
    train, test = (
        ImageSplit(torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(part.targets))
        for part in stored
    )
    return ImageData(
        label={"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}[kind],
        train=train,
        test=test,
        class_names=tuple(stored[0].classes),
        image_size=(32, 32),
        mean=CIFAR_MEAN,
        std=CIFAR_STD,
    )


def _split_validation(train: Split, fraction: float, seed: int) -> tuple[Split, Split | None]:
    if not 0 <= fraction < 1:
        raise InputError(f"expected 0 <= split_validation < 1, a fraction of the training images, got {fraction}")
    if fraction == 0:
        return train, None
    count = round(fraction * len(train))
    if not 0 < count < len(train):
        raise InputError(
            f"split_validation={fraction} of {len(train)} training images leaves {count} to validate on and "
            f"{len(train) - count} to train on; both need at least one."
        )
    rest, chosen = _divide(train.labels, count, seed)
    return train.select(rest), train.select(chosen)


def _limit(split: Split, limit: int | None, argument: str, seed: int) -> Split:
    if limit is None:
        return split
    if not 1 <= limit <= len(split):
        raise InputError(
            f"{argument} must be from 1 to the {len(split)} images of the split, got {limit}; leave it out to keep all."
        )
    generator = torch.Generator().manual_seed(seed)
    return split.select(stratified_subset(split.labels, limit, generator))


def _divide(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return the indices outside of a stratified subset of ``count`` images, and those of the subset."""
    chosen = stratified_subset(labels, count, torch.Generator().manual_seed(seed))
    outside = torch.ones(len(labels), dtype=torch.bool)
    outside[chosen] = False
    return outside.nonzero().squeeze(1), chosen
