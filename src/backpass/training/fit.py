"""Whether a model takes the examples of a task, found out before anything is trained."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backpass._internal.batches import describe, map_tensors
from backpass._internal.modes import eval_mode
from backpass._internal.random_state import keeping_global_states
from backpass.errors import InputError
from backpass.training.items import Data
from backpass.training.task import Task

__all__ = ["check_fit"]


def check_fit(name: str, model: nn.Module, task: Task, data: Data, images: int) -> None:
    """Run a model once, on one example of zeros in eval mode, and leave it and the random state unchanged.

    Args:
        name: of the model, for the message.
        model: on its device.
        task: has the example, and knows what the model has to return.
        data: what the model is trained on.
        images: number of examples of one process in one forward pass of training.

    Raises:
        InputError: the model does not take the example, does not return what the task needs, or normalises a single
            value in training, whose variance is undefined.
    """
    values: dict[str, int] = {}

    def note(module: str, output: Any) -> None:
        values[module] = images * output[0, 0].numel()

    hooks = [
        module.register_forward_hook(lambda _, inputs, output, key=key: note(key, output))
        for key, module in model.named_modules()
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm)
    ]
    like = next(model.parameters())
    example = map_tensors(lambda tensor: tensor.to(like.device), task.example(data))
    shape = "x".join(map(str, example.shape[1:])) if isinstance(example, Tensor) else describe(example)
    try:
        devices = [like.device] if like.device.type == "cuda" else []
        with eval_mode(model), torch.no_grad(), keeping_global_states(devices):
            output = model(example)
    except InputError:  # of the model itself, which names the sizes that it takes
        raise
    except Exception as error:
        raise InputError(
            f"expected a model that takes images of {shape} (channels, height, width), got {name!r}, which raised "
            f"{type(error).__name__}: {error}; choose another model or size of images"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    task.check_output(name, output, data)
    if single := next((module for module, count in values.items() if count == 1), None):
        raise InputError(
            f"expected more than one value per channel to normalise in {single!r} of {name!r}, got one image of "
            f"{shape} in a forward pass; raise batch_size or lower micro_batches"
        )
