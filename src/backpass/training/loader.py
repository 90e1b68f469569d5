"""Loaders whose order and augmentation depend on the seed and the epoch only.

The order of the images, the global batches, this process's part of each and the random numbers of the augmentation are
determined before an epoch starts, by separate generators. A resumed run therefore needs no loader state, and the parts
of all processes together are the batches of a single process.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from backpass.errors import InputError
from backpass.training.augment import Augmentation, normalize
from backpass.training.images import ImageData, ImageSplit

__all__ = ["Batch", "BatchPlan", "DeviceLoader", "Loader", "epoch_generator"]

Batch = tuple[Any, Any]
"""Inputs and targets: tensors, or tuples, lists and dictionaries of them."""


@dataclass(frozen=True)
class BatchPlan:
    """The assignment of images to batches and processes.

    Attributes:
        count: number of images in the split.
        batch_size: number of images in a global batch, over all processes.
        training: draw a new order in each epoch, and drop its last batch if it is not full. Otherwise use the order of
            the split; the last batch is smaller and no image is repeated, so processes may get different numbers of
            images or batches.
        seed: seed of the order and the augmentation.
        rank: index of this process.
        world_size: number of processes. Process r gets the r-th contiguous part of each global batch, so the
            concatenated parts are the batch of a single process.

    Raises:
        InputError: the batch size is below 1, or there are fewer images to train on than one batch holds.
    """

    count: int
    batch_size: int
    training: bool = False
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"expected batch_size >= 1, got {self.batch_size}; raise it")
        if self.training and self.count < self.batch_size:
            raise InputError(
                f"expected at least one batch of {self.batch_size} images, got {self.count} images; lower batch_size "
                "or use more images"
            )

    def order(self, epoch: int) -> Tensor:
        """Return the indices of the images in the order of an epoch, int64, shape ``(count,)``."""
        if not self.training:
            return torch.arange(self.count)
        return torch.randperm(self.count, generator=epoch_generator(self.seed, epoch, "order"))

    def shards(self) -> list[slice]:
        """Return this process's non-empty batches as ranges of positions in the order."""
        end = self.count - self.count % self.batch_size if self.training else self.count
        shards = []
        for start in range(0, end, self.batch_size):
            size = min(self.batch_size, end - start)
            low = start + size * self.rank // self.world_size
            high = start + size * (self.rank + 1) // self.world_size
            if low < high:
                shards.append(slice(low, high))
        return shards


class Loader(ABC):
    """Base class of the loaders of a :class:`BatchPlan`; ``for images, labels in loader`` iterates over epoch 0.

    For classification, images are float32 of shape ``(B, C, H, W)``, normalised and augmented, and labels int64 of
    shape ``(B,)``; other tasks have inputs and targets of other forms. All are on the device of the loader.
    """

    def __init__(self, plan: BatchPlan) -> None:
        self.plan = plan
        self._shards = plan.shards()

    def __len__(self) -> int:
        """Return the number of batches that this process gets in an epoch."""
        return len(self._shards)

    def __iter__(self) -> Iterator[Batch]:
        return self.iter_epoch(0)

    def iter_epoch(self, epoch: int) -> Iterator[Batch]:
        """Iterate over the batches of an epoch, counted from 0."""
        generator = epoch_generator(self.plan.seed, epoch, "augmentation")
        return self.batches(self.plan.order(epoch), self._shards, generator)

    @abstractmethod
    def batches(self, order: Tensor, shards: list[slice], generator: torch.Generator) -> Iterator[Batch]:
        """Yield one batch for each range of positions in ``order``.

        The generator draws the augmentation of every position in ``order``, whether in the shards or not.
        """


class DeviceLoader(Loader):
    """Loader of images in device memory, which are indexed, augmented and normalised there in batches.

    Args:
        split: images and labels, copied to the device as uint8 and int64.
        data: data set of the split, for the normalisation.
        plan: order and batches.
        augmentation: crop, flip, normalise, cutout; default: normalise.
        device: device of the batches.
        channels_last: return images in the ``torch.channels_last`` memory format.

    Raises:
        InputError: a crop or cutout is as large as the images.
    """

    def __init__(
        self,
        split: ImageSplit,
        data: ImageData,
        plan: BatchPlan,
        augmentation: Augmentation | None = None,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
    ) -> None:
        super().__init__(plan)
        if augmentation is not None:
            augmentation.check(*data.image_size)
        memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.device = torch.device(device)
        self.images = split.images.to(self.device, memory_format=memory_format)
        self.labels = split.labels.to(self.device)
        self.mean = torch.tensor(data.mean, device=self.device)
        self.std = torch.tensor(data.std, device=self.device)
        self.max_value = data.max_value
        self.memory_format = memory_format
        self.augmentation = augmentation

    def batches(self, order: Tensor, shards: list[slice], generator: torch.Generator) -> Iterator[Batch]:
        """Yield one batch for each range of positions in ``order`` (:meth:`Loader.batches`)."""
        height, width = self.images.shape[-2:]
        draws = None
        if self.augmentation is not None:
            # Drawn on the CPU and for all positions, so that the result depends on neither device nor world size.
            draws = self.augmentation.draw(len(order), height, width, generator).to(self.device)
        order = order.to(self.device)
        for shard in shards:
            indices = order[shard]
            images = self.images[indices]
            if self.augmentation is not None and draws is not None:
                images = self.augmentation.before_normalize(images, draws[shard])
            images = normalize(images, self.mean, self.std, max_value=self.max_value)
            if self.augmentation is not None and draws is not None:
                images = self.augmentation.after_normalize(images, draws[shard])
            yield images.contiguous(memory_format=self.memory_format), self.labels[indices]


def epoch_generator(seed: int, epoch: int, purpose: str) -> torch.Generator:
    """Return a CPU generator seeded with a hash of ``seed``, ``epoch`` and ``purpose``."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)
