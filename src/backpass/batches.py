"""Running a model on a batch as a loader yields it, where only the model's input is of interest."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from backpass.errors import InputError

__all__ = ["Forward", "describe", "forward_on"]

Forward = Callable[[Any], Any]
"""Runs a model on a batch of any form."""


def forward_on(model: nn.Module, device: torch.device) -> Forward:
    """Return a function that runs ``model``, on ``device``, on a tensor or on what a tuple or list starts with.

    The function raises an InputError for a batch of another form or without elements.

    >>> forward = forward_on(nn.Linear(2, 1), torch.device("cpu"))
    >>> forward((torch.ones(3, 2), torch.tensor([0, 1, 0]))).shape
    torch.Size([3, 1])
    """

    def forward(batch: Any) -> Any:
        x = batch[0] if isinstance(batch, tuple | list) and batch else batch
        if not isinstance(x, Tensor):
            raise InputError(
                f"expected a batch to be a tensor or a tuple that starts with one, got {describe(batch)}; pass "
                "forward=... to run the model on batches of another form"
            )
        if x.numel() == 0:
            raise InputError(f"expected a non-empty batch, got shape {tuple(x.shape)}")
        return model(x.to(device, non_blocking=True))

    return forward


def describe(batch: object) -> str:
    """Return the form of a batch in words.

    >>> describe((torch.ones(3, 2), "name"))
    'tuple of tensor of shape (3, 2), str'
    """
    if isinstance(batch, Tensor):
        return f"tensor of shape {tuple(batch.shape)}"
    if isinstance(batch, tuple | list):
        return f"{type(batch).__name__} of {', '.join(describe(item) for item in batch) or 'nothing'}"
    return type(batch).__name__
