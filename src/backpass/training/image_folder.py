"""Folders of images with one sub-folder per class: listed, and decoded into memory if they fit."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from backpass._internal.imports import import_lab
from backpass.errors import InputError
from backpass.training.images import FileSplit, ImageData, ImageSplit, channel_statistics

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "decode_image", "hold_folder", "list_folder"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_IMAGENET_CLASSES = 1000
_DECODE_THREADS = 16
_DECODE_CHUNK = 256
_CONSTANT = 1e-6  # standard deviation up to which a channel is not scaled


def decode_image(file: str) -> Any:
    """Decode an image file as a Pillow image in RGB with 8 bits per channel.

    16-bit grey values are divided by 257, which maps 65535 to 255.

    Raises:
        InputError: the file is not a readable image, or its pixels are floats or 32-bit integers, for which no value
            is defined as white. The message names the file.
    """
    image_module = import_lab("PIL.Image", "Pillow", "image files")
    try:
        with image_module.open(file) as image:
            if image.mode in ("F", "I"):
                raise InputError(
                    f"expected {file} to have 8 or 16 bits per channel, got pixels of mode {image.mode!r}, for which "
                    "no value is defined as white; convert the image or remove the file"
                )
            if image.mode.startswith("I;16"):
                grey = (numpy.asarray(image, dtype=numpy.float32) / 257).round().astype(numpy.uint8)
                return image_module.fromarray(grey).convert("RGB")
            return image.convert("RGB")
    except InputError:
        raise
    except Exception as error:  # Decoders raise errors of every kind, and Pillow its own for more than 179 megapixels.
        raise InputError(f"expected {file} to be a readable image, got {error}; replace or remove the file") from error


def list_folder(root: Path, kind: str, image_size: int | None) -> ImageData:
    """List the images of a folder as a data set of files.

    Args:
        root: folder that holds ``train/CLASS/`` and ``val/CLASS/`` or ``test/CLASS/``.
        kind: ``imagenet`` (the test images are in ``val/``, 1,000 classes) or ``folder``.
        image_size: side in pixels to which images decoded on the fly are cropped.

    Raises:
        InputError: the folder, a split or a class folder is missing or empty, or the classes of the splits differ.
        MissingExtraError: torchvision is not installed.
    """
    if not root.is_dir():
        raise InputError(
            f"expected {kind}:PATH to name a folder with train/ in it, got {root}, which does not exist; "
            "correct the path"
        )
    if not (root / "train").is_dir():
        raise InputError(
            f"expected {root} to hold train/CLASS/IMAGE and the same in val/ or test/, got no train/; add it"
        )
    wanted = ("val",) if kind == "imagenet" else ("test", "val")
    test_name = next((folder for folder in wanted if (root / folder).is_dir()), None)
    if test_name is None:
        raise InputError(
            f"expected {root} to hold {'/ or '.join(wanted)}/ next to train/, got none; put the test images there"
        )
    classes, train = _list_split(root / "train")
    test_classes, test = _list_split(root / test_name)
    if classes != test_classes:
        raise InputError(
            f"expected train/ and {test_name}/ of {root} to hold the same class folders, got only in train/: "
            f"{sorted(set(classes) - set(test_classes))}, only in {test_name}/: "
            f"{sorted(set(test_classes) - set(classes))}; add or remove folders"
        )
    if kind == "imagenet" and len(classes) != _IMAGENET_CLASSES:
        raise InputError(
            f"expected {root} to hold the {_IMAGENET_CLASSES} class folders of ImageNet, got {len(classes)}; "
            f"use folder:{root} for another data set"
        )
    side = image_size or 0
    return ImageData(
        label="ImageNet" if kind == "imagenet" else root.resolve().name,
        train=train,
        test=test,
        class_names=classes,
        image_size=(side, side),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def _list_split(folder: Path) -> tuple[tuple[str, ...], FileSplit]:
    """Return the sorted class names, and the image files sorted by class and path."""
    listing = import_lab("torchvision.datasets.folder", "torchvision", "image folders")
    try:
        names = listing.find_classes(folder)[0]
    except FileNotFoundError:
        names = []
    # Hidden folders and files are left out at every depth, such as those in which file managers keep thumbnails.
    classes = tuple(name for name in names if not name.startswith("."))
    if not classes:
        raise InputError(f"expected {folder}/CLASS/IMAGE, got no class folders in {folder}; add them")
    indices = {name: index for index, name in enumerate(classes)}
    images = listing.make_dataset(folder, indices, listing.IMG_EXTENSIONS, allow_empty=True)
    images = [(file, label) for file, label in images if not _is_hidden(Path(file).relative_to(folder))]
    images.sort(key=lambda image: (image[1], image[0]))  # the order must not depend on how deep the files lie
    labels = torch.tensor([label for _, label in images], dtype=torch.int64)
    for name, count in zip(classes, labels.bincount(minlength=len(classes)).tolist(), strict=True):
        if count == 0:
            raise InputError(
                f"expected images ({', '.join(listing.IMG_EXTENSIONS)}) in the class folder {folder / name}, got none; "
                "add images or remove the folder from every split"
            )
    return classes, FileSplit(tuple(file for file, _ in images), labels)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def hold_folder(data: ImageData, image_size: int | None, memory_limit: float) -> ImageData:
    """Decode the files of ``data`` into memory, or return it unchanged if they are to be decoded on the fly.

    Args:
        data: data set of files in a folder.
        image_size: side in pixels to which images decoded on the fly are cropped, if given.
        memory_limit: maximum size of the decoded images, in GiB.

    Raises:
        InputError: ``image_size`` is not given and the images differ in size or exceed ``memory_limit``; or a file
            cannot be decoded.
    """
    splits = {
        name: split
        for name, split in (("train", data.train), ("test", data.test), ("validation", data.validation))
        if isinstance(split, FileSplit)
    }
    width, height = decode_image(splits["train"].files[0]).size
    needed = sum(map(len, splits.values())) * 3 * height * width / 2**30
    if needed > memory_limit and image_size is None:
        raise InputError(
            f"expected the decoded images of {data.label} to fit in memory_limit={memory_limit:g} GiB, got "
            f"{needed:.3g} GiB at {height}x{width} pixels; give image_size (--data.image-size, of reproduce "
            "--image-size) to decode and crop them on the fly, or call load_dataset with a larger memory_limit"
        )
    if needed > memory_limit or image_size not in {None, height} or image_size not in {None, width}:
        return data
    try:
        held = {name: ImageSplit(_decode(split.files, height, width), split.labels) for name, split in splits.items()}
    except _UnequalSizesError:
        if image_size is None:
            raise
        return data
    mean, std = channel_statistics(held["train"].images)
    return replace(
        data,
        train=held["train"],
        test=held["test"],
        validation=held.get("validation"),
        image_size=(height, width),
        mean=mean,
        std=tuple(value if value > _CONSTANT else 1.0 for value in std),
    )


class _UnequalSizesError(InputError):
    """The images differ in size, so one tensor cannot hold them."""


def _decode(files: Sequence[str], height: int, width: int) -> Tensor:
    """Decode the images in a pool of threads, as uint8 of shape ``(N, 3, height, width)``."""
    images = torch.empty((len(files), height, width, 3), dtype=torch.uint8)
    pixels = images.numpy()

    def decode_range(start: int) -> None:
        for index in range(start, min(start + _DECODE_CHUNK, len(files))):
            image = decode_image(files[index])
            if image.size != (width, height):
                raise _UnequalSizesError(
                    f"expected {height}x{width} pixels in {files[index]}, as in the first image, got {image.height}x"
                    f"{image.width}; resize the images, or give image_size (--data.image-size, of reproduce "
                    "--image-size) to decode and crop them on the fly"
                )
            pixels[index] = image

    # Threads are enough, since Pillow releases the global interpreter lock while it decodes.
    with ThreadPoolExecutor(min(_DECODE_THREADS, os.cpu_count() or 1)) as pool:
        for _ in pool.map(decode_range, range(0, len(files), _DECODE_CHUNK)):
            pass
    return images.permute(0, 3, 1, 2).contiguous()
