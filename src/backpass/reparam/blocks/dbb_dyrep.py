"""The diverse branch block of DyRep (Huang et al., CVPR 2022), called "DBB" in the tables of DyRep and SGS."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from backpass.errors import InputError
from backpass.reparam.blocks.batch_norm import BatchNorm
from backpass.reparam.blocks.block import MAIN, Branch, ReparamBlock
from backpass.reparam.blocks.branches import ConvBranch, IdentityBranch, PointwiseAverageBranch, PointwiseConvBranch
from backpass.reparam.blocks.geometry import ConvGeometry
from backpass.reparam.blocks.layers import LayerFactory

__all__ = ["DYREP_BRANCHES", "DyRepBlock"]

DYREP_BRANCHES = ("1x1", "1x1_kxk", "1x1_avg", MAIN, "1xk", "kx1", "id")
"""The branches that a :class:`DyRepBlock` can have, in the order of the published code."""


class DyRepBlock(ReparamBlock):
    """Sum of up to seven branches, the block of DyRep (Huang et al., CVPR 2022) and of the SGS tables' "DBB".

    The branches of :class:`~backpass.reparam.DiverseBranchBlock`, with these differences: the ``kxk`` convolution has
    a bias, the first 1x1 convolution of ``1x1_kxk`` is an ordinary one and keeps the channels, depthwise convolutions
    have ``1x1`` as well; and three more: ``1xk`` and ``kx1`` convolutions and the identity ``id``.
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
                f"expected branches to be names from {', '.join(DYREP_BRANCHES)}, {MAIN} among them, got {branches!r}; "
                "correct the names"
            )
        layers = self.layers(conv, norm)
        present = [name for name in DYREP_BRANCHES if name in branches and _fits(name, layers.geometry)]
        super().__init__(conv, norm, layers, {name: _dyrep_branch(name, layers) for name in present})

    @classmethod
    def unsuitable(cls, geometry: ConvGeometry) -> str | None:
        """Return why not even the smallest set of branches fits; ``None`` if it does."""
        if reason := super().unsuitable(geometry):
            return reason
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
