"""DBB: the diverse branch block, as its authors built it and as the tables of DyRep and SGS did."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from backpass.errors import InputError
from backpass.reparam.block import MAIN, Branch, ReparamBlock
from backpass.reparam.branches import (
    ConvBranch,
    IdentityBranch,
    PointwiseAverageBranch,
    PointwiseConvBranch,
    scale_gammas,
)
from backpass.reparam.geometry import BatchNorm, ConvGeometry, LayerFactory

__all__ = ["DYREP_BRANCHES", "DiverseBranchBlock", "DyRepBlock"]

DYREP_BRANCHES = ("1x1", "1x1_kxk", "1x1_avg", MAIN, "1xk", "kx1", "id")
"""The branches that a :class:`DyRepBlock` can have, in the order of the published code."""


class DiverseBranchBlock(ReparamBlock):
    """Sum of a k x k, a 1x1, a 1x1-k x k and a 1x1-average branch (Ding et al., "DBB", CVPR 2021).

    ====================  ================================================================================
    ``kxk``               k x k convolution, normalisation
    ``1x1``               1x1 convolution, normalisation; not for a depthwise convolution
    ``1x1_kxk``           1x1 convolution, normalisation with border, k x k convolution, normalisation
    ``1x1_avg``           1x1 convolution, normalisation with border, average pooling, normalisation; for a
                          depthwise convolution only the last two
    ====================  ================================================================================

    The 1x1 convolution of ``1x1_kxk`` keeps the channels and starts as the identity; for a depthwise
    convolution it doubles them and is an ordinary one.

    Args:
        conv: the convolution to replace; k odd and above 1, ``padding == k // 2``, dilation 1, zero padding.
        norm: the normalisation that follows it; the ``kxk`` branch takes it over. Default: a new one.
        init: ``"default"``: all gammas 1, the paper's setting. ``"single"``: the last gamma of every branch but
            ``kxk`` is 0, so that the block equals ``conv`` and ``norm`` in eval mode.

    Raises:
        InputError: the convolution does not fit, or ``init`` is neither word.
    """

    name = "dbb"

    def __init__(
        self, conv: nn.Conv2d, norm: BatchNorm | None = None, *, init: Literal["default", "single"] = "default"
    ) -> None:
        layers = self.layers(conv, norm)
        geometry = layers.geometry
        mid = geometry.in_channels * (2 if geometry.depthwise else 1)
        branches: dict[str, Branch] = {MAIN: ConvBranch(layers, geometry.kernel_size)}
        if not geometry.depthwise:
            branches["1x1"] = ConvBranch(layers, (1, 1))
        branches["1x1_kxk"] = PointwiseConvBranch(layers, mid, around_identity=not geometry.depthwise)
        branches["1x1_avg"] = PointwiseAverageBranch(layers)
        scale_gammas(branches, 1.0, init)
        super().__init__(conv, norm, layers, branches)

    @classmethod
    def unsuitable(cls, geometry: ConvGeometry) -> str | None:
        """Return why the four branches do not fit; ``None`` if they do."""
        if geometry.dilation != (1, 1):
            return f"its dilation must be 1, got {geometry.dilation}"
        if reason := DyRepBlock.unsuitable(geometry):
            return reason
        if not geometry.centred:
            return f"its padding must be k // 2, got {geometry.padding}"
        return None


class DyRepBlock(ReparamBlock):
    """Sum of up to seven branches, the block of DyRep (Huang et al., CVPR 2022) and of the SGS tables' "DBB".

    The branches of :class:`DiverseBranchBlock`, with these differences: the ``kxk`` convolution has a bias, the
    first 1x1 convolution of ``1x1_kxk`` is an ordinary one and keeps the channels, ``1x1`` is there for
    depthwise convolutions as well; and three more: ``1xk`` and ``kx1`` convolutions and the identity ``id``.
    A branch that does not fit the convolution is left out: ``1x1``, ``1xk``, ``kx1`` and ``id`` need
    ``padding == dilation * (k // 2)``, ``id`` one shape of input and output, ``1x1_avg`` dilation 1
    (and for depthwise convolutions ``padding <= k // 2``, which is all that pooling allows).

    Args:
        conv: the convolution to replace; k odd and above 1, zero padding.
        norm: the normalisation that follows it; the ``kxk`` branch takes it over. Default: a new one.
        branches: which of ``DYREP_BRANCHES`` to have; ``kxk`` must be among them. The default is the fixed block
            of the tables.

    Raises:
        InputError: the convolution does not fit, or ``branches`` has an unknown name or lacks ``kxk``.
    """

    name = "dbb_dyrep"

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: BatchNorm | None = None,
        *,
        branches: Sequence[str] = ("1x1", "1x1_kxk", "1x1_avg", MAIN),
    ) -> None:
        if MAIN not in branches or not set(branches) <= set(DYREP_BRANCHES):
            raise InputError(
                f"branches must be names from {', '.join(DYREP_BRANCHES)}, {MAIN} among them, got {branches!r}."
            )
        layers = self.layers(conv, norm)
        present = [name for name in DYREP_BRANCHES if name in branches and _fits(name, layers.geometry)]
        super().__init__(conv, norm, layers, {name: _dyrep_branch(name, layers) for name in present})

    @classmethod
    def unsuitable(cls, geometry: ConvGeometry) -> str | None:
        """Return why not even the smallest set of branches fits; ``None`` if it does."""
        if not geometry.square_odd or geometry.kernel_size == (1, 1):
            return f"its kernel must be square, odd and above 1, got {geometry.kernel_size}"
        if geometry.padding_mode != "zeros":
            return f"its padding mode must be zeros, got {geometry.padding_mode}"
        return None

    def structure(self) -> dict[str, Any]:
        """Return the names of the branches that are present."""
        return {"branches": list(self.branches)}


def _fits(name: str, geometry: ConvGeometry) -> bool:
    if name in ("1x1", "1xk", "kx1"):
        return geometry.centred
    if name == "id":
        return geometry.keeps_shape
    if name == "1x1_avg":
        pools = not geometry.depthwise or max(geometry.padding) <= geometry.kernel_size[0] // 2
        return geometry.dilation == (1, 1) and pools
    return True


def _dyrep_branch(name: str, layers: LayerFactory) -> Branch:
    k = layers.geometry.kernel_size[0]
    match name:
        case "1x1_kxk":
            return PointwiseConvBranch(layers, layers.geometry.in_channels)
        case "1x1_avg":
            return PointwiseAverageBranch(layers)
        case "id":
            return IdentityBranch(layers)
        case _:
            sizes = {MAIN: (k, k), "1x1": (1, 1), "1xk": (1, k), "kx1": (k, 1)}
            return ConvBranch(layers, sizes[name], bias=name == MAIN)
