"""RepVGG: k x k, 1x1 and identity branches (Ding et al., CVPR 2021)."""

from typing import Literal

from torch import nn

from backpass.errors import InputError
from backpass.reparam.blocks.batch_norm import BatchNorm
from backpass.reparam.blocks.block import MAIN, Branch, ReparamBlock
from backpass.reparam.blocks.branches import ConvBranch, IdentityBranch
from backpass.reparam.blocks.geometry import ConvGeometry

__all__ = ["RepVGGBlock"]


class RepVGGBlock(ReparamBlock):
    """Sum of a k x k convolution, a 1x1 convolution and the identity, each with its own normalisation.

    The identity branch, a normalisation alone, exists where input and output have one shape. The activation
    that follows the sum in a RepVGG network stays outside.

    Args:
        conv: the convolution to replace; k odd and above 1, ``padding == dilation * (k // 2)``.
        norm: the normalisation that follows it; the k x k branch takes it over. Default: a new one.
        init: ``"default"``: gamma 1 and beta 0. ``"random"``: gamma drawn from N(0.1, 0.1) and beta from
            N(0, 0.1) (standard deviations), as timm does; those of ``norm`` multiply and add.

    Raises:
        InputError: the kernel or the padding does not fit, or ``init`` is neither of the two.
    """

    name = "repvgg"

    def __init__(
        self, conv: nn.Conv2d, norm: BatchNorm | None = None, *, init: Literal["default", "random"] = "default"
    ) -> None:
        layers = self.layers(conv, norm)
        branches: dict[str, Branch] = {
            MAIN: ConvBranch(layers, layers.geometry.kernel_size),
            "1x1": ConvBranch(layers, (1, 1)),
        }
        if layers.geometry.keeps_shape:
            branches["id"] = IdentityBranch(layers)
        if init == "random":
            for branch in branches.values():
                nn.init.normal_(branch.norm.weight, mean=0.1, std=0.1)
                nn.init.normal_(branch.norm.bias, mean=0.0, std=0.1)
        elif init != "default":
            raise InputError(f'expected init to be "default" or "random", got {init!r}; choose one of them')
        super().__init__(conv, norm, layers, branches)

    @classmethod
    def unsuitable(cls, geometry: ConvGeometry) -> str | None:
        """Return why a parallel 1x1 convolution without padding does not fit; ``None`` if it does."""
        if reason := super().unsuitable(geometry):
            return reason
        if not geometry.centred:
            return f"its padding must be dilation * (k // 2), got {geometry.padding}"
        return None
