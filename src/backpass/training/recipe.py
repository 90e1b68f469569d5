"""The settings of one training run, as plain typed data: the recipe, the runtime, and the run itself.

A recipe, a method and a seed determine the result; the runtime determines where and how fast it is computed.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from backpass._internal.settings import COUNT, POSITIVE, Range, check_settings
from backpass.errors import InputError
from backpass.training.augment import Augmentation
from backpass.training.data_settings import Argument, DataSettings, check_arguments
from backpass.training.method_settings import AgcSettings, DyRepSettings, PgtSettings, ReparamSettings, SgsSettings
from backpass.training.optimization_settings import OptimizerSettings, ScheduleName, ScheduleSettings
from backpass.training.stream import StreamAugmentation

__all__ = [
    "SEEDS",
    "STUDY",
    "AgcSettings",
    "Argument",
    "DataSettings",
    "DyRepSettings",
    "OptimizerSettings",
    "PgtSettings",
    "Recipe",
    "ReparamSettings",
    "Run",
    "Runtime",
    "ScheduleName",
    "ScheduleSettings",
    "SgsSettings",
    "WeightSettings",
]

SEEDS = 2**32
"""Number of seeds: Python, NumPy and PyTorch all take those below."""

STUDY = "study:"
"""Begins the source of weights that another run of the same study has trained."""

_ROUNDING = 1e-9  # Schedules that are shortened in proportion have lengths that are not exact.
_MAX_WORKERS = 1024


@dataclass(frozen=True)
class WeightSettings:
    """The trained weights that a model starts from.

    Attributes:
        source: a run folder, a file of safetensors, a file that ``torch.load(weights_only=True)`` reads, ``timm/NAME``
            or ``torchvision/NAME`` (downloaded by these libraries), or ``study:FOLDER``, the folder of another run of
            the same study; default: none.
        module: part of the model that takes the weights, such as ``backbone``; empty: the whole model.

    Raises:
        InputError: a setting is no text.
    """

    source: str | None = None
    module: str = ""

    def __post_init__(self) -> None:
        """Check both settings."""
        check_settings(self, "weights")

    @property
    def study_run(self) -> str | None:
        """Name of the folder of the run of the same study that trains the weights; ``None``: another source."""
        if self.source is None or not self.source.startswith(STUDY):
            return None
        return self.source.removeprefix(STUDY)


@dataclass(frozen=True)
class Recipe:
    """All settings of a run that determine its result, except the method and the seed.

    Attributes:
        task: ``classification``, ``segmentation``, ``keypoints``, or a class of your own by its import path,
            ``package.module:Class`` (:class:`backpass.training.Task`).
        task_args: arguments of the task, names and values in turn: ``--task-args auxiliary_weight 0.2``; in Python
            ``(("auxiliary_weight", 0.2),)``. Kept sorted by name.
        model: name of a model (:func:`backpass.models.list_models`), ``timm/NAME``, or a function of your own by its
            import path, ``package.module:function``, which takes ``num_classes`` and ``in_channels``.
        model_args: further arguments of :func:`backpass.models.create_model`, names and values in turn:
            ``--model-args zero_init_last False``; in Python ``(("zero_init_last", False),)``. Kept sorted by name.
            A recipe's stay with another ``--model``; ``--model-args`` alone gives none.
        weights: what the model starts from; default: freshly drawn weights.
        data: the images.
        epochs: passes over the training images.
        batch_size: images per optimizer step, over all processes.
        micro_batches: backward passes accumulated in one optimizer step, in each process.
        optimizer: the optimizer.
        schedule: the learning rate over time.
        augmentation: augmentation of training images that are held in memory.
        stream_augmentation: augmentation of training images that are decoded on the fly.
        label_smoothing: label smoothing of the training loss; a task of your own takes it as ``label_smoothing``.
        sync_batch_norm: batch statistics over all processes, where there are several; not on CPUs, as PyTorch's.
        clip_norm: bound on the norm of all gradients together; default: no bound.
        clip_before_scaling: clip the norm before SGS scales, as the SGS reference does; it is then no bound on the
            scaled gradients.
        sgs: settings of methods with ``sgs``.
        pgt: settings of methods with ``pgt``.
        agc: settings of methods with ``agc``.
        reparam: settings of ``acb``; ``repvgg``, ``dbb`` and ``dbb_dyrep`` have none.
        dyrep: settings of ``dyrep``.

    Raises:
        InputError: a setting is out of range, ``batch_size`` is not a multiple of ``micro_batches``, warm-up and
            cool-down are longer than the training, a milestone lies after the decay, arguments have a name twice, or
            ``model_args`` has one that the data set determines.
    """

    task: str = "classification"
    task_args: tuple[tuple[str, Argument], ...] = ()
    model: str = "digits_net"
    model_args: tuple[tuple[str, Argument], ...] = ()
    weights: WeightSettings = field(default_factory=WeightSettings)
    data: DataSettings = field(default_factory=DataSettings)
    epochs: Annotated[int, COUNT] = 200
    batch_size: Annotated[int, COUNT] = 128
    micro_batches: Annotated[int, COUNT] = 1
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    augmentation: Augmentation = field(default_factory=Augmentation)
    stream_augmentation: StreamAugmentation = field(default_factory=StreamAugmentation)
    label_smoothing: Annotated[float, Range(at_least=0, at_most=1)] = 0.0
    sync_batch_norm: bool = False
    clip_norm: Annotated[float, POSITIVE] | None = None
    clip_before_scaling: bool = False
    sgs: SgsSettings = field(default_factory=SgsSettings)
    pgt: PgtSettings = field(default_factory=PgtSettings)
    agc: AgcSettings = field(default_factory=AgcSettings)
    reparam: ReparamSettings = field(default_factory=ReparamSettings)
    dyrep: DyRepSettings = field(default_factory=DyRepSettings)

    def __post_init__(self) -> None:
        """Check the range of every setting and what belongs together; sort arguments."""
        check_settings(self)
        object.__setattr__(self, "task_args", check_arguments("task_args", self.task_args))
        object.__setattr__(self, "model_args", check_arguments("model_args", self.model_args))
        names = [name for name, _ in self.model_args]
        if {"num_classes", "in_channels"} & set(names):
            raise InputError(
                f"expected other names in model_args, got {names}: the data set determines num_classes and "
                "in_channels; leave the extra ones out"
            )
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
        end = self.epochs - cooldown
        if idle := [m for m in self.schedule.milestones if m >= self.epochs or m > end * (1 + _ROUNDING)]:
            raise InputError(
                f"expected schedule.milestones before epoch {end:g}, at which the decay ends, got "
                f"{', '.join(f'{milestone:g}' for milestone in idle)}; lower the milestones, leave them out for a step "
                "every schedule.step_epochs, or train longer"
            )


@dataclass(frozen=True)
class Runtime:
    """Where and how a run is computed.

    Attributes:
        device: ``auto``, an accelerator if there is one with float64 (CUDA; not MPS, that of a Mac), or ``cpu``.
        precision: precision of the forward pass under autocast; ``no``: float32.
        channels_last: use the channels-last memory format for images and kernels.
        compile: compile the model with ``torch.compile``.
        workers: processes that decode images on the fly.
        checkpoint_every: epochs between checkpoints; the last epoch always has one.
        evaluate_every: epochs between evaluations; the last epoch always has one.
        traces: record what figures need: scalings and kernels over time, norms of logits and gradients, calibration.
        tracker: tracker that receives metrics and scalings, in the run folder unless it names a server; default: none.

    Raises:
        InputError: a setting is out of range.
    """

    device: Literal["auto", "cpu"] = "auto"
    precision: Literal["no", "bf16", "fp16"] = "no"
    channels_last: bool = False
    compile: bool = False
    workers: Annotated[int, Range(at_least=0, at_most=_MAX_WORKERS)] = 4
    checkpoint_every: Annotated[int, COUNT] = 1
    evaluate_every: Annotated[int, COUNT] = 1
    traces: bool = True
    tracker: Literal["tensorboard", "wandb", "mlflow"] | None = None

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
