"""The settings of one training run, as plain typed data: the recipe, the runtime, and the run itself.

A recipe, a method and a seed determine the result; the runtime determines where and how fast it is computed.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from backpass._internal.settings import COUNT, Range, check_settings, check_text
from backpass.errors import InputError
from backpass.training.augment import Augmentation
from backpass.training.method_settings import AgcSettings, DyRepSettings, PgtSettings, ReparamSettings, SgsSettings
from backpass.training.stream import StreamAugmentation

__all__ = [
    "SEEDS",
    "AgcSettings",
    "DataSettings",
    "DyRepSettings",
    "ModelArgument",
    "OptimizerSettings",
    "PgtSettings",
    "Recipe",
    "ReparamSettings",
    "Run",
    "Runtime",
    "ScheduleName",
    "ScheduleSettings",
    "SgsSettings",
]

SEEDS = 2**32
"""Number of seeds: Python, NumPy and PyTorch all take those below."""

_AT_LEAST_ZERO = Range(at_least=0)
_ROUNDING = 1e-9  # Schedules that are shortened in proportion have lengths that are not exact.
_MAX_IMAGE_SIZE = 8192
_MAX_WORKERS = 1024

ModelArgument = bool | int | float | str
OptimizerName = Literal["sgd", "adadelta", "adagrad", "adam", "adamax", "adamw", "nadam", "radam"]
ScheduleName = Literal["cosine", "step"]


@dataclass(frozen=True)
class DataSettings:
    """The images of a run.

    Attributes:
        name: ``digits``, ``cifar10``, ``cifar100``, ``imagenet:PATH`` or ``folder:PATH``.
        root: folder of torchvision's data sets.
        download: download ``cifar10`` or ``cifar100`` if it is missing.
        validation: fraction of the training images that is held out and evaluated instead of the test images.
        limit_train: number of training images, a stratified subset drawn with a fixed seed; default: all.
        limit_test: number of test images, a stratified subset drawn with a fixed seed; default: all.
        label: name of the data set in results; default: its own.
        image_size: side in pixels to which streamed images of ``imagenet:PATH`` and ``folder:PATH`` are cropped;
            default: 224 for ImageNet, and images of a folder are held in memory in their own size.

    Raises:
        InputError: a setting is out of range.
    """

    name: str = "digits"
    root: str | None = None
    download: bool = False
    validation: Annotated[float, Range(at_least=0, below=1)] = 0.0
    limit_train: Annotated[int, COUNT] | None = None
    limit_test: Annotated[int, COUNT] | None = None
    label: str | None = None
    image_size: Annotated[int, Range(at_least=1, at_most=_MAX_IMAGE_SIZE)] | None = None

    def __post_init__(self) -> None:
        """Check the range of every setting."""
        check_settings(self, "data")


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer and its arguments; all others have PyTorch's defaults.

    Attributes:
        name: class of ``torch.optim``, in lower case.
        lr: peak learning rate.
        momentum: momentum of SGD; ignored by the other optimizers.
        nesterov: Nesterov momentum, for SGD alone.
        weight_decay: weight decay: an L2 penalty in the gradient, decoupled for AdamW.
        decay_norm_and_bias: apply weight decay to 1-D parameters (normalisation, biases) too.

    Raises:
        InputError: a setting is out of range, or ``nesterov`` is set without momentum or without SGD.
    """

    name: OptimizerName = "sgd"
    lr: Annotated[float, Range(above=0)] = 0.1
    momentum: Annotated[float, Range(at_least=0, below=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, _AT_LEAST_ZERO] = 5e-4
    decay_norm_and_bias: bool = True

    def __post_init__(self) -> None:
        """Check the range of every setting, and that momentum goes with the optimizer."""
        check_settings(self, "optimizer")
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            raise InputError(
                f"expected optimizer.nesterov with sgd and a momentum > 0 alone, got {self.name} and momentum "
                f"{self.momentum}; switch it off"
            )


@dataclass(frozen=True)
class ScheduleSettings:
    """The learning rate over time: a linear warm-up to the peak, a decay, and a cool-down at the final rate.

    Attributes:
        name: form of the decay: half a cosine, or steps.
        final_lr: learning rate at the end of the cosine schedule.
        warmup_epochs: epochs of linear warm-up.
        cooldown_epochs: epochs at the final rate, included in the recipe's epochs.
        step_epochs: epochs between the steps of the step schedule, counted from the start of training.
        step_factor: factor on the learning rate at each step of the step schedule.

    Raises:
        InputError: a setting is out of range.
    """

    name: ScheduleName = "cosine"
    final_lr: Annotated[float, _AT_LEAST_ZERO] = 1e-6
    warmup_epochs: Annotated[float, _AT_LEAST_ZERO] = 0.0
    cooldown_epochs: Annotated[float, _AT_LEAST_ZERO] = 0.0
    step_epochs: Annotated[float, Range(above=0)] = 30.0
    step_factor: Annotated[float, Range(above=0, at_most=1)] = 0.1

    def __post_init__(self) -> None:
        """Check the range of every setting."""
        check_settings(self, "schedule")


@dataclass(frozen=True)
class Recipe:
    """All settings of a run that determine its result, except the method and the seed.

    Attributes:
        model: name of a model (:func:`backpass.models.list_models`), or ``timm/NAME``.
        model_args: further arguments of :func:`backpass.models.create_model`, names and values in turn:
            ``--model-args zero_init_last False``; in Python ``(("zero_init_last", False),)``. Kept sorted by name.
        data: the images.
        epochs: passes over the training images.
        batch_size: images per optimizer step, over all processes.
        micro_batches: backward passes accumulated in one optimizer step.
        optimizer: the optimizer.
        schedule: the learning rate over time.
        augmentation: augmentation of training images that are held in memory.
        stream_augmentation: augmentation of training images that are decoded on the fly.
        label_smoothing: label smoothing of the training loss.
        clip_norm: bound on the norm of all gradients together; default: no bound.
        clip_before_scaling: clip the norm before SGS scales, as the SGS reference does; it is then no bound on the
            scaled gradients.
        sgs: settings of methods with ``sgs``.
        pgt: settings of methods with ``pgt``.
        agc: settings of methods with ``agc``.
        reparam: settings of ``acb``, ``repvgg``, ``dbb`` and ``dbb_dyrep``.
        dyrep: settings of ``dyrep``.

    Raises:
        InputError: a setting is out of range, ``batch_size`` is not a multiple of ``micro_batches``, warm-up and
            cool-down are longer than the training, or ``model_args`` has a name twice or one that the data set
            determines.
    """

    model: str = "digits_net"
    model_args: tuple[tuple[str, ModelArgument], ...] = ()
    data: DataSettings = field(default_factory=DataSettings)
    epochs: Annotated[int, COUNT] = 200
    batch_size: Annotated[int, COUNT] = 128
    micro_batches: Annotated[int, COUNT] = 1
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    augmentation: Augmentation = field(default_factory=Augmentation)
    stream_augmentation: StreamAugmentation = field(default_factory=StreamAugmentation)
    label_smoothing: Annotated[float, Range(at_least=0, at_most=1)] = 0.0
    clip_norm: Annotated[float, Range(above=0)] | None = None
    clip_before_scaling: bool = False
    sgs: SgsSettings = field(default_factory=SgsSettings)
    pgt: PgtSettings = field(default_factory=PgtSettings)
    agc: AgcSettings = field(default_factory=AgcSettings)
    reparam: ReparamSettings = field(default_factory=ReparamSettings)
    dyrep: DyRepSettings = field(default_factory=DyRepSettings)

    def __post_init__(self) -> None:
        """Check the range of every setting and what belongs together; sort the model's arguments."""
        check_settings(self)
        _check_model_args(self.model_args)
        # Equal recipes compare equal, in whatever order the arguments were given.
        object.__setattr__(self, "model_args", tuple(sorted(self.model_args, key=lambda pair: pair[0])))
        if self.batch_size % self.micro_batches:
            raise InputError(
                f"expected batch_size to be a multiple of micro_batches, got {self.batch_size} and "
                f"{self.micro_batches}; change one of them"
            )
        warmup, cooldown = self.schedule.warmup_epochs, self.schedule.cooldown_epochs
        if warmup + cooldown > self.epochs * (1 + _ROUNDING):
            raise InputError(
                f"expected schedule.warmup_epochs and schedule.cooldown_epochs to fit into the {self.epochs} epochs, "
                f"got {warmup:g} and {cooldown:g}; shorten them or train longer"
            )


def _check_model_args(arguments: tuple[tuple[str, ModelArgument], ...]) -> None:
    names = [name for name, _ in arguments]
    from_data = {"num_classes", "in_channels"} & set(names)
    if from_data or len(set(names)) < len(names):
        problem = "the data set determines num_classes and in_channels" if from_data else "each name counts once"
        raise InputError(f"expected other names in model_args, got {names}: {problem}; leave the extra ones out")
    for name, value in arguments:
        check_text("a name in model_args", name)
        if isinstance(value, str):
            check_text(f"{name} in model_args", value)
        elif not math.isfinite(value):
            raise InputError(f"expected {name} in model_args to be finite, got {value}; choose another value")


@dataclass(frozen=True)
class Runtime:
    """Where and how a run is computed.

    Attributes:
        device: ``auto`` (an accelerator if there is one) or ``cpu``.
        precision: precision of the forward pass under autocast; ``no``: float32.
        channels_last: use the channels-last memory format for images and kernels.
        compile: compile the model with ``torch.compile``.
        workers: processes that decode images on the fly.
        checkpoint_every: epochs between checkpoints; the last epoch always has one.
        traces: record what figures need: scalings and kernels over time, norms of logits and gradients, calibration.

    Raises:
        InputError: a setting is out of range.
    """

    device: Literal["auto", "cpu"] = "auto"
    precision: Literal["no", "bf16", "fp16"] = "no"
    channels_last: bool = False
    compile: bool = False
    workers: Annotated[int, Range(at_least=0, at_most=_MAX_WORKERS)] = 4
    checkpoint_every: Annotated[int, COUNT] = 1
    traces: bool = True

    def __post_init__(self) -> None:
        """Check the range of every setting."""
        check_settings(self, "runtime")


@dataclass(frozen=True)
class Run:
    """One run: a recipe, a method and a seed.

    Attributes:
        recipe: all settings except method and seed.
        method: ``plain`` or the methods' names joined by ``+``.
        seed: seed of initialisation, order and augmentation, from 0 to 2**32 - 1.

    Raises:
        InputError: the seed is out of range, or the method has ``sgs`` and its settings contradict each other
            (:meth:`SgsSettings.fixed_scaling`).
    """

    recipe: Recipe
    method: str = "plain"
    seed: Annotated[int, Range(at_least=0, below=SEEDS)] = 0

    def __post_init__(self) -> None:
        """Check the seed, and the settings that the method uses."""
        check_settings(self)
        if "sgs" in self.method.split("+"):
            self.recipe.sgs.fixed_scaling()

    def as_dict(self) -> dict[str, Any]:
        """Return the run as nested dictionaries of plain values, for JSON and checkpoints."""
        return dataclasses.asdict(self)
