"""ACB: the asymmetric convolution block (Ding et al., "ACNet", ICCV 2019)."""

from typing import Literal

from torch import nn

from backpass.reparam.blocks.batch_norm import BatchNorm
from backpass.reparam.blocks.block import MAIN, Branch, ReparamBlock
from backpass.reparam.blocks.branches import ConvBranch, scale_gammas

__all__ = ["ACBlock"]


class ACBlock(ReparamBlock):
    """Sum of a k x k, a k x 1 and a 1 x k convolution, each with its own normalisation.

    All share stride, dilation, groups and padding mode, and the asymmetric ones are aligned with the centre
    column and row of the square one: along the axis where the kernel has one tap, the padding is
    ``p - d * (k // 2)``, and the input is cropped where that is negative.

    Args:
        conv: the convolution to replace; k odd and above 1.
        norm: the normalisation that follows it; the square branch takes it over. Default: a new one.
        gamma: factor on the gammas of all branches; 1 on ImageNet, 1/3 on CIFAR is the authors' advice.
        init: ``"default"`` starts all branches alike; ``"single"`` starts the square one with factor 1 and the others
            with 0, whatever ``gamma`` is, so that the block equals ``conv`` and ``norm`` in eval mode.

    Raises:
        InputError: the kernel is not square and odd, or is 1x1.
    """

    name = "acb"

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: BatchNorm | None = None,
        *,
        gamma: float = 1.0,
        init: Literal["default", "single"] = "default",
    ) -> None:
        layers = self.layers(conv, norm)
        k = layers.geometry.kernel_size[0]
        sizes = {MAIN: (k, k), "kx1": (k, 1), "1xk": (1, k)}
        branches: dict[str, Branch] = {name: ConvBranch(layers, size) for name, size in sizes.items()}
        scale_gammas(branches, gamma, init)
        super().__init__(conv, norm, layers, branches)
