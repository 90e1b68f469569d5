"""The settings of one training run, as plain typed data: the recipe, the runtime, and the run itself.

A recipe, a method and a seed determine the result; the runtime determines where and how fast it is computed.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

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
    """

    name: str = "digits"
    root: str | None = None
    download: bool = False
    validation: float = 0.0
    limit_train: int | None = None
    limit_test: int | None = None
    label: str | None = None
    image_size: int | None = None


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
    """

    name: OptimizerName = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay_norm_and_bias: bool = True


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
    """

    name: ScheduleName = "cosine"
    final_lr: float = 1e-6
    warmup_epochs: float = 0.0
    cooldown_epochs: float = 0.0
    step_epochs: float = 30.0
    step_factor: float = 0.1


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
        InputError: a count is below 1, ``batch_size`` is not a multiple of ``micro_batches``, or ``model_args`` has a
            name twice or one that the data set determines.
    """

    model: str = "digits_net"
    model_args: tuple[tuple[str, ModelArgument], ...] = ()
    data: DataSettings = field(default_factory=DataSettings)
    epochs: int = 200
    batch_size: int = 128
    micro_batches: int = 1
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    augmentation: Augmentation = field(default_factory=Augmentation)
    stream_augmentation: StreamAugmentation = field(default_factory=StreamAugmentation)
    label_smoothing: float = 0.0
    clip_norm: float | None = None
    clip_before_scaling: bool = False
    sgs: SgsSettings = field(default_factory=SgsSettings)
    pgt: PgtSettings = field(default_factory=PgtSettings)
    agc: AgcSettings = field(default_factory=AgcSettings)
    reparam: ReparamSettings = field(default_factory=ReparamSettings)
    dyrep: DyRepSettings = field(default_factory=DyRepSettings)

    def __post_init__(self) -> None:
        """Refuse counts below one and arguments of the model that are given twice; sort those arguments."""
        names = [name for name, _ in self.model_args]
        from_data = {"num_classes", "in_channels"} & set(names)
        if from_data or len(set(names)) < len(names):
            problem = "the data set determines num_classes and in_channels" if from_data else "each name counts once"
            raise InputError(f"expected other names in model_args, got {names}: {problem}; leave the extra ones out")
        # Equal recipes compare equal, in whatever order the arguments were given.
        object.__setattr__(self, "model_args", tuple(sorted(self.model_args, key=lambda pair: pair[0])))
        for name in ("epochs", "batch_size", "micro_batches"):
            if getattr(self, name) < 1:
                raise InputError(f"expected {name} to be at least 1, got {getattr(self, name)}; raise it")
        if self.batch_size % self.micro_batches:
            raise InputError(
                f"expected batch_size to be a multiple of micro_batches, got {self.batch_size} and "
                f"{self.micro_batches}; change one of them"
            )


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
    """

    device: Literal["auto", "cpu"] = "auto"
    precision: Literal["no", "bf16", "fp16"] = "no"
    channels_last: bool = False
    compile: bool = False
    workers: int = 4
    checkpoint_every: int = 1


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
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the seed, and the settings that the method uses."""
        if not 0 <= self.seed < SEEDS:
            raise InputError(f"expected a seed from 0 to {SEEDS - 1}, got {self.seed}; choose another")
        if "sgs" in self.method.split("+"):
            self.recipe.sgs.fixed_scaling()

    def as_dict(self) -> dict[str, Any]:
        """Return the run as nested dictionaries of plain values, for JSON and checkpoints."""
        return dataclasses.asdict(self)
