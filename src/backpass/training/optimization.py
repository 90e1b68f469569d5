"""Optimizers and learning rates from a recipe."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from backpass.errors import InputError
from backpass.training.recipe import OptimizerSettings, ScheduleSettings

__all__ = ["OPTIMIZERS", "build_optimizer", "build_schedule", "parameter_groups"]


def _sgd(groups: Iterable[dict[str, Any]], s: OptimizerSettings) -> Optimizer:
    return SGD(groups, lr=s.lr, momentum=s.momentum, nesterov=s.nesterov)


def _adamw(groups: Iterable[dict[str, Any]], s: OptimizerSettings) -> Optimizer:
    return AdamW(groups, lr=s.lr)


OPTIMIZERS: dict[str, Callable[[Iterable[dict[str, Any]], OptimizerSettings], Optimizer]] = {
    "sgd": _sgd,
    "adamw": _adamw,
}


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Return one group with weight decay and, where 1-D parameters are spared, a second without."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if settings.decay_norm_and_bias:
        return [{"params": parameters, "weight_decay": settings.weight_decay}]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> Optimizer:
    """Return the recipe's optimizer over the model's parameters."""
    if settings.name not in OPTIMIZERS:
        raise InputError(f"expected an optimizer out of {', '.join(OPTIMIZERS)}, got {settings.name!r}")
    return OPTIMIZERS[settings.name](parameter_groups(model, settings), settings)


def build_schedule(
    optimizer: Optimizer, settings: ScheduleSettings, lr: float, epochs: int, steps_per_epoch: int
) -> LambdaLR:
    """Return the learning rate schedule, to be stepped after every optimizer step.

    ``lr(t) = final + (lr - final) * (1 + cos(pi * t / T)) / 2`` over the ``T`` steps that follow the warm-up, in which
    the rate grows linearly from ``lr / warmup`` at the first step.
    """
    total = epochs * steps_per_epoch
    warmup = round(settings.warmup_epochs * steps_per_epoch)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min((step - warmup) / max(total - warmup, 1), 1.0)
        final = settings.final_lr / lr
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)
