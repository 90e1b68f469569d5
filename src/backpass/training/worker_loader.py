"""Loader of examples that worker processes make on the fly, each from a seed of its own."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from backpass._internal.random_state import seeded
from backpass.errors import BackpassError
from backpass.training.loader import Batch, BatchPlan, Loader

__all__ = ["SeededDataset", "WorkerLoader"]


class SeededDataset(Dataset[Any]):
    """Examples, indexed by pairs of index and seed; the seed determines all that chance decides in an example."""

    def __getitem__(self, item: tuple[int, int]) -> Any:
        """Return an example, with the global generators of torch, Python and NumPy seeded while it is made.

        A BackpassError is returned: raised in a worker process, it would arrive with the text of its traceback.
        """
        index, seed = item
        with seeded(seed):
            return _error_returned(self.example, index)

    @abstractmethod
    def example(self, index: int) -> Any:
        """Return the example of a split at an index."""


class WorkerLoader(Loader):
    """Base class of loaders whose examples worker processes make; the batches do not depend on their number.

    Args:
        dataset: the examples.
        plan: order and batches.
        device: device of the batches.
        channels_last: return images in the ``torch.channels_last`` memory format.
        workers: number of worker processes, which persist between epochs; 0: work in this process.
    """

    def __init__(
        self,
        dataset: SeededDataset,
        plan: BatchPlan,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        workers: int = 0,
    ) -> None:
        super().__init__(plan)
        self.device = torch.device(device)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.workers = workers
        self._dataset = dataset
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
            yield from map(self._finished, self._data_loader(planned, keep_workers=False))
            return
        self._in_use = True
        self._planned[:] = planned
        try:
            yield from map(self._finished, self._kept)
        finally:
            self._in_use = False

    def _finished(self, batch: Any) -> Batch:
        if isinstance(batch, BackpassError):
            raise batch
        return self._finish(batch)

    @abstractmethod
    def _finish(self, batch: Any) -> Batch:
        """Return a batch of the workers, on the device."""

    def _data_loader(self, planned: list[list[tuple[int, int]]], keep_workers: bool) -> DataLoader[Any]:
        return DataLoader(
            self._dataset,
            batch_sampler=planned,
            num_workers=self.workers,
            persistent_workers=keep_workers and self.workers > 0,
            pin_memory=self.device.type == "cuda",
            collate_fn=_collated,
            # Without one, DataLoader would draw its base seed from the global generator.
            generator=torch.Generator().manual_seed(self.plan.seed),
        )


def _collated(examples: list[Any]) -> Any:
    error = next((example for example in examples if isinstance(example, BackpassError)), None)
    return _error_returned(default_collate, examples) if error is None else error


def _error_returned(call: Callable[[Any], Any], argument: Any) -> Any:
    try:
        return call(argument)
    except BackpassError as error:
        return error
