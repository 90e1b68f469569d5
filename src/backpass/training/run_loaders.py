"""The loaders of a run: what recipe, task and runtime make of a data set."""

from accelerate import Accelerator

from backpass.errors import InputError
from backpass.training.augment import Augmentation
from backpass.training.items import Data, ItemData
from backpass.training.loaders import Loaders, build_loaders
from backpass.training.recipe import Recipe, Run, Runtime
from backpass.training.stream import StreamAugmentation
from backpass.training.task import Task

__all__ = ["build_run_loaders"]


def build_run_loaders(run: Run, data: Data, task: Task, runtime: Runtime, accelerator: Accelerator) -> Loaders:
    """Return the loaders of this process's part of every batch.

    Raises:
        InputError: the batch size does not fit the numbers of processes and micro-batches or the data, or the
            augmentation the images.
    """
    batch_size, processes, parts = run.recipe.batch_size, accelerator.num_processes, run.recipe.micro_batches
    if batch_size % (processes * parts):
        raise InputError(
            f"expected batch_size, the size of a global batch, to be a multiple of {processes * parts}, the number of "
            f"processes ({processes}) times micro_batches ({parts}), got {batch_size}; change it so that every process "
            "gets micro-batches of one size"
        )
    return build_loaders(
        data,
        batch_size=batch_size,
        augmentation=_augmentation(run.recipe, data),
        eval_batch_size=task.evaluation_batch_size(batch_size, processes, data),
        device=accelerator.device,
        channels_last=runtime.channels_last,
        seed=run.seed,
        rank=accelerator.process_index,
        world_size=processes,
        workers=runtime.workers,
        prepare=task.prepare,
    )


def _augmentation(recipe: Recipe, data: Data) -> Augmentation | StreamAugmentation | None:
    if isinstance(data, ItemData):
        return None  # The task augments them.
    return recipe.stream_augmentation if data.streamed else recipe.augmentation
