"""Whether a model takes the images of a data set, found out before anything is trained."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from backpass._internal.modes import eval_mode
from backpass.errors import InputError

__all__ = ["check_fit"]


def check_fit(name: str, model: nn.Module, image: tuple[int, int, int], num_classes: int, images: int) -> None:
    """Run a model once, on one image of zeros in eval mode, and leave it and the random state unchanged.

    Args:
        name: of the model, for the message.
        model: on its device.
        image: channels, height and width of the images.
        num_classes: number of logits that it has to return.
        images: number of images of one process in one forward pass of training.

    Raises:
        InputError: the model does not take images of this size, does not return one logit for each class, or normalises
            a single value in training, whose variance is undefined.
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
    shape = "x".join(map(str, image))
    try:
        with eval_mode(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
            output = model(torch.zeros(1, *image, device=like.device, dtype=like.dtype))
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
    if not isinstance(output, Tensor) or output.shape != (1, num_classes):
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"expected a model that returns {num_classes} logits for each image, got {name!r}, which returned {found} "
            "for one image; choose another model"
        )
    if single := next((module for module, count in values.items() if count == 1), None):
        raise InputError(
            f"expected more than one value per channel to normalise in {single!r} of {name!r}, got one image of "
            f"{shape} in a forward pass; raise batch_size or lower micro_batches"
        )
