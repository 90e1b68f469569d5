"""The loaders of a data set, and the batches that measuring draws apart from the training itself."""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from backpass.errors import InputError
from backpass.training.augment import Augmentation
from backpass.training.images import FileSplit, ImageData, ImageSplit, Split
from backpass.training.loader import BatchPlan, DeviceLoader, Loader, epoch_generator
from backpass.training.stream import StreamAugmentation, StreamLoader

__all__ = ["Loaders", "build_loaders", "measuring_batches"]


def measuring_batches(loader: Loader, count: int, *, epoch: int, batch_size: int | None = None) -> list[Tensor]:
    """Return batches of training images to measure on, drawn apart from the training itself.

    They are augmented as in training, come from a generator of their own that is seeded by the loader's seed and
    the epoch, and hold no image twice. Over several processes each gets its part of every batch.

    Args:
        loader: the training loader.
        count: batches, >= 1; where the split holds fewer full ones, all that it holds.
        epoch: the epoch that the measurement is for.
        batch_size: images in a global batch; the loader's own by default.

    Returns:
        Tensors of shape ``(batch_size / world_size, C, H, W)``.

    Raises:
        InputError: ``count`` is below 1, or ``batch_size`` is below 1, not a multiple of the world size, or more
            than the split holds.
    """
    if count < 1:
        raise InputError(f"count must be >= 1 batches to measure on, got {count}.")
    plan = loader.plan
    size = plan.batch_size if batch_size is None else batch_size
    measuring = replace(plan, count=min(count * size, plan.count), batch_size=size, drop_last=True)
    generator = epoch_generator(plan.seed, epoch, "measuring")
    order = torch.randperm(plan.count, generator=generator)[: measuring.count]
    return [images for images, _ in loader.batches(order, measuring.shards(), generator)]


class Loaders(NamedTuple):
    """The loaders of a data set; the validation loader is None where no images are held out."""

    train: Loader
    test: Loader
    validation: Loader | None


def build_loaders(
    data: ImageData,
    *,
    batch_size: int,
    augmentation: Augmentation | StreamAugmentation | None = None,
    eval_batch_size: int | None = None,
    drop_last: bool = True,
    device: torch.device | str = "cpu",
    channels_last: bool = False,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
) -> Loaders:
    """Return the loaders of a data set: training shuffled and augmented, the others plain, in order and complete.

    Args:
        data: the data set; held in memory it gets `DeviceLoader`, as files `StreamLoader`.
        batch_size: images in a global batch.
        augmentation: of the training images; an `Augmentation` for images in memory, a `StreamAugmentation` for
            files, none by default.
        eval_batch_size: images in a global batch of evaluation; ``batch_size`` by default.
        drop_last: whether training leaves out a last, smaller batch (the recipes do).
        device: where the batches are made.
        channels_last: whether the batches are in that memory format.
        seed: of order and augmentation.
        rank: index of this process.
        world_size: number of processes.
        workers: processes that decode files; images in memory need none.

    Raises:
        InputError: the augmentation is for the other kind of data, or a number is out of range.
    """

    def loader(split: Split, training: bool) -> Loader:
        plan = BatchPlan(
            count=len(split),
            batch_size=batch_size if training else eval_batch_size or batch_size,
            shuffle=training,
            drop_last=training and drop_last,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        chosen = augmentation if training else None
        if isinstance(split, ImageSplit) and not isinstance(chosen, StreamAugmentation):
            return DeviceLoader(split, data, plan, chosen, device, channels_last)
        if isinstance(split, FileSplit) and not isinstance(chosen, Augmentation):
            return StreamLoader(split, data, plan, chosen, device, channels_last, workers)
        kind, suited = ("files", "a StreamAugmentation") if data.streamed else ("in memory", "an Augmentation")
        raise InputError(f"{data.label}: its images are {kind} and take {suited} or none, got {chosen}.")

    return Loaders(
        train=loader(data.train, training=True),
        test=loader(data.test, training=False),
        validation=None if data.validation is None else loader(data.validation, training=False),
    )
