"""Branched blocks written out from their papers, in float64, on full k x k kernels and by hand.

Every branch is one convolution with the kernel zero-padded to the block's size, so that alignment, cropping
and padding of small kernels are decided here by the algebra of zeros and nowhere else.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def normalise(x: Tensor, norm: nn.Module, training: bool) -> Tensor:
    """Batch normalisation from its definition; in training with the batch's own mean and variance."""
    x = x.double()
    mean = x.mean((0, 2, 3)) if training else norm.running_mean.double()
    var = x.var((0, 2, 3), unbiased=False) if training else norm.running_var.double()
    column = (1, -1, 1, 1)
    centred = (x - mean.view(column)) / torch.sqrt(var.view(column) + norm.eps)
    return centred * norm.weight.double().view(column) + norm.bias.double().view(column)


def full_kernel(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """The kernel put tap by tap into the middle of zeros."""
    out = torch.zeros(*weight.shape[:2], *size, dtype=torch.float64)
    top, left = (size[0] - weight.shape[2]) // 2, (size[1] - weight.shape[3]) // 2
    for h in range(weight.shape[2]):
        for w in range(weight.shape[3]):
            out[:, :, top + h, left + w] = weight[:, :, h, w].double()
    return out


def convolve(x: Tensor, weight: Tensor, geometry, bias: Tensor | None = None) -> Tensor:
    """The block's convolution with ``weight`` in the middle of its kernel, padding mode included."""
    rows, columns = geometry.padding
    mode = "constant" if geometry.padding_mode == "zeros" else geometry.padding_mode
    padded = F.pad(x.double(), (columns, columns, rows, rows), mode=mode)
    return F.conv2d(
        padded,
        full_kernel(weight, geometry.kernel_size),
        None if bias is None else bias.double(),
        stride=geometry.stride,
        dilation=geometry.dilation,
        groups=geometry.groups,
    )


def depthwise(geometry) -> bool:
    """Whether every channel is convolved with itself alone."""
    return geometry.groups == geometry.in_channels == geometry.out_channels


def identity_weight(geometry) -> Tensor:
    """The 1x1 kernel that passes every channel on, group by group."""
    per_group = geometry.in_channels // geometry.groups
    weight = torch.zeros(geometry.in_channels, per_group, 1, 1, dtype=torch.float64)
    for channel in range(geometry.in_channels):
        weight[channel, channel % per_group] = 1.0
    return weight


def convolution_branch(x: Tensor, branch: nn.Module, geometry, training: bool) -> Tensor:
    """Convolution and normalisation."""
    return normalise(convolve(x, branch.conv.weight, geometry, branch.conv.bias), branch.norm, training)


def identity_branch(x: Tensor, branch: nn.Module, geometry, training: bool) -> Tensor:
    """The identity as a convolution, and normalisation."""
    return normalise(convolve(x, identity_weight(geometry), geometry), branch.norm, training)


def bordered(x: Tensor, branch: nn.Module, weight: Tensor, geometry, training: bool) -> Tensor:
    """1x1 convolution and normalisation inside, the normalised zero of the running statistics around it."""
    inside = normalise(F.conv2d(x.double(), weight, groups=geometry.groups), branch.pad.norm, training)
    norm = branch.pad.norm
    zero = normalise(torch.zeros(1, len(norm.weight), 1, 1, dtype=torch.float64), norm, training=False)
    rows, columns = geometry.padding
    n, c, h, w = inside.shape
    out = zero.expand(n, c, h + 2 * rows, w + 2 * columns).clone()
    out[:, :, rows : rows + h, columns : columns + w] = inside
    return out


def chained_branch(x: Tensor, branch: nn.Module, geometry, training: bool, around_identity: bool) -> Tensor:
    """1x1 convolution (plus identity), normalisation with border, k x k convolution, normalisation."""
    weight = branch.pointwise.weight.double()
    if around_identity:
        weight = weight + identity_weight(geometry)
    middle = bordered(x, branch, weight, geometry, training)
    out = F.conv2d(middle, branch.conv.weight.double(), stride=geometry.stride, dilation=geometry.dilation,
                   groups=geometry.groups)  # fmt: skip
    return normalise(out, branch.norm, training)


def average_branch(x: Tensor, branch: nn.Module, geometry, training: bool) -> Tensor:
    """1x1 convolution, normalisation with border, mean over k x k windows, normalisation; or the last two."""
    if depthwise(geometry):
        rows, columns = geometry.padding
        middle = F.pad(x.double(), (columns, columns, rows, rows))
    else:
        middle = bordered(x, branch, branch.pointwise.weight.double(), geometry, training)
    (kh, kw), (sh, sw) = geometry.kernel_size, geometry.stride
    out = middle.unfold(2, kh, sh).unfold(3, kw, sw).mean((-1, -2))
    return normalise(out, branch.norm, training)


def block_output(x: Tensor, block: nn.Module, training: bool) -> Tensor:
    """The sum of a block's branches, told apart by their names."""
    total = torch.zeros((), dtype=torch.float64)
    for name, branch in block.branches.items():
        if name == "1x1_kxk":
            around_identity = block.name == "dbb" and not depthwise(block.geometry)
            out = chained_branch(x, branch, block.geometry, training, around_identity)
        elif name == "1x1_avg":
            out = average_branch(x, branch, block.geometry, training)
        elif name == "id":
            out = identity_branch(x, branch, block.geometry, training)
        else:
            out = convolution_branch(x, branch, block.geometry, training)
        total = total + out
    return total
