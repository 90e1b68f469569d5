from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from backpass.errors import InputError
from backpass.training.recipe import Run, Runtime
from backpass.training.run_loaders import build_run_loaders
from backpass.training.tasks import build_task

CPU = Runtime(device="cpu", workers=0)


def loaders(recipe, images, processes):
    accelerator = SimpleNamespace(num_processes=processes, process_index=0, device=torch.device("cpu"))
    return build_run_loaders(Run(recipe), images, build_task(recipe, images), CPU, accelerator)


def test_a_process_with_fewer_images_than_micro_batches_is_refused(recipe, images):
    settings = replace(recipe, batch_size=8, micro_batches=8)
    assert loaders(settings, images, processes=1).train.plan.batch_size == 8
    text = r"multiple of 16, the number of processes \(2\) times micro_batches \(8\), got 8; change it"
    with pytest.raises(InputError, match=text):
        loaders(settings, images, processes=2)
    assert len(next(iter(loaders(replace(settings, micro_batches=4), images, processes=2).train))[0]) == 4
