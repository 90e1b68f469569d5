"""The settings of the optimizer and of the learning rate over time."""

from dataclasses import dataclass
from typing import Annotated, Literal

from backpass._internal.settings import POSITIVE, Range, check_number, check_settings, check_text
from backpass.errors import InputError

__all__ = ["OptimizerSettings", "ScheduleName", "ScheduleSettings"]

_AT_LEAST_ZERO = Range(at_least=0)

OptimizerName = Literal["sgd", "adadelta", "adagrad", "adam", "adamax", "adamw", "nadam", "radam"]
ScheduleName = Literal["cosine", "step", "poly"]


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer and its arguments; all others have PyTorch's defaults.

    Attributes:
        name: class of ``torch.optim``, in lower case.
        lr: peak learning rate.
        lr_factors: patterns of parameter names and a factor on the learning rate of the parameters that match, in turn:
            ``--optimizer.lr-factors 'head.*' 10``; in Python ``(("head.*", 10.0),)``. The first pattern that matches
            counts; the other parameters have the factor 1.
        momentum: momentum of SGD; ignored by the other optimizers.
        nesterov: Nesterov momentum, for SGD alone.
        weight_decay: weight decay: an L2 penalty in the gradient, decoupled for AdamW.
        decay_norm_and_bias: apply weight decay to 1-D parameters (normalisation, biases) too.

    Raises:
        InputError: a setting is out of range, or ``nesterov`` is set without momentum or without SGD.
    """

    name: OptimizerName = "sgd"
    lr: Annotated[float, POSITIVE] = 0.1
    lr_factors: tuple[tuple[str, float], ...] = ()
    momentum: Annotated[float, Range(at_least=0, below=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, _AT_LEAST_ZERO] = 5e-4
    decay_norm_and_bias: bool = True

    def __post_init__(self) -> None:
        """Check the range of every setting, and that momentum goes with the optimizer."""
        check_settings(self, "optimizer")
        for pattern, factor in self.lr_factors:
            check_text("a pattern in optimizer.lr_factors", pattern)
            check_number(f"the factor of {pattern!r} in optimizer.lr_factors", factor, float, POSITIVE)
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            raise InputError(
                f"expected optimizer.nesterov with sgd and a momentum > 0 alone, got {self.name} and momentum "
                f"{self.momentum}; switch it off"
            )


@dataclass(frozen=True)
class ScheduleSettings:
    """The learning rate over time: a linear warm-up to the peak, a decay, and a cool-down at the final rate.

    Attributes:
        name: form of the decay: half a cosine, steps, or a power of the remaining fraction of the steps.
        final_lr: learning rate at the end of the cosine schedule.
        warmup_epochs: epochs of linear warm-up.
        cooldown_epochs: epochs at the final rate, included in the recipe's epochs.
        step_epochs: epochs between the steps of the step schedule, counted from the start of training.
        step_factor: factor on the learning rate at each step of the step schedule.
        milestones: epochs after which the step schedule steps, ascending and before the end of the decay, instead
            of every ``step_epochs``.
        poly_power: exponent of the poly schedule; 0.9 is that of DeepLab and PSPNet.

    Raises:
        InputError: a setting is out of range, or ``milestones`` are given to another schedule than ``step``.
    """

    name: ScheduleName = "cosine"
    final_lr: Annotated[float, _AT_LEAST_ZERO] = 1e-6
    warmup_epochs: Annotated[float, _AT_LEAST_ZERO] = 0.0
    cooldown_epochs: Annotated[float, _AT_LEAST_ZERO] = 0.0
    step_epochs: Annotated[float, POSITIVE] = 30.0
    step_factor: Annotated[float, Range(above=0, at_most=1)] = 0.1
    milestones: tuple[float, ...] = ()
    poly_power: Annotated[float, POSITIVE] = 0.9

    def __post_init__(self) -> None:
        """Check the range of every setting."""
        check_settings(self, "schedule")
        for milestone in self.milestones:
            check_number("every one of schedule.milestones", milestone, float, POSITIVE)
        if list(self.milestones) != sorted(set(self.milestones)):
            raise InputError(
                f"expected schedule.milestones to ascend, got {self.milestones}; sort them, each of them once"
            )
        if self.milestones and self.name != "step":
            raise InputError(
                f"expected schedule.milestones with schedule.name=step alone, got {self.milestones} with {self.name}; "
                "leave them out or choose step"
            )
