"""RepVGG's custom L2: weight decay of the kernel that a block amounts to (Ding et al., CVPR 2021, supplement)."""

from typing import cast

import torch
from torch import Tensor, nn

from backpass.errors import InputError
from backpass.reparam.blocks.batch_norm import scale_of
from backpass.reparam.blocks.block import MAIN
from backpass.reparam.blocks.branches import ConvBranch
from backpass.reparam.blocks.repvgg import RepVGGBlock

__all__ = ["custom_l2", "custom_l2_kernels", "custom_l2_loss"]


def custom_l2(block: RepVGGBlock) -> Tensor:
    """Return the squared norm of the kernel that the two convolutions of ``block`` amount to, a scalar.

    With ``t = gamma / sigma`` of each branch (running statistics, detached, per output channel) and ``Kc`` the
    centre tap of the k x k kernel ``K``, ``K1`` the 1x1 kernel:
    ``sum(K**2) - sum(Kc**2) + sum((Kc * t3 + K1 * t1)**2 / (t3**2 + t1**2))``, where an output channel with
    ``t3 = t1 = 0`` adds 0 to the last sum. The identity branch is not included. This is the authors' code; they have
    since called the gain insignificant.
    """
    main, point = cast(ConvBranch, block.main), cast(ConvBranch, block.branches["1x1"])
    kernel, pointwise = main.conv.weight, point.conv.weight
    centre_row, centre_column = (k // 2 for k in block.geometry.kernel_size)
    centre = kernel[:, :, centre_row : centre_row + 1, centre_column : centre_column + 1]
    t3, t1 = (scale_of(branch.norm).view(-1, 1, 1, 1) for branch in (main, point))
    # A residual that starts at zero has t3 = t1 = 0: its centre tap counts as 0 instead of 0 / 0.
    scale = (t3**2 + t1**2).clamp(min=torch.finfo(t3.dtype).tiny)
    merged = (centre * t3 + pointwise * t1) ** 2 / scale
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
            f"expected a model with RepVGG blocks, got {type(model).__name__} without any; make them with "
            'reparameterize(model, "repvgg")'
        )
    return blocks
