"""Data sets by name, as uint8 images in memory or as lists of image files.

``digits`` comes with scikit-learn. ``cifar10`` and ``cifar100`` are read by torchvision from their published files.
``imagenet:PATH`` and ``folder:PATH`` are folders of images with one sub-folder per class. Data sets of other tasks, and
the user's own, are lists of items.
"""

import os
import warnings
from collections.abc import Mapping
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from filelock import FileLock

from backpass._internal.imports import import_lab, is_import_path
from backpass.errors import InputError
from backpass.training.data_settings import Argument
from backpass.training.dense.datasets import DENSE_KINDS, DENSE_NAMES, load_dense
from backpass.training.image_folder import hold_folder, list_folder
from backpass.training.images import ImageData, ImageSplit, channel_statistics, stratified_subset
from backpass.training.items import Data, call_data_function
from backpass.training.subsets import complement

__all__ = ["CIFAR_MEAN", "CIFAR_STD", "list_datasets", "load_dataset"]

# Statistics of the CIFAR-10 training images, which the configurations of SGS and DyRep use for CIFAR-100 as well.
CIFAR_MEAN = (0.49139968, 0.48215827, 0.44653124)
CIFAR_STD = (0.24703233, 0.24348505, 0.26158768)

_NAMES = ("digits", "cifar10", "cifar100", "imagenet:PATH", "folder:PATH", *DENSE_NAMES)
_DIGITS_TEST_FRACTION = 0.2


