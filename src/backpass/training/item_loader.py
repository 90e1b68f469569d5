"""Loader of the items of any data set, which the task makes examples of."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import Dataset

from backpass._internal.batches import describe
from backpass.errors import InputError
from backpass.training.batches import batch_size, move
from backpass.training.loader import Batch, BatchPlan
from backpass.training.worker_loader import SeededDataset, WorkerLoader

__all__ = ["ItemLoader", "Prepare", "keep_item"]

Prepare = Callable[[Any, bool], Any]
"""Makes an example of an item, augmented for training or not (:meth:`backpass.training.task.Task.prepare`)."""


def keep_item(item: Any, training: bool) -> Any:
    """Return the item of a data set whose items are examples."""
    return item


class ItemLoader(WorkerLoader):
    """Loader of the items of a split, read and prepared by worker processes.

    Args:
        split: a map-style data set.
        prepare: makes an example, the pair of an input and a target, of an item.
        training: whether examples are augmented.
        plan: order and batches.
        device: device of the batches.
        channels_last: return images in the ``torch.channels_last`` memory format.
        workers: number of worker processes; 0: work in this process.

    Raises:
        InputError: during iteration: an example is no pair, or the examples of a batch do not fit together.
    """

    def __init__(
        self,
        split: Dataset[Any],
        prepare: Prepare,
        training: bool,
        plan: BatchPlan,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        workers: int = 0,
    ) -> None:
        super().__init__(_Prepared(split, prepare, training), plan, device, channels_last, workers)

    def _finish(self, batch: Any) -> Batch:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise InputError(
                f"expected examples that are pairs of an input and a target, got batches of {describe(batch)}; return "
                "such a pair from the data set, or from prepare of the task"
            )
        inputs, target = (move(part, self.device, self.memory_format) for part in batch)
        batch_size(target)
        return inputs, target


class _Prepared(SeededDataset):
    """The examples of a split."""

    def __init__(self, split: Dataset[Any], prepare: Prepare, training: bool) -> None:
        self.split, self.prepare, self.training = split, prepare, training

    def example(self, index: int) -> Any:
        return self.prepare(self.split[index], self.training)
