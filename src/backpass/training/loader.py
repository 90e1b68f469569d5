"""Loaders whose order and augmentation follow from the seed and the epoch alone.

An epoch is planned before it starts: the order of the images, their cut into global batches, the part of each
batch that belongs to this process, and what chance decides for every image. The plan comes from generators of
its own, so a resumed run needs no loader state, and several processes see together what one would see.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from backpass.errors import InputError
from backpass.training.augment import Augmentation, normalize
from backpass.training.images import ImageData, ImageSplit

__all__ = ["Batch", "BatchPlan", "DeviceLoader", "Loader", "check_count", "epoch_generator"]

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class BatchPlan:
    """Which image goes into which batch of which process.

    Args:
        count: images in the split.
        batch_size: images in a global batch, over all processes together (the recipes' "total" batch).
        shuffle: draw a new order each epoch; otherwise the images come in the order of the split.
        drop_last: leave out the images that do not fill a last batch. Without it the last batch is smaller and
            no image is repeated, so a process may get fewer images or batches than another: right for
            evaluation.
        seed: of the order and the augmentation.
        rank: index of this process.
        world_size: number of processes. Process r gets the r-th contiguous part of each global batch, so the
            parts put one after the other are the batch of a single process.

    Raises:
        InputError: a number is out of range, no batch can be filled, or processes that train together would get
            batches of unequal sizes.
    """

    count: int
    batch_size: int
    shuffle: bool = False
    drop_last: bool = False
    seed: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size must be >= 1, got {self.batch_size}.")
        if not 0 <= self.rank < self.world_size:
            raise InputError(f"rank must be from 0 to world_size - 1 = {self.world_size - 1}, got {self.rank}.")
        if self.drop_last and self.batch_size % self.world_size:
            raise InputError(
                f"batch_size={self.batch_size} is the size of a global batch and must be a multiple of "
                f"world_size={self.world_size}, so that every process gets the same number of images."
            )
        if self.drop_last and self.count < self.batch_size:
            raise InputError(
                f"{self.count} images do not fill one batch of {self.batch_size}; lower batch_size or keep more images."
            )
        if self.shuffle and not self.drop_last and self.world_size > 1:
            raise InputError(
                f"training on {self.world_size} processes needs drop_last=True; a smaller last batch would leave "
                "them with gradients of unequal weight."
            )

    def order(self, epoch: int) -> Tensor:
        """Return the images' indices in the order of an epoch, int64, shape ``(count,)``."""
        if not self.shuffle:
            return torch.arange(self.count)
        return torch.randperm(self.count, generator=epoch_generator(self.seed, epoch, "order"))

    def shards(self) -> list[slice]:
        """Return the ranges of positions in the order that make this process's batches, none of them empty."""
        end = self.count - self.count % self.batch_size if self.drop_last else self.count
        shards = []
        for start in range(0, end, self.batch_size):
            size = min(self.batch_size, end - start)
            low = start + size * self.rank // self.world_size
            high = start + size * (self.rank + 1) // self.world_size
            if low < high:
                shards.append(slice(low, high))
        return shards


class Loader(ABC):
    """What the loaders share: ``for images, labels in loader`` walks through an epoch of a `BatchPlan`.

    Images come as floats of shape ``(B, C, H, W)``, normalised and augmented; labels as int64 of shape
    ``(B,)``; both on the loader's device.
    """

    def __init__(self, plan: BatchPlan) -> None:
        self.plan = plan
        self.epoch = 0
        self._shards = plan.shards()

    def __len__(self) -> int:
        """Return the number of this process's batches in an epoch."""
        return len(self._shards)

    def __iter__(self) -> Iterator[Batch]:
        return self.iter_epoch(self.epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (from 0) that the next ``iter(loader)`` walks through."""
        self.epoch = epoch

    def iter_epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Return an iterator over the batches of an epoch from batch ``start`` on, as they are in the whole epoch."""
        generator = epoch_generator(self.plan.seed, epoch, "augmentation")
        return self.batches(self.plan.order(epoch), self._shards[start:], generator)

    @abstractmethod
    def batches(self, order: Tensor, shards: list[slice], generator: torch.Generator) -> Iterator[Batch]:
        """Yield one batch for each range of positions in ``order``.

        The generator decides the augmentation of every position in ``order``, in the shards or not.
        """


class DeviceLoader(Loader):
    """Loader of images that stay on the device, where they are indexed, augmented and normalised in batches.

    Args:
        split: the images and labels; they are copied to the device, still as uint8.
        data: the data set that the split belongs to, for its normalisation.
        plan: the order.
        augmentation: crop, flip, normalise, cutout; normalisation alone by default.
        device: where the batches are made.
        channels_last: whether the batches are in that memory format.

    Raises:
        InputError: the augmentation does not suit the image size, or the plan is for another number of images.
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
        check_count(plan, len(split))
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
        """Yield one batch for each range of positions in ``order`` (see `Loader.batches`)."""
        height, width = self.images.shape[-2:]
        draws = None
        if self.augmentation is not None:
            # Drawn on the CPU and for all positions, so that device and world size change nothing.
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
    """Return a CPU generator that no other seed, epoch or purpose shares."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8]) >> 1)


def check_count(plan: BatchPlan, count: int) -> None:
    """Raise InputError where the plan is for another number of images."""
    if plan.count != count:
        raise InputError(f"the plan is for {plan.count} images, but the split holds {count}.")
