"""The loaders of a run on a data set, without a trainer."""

from types import SimpleNamespace
from typing import Any, cast

import torch
from accelerate import Accelerator

from backpass.training.augment import Augmentation
from backpass.training.items import Data
from backpass.training.loaders import Loaders, build_loaders
from backpass.training.recipe import Recipe, Run, Runtime
from backpass.training.tasks import build_task

UNCHANGED = Augmentation(crop_padding=0, flip=False, cutout=0)


def loaders_of(
    data: Data,
    *,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
    device: str = "cpu",
    channels_last: bool = False,
    workers: int = 0,
    **settings: Any,
) -> Loaders:
    """Return the loaders of one process; images in memory are not augmented unless a setting says otherwise."""
    recipe = Recipe(**{"augmentation": UNCHANGED, **settings})
    place = SimpleNamespace(num_processes=world_size, process_index=rank, device=torch.device(device))
    runtime = Runtime(channels_last=channels_last, workers=workers)
    return build_loaders(Run(recipe, seed=seed), data, build_task(recipe, data), runtime, cast(Accelerator, place))
