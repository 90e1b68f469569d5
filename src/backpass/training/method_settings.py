"""The settings of each method, as plain typed data."""

from dataclasses import dataclass
from typing import Annotated, Literal

from torch import Tensor

from backpass._internal.settings import COUNT, POSITIVE, Range, check_settings
from backpass.errors import InputError
from backpass.sgs import alpha_beta_scaling, normalize, scaling_from_branches

__all__ = ["AgcSettings", "DyRepSettings", "PgtSettings", "ReparamSettings", "SgsSettings"]


@dataclass(frozen=True)
class SgsSettings:
    """Arguments of :class:`backpass.SpatialGradientScaling`, and a fixed scaling, if any.

    Attributes:
        k: constant k of a measured scaling; smaller is stronger, a large one approaches plain training.
        measure: measure of dependence between neighbouring pixels.
        warmup: epoch of the first measurement.
        every: epochs between later measurements.
        batches: batches per measurement.
        drop_near_equal: ignore pairs of pixels that hold a zero or share a bin, as for ImageNet.
        dilation: measure dilated convolutions at the distances of their taps, or ignore it, as the published estimator.
        apply: scale the gradient, or the optimizer's update.
        alpha: fixed scaling of 3x3 kernels, together with beta: the centre is 1, edges are 1/alpha, corners 1/beta, up
            to a factor (SGS paper, Figure 7); nothing is measured.
        beta: see alpha.
        branches: fixed scaling that amounts to training with these branches, such as 3x3 1x3 3x1 for ACB (SGS paper,
            Lemma 1); nothing is measured, and kernels of another size than the largest branch stay unscaled.

    Raises:
        InputError: a setting is out of range.
    """

    k: Annotated[float, POSITIVE] = 5.0
    measure: Literal["mutual_information", "autocorrelation"] = "mutual_information"
    warmup: Annotated[int, Range(at_least=0)] = 1
    every: Annotated[int, COUNT] = 5
    batches: Annotated[int, COUNT] = 2
    drop_near_equal: bool = False
    dilation: Literal["measured", "ignored"] = "measured"
    apply: Literal["gradient", "update"] = "gradient"
    alpha: Annotated[float, POSITIVE] | None = None
    beta: Annotated[float, POSITIVE] | None = None
    branches: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the range of every setting."""
        check_settings(self, "sgs")

    def fixed_scaling(self) -> Tensor | None:
        """Return the fixed scaling, of mean 1, or ``None`` if scalings are measured.

        Raises:
            InputError: ``alpha`` without ``beta`` or the reverse, both of them with ``branches``, a fixed scaling with
                a ``k`` or a ``measure`` other than the default, or values out of range.

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
            f"sgs.alpha={self.alpha!r}, sgs.beta={self.beta!r}, sgs.branches={self.branches!r}; "
            "leave one of the two out"
        )


@dataclass(frozen=True)
class PgtSettings:
    """Arguments of :func:`backpass.power_grad_cross_entropy`.

    Attributes:
        alpha: exponent of the predicted probabilities in the backward pass; 1 is plain cross-entropy.

    Raises:
        InputError: a setting is out of range.
    """

    alpha: Annotated[float, POSITIVE] = 0.3

    def __post_init__(self) -> None:
        """Check the range of every setting."""
        check_settings(self, "pgt")


@dataclass(frozen=True)
class AgcSettings:
    """Arguments of :func:`backpass.adaptive_clip_grad_`.

    Attributes:
        clip_factor: largest ratio of the norm of a unit's gradient to the norm of its weights.
        eps: smallest norm of a unit's weights in that ratio.
        head: module that is not clipped; auto: the last linear layer.

    Raises:
        InputError: a setting is out of range.
    """

    clip_factor: Annotated[float, POSITIVE] = 0.01
    eps: Annotated[float, POSITIVE] = 1e-3
    head: str | None = "auto"

    def __post_init__(self) -> None:
        """Check the range of every setting."""
        check_settings(self, "agc")


@dataclass(frozen=True)
class ReparamSettings:
    """Options of the branched blocks (:func:`backpass.reparam.reparameterize`).

    Attributes:
        acb_gamma: initial gamma of all branches of acb: 1/3, as its authors advise on CIFAR; they use 1 on ImageNet.

    Raises:
        InputError: a setting is out of range.
    """

    acb_gamma: Annotated[float, POSITIVE] = 1 / 3

    def __post_init__(self) -> None:
        """Check the range of every setting."""
        check_settings(self, "reparam")


@dataclass(frozen=True)
class DyRepSettings:
    """Arguments of :class:`backpass.reparam.DyRep`; the defaults are the published settings for CIFAR.

    Attributes:
        every: epochs between adjustments of the structure.
        until: epoch after which the structure is fixed.
        metric: score by which a convolution is chosen to grow.
        recalibration_batches: batches that set the statistics of a new block's normalisations.

    Raises:
        InputError: a setting is out of range.
    """

    every: Annotated[int, COUNT] = 15
    until: Annotated[int, Range(at_least=0)] = 500
    metric: Literal["synflow", "snip", "grad_norm", "random"] = "synflow"
    recalibration_batches: Annotated[int, COUNT] = 20

    def __post_init__(self) -> None:
        """Check the range of every setting."""
        check_settings(self, "dyrep")
