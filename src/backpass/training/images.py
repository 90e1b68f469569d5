"""Data sets for image classification: splits in memory or as lists of files, with their sizes and statistics."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from backpass.errors import InputError
from backpass.training.subsets import reduce_data

__all__ = ["FileSplit", "ImageData", "ImageSplit", "Split", "channel_statistics", "stratified_subset"]

_STATISTICS_CHUNK = 1024


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """Images in memory.

    Attributes:
        images: uint8, shape ``(N, C, H, W)``.
        labels: int64, shape ``(N,)``, class indices.

    Raises:
        InputError: a dtype or shape is different, or the numbers of images and labels differ.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise InputError(
                f"expected uint8 images of shape (N, C, H, W), got {self.images.dtype} of shape "
                f"{tuple(self.images.shape)}; convert them"
            )
        _check_labels(self.labels, len(self.images))

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: Tensor) -> Self:
        """Return a split with the images at ``indices`` (int64, shape ``(M,)``), in that order."""
        return replace(self, images=self.images[indices], labels=self.labels[indices])


@dataclass(frozen=True, eq=False)
class FileSplit:
    """Image files, decoded on the fly.

    Attributes:
        files: path of each image.
        labels: int64, shape ``(N,)``, class indices.

    Raises:
        InputError: the dtype or shape of the labels is different, or the numbers of files and labels differ.
    """

    files: tuple[str, ...]
    labels: Tensor

    def __post_init__(self) -> None:
        _check_labels(self.labels, len(self.files))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[str, int]:
        """Return the path and the class index of an image."""
        return self.files[index], int(self.labels[index])

    def select(self, indices: Tensor) -> Self:
        """Return a split with the files at ``indices`` (int64, shape ``(M,)``), in that order."""
        files = tuple(self.files[index] for index in indices.tolist())
        return replace(self, files=files, labels=self.labels[indices])


Split = ImageSplit | FileSplit


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set for image classification.

    Attributes:
        label: name of the data set in reports, with its source, such as ``"CIFAR-10 (JPEG)"``.
        train: training images.
        test: test images.
        class_names: name of each class, in the order of the labels.
        image_size: height and width in pixels, for files after the crop.
        mean: mean of each channel on the scale from 0 to 1.
        std: standard deviation of each channel on the same scale.
        max_value: pixel value that corresponds to 1.
        validation: training images held out for validation, if any.

    Raises:
        InputError: a split is empty, a label is out of range, the size of the images differs from ``image_size`` or
            their number of channels from the length of ``mean``, or some splits are files and others in memory.
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
                f"expected mean and std of {self.label} to have one value per channel and std > 0, got "
                f"mean={self.mean} and std={self.std}; correct them"
            )
        splits = {"train": self.train, "test": self.test, "validation": self.validation}
        for name, split in splits.items():
            if split is not None:
                self._check_split(name, split)

    def _check_split(self, name: str, split: Split) -> None:
        if len(split) == 0:
            raise InputError(f"expected images in the {name} split of {self.label}, got none; add images")
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= self.num_classes:
            raise InputError(
                f"expected labels from 0 to {self.num_classes - 1} in the {name} split of {self.label}, got {low} to "
                f"{high}; number the classes from 0 and name each in class_names"
            )
        if isinstance(split, FileSplit) != self.streamed:
            train, other = ("files", "images in memory") if self.streamed else ("images in memory", "files")
            raise InputError(
                f"expected {train} in the {name} split of {self.label}, as in the train split, got {other}; "
                "use one kind for all splits"
            )
        expected = (self.channels, *self.image_size)
        if isinstance(split, ImageSplit) and split.images.shape[1:] != expected:
            raise InputError(
                f"expected images of shape (C, H, W) = {expected} in the {name} split of {self.label}, got "
                f"{tuple(split.images.shape[1:])}; resize them, or correct image_size, mean and std"
            )

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """The number of channels."""
        return len(self.mean)

    @property
    def input_size(self) -> tuple[int, ...]:
        """Channels, height and width of the images."""
        return self.channels, *self.image_size

    @property
    def streamed(self) -> bool:
        """Whether the images are files that are decoded on the fly."""
        return isinstance(self.train, FileSplit)

    def reduced(self, validation: float, limit_train: int | None, limit_test: int | None, seed: int) -> Self:
        """Return the data set with training images held out for validation, and then with fewer images.

        Every subset is stratified (:func:`stratified_subset`); arguments and errors are those of
        :func:`~backpass.training.subsets.reduce_data`, and ``seed`` is that of the subsets.
        """

        def draw(split: Split, count: int) -> Tensor:
            return stratified_subset(split.labels, count, torch.Generator().manual_seed(seed))

        def select(split: Split, indices: Tensor) -> Split:
            return split.select(indices)

        return reduce_data(self, validation, limit_train, limit_test, draw, select)


def stratified_subset(labels: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw a random subset in which each class has its fraction of the items.

    A class with ``n`` of the ``N`` items gets ``count * n / N`` of them, rounded down. The remaining items go, one
    each, to the classes with the largest remainders; ties are broken at random.

    Args:
        labels: class of each item, int64, shape ``(N,)``, on the CPU.
        count: number of items to draw, from 0 to ``N``.
        generator: random number generator on the CPU.

    Returns:
        Ascending indices of the subset, int64, shape ``(count,)``.
    """
    # Not train_test_split(stratify=...) of scikit-learn: it would draw other images, and so change every run with a
    # limit or held-out validation images. It also refuses to draw all items, or fewer items than there are classes.
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
    """Compute the mean and population standard deviation of each channel from exact integer sums.

    Args:
        images: uint8, shape ``(N, C, H, W)``.
        max_value: pixel value that corresponds to 1.

    Returns:
        C means and C standard deviations, both on the scale from 0 to 1.
    """
    total = torch.zeros(images.shape[1], dtype=torch.int64)
    squares = torch.zeros_like(total)
    for part in torch.split(images, _STATISTICS_CHUNK):
        values = part.long()
        total += values.sum(dim=(0, 2, 3))
        squares += values.square().sum(dim=(0, 2, 3))
    count = images.numel() // images.shape[1]
    mean = total.double() / count
    std = (squares.double() / count - mean.square()).clamp(min=0).sqrt()
    return tuple((mean / max_value).tolist()), tuple((std / max_value).tolist())


def _check_labels(labels: Tensor, count: int) -> None:
    if labels.dtype != torch.int64 or labels.shape != (count,):
        raise InputError(
            f"expected int64 labels of shape ({count},), one per image, got {labels.dtype} of shape "
            f"{tuple(labels.shape)}; convert them"
        )
