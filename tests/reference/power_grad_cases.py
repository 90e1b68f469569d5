"""Logits, labels and options on which the tests of the PowerGrad losses agree."""

import pytest
import torch
from torch import Tensor

N, C = 6, 5


def seeded(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def labels(*shape: int, classes: int = C, seed: int = 0) -> Tensor:
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


def gradient(loss: Tensor, z: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), z)[0]


WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.0, 3.0], dtype=torch.float64)


CROSS_ENTROPY_OPTIONS = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "weight": {"weight": WEIGHT},
    "smoothing": {"label_smoothing": 0.1},
    "all smoothing": {"label_smoothing": 1.0},
    "ignored": {"ignore_index": 2},
    "everything": {"weight": WEIGHT, "label_smoothing": 0.2, "ignore_index": 2},
    "everything, sum": {"weight": WEIGHT, "label_smoothing": 0.2, "ignore_index": 2, "reduction": "sum"},
}


PROBABILITY_OPTIONS = {
    name: options for name, options in CROSS_ENTROPY_OPTIONS.items() if "ignore_index" not in options
}


BINARY_OPTIONS = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "none": {"reduction": "none"},
    "weight": {"weight": seeded(N, C, seed=5).abs()},
    "sample weight": {"weight": seeded(N, 1, seed=5).abs()},
    "pos_weight": {"pos_weight": WEIGHT},
    "everything": {"weight": seeded(N, 1, seed=5).abs(), "pos_weight": WEIGHT, "reduction": "sum"},
}


def cases(options: dict) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("options", options.values(), ids=options.keys())
