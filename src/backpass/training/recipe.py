"""What one training run is made of, as plain typed data: the recipe, the runtime, and the run itself.

A recipe says everything that decides the result; the runtime says where and how fast it is computed.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from backpass.errors import InputError
from backpass.sgs import alpha_beta_scaling, normalize, scaling_from_branches
from backpass.training.augment import Augmentation
from backpass.training.stream import StreamAugmentation

__all__ = [
    "AgcSettings",
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
]

OptimizerName = Literal["sgd", "adadelta", "adagrad", "adam", "adamax", "adamw", "nadam", "radam"]
ScheduleName = Literal["cosine", "step"]


@dataclass(frozen=True)
class DataSettings:
    """Which images a run sees.

    Attributes:
        name: ``digits``, ``cifar10``, ``cifar100``, ``imagenet:PATH`` or ``folder:PATH``.
        root: where torchvision's data sets lie or go.
        download: fetch ``cifar10`` or ``cifar100`` when missing.
        validation: share of the training images to hold out and to evaluate in the place of the test images.
        limit_train: train on this many images only, drawn stratified with a fixed seed.
        limit_test: evaluate on this many images only, likewise.
        label: what results call the data; default: the data set's own name.
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
    """The optimizer and its arguments; what is not named here has PyTorch's default.

    Attributes:
        name: the class of ``torch.optim``, in lower case.
        lr: peak learning rate.
        momentum: of SGD; the other optimizers have their own and leave it aside.
        nesterov: of SGD; refused with another optimizer.
        weight_decay: part of the gradient (L2), for AdamW apart from it.
        decay_norm_and_bias: whether 1-D parameters (norms, biases) decay as well.
    """

    name: OptimizerName = "sgd"
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    decay_norm_and_bias: bool = True


@dataclass(frozen=True)
class ScheduleSettings:
    """The learning rate over time: a linear warm-up to the peak, a way down, and a cool-down that stays at its end.

    Attributes:
        name: the way down: half a cosine wave, or steps.
        final_lr: where the cosine ends.
        warmup_epochs: length of the warm-up.
        cooldown_epochs: length of the cool-down; the last of the recipe's epochs, not more of them.
        step_epochs: epochs from one step to the next, counted from the start of training.
        step_factor: what each step multiplies the rate with.
    """

    name: ScheduleName = "cosine"
    final_lr: float = 1e-6
    warmup_epochs: float = 0.0
    cooldown_epochs: float = 0.0
    step_epochs: float = 30.0
    step_factor: float = 0.1


@dataclass(frozen=True)
class SgsSettings:
    """Arguments of :class:`backpass.SpatialGradientScaling`, and a fixed scaling if there is to be one.

    Attributes:
        k: strength of a measured scaling.
        measure: what is measured.
        warmup: first epoch that measures.
        every: epochs between later measurements.
        batches: number of batches that one update measures.
        drop_near_equal: leave pairs out that hold a zero or share a bin.
        apply: what is scaled.
        alpha: of the edge taps of 3x3 kernels, with ``beta``: fixes the scaling, and nothing is measured.
        beta: of their corner taps; the centre has 1 (SGS paper, Figure 7).
        branches: kernel sizes such as ``3x3 1x3 3x1`` (ACB): fixes the scaling to that which training these branches
            amounts to (SGS paper, Lemma 1). Kernels of another size than the largest stay unscaled.
    """

    k: float = 5.0
    measure: Literal["mutual_information", "autocorrelation"] = "mutual_information"
    warmup: int = 1
    every: int = 5
    batches: int = 2
    drop_near_equal: bool = False
    apply: Literal["gradient", "update"] = "gradient"
    alpha: float | None = None
    beta: float | None = None
    branches: tuple[str, ...] = ()

    def fixed_scaling(self) -> Tensor | None:
        """Return the scaling, of mean 1, that takes the place of measured ones; ``None``: scalings are measured.

        Raises:
            InputError: one of ``alpha`` and ``beta`` without the other, both ways to fix a scaling at once, one of them
                with a ``k`` or a ``measure`` other than the default, or values out of range.

        >>> SgsSettings(branches=("3x3", "1x3", "3x1")).fixed_scaling()
        tensor([[0.6000, 1.2000, 0.6000],
                [1.2000, 1.8000, 1.2000],
                [0.6000, 1.2000, 0.6000]])
        """
        if self.alpha is None and self.beta is None and not self.branches:
            return None
        measuring = {"k": self.k, "measure": self.measure}
        if idle := {name: value for name, value in measuring.items() if value != getattr(SgsSettings, name)}:
            raise InputError(
                "expected a fixed scaling (sgs.alpha and sgs.beta, or sgs.branches) or a measured one, got both; "
                "leave out " + ", ".join(f"sgs.{name}={value!r}" for name, value in idle.items())
            )
        if not self.branches and self.alpha is not None and self.beta is not None:
            return alpha_beta_scaling(self.alpha, self.beta)
        if self.branches and self.alpha is None and self.beta is None:
            return normalize(scaling_from_branches(self.branches))
        raise InputError(
            "expected sgs.alpha and sgs.beta together, or sgs.branches without them, got "
            f"sgs.alpha={self.alpha!r}, sgs.beta={self.beta!r}, sgs.branches={self.branches!r}"
        )


