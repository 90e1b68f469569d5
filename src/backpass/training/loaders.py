"""The loaders of a data set, and batches of training examples to measure on."""

from collections.abc import Sized
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch.utils.data import Dataset

from backpass.errors import InputError
from backpass.training.augment import Augmentation
from backpass.training.images import FileSplit, ImageSplit, Split
from backpass.training.item_loader import ItemLoader, Prepare, keep_item
from backpass.training.items import Data, ItemData
from backpass.training.loader import BatchPlan, DeviceLoader, Loader, epoch_generator
from backpass.training.stream import StreamAugmentation, StreamLoader

__all__ = ["Loaders", "build_loaders", "measuring_batches"]


def measuring_batches(loader: Loader, count: int, *, epoch: int) -> list[Any]:
    """Draw batches of training images to measure on, without an effect on the training batches.

    The images are augmented as in training and drawn without replacement by a separate generator, seeded with the seed
    of the loader and the epoch. With several processes, each gets its part of every batch.

    Args:
        loader: loader of the training images.
        count: number of batches, at least 1; all full batches of the split if there are fewer.
        epoch: epoch of the measurement.

    Returns:
        Inputs of each batch; images have the shape ``(batch_size / world_size, C, H, W)``.

    Raises:
        InputError: ``count`` is below 1, or the split has fewer images than a batch.
    """
    if count < 1:
        raise InputError(f"expected count >= 1 batches to measure on, got {count}; raise it")
    plan = loader.plan
    measuring = replace(plan, count=min(count * plan.batch_size, plan.count), drop_last=True)
    generator = epoch_generator(plan.seed, epoch, "measuring")
    order = torch.randperm(plan.count, generator=generator)[: measuring.count]
    return [inputs for inputs, _ in loader.batches(order, measuring.shards(), generator)]


class Loaders(NamedTuple):
    """The loaders of a data set; ``validation`` is ``None`` if no images are held out."""

    train: Loader
    test: Loader
    validation: Loader | None

    @property
    def evaluated(self) -> tuple[str, Loader]:
        """Name and loader of the split that is evaluated: ``validation`` or, without one, ``test``."""
        return ("test", self.test) if self.validation is None else ("validation", self.validation)


def build_loaders(
    data: Data,
    *,
    batch_size: int,
    augmentation: Augmentation | StreamAugmentation | None = None,
    eval_batch_size: int | None = None,
    device: torch.device | str = "cpu",
    channels_last: bool = False,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    prepare: Prepare = keep_item,
) -> Loaders:
    """Build the loaders of a data set.

    Training images are shuffled and augmented, and a last batch that is not full is dropped, as in the published
    recipes; test and validation images are neither shuffled nor augmented, and none of them is dropped.

    Args:
        data: data set; images in memory get a :class:`DeviceLoader`, image files a :class:`StreamLoader`, items of any
            kind an :class:`ItemLoader`.
        batch_size: number of images in a global batch.
        augmentation: augmentation of the training images: :class:`Augmentation` for images in memory,
            :class:`StreamAugmentation` for files; default: none. Items are augmented by ``prepare``.
        eval_batch_size: number of images in a global batch of evaluation; default: ``batch_size``.
        device: device of the batches.
        channels_last: return images in the ``torch.channels_last`` memory format.
        seed: seed of the order and the augmentation.
        rank: index of this process.
        world_size: number of processes.
        workers: number of processes that decode files; ignored for images in memory.
        prepare: makes an example of an item, for an :class:`ItemLoader`; default: an item is an example.

    Raises:
        InputError: the augmentation is for the other kind of data, or a number is out of range.
    """

    def loader(split: Split | Dataset[Any], training: bool) -> Loader:
        plan = BatchPlan(
            count=len(cast(Sized, split)),
            batch_size=batch_size if training else eval_batch_size or batch_size,
            shuffle=training,
            drop_last=training,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        if isinstance(data, ItemData):
            return ItemLoader(cast(Dataset[Any], split), prepare, training, plan, device, channels_last, workers)
        chosen = augmentation if training else None
        if isinstance(split, ImageSplit) and not isinstance(chosen, StreamAugmentation):
            return DeviceLoader(split, data, plan, chosen, device, channels_last)
        if isinstance(split, FileSplit) and not isinstance(chosen, Augmentation):
            return StreamLoader(split, data, plan, chosen, device, channels_last, workers)
        kind, suited = ("files", "a StreamAugmentation") if data.streamed else ("in memory", "an Augmentation")
        raise InputError(
            f"expected {suited} or none for {data.label}, whose images are {kind}, got {chosen}; change the "
            "augmentation"
        )

    return Loaders(
        train=loader(data.train, training=True),
        test=loader(data.test, training=False),
        validation=None if data.validation is None else loader(data.validation, training=False),
    )
