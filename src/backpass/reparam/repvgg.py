"""RepVGG: 3x3, 1x1 and identity branches, and the weight decay of their sum (Ding et al., CVPR 2021)."""

from typing import Literal, cast

import torch
from torch import Tensor, nn

from backpass.errors import InputError
from backpass.reparam.block import MAIN, Branch, ReparamBlock
from backpass.reparam.branches import ConvBranch, IdentityBranch
from backpass.reparam.geometry import BatchNorm, ConvGeometry

__all__ = ["RepVGGBlock", "custom_l2", "custom_l2_kernels", "custom_l2_loss"]


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
        InputError: the kernel or the padding does not fit, or ``init`` is neither word.
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
            raise InputError(f'init must be "default" or "random", got {init!r}.')
        super().__init__(conv, norm, layers, branches)

    @classmethod
    def unsuitable(cls, geometry: ConvGeometry) -> str | None:
        """Return why a 1x1 convolution without padding does not fit beside it; ``None`` if it does."""
        if not geometry.square_odd or geometry.kernel_size == (1, 1):
            return f"its kernel must be square, odd and above 1, got {geometry.kernel_size}"
        if not geometry.centred:
            return f"its padding must be dilation * (k // 2), got {geometry.padding}"
        return None


def custom_l2(block: RepVGGBlock) -> Tensor:
    """Return the squared norm of the kernel that the two convolutions of ``block`` amount to, a scalar.

    With ``t = gamma / sigma`` of each branch (running statistics, detached, per output channel) and ``Kc`` the
    centre tap of the k x k kernel ``K``, ``K1`` the 1x1 kernel:
    ``sum(K**2) - sum(Kc**2) + sum((Kc * t3 + K1 * t1)**2 / (t3**2 + t1**2))``. The identity branch does not
    enter. This is the authors' code; in their later word the gain is insignificant.
    """
    main, point = cast(ConvBranch, block.main), cast(ConvBranch, block.branches["1x1"])
    kernel, pointwise = main.conv.weight, point.conv.weight
    centre_row, centre_column = (k // 2 for k in block.geometry.kernel_size)
    centre = kernel[:, :, centre_row : centre_row + 1, centre_column : centre_column + 1]
    t3, t1 = _scale(main.norm), _scale(point.norm)
    merged = (centre * t3 + pointwise * t1) ** 2 / (t3**2 + t1**2)
    return (kernel**2).sum() - (centre**2).sum() + merged.sum()


def custom_l2_loss(model: nn.Module, weight_decay: float) -> Tensor:
    """Return ``0.5 * weight_decay * sum of custom_l2`` over the RepVGG blocks of ``model``; add it to the loss.

    The parameters of :func:`custom_l2_kernels` should then have no ordinary weight decay.

    Raises:
        InputError: the model has no RepVGG block.
    """
    return 0.5 * weight_decay * torch.stack([custom_l2(block) for block in _blocks(model)]).sum()


def custom_l2_kernels(model: nn.Module) -> list[nn.Parameter]:
    """Return the kernels that :func:`custom_l2_loss` decays.

    Raises:
        InputError: the model has no RepVGG block.
    """
    branches = (block.branches[name] for block in _blocks(model) for name in (MAIN, "1x1"))
    return [cast(nn.Parameter, cast(ConvBranch, branch).conv.weight) for branch in branches]


def _blocks(model: nn.Module) -> list[RepVGGBlock]:
    blocks = [module for module in model.modules() if isinstance(module, RepVGGBlock)]
    if not blocks:
        raise InputError(
            f"the custom L2 needs RepVGG blocks, {type(model).__name__} has none; "
            'make them with reparameterize(model, "repvgg").'
        )
    return blocks


def _scale(norm: BatchNorm) -> Tensor:
    scale = norm.weight / torch.sqrt(cast(Tensor, norm.running_var) + norm.eps)
    return scale.detach().view(-1, 1, 1, 1)