@dataclass(frozen=True)
class PgtSettings:
    """The exponent of :func:`backpass.power_grad_cross_entropy`."""

    alpha: float = 0.3


@dataclass(frozen=True)
class AgcSettings:
    """Arguments of :func:`backpass.adaptive_clip_grad_`."""

    clip_factor: float = 0.01
    eps: float = 1e-3
    head: str | None = "auto"


@dataclass(frozen=True)
class ReparamSettings:
    """Options of the branched blocks (:func:`backpass.reparam.reparameterize`).

    Attributes:
        acb_gamma: initial gamma of all branches of ``acb``: 1/3 on CIFAR, as its authors advise; 1 on ImageNet.
    """

    acb_gamma: float = 1 / 3


@dataclass(frozen=True)
class DyRepSettings:
    """Arguments of :class:`backpass.reparam.DyRep`; the defaults are those of the published CIFAR settings."""

    every: int = 15
    until: int = 500
    metric: Literal["synflow", "snip", "grad_norm", "random"] = "synflow"
    recalibration_batches: int = 20


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result of a run, except the method and the seed.

    Attributes:
        model: a name of :func:`backpass.models.list_models`, or ``timm/NAME``.
        data: the images.
        epochs: passes over the training images.
        batch_size: images per optimizer step, over all processes.
        micro_batches: backward passes that one step accumulates.
        optimizer: the optimizer.
        schedule: the learning rate over time.
        augmentation: random changes of training images that are held in memory.
        stream_augmentation: the same for images that are decoded in passing.
        label_smoothing: of the training loss.
        clip_norm: bound on the norm of all gradients together; ``None``: none.
        clip_before_scaling: clip first and scale after, as the SGS reference does; the clipped norm is no bound then.
        sgs: used by methods with ``sgs``.
        pgt: used by methods with ``pgt``.
        agc: used by methods with ``agc``.
        reparam: used by ``acb``, ``repvgg``, ``dbb`` and ``dbb_dyrep``.
        dyrep: used by ``dyrep``.
    """

    model: str = "digits_net"
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
        """Refuse counts that make no run."""
        for name in ("epochs", "batch_size", "micro_batches"):
            if getattr(self, name) < 1:
                raise InputError(f"expected {name} to be at least 1, got {getattr(self, name)}")
        if self.batch_size % self.micro_batches:
            raise InputError(
                f"expected batch_size to be a multiple of micro_batches, got {self.batch_size} and {self.micro_batches}"
            )


@dataclass(frozen=True)
class Runtime:
    """Where and how a run is computed.

    Attributes:
        device: ``auto`` (an accelerator if there is one) or ``cpu``.
        precision: autocast of the forward pass.
        channels_last: memory format of images and convolution kernels.
        compile: run the model through ``torch.compile``.
        workers: processes that decode streamed images.
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
    """One cell of an experiment: a recipe, a method and a seed.

    Raises:
        InputError: the method has ``sgs``, and its settings contradict each other
            (:meth:`SgsSettings.fixed_scaling`).
    """

    recipe: Recipe
    method: str = "plain"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings that the method cannot work with, before anything is computed."""
        if "sgs" in self.method.split("+"):
            self.recipe.sgs.fixed_scaling()

    def as_dict(self) -> dict[str, Any]:
        """Return the run as nested dictionaries of plain values, for JSON and checkpoints."""
        return dataclasses.asdict(self)
