"""Optimizers and learning rates from a recipe."""

import math
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam
from torch.optim.lr_scheduler import LambdaLR

from backpass.training.recipe import OptimizerSettings, ScheduleSettings

__all__ = ["OPTIMIZERS", "build_optimizer", "build_schedule", "parameter_groups"]

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": SGD,
    "adadelta": Adadelta,
    "adagrad": Adagrad,
    "adam": Adam,
    "adamax": Adamax,
    "adamw": AdamW,
    "nadam": NAdam,
    "radam": RAdam,
}


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[dict[str, Any]]:
    """Return one group with weight decay and, if 1-D parameters have none, a second group without."""
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
    momentum: dict[str, Any] = {}
    if settings.name == "sgd":
        momentum = {"momentum": settings.momentum, "nesterov": settings.nesterov}
    return OPTIMIZERS[settings.name](parameter_groups(model, settings), lr=settings.lr, **momentum)


def build_schedule(
    optimizer: Optimizer, settings: ScheduleSettings, lr: float, epochs: int, steps_per_epoch: int
) -> LambdaLR:
    """Return the learning rate schedule, which is stepped after every optimizer step.

    With ``w`` the steps of the warm-up and ``e`` the step at which the cool-down starts, the rate at step ``t`` is

    - ``lr * (t + 1) / w`` for ``t < w``;
    - cosine: ``final + (lr - final) * (1 + cos(pi * (t - w) / (e - w))) / 2`` for ``w <= t <= e``;
    - step: ``lr * step_factor ** floor(t / (step_epochs * steps_per_epoch))`` for ``w <= t <= e``;
    - the rate of step ``e`` for ``t > e``.

    Args:
        optimizer: the optimizer, whose groups have the peak learning rate.
        settings: settings of the schedule, with lengths in epochs.
        lr: the peak learning rate, above 0.
        epochs: epochs of the whole training, warm-up and cool-down included.
        steps_per_epoch: optimizer steps per epoch.
    """
    end = epochs * steps_per_epoch - round(settings.cooldown_epochs * steps_per_epoch)
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), end)
    final = settings.final_lr / lr
    step_length = settings.step_epochs * steps_per_epoch

    def cosine(step: int) -> float:
        progress = (step - warmup) / max(end - warmup, 1)
        return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2

    def steps(step: int) -> float:
        return settings.step_factor ** math.floor(step / step_length)

    decays = {"cosine": cosine, "step": steps}
    decay = decays[settings.name]

    def factor(step: int) -> float:
        return (step + 1) / warmup if step < warmup else decay(min(step, end))

    # A closed form, since torch's SequentialLR over LinearLR and CosineAnnealingLR updates the rate of the last step:
    # its rounding errors accumulate, and a run could not resume bit for bit from the number of its step alone.
    return LambdaLR(optimizer, factor)