def list_datasets() -> tuple[str, ...]:
    """Return the names that :func:`load_dataset` accepts, besides import paths of functions.

    >>> list_datasets()
    ('digits', 'cifar10', 'cifar100', 'imagenet:PATH', 'folder:PATH', 'cityscapes:PATH', 'camvid:PATH', 'mpii:PATH',
     'lsp:PATH')
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
    image_size: int | None = None,
    memory_limit: float = 4.0,
    arguments: Mapping[str, Argument] | None = None,
) -> Data:
    """Load a data set by name.

    - ``digits``: 1,797 grey images of 8x8 pixels with values from 0 to 16 (``max_value`` 16) in ten classes. One fifth
      of them is the test split, which does not depend on the seed.
    - ``cifar10``, ``cifar100``: the published Python batches below ``root``. torchvision verifies their MD5 checksums
      before it unpickles them.
    - ``folder:PATH``: RGB images in ``train/CLASS/`` and ``test/CLASS/``, or ``val/CLASS/`` if there is no ``test/``.
      Images of one size that fit into ``memory_limit`` are decoded into memory; all others are decoded on the fly,
      which requires ``image_size``.
    - ``imagenet:PATH``: the same with ``train/`` and ``val/``, exactly 1,000 classes, always decoded on the fly.
    - ``cityscapes:PATH``, ``camvid:PATH``, ``mpii:PATH``, ``lsp:PATH``: see :mod:`backpass.training.dense.datasets`.
    - ``package.module:function``: what the function returns for ``arguments``, an :class:`ImageData` or an
      :class:`~backpass.training.items.ItemData`.

    Every subset of images with one class each is stratified (:func:`~backpass.training.images.stratified_subset`).
    Validation images are taken from the training images before ``limit_train`` is applied.

    Images with one class each are normalised by the statistics of CIFAR-10 for both CIFAR sets (configurations of SGS
    and DyRep), the usual ones of ImageNet where they are decoded on the fly, those of the whole training split for
    ``digits``, and those of the selected training images for folders in memory. For others, replace ``mean`` and
    ``std`` of the result with ``dataclasses.replace``.

    Args:
        name: one of :func:`list_datasets`, with a path instead of ``PATH``.
        root: folder that holds the files, for a name without a path; default: ``data`` for the CIFAR sets.
        split_validation: fraction of the training images to hold out, at least 0 and below 1.
        limit_train: number of training images to keep; default: all.
        limit_test: number of test images to keep; default: all.
        seed: seed of the subsets.
        download: download a missing CIFAR set with torchvision; one process does, others with the same ``root`` wait.
        label: name of the data set in reports; default: its own name, or that of the folder.
        image_size: side in pixels to which images decoded on the fly are cropped; default: 224 for ImageNet.
        memory_limit: maximum size of the decoded images of a folder, in GiB.
        arguments: of the function that the name imports, or of a data set of segmentation or key points.

    Raises:
        InputError: the name is unknown, a file is missing or damaged, images differ in size, a class is empty or
            missing from a split, a download fails, or an argument is out of range.
        MissingExtraError: torchvision or scikit-learn is not installed.
    """
    kind, _, path = name.partition(":")
    kinds = {known.partition(":")[0] for known in _NAMES}
    own = kind not in kinds and is_import_path(name)
    if not own and (kind not in kinds or (kind == "digits" and path)):
        raise InputError(
            f"expected one of the data sets {', '.join(_NAMES)} or an import path package.module:function, got "
            f"{name!r}; choose one of them"
        )
    if image_size is not None and (kind not in {"folder", "imagenet"} or image_size < 1):
        raise InputError(
            f"expected image_size >= 1 with folder:PATH or imagenet:PATH, got {image_size} with {name!r}; leave it out"
        )
    place = Path(path or root or "data").expanduser()
    data: Data
    if own:
        data = call_data_function(name, arguments or {})
    elif arguments and kind not in DENSE_KINDS:
        raise InputError(f"expected {name!r} without arguments, got {sorted(arguments)}; leave data.args out")
    elif kind == "digits":
        data = _load_digits()
    elif kind.startswith("cifar"):
        data = _load_cifar(kind, place, download)
    elif not path and root is None:
        raise InputError(
            f"expected {kind}:PATH, got {name!r} and no root; add the path to the name "
            "(--data.name, of reproduce --data), or set root"
        )
    elif kind in DENSE_KINDS:
        data = load_dense(kind, place, arguments or {})
    else:
        default_size = 224 if kind == "imagenet" else None
        data = list_folder(place, kind, image_size or default_size)

    data = data.reduced(split_validation, limit_train, limit_test, seed)
    if kind == "folder" and isinstance(data, ImageData):
        data = hold_folder(data, image_size, memory_limit)
    return replace(data, label=label or data.label)


def _load_digits() -> ImageData:
    sklearn_datasets = import_lab("sklearn.datasets", "scikit-learn", "the digits")
    bunch = sklearn_datasets.load_digits()
    images = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    split = ImageSplit(images, torch.from_numpy(bunch.target).long())
    count = round(_DIGITS_TEST_FRACTION * len(split))
    for_test = stratified_subset(split.labels, count, torch.Generator().manual_seed(0))
    train, test = split.select(complement(for_test, len(split))), split.select(for_test)
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
    reader = {"cifar10": torchvision_datasets.CIFAR10, "cifar100": torchvision_datasets.CIFAR100}[kind]
    folder = root / reader.base_folder
    try:
        stored = _read_cifar(reader, root)
    except RuntimeError as error:
        if not download:
            found = "a folder with a missing or damaged file" if folder.is_dir() else "no such folder"
            raise InputError(
                f"expected the published files of {kind} in {folder}, got {found}; set download=True "
                "(--data.download, of reproduce --download), or set root (--data.root, of reproduce --root) to the "
                f"folder that holds {reader.base_folder}"
            ) from error
        stored = _download_cifar(kind, reader, root)
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


def _read_cifar(reader: Any, root: Path, *, download: bool = False) -> list[Any]:
    exceptions = import_lab("numpy.exceptions", "numpy", "the CIFAR data sets")
    with warnings.catch_warnings():
        # NumPy 2.4.0 to 2.4.4 warn about the pickle format of the batches, written by an old NumPy.
        warnings.simplefilter("ignore", exceptions.VisibleDeprecationWarning)
        return [reader(str(root), train=train, download=download) for train in (True, False)]


def _download_cifar(kind: str, reader: Any, root: Path) -> list[Any]:
    root.mkdir(parents=True, exist_ok=True)
    try:
        # torchvision writes each file in its place, where other workers and ranks would write it at the same time.
        with FileLock(root / f".{kind}.lock"):
            return _read_cifar(reader, root, download=True)
    except (URLError, HTTPException, ConnectionError, TimeoutError, RuntimeError) as error:
        raise InputError(
            f"expected to download {kind} from {reader.url}, got {error}; check the network, or put the published "
            f"files into {root / reader.base_folder}"
        ) from error
