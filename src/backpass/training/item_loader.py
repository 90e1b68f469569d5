"""Loader of examples that worker processes make of the items of a split, each from a seed of its own."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from backpass._internal.batches import describe
from backpass._internal.random_state import seeded
from backpass.errors import BackpassError, InputError
from backpass.training.batches import batch_size, move
from backpass.training.images import FileSplit
from backpass.training.loader import Batch, BatchPlan, Loader

__all__ = ["ItemLoader", "Prepare"]

Prepare = Callable[[Any, bool], Any]
"""Makes an example of an item, augmented for training or not (:meth:`backpass.training.task.Task.prepare`)."""


class ItemLoader(Loader):
    """Loader of the items of a split, read and prepared by worker processes; the batches do not depend on their number.

    Args:
        split: a map-style data set.
        prepare: makes an example, the pair of an input and a target, of an item.
        plan: order and batches.
        device: device of the batches.
        channels_last: return images in the ``torch.channels_last`` memory format.
        workers: number of worker processes, which persist between epochs; 0: work in this process.

    Raises:
        InputError: during iteration: an example is no pair, or the examples of a batch do not fit together.
    """

    def __init__(
        self,
        split: Dataset[Any] | FileSplit,
        prepare: Prepare,
        plan: BatchPlan,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        workers: int = 0,
    ) -> None:
        super().__init__(plan)
        self.device = torch.device(device)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.workers = workers
        self._examples = _Examples(split, prepare, plan.training)
        self._planned: list[list[tuple[int, int]]] = []
        self._kept = self._data_loader(self._planned, keep_workers=True)
        self._in_use = False

    def batches(self, order: torch.Tensor, shards: list[slice], generator: torch.Generator) -> Iterator[Batch]:
        """Yield one batch for each range of positions in ``order`` (:meth:`Loader.batches`).

        An iteration that starts during another, as for measuring within an epoch, gets its own workers.

        Raises:
            BackpassError: what making or collating an example raised, in whichever process.
        """
        seeds = torch.randint(2**62, (len(order),), generator=generator)
        planned = [list(zip(order[s].tolist(), seeds[s].tolist(), strict=True)) for s in shards]
        if self._in_use:
            yield from map(self._on_device, self._data_loader(planned, keep_workers=False))
            return
        self._in_use = True
        self._planned[:] = planned
        try:
            yield from map(self._on_device, self._kept)
        finally:
            self._in_use = False

    def _on_device(self, batch: Any) -> Batch:
        """Return a batch of the workers on the device."""
        if isinstance(batch, BackpassError):
            raise batch
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise InputError(
                f"expected examples that are pairs of an input and a target, got batches of {describe(batch)}; return "
                "such a pair from the data set, or from prepare of the task"
            )
        inputs, target = (move(part, self.device, self.memory_format) for part in batch)
        batch_size(target)
        return inputs, target

    def _data_loader(self, planned: list[list[tuple[int, int]]], keep_workers: bool) -> DataLoader[Any]:
        return DataLoader(
            self._examples,
            batch_sampler=planned,
            num_workers=self.workers,
            persistent_workers=keep_workers and self.workers > 0,
            pin_memory=self.device.type == "cuda",
            collate_fn=_collated,
            # Without one, DataLoader would draw its base seed from the global generator.
            generator=torch.Generator().manual_seed(self.plan.seed),
        )


class _Examples(Dataset[Any]):
    """The examples of a split by index and seed; the seed determines all that chance decides in an example."""

    def __init__(self, split: Dataset[Any] | FileSplit, prepare: Prepare, training: bool) -> None:
        self.split, self.prepare, self.training = split, prepare, training

    def __getitem__(self, item: tuple[int, int]) -> Any:
        """Return an example, with the global generators of torch, Python and NumPy seeded while it is made.

        A BackpassError is returned: raised in a worker process, it would arrive with the text of its traceback.
        """
        index, seed = item
        try:
            with seeded(seed):
                return self.prepare(self.split[index], self.training)
        except BackpassError as error:
            return error


def _collated(examples: list[Any]) -> Any:
    """Return a batch, or what is wrong with the examples as an error."""
    if error := next((example for example in examples if isinstance(example, BackpassError)), None):
        return error
    try:
        return default_collate(examples)
    except (RuntimeError, TypeError, KeyError):
        first, *others = dict.fromkeys(map(describe, examples))
        if not others:
            raise
        return InputError(
            f"expected examples of one form and size in a batch, got {first} and {others[0]}; return such examples "
            "from the data set, or from prepare of the task"
        )
