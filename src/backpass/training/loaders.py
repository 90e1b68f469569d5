"""The loaders of a run, and batches of training examples to measure on."""

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from backpass.errors import InputError
from backpass.training.item_loader import ItemLoader
from backpass.training.items import Data, ItemData
from backpass.training.loader import BatchPlan, DeviceLoader, Loader, epoch_generator
from backpass.training.recipe import Run, Runtime
from backpass.training.stream import StreamLoader
from backpass.training.task import Task

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
        InputError: ``count`` is below 1.
    """
    if count < 1:
        raise InputError(f"expected count >= 1 batches to measure on, got {count}; raise it")
    plan = loader.plan
    measuring = replace(plan, count=min(count * plan.batch_size, plan.count))
    generator = epoch_generator(plan.seed, epoch, "measuring")
    order = torch.randperm(plan.count, generator=generator)[: measuring.count]
    return [inputs for inputs, _ in loader.batches(order, measuring.shards(), generator)]


class Loaders(NamedTuple):
    """The loaders of a run; ``validation`` is ``None`` if no images are held out."""

    train: Loader
    test: Loader
    validation: Loader | None

    @property
    def evaluated(self) -> tuple[str, Loader]:
        """Name and loader of the split that is evaluated: ``validation`` or, without one, ``test``."""
        return ("test", self.test) if self.validation is None else ("validation", self.validation)


def build_loaders(run: Run, data: Data, task: Task, runtime: Runtime, accelerator: Accelerator) -> Loaders:
    """Return the loaders of this process's part of every batch of a run.

    Training images are shuffled and augmented, and a last batch that is not full is dropped, as in the published
    recipes; test and validation images are neither shuffled nor augmented, and none of them is dropped. Images in
    memory get a :class:`DeviceLoader`, image files a :class:`StreamLoader`, items of any kind, which the task augments,
    an :class:`ItemLoader`.

    Raises:
        InputError: the batch size does not fit the numbers of processes and micro-batches or the data, or the
            augmentation the images.
    """
    recipe, processes = run.recipe, accelerator.num_processes
    parts = processes * recipe.micro_batches
    if recipe.batch_size % parts:
        raise InputError(
            f"expected batch_size, the size of a global batch, to be a multiple of {parts}, the number of processes "
            f"({processes}) times micro_batches ({recipe.micro_batches}), got {recipe.batch_size}; change it so that "
            "every process gets micro-batches of one size"
        )
    evaluation_batch_size = task.evaluation_batch_size(recipe.batch_size, processes, data)
    device, channels_last, workers = accelerator.device, runtime.channels_last, runtime.workers

    def loader(split: Any, training: bool) -> Loader:
        batch_size = recipe.batch_size if training else evaluation_batch_size
        plan = BatchPlan(len(split), batch_size, training, run.seed, accelerator.process_index, processes)
        if isinstance(data, ItemData):
            return ItemLoader(split, task.prepare, plan, device, channels_last, workers)
        if data.streamed:
            transforms = recipe.stream_augmentation if training else None
            return StreamLoader(split, data, plan, transforms, device, channels_last, workers)
        augmentation = recipe.augmentation if training else None
        return DeviceLoader(split, data, plan, augmentation, device, channels_last)

    return Loaders(
        train=loader(data.train, training=True),
        test=loader(data.test, training=False),
        validation=None if data.validation is None else loader(data.validation, training=False),
    )
