"""DBB: the diverse branch block as its authors built it (Ding et al., CVPR 2021)."""

from typing import Literal

from torch import nn

from backpass.reparam.blocks.batch_norm import BatchNorm
from backpass.reparam.blocks.block import MAIN, Branch, ReparamBlock
from backpass.reparam.blocks.branches import ConvBranch, PointwiseAverageBranch, PointwiseConvBranch, scale_gammas
from backpass.reparam.blocks.dbb_dyrep import DyRepBlock
from backpass.reparam.blocks.geometry import ConvGeometry

__all__ = ["DiverseBranchBlock"]


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
        InputError: the convolution does not fit, or ``init`` is neither of the two.
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
