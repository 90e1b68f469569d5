"""Optimizers and learning rates from a recipe."""

import math
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.optim import SGD, Adadelta, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam
from torch.optim.lr_scheduler import LambdaLR

from backpass.errors import InputError
from backpass.training.recipe import OptimizerSettings, ScheduleSettings

__all__ = ["OPTIMIZERS", "build_optimizer", "build_schedule", "group_of", "parameter_groups"]

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
    """Return the parameters in groups of one weight decay and one learning rate each.

    There is one group with weight decay and, if 1-D parameters have none, a second group without; and the same for each
    factor of ``settings.lr_factors``, after those of the factor 1.

    Raises:
        InputError: a pattern of ``settings.lr_factors`` matches no parameter.
    """
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    patterns = [pattern for pattern, _ in settings.lr_factors]
    if idle := [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]:
        first = ", ".join(names[:3])
        raise InputError(
            f"expected every pattern of optimizer.lr_factors to match a parameter, got {idle} for parameters such as "
            f"{first}; correct or remove {'them' if idle[1:] else 'it'}"
        )
    return [
        {
            "params": parameters,
            "weight_decay": settings.weight_decay if decayed else 0.0,
            **({} if factor == 1.0 else {"lr": factor * settings.lr}),
        }
        for (factor, decayed), parameters in _members(model, settings).items()
    ]


def group_of(model: nn.Module, settings: OptimizerSettings) -> Callable[[str, nn.Parameter], int]:
    """Return a function from a new parameter's name and itself to its index in :func:`parameter_groups` of ``model``.

    Where no group has both its learning rate and its weight decay, the learning rate decides.
    """
    kinds = list(_members(model, settings))

    def index(name: str, parameter: nn.Parameter) -> int:
        factor, decayed = _kind(name, parameter, settings)
        return min(range(len(kinds)), key=lambda i: (kinds[i][0] != factor, kinds[i][1] != decayed))

    return index


def _members(model: nn.Module, settings: OptimizerSettings) -> dict[tuple[float, bool], list[nn.Parameter]]:
    """Return the parameters by the factor on their learning rate and by whether they decay."""
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for factor in dict.fromkeys((1.0, *(factor for _, factor in settings.lr_factors))):
        groups |= {(factor, True): [], (factor, False): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[_kind(name, parameter, settings)].append(parameter)
    return {kind: parameters for kind, parameters in groups.items() if parameters}


def _kind(name: str, parameter: nn.Parameter, settings: OptimizerSettings) -> tuple[float, bool]:
    factor = next((factor for pattern, factor in settings.lr_factors if fnmatchcase(name, pattern)), 1.0)
    return factor, settings.decay_norm_and_bias or parameter.ndim >= 2


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
    - step: ``lr * step_factor ** floor(t / (step_epochs * steps_per_epoch))`` for ``w <= t <= e``, or, with
      milestones, ``lr * step_factor ** m`` with ``m`` the number of milestones ``m_i * steps_per_epoch <= t``;
    - poly: ``lr * (1 - (t - w) / (e - w)) ** poly_power`` for ``w <= t <= e``;
    - the rate of step ``e`` for ``t > e``.

    A group with a factor on its learning rate has it throughout: its rate is the factor times the one above.

    Args:
        optimizer: the optimizer, whose groups have the peak learning rate, or its multiples.
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
        if settings.milestones:
            return settings.step_factor ** sum(step >= milestone * steps_per_epoch for milestone in settings.milestones)
        return settings.step_factor ** math.floor(step / step_length)

    def poly(step: int) -> float:
        return math.pow(max(1 - (step - warmup) / max(end - warmup, 1), 0.0), settings.poly_power)

    decays = {"cosine": cosine, "step": steps, "poly": poly}
    decay = decays[settings.name]

    def factor(step: int) -> float:
        return (step + 1) / warmup if step < warmup else decay(min(step, end))

    # A closed form, since torch's SequentialLR over LinearLR and CosineAnnealingLR updates the rate of the last step:
    # its rounding errors accumulate, and a run could not resume bit for bit from the number of its step alone.
    return LambdaLR(optimizer, factor)
