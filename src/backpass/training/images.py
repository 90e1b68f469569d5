"""What a data set is: its splits, held in memory or as lists of files, and what a loader needs to know of them."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from backpass.errors import InputError

__all__ = ["FileSplit", "ImageData", "ImageSplit", "Split", "channel_statistics", "stratified_subset"]

_STATISTICS_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """Images held in memory.

    Args:
        images: uint8, shape ``(N, C, H, W)``.
        labels: int64, shape ``(N,)``, class indices.

    Raises:
        InputError: a dtype or a shape is another, or the counts of images and labels differ.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise InputError(
                f"images must be uint8 of shape (N, C, H, W), got {self.images.dtype} of shape "
                f"{tuple(self.images.shape)}."
            )
        _check_labels(self.labels, len(self.images))

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: Tensor) -> Self:
        """Return the split of the images at ``indices`` (int64, shape ``(M,)``), in their order."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])


@dataclass(frozen=True, eq=False)
class FileSplit:
    """Image files, to be decoded when they are needed.

    Args:
        files: one path an image.
        labels: int64, shape ``(N,)``, class indices.

    Raises:
        InputError: a dtype or a shape is another, or the counts of files and labels differ.
    """

    files: tuple[str, ...]
    labels: Tensor

    def __post_init__(self) -> None:
        _check_labels(self.labels, len(self.files))

    def __len__(self) -> int:
        return len(self.files)

    def select(self, indices: Tensor) -> Self:
        """Return the split of the files at ``indices`` (int64, shape ``(M,)``), in their order."""
        files = tuple(self.files[index] for index in indices.tolist())
        return replace(self, files=files, labels=self.labels[indices])


Split = ImageSplit | FileSplit


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set for image classification: its splits and all that a loader and a report need to know of it.

    Args:
        label: the name under which results are reported, with its provenance, as ``"CIFAR-10 (JPEG)"``.
        train: the training images.
        test: the test images.
        class_names: one name a class, in the order of the labels.
        image_size: height and width in pixels of the images, or for files of what they are cropped to.
        mean: per channel, on the scale 0 to 1.
        std: per channel, on the same scale.
        max_value: the pixel value that stands for 1.
        validation: training images held out, where asked for.

    Raises:
        InputError: a split is empty, a label is out of range, images differ from ``image_size`` or ``mean`` in
            size or channels, or files and tensors are mixed.
    """

    label: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    max_value: float = 255.0
    validation: Split | None = None

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or not all(value > 0 for value in self.std):
            raise InputError(
                f"{self.label}: mean and std must be equally long and std positive, got mean={self.mean} and "
                f"std={self.std}."
            )
        splits = {"train": self.train, "test": self.test, "validation": self.validation}
        for name, split in splits.items():
            if split is not None:
                self._check_split(name, split)

    def _check_split(self, name: str, split: Split) -> None:
        if len(split) == 0:
            raise InputError(f"{self.label}: the {name} split holds no images.")
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= self.num_classes:
            raise InputError(
                f"{self.label}: labels must run from 0 to {self.num_classes - 1} for {self.num_classes} classes, "
                f"but those of the {name} split run from {low} to {high}."
            )
        if isinstance(split, FileSplit) != self.streamed:
            raise InputError(f"{self.label}: all splits must be held in memory or all be files; {name} differs.")
        expected = (self.channels, *self.image_size)
        if isinstance(split, ImageSplit) and split.images.shape[1:] != expected:
            raise InputError(
                f"{self.label}: images of the {name} split have shape {tuple(split.images.shape[1:])}, expected "
                f"(C, H, W) = {expected}; bring all images to one size first."
            )

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """The number of channels of an image."""
        return len(self.mean)

    @property
    def streamed(self) -> bool:
        """Whether the images are files, decoded on the fly."""
        return isinstance(self.train, FileSplit)


def stratified_subset(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return the ascending indices of ``count`` random items in which every class keeps its fraction.

    Class c with n_c of the N items gets ``count * n_c / N`` of them, rounded down; the items still missing go
    one each to the classes with the largest remainders, chance deciding between equals.

    Args:
        labels: int64, shape ``(N,)``, on the CPU.
        count: from 0 to N.
        generator: on the CPU.

    Returns:
        int64, shape ``(count,)``.
    """
    sizes = labels.bincount()
    quotas = sizes * count // len(labels)
    classes = torch.randperm(len(sizes), generator=generator)
    remainders = (sizes * count % len(labels))[classes]
    favoured = classes[remainders.argsort(descending=True, stable=True)]
    quotas[favoured[: count - int(quotas.sum())]] += 1
    shuffled = torch.randperm(len(labels), generator=generator)
    grouped = shuffled[labels[shuffled].argsort(stable=True)]
    group = labels[grouped]
    rank_in_group = torch.arange(len(labels)) - (sizes.cumsum(0) - sizes)[group]
    return grouped[rank_in_group < quotas[group]].sort().values


def channel_statistics(images: Tensor, max_value: float = 255.0) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and (population) standard deviation of each channel on the scale 0 to 1, from exact sums."""
    total = torch.zeros(images.shape[1], dtype=torch.int64)
    squares = torch.zeros_like(total)
    for part in torch.split(images, _STATISTICS_CHUNK):
        values = part.long()
        total += values.sum(dim=(0, 2, 3))
        squares += values.square().sum(dim=(0, 2, 3))
    count = images.numel() // images.shape[1]
    mean = total.double() / count
    std = (squares.double() / count - mean.square()).sqrt()
    return tuple((mean / max_value).tolist()), tuple((std / max_value).tolist())


def _check_labels(labels: Tensor, count: int) -> None:
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise InputError(
            f"labels must be int64 of shape ({count},), one for each image, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}."
        )
